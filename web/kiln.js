// Wiring between the page and the nodes: which node shows which run, and the server's answers. No drawing here.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { ComparisonView, MIN_HEIGHT as COMPARISON_HEIGHT } from "./comparison.mjs";
import { addDatasetView } from "./dataset.mjs";
import { after, element, hideOwnPreview, keepWidth, loadStylesheet, setText } from "./dom.mjs";
import { RunStore, nodePaths, workflowId } from "./run_store.mjs";
import { MIN_HEIGHT, RunView } from "./run_view.mjs";
import { Server } from "./server.mjs";

const TRAIN = "KilnTrainLoRA";
const CONFIG = "KilnLoRAConfig";
const WIDTH = 400;
const TRAIN_HEIGHT = 600;
const TEXT_HEIGHT = 72;
const SAVED_HEIGHT = 48;
const ALWAYS = 0; // the mode of a node that is neither muted nor bypassed
const LARGEST_SEED = Number.MAX_SAFE_INTEGER;
const SILENCE = 10_000; // milliseconds without a message of a run that goes on, after which the server is asked

await loadStylesheet(new URL("./kiln.css", import.meta.url)); // before any view is made, so that none is seen unstyled

const store = new RunStore();
const views = new Map(); // node -> its RunView
const comparisons = new Map(); // node -> its ComparisonView
const shows = new Map(); // node -> shows an output of it
let heardAt = 0;
let presets = {};

// ---------------------------------------------------------------- the live view of Train LoRA

const rootGraph = () => app.rootGraph ?? app.graph;

const server = new Server(api);

const runHost = {
  urlOf: (path) => server.url(path),

  async send(run, action, value) {
    const { run: id = "", prompt_id, node_id } = run;
    try {
      await server.post("/kiln/run/control", { run: id, prompt_id, node_id, action, value });
    } catch (error) {
      toast("error", error.message);
      return false;
    }
    if (value !== undefined) toast("success", "The run goes on with it.");
    return true;
  },

  async fetchPictures(run) {
    const { pictures } = await server.get("/kiln/run/pictures", { run: run.run ?? "" });
    return pictures ?? [];
  },
};

function toast(severity, detail, summary = "Train LoRA") {
  app.extensionManager.toast.add({ severity, summary, detail, life: severity === "success" ? 3000 : 10_000 });
}

function addRunView(node) {
  const view = new RunView(runHost);
  const widget = node.addDOMWidget("kiln_run", "KILN_RUN", view.root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MIN_HEIGHT,
  });
  widget.serialize = false;
  keepWidth(widget);
  passOnToCanvas(view.root);
  views.set(node, view);
  const onRemoved = node.onRemoved;
  node.onRemoved = function () {
    view.remove();
    views.delete(node);
    onRemoved?.apply(this, arguments);
  };
  node.setSize([node.size[0], Math.max(node.size[1], TRAIN_HEIGHT)]);
}

