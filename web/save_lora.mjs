// The line on a Save LoRA node that names the saved file.
import { element, setText } from "./dom.mjs";
import { addViewWidget } from "./node_widgets.mjs";

const HEIGHT = 48; // pixels

/**
 * Adds the line to a Save LoRA node.
 * @param {import("./node_outputs.mjs").NodeOutputs} outputs
 */
export function addSavedLine(node, outputs) {
  const line = element("div", { className: "kiln-saved" });
  addViewWidget(node, "kiln_saved", line, HEIGHT, { hideOnZoom: true });
  outputs.watch(node, (output) => output?.text && setText(line, output.text.join("\n")));
}
