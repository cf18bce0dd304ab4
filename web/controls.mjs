// What can be done with a run while it goes on: the row of buttons, and the panel that changes its recipe.
import { button, element, setText } from "./dom.mjs";
import { isActive } from "./run_store.mjs";
import { rateText } from "./format.mjs";

export const MOST_PROMPTS = 16;
export const HIGHEST_FACTOR = 1000;
const FACTORS = [0.1, 0.5, 1, 2];
const BUTTONS = [
  ["pause", "Pause", "Wait after this step, and keep everything where it is"],
  ["resume", "Resume", "Go on where it waits"],
  ["finish", "Finish", "Stop now and keep the LoRA as it is; the graph goes on with it"],
  ["checkpoint", "Checkpoint", "Save a checkpoint after this step"],
  ["sample", "Sample", "Draw the sample prompts after this step"],
];
const ADJUSTING = ["learning_rate", "sample_prompts"];

export const takes = (run, action) => isActive(run) && (run.controls ?? []).includes(action);
export const isAdjustable = (run) => ADJUSTING.some((action) => takes(run, action));

/** The prompts of a text, one a line. */
export const promptsOf = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** A factor as people type it: "0.5", "x2", "×0,1". NaN where it is none. */
export function factorOf(text) {
  const factor = Number(text.trim().replace(/^[x×]\s*/i, "").replace(",", ".") || NaN);
  return factor > 0 && factor <= HIGHEST_FACTOR ? factor : NaN;
}

/** What is wrong with a factor as typed; "" where nothing is. */
export function factorProblem(text) {
  if (!Number.isNaN(factorOf(text))) return "";
  const came = text.trim() ? `"${text.trim()}" is no factor` : "There is no factor";
  return `${came}: write a number above 0, at most ${HIGHEST_FACTOR}. 0.5 halves the recipe's learning rate, 1 is the recipe's own.`;
}

export class Controls {
  #run;
  #send;
  #busy = new Set();

  /** send: async (run, action, value) -> whether the server took it. */
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

export class AdjustPanel {
  #run;
  #send;

  constructor(send) {
    this.#send = send;
    this.now = element("span");
    this.factor = element("input", {
      type: "text", inputMode: "decimal", size: 5, placeholder: "factor", className: "kiln-input",
      title: "A factor for the recipe's learning rate", "aria-label": "Factor for the learning rate",
      onkeydown: (event) => event.key === "Enter" && this.#setRate(this.factor.value),
    });
    this.rateButtons = [
      ...FACTORS.map((factor) => button(`×${factor}`, rateTitle(factor), () => this.#setRate(String(factor)))),
      button("Set", "Set the learning rate to the recipe's times this factor", () => this.#setRate(this.factor.value)),
    ];
    this.rateProblem = element("div", { className: "kiln-problem", role: "alert", hidden: true });
    this.promptsProblem = element("div", { className: "kiln-problem", role: "alert", hidden: true });
    this.prompts = element("textarea", {
      className: "kiln-input", spellcheck: false, "aria-label": "Sample prompts, one a line",
      placeholder: "One prompt a line", "data-capture-wheel": "true",
    });
    this.promptsButton = button("Set prompts", "Draw these from the next sampling on", () => this.#setPrompts());
    this.root = element("div", { className: "kiln-adjust" },
      element("div", { className: "kiln-line" }, "Learning rate", this.now),
      element("div", { className: "kiln-line" },
        ...this.rateButtons.slice(0, -1), this.factor, this.rateButtons.at(-1)),
      this.rateProblem,
      element("div", { className: "kiln-line" }, "Sample prompts", this.promptsButton),
      this.promptsProblem,
      this.prompts,
    );
  }

  /** Called when the panel opens: later messages must not change what is being typed. */
  open(run) {
    this.prompts.value = (run?.sample_prompts ?? []).join("\n");
    this.factor.value = "";
    say(this.factor, this.rateProblem, "");
    say(this.prompts, this.promptsProblem, "");
    this.show(run);
  }

  show(run) {
    this.#run = run;
    setText(this.now, Number.isFinite(run?.learning_rate) ? `now ${rateText(run.learning_rate)}` : "");
    const rate = takes(run, "learning_rate");
    for (const made of this.rateButtons) made.disabled = !rate;
    this.factor.disabled = !rate;
    const prompts = takes(run, "sample_prompts");
    this.prompts.disabled = this.promptsButton.disabled = !prompts;
  }

  #setRate(text) {
    const problem = factorProblem(text);
    say(this.factor, this.rateProblem, problem);
    if (!problem) this.#send(this.#run, "learning_rate", factorOf(text));
  }

  #setPrompts() {
    const prompts = promptsOf(this.prompts.value);
    const isTooMany = prompts.length > MOST_PROMPTS;
    say(this.prompts, this.promptsProblem, isTooMany ? `${prompts.length} prompts are too many: write at most ${MOST_PROMPTS}, one a line.` : "");
    if (!isTooMany) this.#send(this.#run, "sample_prompts", prompts);
  }
}

/** Marks a field as wrong and says why; "" takes that back. */
function say(field, line, problem) {
  field.classList.toggle("kiln-wrong", Boolean(problem));
  setText(line, problem);
  line.hidden = !problem;
}

function rateTitle(factor) {
  return factor === 1 ? "The recipe's own learning rate" : `${factor} times the recipe's learning rate, for the rest of the run`;
}
