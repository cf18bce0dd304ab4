// Which Train LoRA node shows which run: takes the server's messages, and fetches what the page missed.
import { nodePaths, workflowId } from "./graph_ids.mjs";
import { RunStore } from "./run_store.mjs";

export const SILENCE = 10_000; // milliseconds without a message of an active run, after which the histories are fetched

/** The views of all Train LoRA nodes of the page. A view has `run`, `show(run)` and `refuse(reason)`. */
export class LiveRuns {
  #server;
  #getRootGraph;
  #store = new RunStore();
  #views = new Map(); // node -> its view
  #heardAt = 0; // when a message last came, or the histories were last requested
  #fetching = null; // the promise of the request under way

  /**
   * @param {import("./server.mjs").Server} server
   * @param {() => object} getRootGraph gives the root graph of the open workflow
   */
  constructor(server, getRootGraph) {
    this.#server = server;
    this.#getRootGraph = getRootGraph;
  }

  add(node, view) {
    this.#views.set(node, view);
  }

  remove(node) {
    this.#views.delete(node);
  }

  /** Shows every node its run. With `changed`: only nodes that show this run, or now show another run than before. */
  show(changed) {
    const rootGraph = this.#getRootGraph();
    const workflow = workflowId(rootGraph);
    for (const [node, view] of this.#views) {
      const run = this.#store.runOf(workflow, nodePaths(rootGraph, node));
      if (!changed || run === changed || run !== view.run) view.show(run);
    }
  }

  /** Takes a `kiln.run` message. */
  receive(message) {
    this.#heardAt = Date.now();
    const { run, isMissing } = this.#store.receive(message);
    if (isMissing) this.fetch();
    this.show(run);
  }

  /** Takes an `execution_error`. A node refused before its run began has sent no message, and still shows the run before. */
  receiveError({ prompt_id, node_id, exception_message }) {
    for (const [node, view] of this.#views) {
      const isItself = nodePaths(this.#getRootGraph(), node).includes(String(node_id));
      if (isItself && view.run?.prompt_id !== prompt_id) view.refuse(exception_message ?? "");
    }
  }

  /** Shows what is known of the workflow just opened, and fetches the rest. */
  refresh() {
    this.show();
    if (this.#views.size) this.fetch();
  }

  /** Fetches the histories of this workflow's runs, and shows them. Callers during a request share it. */
  fetch() {
    this.#fetching ??= this.#fetchHistories().finally(() => (this.#fetching = null));
    return this.#fetching;
  }

  /** Fetches where an active run has been silent: a page reloaded during a run can miss the server's messages. */
  fetchAfterSilence() {
    if (this.#views.size && this.#store.active.length && Date.now() - this.#heardAt > SILENCE) this.fetch();
  }

  async #fetchHistories() {
    const currentWorkflow = () => workflowId(this.#getRootGraph());
    const workflow = currentWorkflow();
    this.#heardAt = Date.now();
    try {
      const histories = await this.#server.get("/kiln/runs", { workflow_id: workflow });
      for (const history of histories) this.#store.receiveHistory(history);
      this.show();
    } catch {
      // not reported: it is tried again on `reconnected` and after silence
    }
    if (workflow !== currentWorkflow()) await this.#fetchHistories(); // another workflow was opened meanwhile
  }
}
