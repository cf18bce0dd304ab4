// The picture grid on Apply LoRA Preview nodes: shows what the node drew, and sets its strength and step by a click.
import { ComparisonView, MIN_HEIGHT } from "./comparison.mjs";
import { nodePaths, workflowId } from "./graph_ids.mjs";
import { addViewWidget, after, hideOwnPreview, isEnabled, isLinked, passOnToCanvas, widgetNamed } from "./node_widgets.mjs";

const TEXT_HEIGHT = 72; // pixels that a prompt widget may take: the rest of the node is for the pictures
const CHOICE = ["strength", "step"]; // the widgets that a click sets
const PROMPTS = ["prompts", "negative_prompt"];

/** The grids of all Apply LoRA Preview nodes of the page. */
export class Previews {
  #page;
  #views = new Map(); // node -> its ComparisonView

  /** @param {import("./kiln.js").Page} page */
  constructor(page) {
    this.#page = page;
  }

  /** Adds the grid to a node. */
  add(node) {
    const chosen = () => Object.fromEntries(CHOICE.map((name) => [name, Number(widgetNamed(node, name).value)]));
    const view = new ComparisonView({
      urlOf: (path) => this.#page.server.url(path),
      choose: (choice) => {
        this.#choose(node, choice);
        view.mark(chosen());
      },
    });
    addViewWidget(node, "kiln_comparison", view.root, MIN_HEIGHT);
    passOnToCanvas(view.root, this.#page.canvas);
    this.#views.set(node, view);
    after(node, "onRemoved", () => this.#views.delete(node));
    for (const name of PROMPTS) widgetNamed(node, name).options.getMaxHeight = () => TEXT_HEIGHT;
    for (const name of CHOICE) after(widgetNamed(node, name), "callback", () => view.mark(chosen()));
    after(node, "onConfigure", () => view.mark(chosen()));
    this.#page.outputs.watch(node, (output) => output?.kiln_preview && view.show(output.kiln_preview[0]));
    hideOwnPreview(node, () => !view.isEmpty);
    view.mark(chosen());
  }

  #choose(node, choice) {
    const { notify, recordUndoStep } = this.#page;
    for (const name of CHOICE) {
      if (isLinked(node, name)) {
        notify("warn", "Apply LoRA Preview", `${name} comes over a wire: set it where it comes from.`);
        continue;
      }
      const widget = widgetNamed(node, name);
      widget.value = choice[name];
      widget.callback?.(choice[name]);
    }
    node.setDirtyCanvas(true, true);
    recordUndoStep();
  }

  /** Fills empty grids with the node's last pictures, as long as the server has their files: a reload empties them. */
  async restore() {
    const { server, rootGraph } = this.#page;
    for (const [node, view] of this.#views) {
      if (!view.isEmpty) continue;
      const query = { workflow_id: workflowId(rootGraph()), node_ids: nodePaths(rootGraph(), node).join() };
      const shown = await server.get("/kiln/preview", query).catch(() => null); // not reported: there is nothing to lose
      if (shown?.rows && view.isEmpty && this.#views.has(node)) view.show(shown);
    }
  }

  /** Dims the pictures that the prompt which has begun will replace. */
  dim() {
    for (const [node, view] of this.#views) view.isOld = isEnabled(node) && !view.isEmpty;
  }

  undim() {
    for (const view of this.#views.values()) view.isOld = false;
  }
}