/** The wheel and the middle button over the view move the graph, unless a list in it has the focus. */
function passOnToCanvas(root) {
  root.addEventListener("wheel", (event) => {
    if (event.target.closest("[data-capture-wheel]")?.contains(document.activeElement)) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
  const passOn = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
  for (const [type, method] of Object.entries(passOn)) {
    root.addEventListener(type, (event) => {
      const isMiddle = type === "pointermove" ? event.buttons & 4 : event.button === 1;
      if (isMiddle) app.canvas[method](event);
    });
  }
}

/** Shows every node its run; with `changed`, only where that run or another than before is to be seen. */
function showRuns(changed) {
  const workflow = workflowId(rootGraph());
  for (const [node, view] of views) {
    const run = store.runOf(workflow, nodePaths(rootGraph(), node));
    if (!changed || run === changed || run !== view.run) view.show(run);
  }
}

function receive(message) {
  heardAt = Date.now();
  const { run, isMissing } = store.receive(message);
  if (isMissing) fetchRuns();
  showRuns(run);
}

/** A run that was refused has told nothing itself, and what its node shows is of the run before. */
function showRefusal({ prompt_id, node_id, exception_message }) {
  for (const [node, view] of views) {
    const isItself = nodePaths(rootGraph(), node).includes(String(node_id));
    if (isItself && view.run?.prompt_id !== prompt_id) view.refuse(exception_message ?? "");
  }
}

let fetching = null;

/** Brings the histories of this workflow's runs. Who asks while an answer is under way shares it. */
function fetchRuns() {
  fetching ??= bringRuns().finally(() => (fetching = null));
  return fetching;
}

async function bringRuns() {
  const workflow = workflowId(rootGraph());
  heardAt = Date.now();
  try {
    for (const history of await server.get("/kiln/runs", { workflow_id: workflow })) store.receiveHistory(history);
  } catch {
    return; // the server is away: `reconnected` asks again
  }
  showRuns();
  if (workflow !== workflowId(rootGraph())) await bringRuns(); // another one was opened meanwhile
}

function askAfterSilence() {
  if (views.size && store.active.length && Date.now() - heardAt > SILENCE) fetchRuns();
}

// ---------------------------------------------------------------- the pictures of Apply LoRA Preview

function addComparisonView(node) {
  const widgetOf = (name) => node.widgets.find((widget) => widget.name === name);
  const chosen = () => ({ strength: Number(widgetOf("strength").value), step: Number(widgetOf("step").value) });
  const view = new ComparisonView({
    urlOf: runHost.urlOf,
    choose({ strength, step }) {
      for (const [name, value] of Object.entries({ strength, step })) {
        if (node.inputs?.find((input) => input.widget?.name === name)?.link != null) {
          toast("warn", `${name} comes over a wire: set it where it comes from.`, "Apply LoRA Preview");
          continue;
        }
        const widget = widgetOf(name);
        widget.value = value;
        widget.callback?.(value);
      }
      view.mark(chosen());
      node.setDirtyCanvas(true, true);
      app.extensionManager.workflow?.activeWorkflow?.changeTracker?.checkState?.(); // so that it can be undone
    },
  });
  const widget = node.addDOMWidget("kiln_comparison", "KILN_COMPARISON", view.root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => COMPARISON_HEIGHT,
  });
  widget.serialize = false;
  keepWidth(widget);
  passOnToCanvas(view.root);
  comparisons.set(node, view);
  after(node, "onRemoved", () => comparisons.delete(node));
  for (const name of ["prompts", "negative_prompt"]) widgetOf(name).options.getMaxHeight = () => TEXT_HEIGHT; // the rest is for pictures
  for (const name of ["strength", "step"]) after(widgetOf(name), "callback", () => view.mark(chosen()));
  after(node, "onConfigure", () => view.mark(chosen()));
  showOutputs(node, (output) => output?.kiln_preview && view.show(output.kiln_preview[0]));
  hideOwnPreview(node, () => !view.isEmpty);
  view.mark(chosen());
}

/** Brings back what a page that was reloaded had shown, as long as its pictures are there. */
async function bringPreviews() {
  for (const [node, view] of comparisons) {
    if (!view.isEmpty) continue;
    const query = { workflow_id: workflowId(rootGraph()), node_ids: nodePaths(rootGraph(), node).join() };
    const shown = await server.get("/kiln/preview", query).catch(() => null);
    if (shown?.rows && view.isEmpty && comparisons.has(node)) view.show(shown);
  }
}

function dimPreviews() {
  for (const [node, view] of comparisons) view.isOld = node.mode === ALWAYS && !view.isEmpty;
}

function undimPreviews() {
  for (const view of comparisons.values()) view.isOld = false;
}

// ---------------------------------------------------------------- where Save LoRA saved

function addSavedLine(node) {
  const line = element("div", { className: "kiln-saved" });
  const widget = node.addDOMWidget("kiln_saved", "KILN_SAVED", line, { serialize: false, getMinHeight: () => SAVED_HEIGHT });
  widget.serialize = false;
  keepWidth(widget);
  showOutputs(node, (output) => output?.text && setText(line, output.text.join("\n")));
}

// ---------------------------------------------------------------- what nodes have put out

function showOutputs(node, show) {
  after(node, "onExecuted", show);
  shows.set(node, show);
  after(node, "onRemoved", () => shows.delete(node));
}

/** Undo and another tab make every node anew; the page keeps what they had put out. */
function showKeptOutputs() {
  for (const [node, show] of shows) {
    const isInSubgraph = node.graph && node.graph !== rootGraph();
    show(app.nodeOutputs?.[isInSubgraph ? `${node.graph.id}:${node.id}` : node.id]);
  }
}

// ---------------------------------------------------------------- numbers as they are typed

/** The host moves a typed number in silence to the nearest bound; sent as typed, its server says what is allowed. */
function takeNumbersAsTyped(node) {
  for (const { type, options } of node.widgets ?? []) {
    if (type !== "number" || options.max === LARGEST_SEED) continue; // random seeds are drawn between the bounds
    options.max = LARGEST_SEED;
    options.min = Math.min(options.min, 0); // arrows stop at 0, which mostly means off
  }
}

// ---------------------------------------------------------------- the presets of LoRA Config

function fillInPresets(node) {
  const preset = node.widgets?.find((widget) => widget.name === "preset");
  if (!preset) return;
  const callback = preset.callback;
  preset.callback = function (name) {
    const values = presets[name] ?? {};
    for (const widget of node.widgets) {
      if (widget.name in values) widget.value = values[widget.name];
    }
    node.setDirtyCanvas(true, true);
    return callback?.apply(this, arguments);
  };
}

app.registerExtension({
  name: "lora-kiln",
  async setup() {
    api.addEventListener("kiln.run", (event) => receive(event.detail));
    api.addEventListener("execution_error", (event) => showRefusal(event.detail));
    api.addEventListener("reconnected", fetchRuns);
    api.addEventListener("execution_start", dimPreviews);
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(end, undimPreviews);
    setInterval(askAfterSilence, SILENCE); // a page reloaded in the middle of a run can miss the server's messages
    try {
      presets = await server.get("/kiln/presets");
    } catch (error) {
      toast("error", `The presets cannot be loaded: ${error.message}`, "LoRA Config");
    }
  },
  nodeCreated(node) {
    if (!node.comfyClass.startsWith("Kiln")) return;
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]); // narrower, long names of files and models are cut
    takeNumbersAsTyped(node);
    if (node.comfyClass === TRAIN) addRunView(node);
    if (node.comfyClass === CONFIG) fillInPresets(node);
    if (node.comfyClass === "KilnApplyLoRAPreview") addComparisonView(node);
    if (node.comfyClass === "KilnSaveLoRA") addSavedLine(node);
    if (node.comfyClass === "KilnLoadDataset") addDatasetView(node, server, api, (text) => toast("warn", text, node.title));
  },
  onNodeOutputsUpdated: showKeptOutputs,
  afterConfigureGraph() {
    showKeptOutputs();
    showRuns();
    if (views.size) fetchRuns();
    bringPreviews();
  },
});
