// The buttons that control a run while it goes on.
import { button, element } from "./dom.mjs";
import { isActive } from "./run_store.mjs";

const BUTTONS = [
  ["pause", "Pause", "Wait after this step, and keep everything where it is"],
  ["resume", "Resume", "Go on where it waits"],
  ["finish", "Finish", "Stop now and keep the LoRA as it is; the graph goes on with it"],
  ["checkpoint", "Checkpoint", "Save a checkpoint after this step"],
  ["sample", "Sample", "Draw the sample prompts after this step"],
];

/** Whether a run takes an action now; it lists those it takes. */
export const takes = (run, action) => isActive(run) && (run.controls ?? []).includes(action);

/** The row of buttons that control a run. */
export class RunControls {
  #run;
  #send;
  #busy = new Set(); // actions that wait for the server's answer

  /** @param {(run: object, action: string, value?: any) => Promise<boolean>} send sends an action; whether the server took it */
  constructor(send) {
    this.#send = send;
    this.buttons = new Map(
      BUTTONS.map(([action, label, title]) => [action, button(label, title, () => this.#press(action))]),
    );
    for (const [action, made] of this.buttons) made.dataset.action = action;
    this.root = element("div", { className: "kiln-controls" }, ...this.buttons.values());
  }

  show(run) {
    this.#run = run;
    this.root.hidden = !isActive(run) || !run.controls?.length;
    const isPaused = run?.state === "paused" || takes(run, "resume");
    this.buttons.get("pause").hidden = isPaused;
    this.buttons.get("resume").hidden = !isPaused;
    for (const [action, made] of this.buttons) made.disabled = !takes(run, action) || this.#busy.has(action);
  }

  async #press(action) {
    this.#busy.add(action);
    this.show(this.#run);
    try {
      await this.#send(this.#run, action);
    } finally {
      this.#busy.delete(action);
      this.show(this.#run);
    }
  }
}
