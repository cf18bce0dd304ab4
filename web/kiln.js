// The wiring between ComfyUI's page and the pack's views. Only this file imports the app: the views get what they use of it.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { Previews } from "./apply_lora_preview.mjs";
import { addDatasetView } from "./load_dataset.mjs";
import { loadStylesheet } from "./dom.mjs";
import { LiveRuns, SILENCE } from "./live_runs.mjs";
import { fillInPresets } from "./lora_config.mjs";
import { NodeOutputs } from "./node_outputs.mjs";
import { acceptNumbersAsTyped } from "./node_widgets.mjs";
import { addSavedLine } from "./save_lora.mjs";
import { Server } from "./server.mjs";
import { addRunView } from "./train_lora.mjs";

const WIDTH = 400; // pixels a new node has at least: in a narrower one, long names of files and models are cut
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

await loadStylesheet(new URL("./kiln.css", import.meta.url)); // before any view is made, so that none is seen unstyled

/**
 * What the views use of the app.
 * @typedef {typeof page} Page
 */
const page = {
  server: new Server(api),
  outputs: new NodeOutputs(),
  events: api,
  rootGraph: () => app.rootGraph ?? app.graph,
  canvas: () => app.canvas,

  /** Shows a message over the page. severity: "success", "warn" or "error". */
  notify(severity, title, text) {
    const life = severity === "success" ? 3000 : 10_000; // milliseconds
    app.extensionManager.toast.add({ severity, summary: title, detail: text, life });
  },

  /** Makes the workflow's present state a step that undo goes back to. */
  recordUndoStep: () => app.extensionManager.workflow?.activeWorkflow?.changeTracker?.checkState?.(),
};

const runs = new LiveRuns(page.server, page.rootGraph);
const previews = new Previews(page);
let presets = {}; // {preset name: {widget name: value}}

const addViewTo = {
  KilnApplyLoRAPreview: (node) => previews.add(node),
  KilnLoadDataset: (node) => addDatasetView(node, page),
  KilnLoRAConfig: (node) => fillInPresets(node, () => presets),
  KilnSaveLoRA: (node) => addSavedLine(node, page.outputs),
  KilnTrainLoRA: (node) => addRunView(node, page, runs),
};

async function loadPresets() {
  try {
    presets = await page.server.get("/kiln/presets");
  } catch (error) {
    page.notify("error", "LoRA Config", `The presets cannot be loaded: ${error.message}`);
  }
}

app.registerExtension({
  name: "lora-kiln",

  async setup() {
    api.addEventListener("kiln.run", (event) => runs.receive(event.detail));
    api.addEventListener("execution_error", (event) => runs.receiveError(event.detail));
    api.addEventListener("reconnected", () => runs.fetch());
    setInterval(() => runs.fetchAfterSilence(), SILENCE);
    api.addEventListener("execution_start", () => previews.dim());
    for (const end of ENDS) api.addEventListener(end, () => previews.undim());
    await loadPresets();
  },

  nodeCreated(node) {
    if (!node.comfyClass.startsWith("Kiln")) return;
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
    acceptNumbersAsTyped(node);
    addViewTo[node.comfyClass]?.(node);
  },

  onNodeOutputsUpdated: () => page.outputs.restore(app.nodeOutputs, page.rootGraph()),

  afterConfigureGraph() {
    page.outputs.restore(app.nodeOutputs, page.rootGraph());
    runs.refresh();
    previews.restore();
  },
});
