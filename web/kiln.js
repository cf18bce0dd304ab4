// Wiring between the page and the nodes. What is drawn is in chart.mjs; what is said is in status.mjs.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { drawChart } from "./chart.mjs";
import { addDatasetView } from "./dataset.mjs";
import { mergeRun, statusLines } from "./status.mjs";

const TRAIN = "KilnTrainLoRA";
const CONFIG = "KilnLoRAConfig";
const HEIGHT = 170;
const WIDTH = 400;
const POLL_MILLISECONDS = 5000;

const runs = new Map(); // node id -> the newest run of that node
const views = new Map(); // node id -> its view

let presets = {};

function addRunView(node) {
  const root = document.createElement("div");
  root.className = "kiln-run";
  root.style.cssText = `display:flex;flex-direction:column;gap:4px;min-height:${HEIGHT}px;width:100%;box-sizing:border-box;`;
  const canvas = document.createElement("canvas");
  canvas.style.cssText = "flex:1;min-height:0;width:100%;border-radius:6px;";
  const text = document.createElement("div");
  text.style.cssText =
    "font:12px/1.45 Inter,system-ui,sans-serif;color:var(--input-text);white-space:pre-line;overflow-wrap:anywhere;";
  root.append(canvas, text);
  const widget = node.addDOMWidget("kiln_run", "KILN_RUN", root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  });
  widget.serialize = false;

  const paint = () => {
    const run = runs.get(String(node.id)); // inside a subgraph the server says "12:5", the page "5"
    const lines = statusLines(run);
    text.textContent = lines.join("\n");
    root.dataset.state = run?.state ?? "idle";
    root.dataset.step = String(run?.step ?? 0);
    drawChart(canvas, run?.points ?? [], run?.steps ?? 0, getComputedStyle(root));
  };
  const resized = new ResizeObserver(paint);
  resized.observe(canvas);
  views.set(node, paint);
  const onRemoved = node.onRemoved;
  node.onRemoved = function () {
    resized.disconnect();
    views.delete(node);
    onRemoved?.apply(this, arguments);
  };
  node.setSize([node.size[0], Math.max(node.size[1], 420)]);
  paint();
}

function nodeId(run) {
  return String(run.node_id).split(":").at(-1);
}

function receive(message) {
  const id = nodeId(message);
  runs.set(id, mergeRun(runs.get(id), message));
  for (const [node, paint] of views) if (String(node.id) === id) paint();
}

async function fetchRuns() {
  const answer = await api.fetchApi("/kiln/runs");
  if (!answer.ok) return;
  for (const run of await answer.json()) {
    runs.set(nodeId(run), run);
  }
  for (const paint of views.values()) paint();
}

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
    api.addEventListener("reconnected", fetchRuns);
    const answer = await api.fetchApi("/kiln/presets");
    if (answer.ok) presets = await answer.json();
    await fetchRuns();
    // A page reloaded in the middle of a run can miss the server's messages: look from time to time.
    setInterval(() => {
      if ([...runs.values()].some((run) => run.state === "training" || run.state === "preparing")) fetchRuns();
    }, POLL_MILLISECONDS);
  },
  nodeCreated(node) {
    if (!node.comfyClass.startsWith("Kiln")) return;
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]); // narrower, long names of files and models are cut
    if (node.comfyClass === TRAIN) addRunView(node);
    if (node.comfyClass === CONFIG) fillInPresets(node);
    if (node.comfyClass === "KilnLoadDataset") addDatasetView(node, api);
  },
  afterConfigureGraph() {
    for (const paint of views.values()) paint();
  },
});
