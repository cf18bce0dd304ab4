// Outputs of executed nodes, shown again where the host makes the nodes anew (undo, another workflow tab).
import { after } from "./node_widgets.mjs";

/** The nodes that show their outputs. */
export class NodeOutputs {
  #shows = new Map(); // node -> the function that shows an output of it

  /** Calls `show` with each output of a node: after execution, and from `restore`, which passes undefined where there is none. */
  watch(node, show) {
    after(node, "onExecuted", show);
    this.#shows.set(node, show);
    after(node, "onRemoved", () => this.#shows.delete(node));
  }

  /**
   * Shows the outputs that the host kept.
   * @param {object} outputs the app's `nodeOutputs`: by node id, in a subgraph by "subgraph id:node id"
   * @param {object} rootGraph
   */
  restore(outputs, rootGraph) {
    for (const [node, show] of this.#shows) {
      const isInSubgraph = node.graph && node.graph !== rootGraph;
      show(outputs?.[isInSubgraph ? `${node.graph.id}:${node.id}` : node.id]);
    }
  }
}
