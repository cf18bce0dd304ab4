// The live view on a Train LoRA node.
import { addViewWidget, after, passOnToCanvas } from "./node_widgets.mjs";
import { MIN_HEIGHT, RunView } from "./run_view.mjs";

const TITLE = "Train LoRA"; // of notifications
const HEIGHT = 600; // pixels of a new node

/**
 * Adds the view to a Train LoRA node.
 * @param {import("./kiln.js").Page} page
 * @param {import("./live_runs.mjs").LiveRuns} runs
 */
export function addRunView(node, page, runs) {
  const view = new RunView({
    urlOf: (path) => page.server.url(path),
    send: (run, action, value) => control(page, run, action, value),
    fetchPictures: (run) => fetchPictures(page.server, run),
  });
  addViewWidget(node, "kiln_run", view.root, MIN_HEIGHT);
  passOnToCanvas(view.root, page.canvas);
  runs.add(node, view);
  after(node, "onRemoved", () => {
    view.remove();
    runs.remove(node);
  });
  node.setSize([node.size[0], Math.max(node.size[1], HEIGHT)]);
}

/** Sends a control action of a run, such as "pause". Resolves to whether the server took it; a refusal is notified. */
export async function control({ server, notify }, run, action, value) {
  const { run: id = "", prompt_id, node_id } = run;
  try {
    await server.post("/kiln/run/control", { run: id, prompt_id, node_id, action, value });
  } catch (error) {
    notify("error", TITLE, error.message);
    return false;
  }
  if (value !== undefined) notify("success", TITLE, "The run goes on with it.");
  return true;
}

/** The training pictures of a run with their losses. */
export async function fetchPictures(server, run) {
  const { pictures } = await server.get("/kiln/run/pictures", { run: run.run ?? "" });
  return pictures ?? [];
}
