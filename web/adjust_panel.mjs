// The panel that changes the recipe of a run while it goes on.
import { button, element, setText } from "./dom.mjs";
import { rateText } from "./format.mjs";
import { takes } from "./run_controls.mjs";

const MOST_PROMPTS = 16; // the server's limit
const HIGHEST_FACTOR = 1000; // the server's limit
const FACTORS = [0.1, 0.5, 1, 2]; // with a button of their own
const ADJUSTING = ["learning_rate", "sample_prompts"]; // the actions of this panel

/** Whether a run takes a change of this panel now. */
export const isAdjustable = (run) => ADJUSTING.some((action) => takes(run, action));

/** The prompts of a text, one per line. */
export const promptsOf = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** Reads a factor as people type it: "0.5", "x2", "×0,1". NaN unless it is above 0 and at most HIGHEST_FACTOR. */
export function factorOf(text) {
  const factor = Number(text.trim().replace(/^[x×]\s*/i, "").replace(",", ".") || NaN);
  return factor > 0 && factor <= HIGHEST_FACTOR ? factor : NaN;
}

/** Why a typed factor is refused; "" where it is not. */
export function factorProblem(text) {
  if (!Number.isNaN(factorOf(text))) return "";
  const came = text.trim() ? `"${text.trim()}" is no factor` : "There is no factor";
  return `${came}: write a number above 0, at most ${HIGHEST_FACTOR}. 0.5 halves the recipe's learning rate, 1 is the recipe's own.`;
}

/** The panel that changes the learning rate and the sample prompts of a run. */
export class AdjustPanel {
  #run;
  #send;

  /** @param {(run: object, action: string, value: any) => Promise<boolean>} send sends a change to the server */
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

  /** Fills the fields. Called only when the panel opens: later messages must not change what is being typed. */
  open(run) {
    this.prompts.value = (run?.sample_prompts ?? []).join("\n");
    this.factor.value = "";
    showProblem(this.factor, this.rateProblem, "");
    showProblem(this.prompts, this.promptsProblem, "");
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
    showProblem(this.factor, this.rateProblem, problem);
    if (!problem) this.#send(this.#run, "learning_rate", factorOf(text));
  }

  #setPrompts() {
    const prompts = promptsOf(this.prompts.value);
    const isTooMany = prompts.length > MOST_PROMPTS;
    const problem = isTooMany ? `${prompts.length} prompts are too many: write at most ${MOST_PROMPTS}, one a line.` : "";
    showProblem(this.prompts, this.promptsProblem, problem);
    if (!isTooMany) this.#send(this.#run, "sample_prompts", prompts);
  }
}

/** Marks a field as wrong and shows the problem in a line below; "" removes both. */
function showProblem(field, line, problem) {
  field.classList.toggle("kiln-wrong", Boolean(problem));
  setText(line, problem);
  line.hidden = !problem;
}

function rateTitle(factor) {
  return factor === 1 ? "The recipe's own learning rate" : `${factor} times the recipe's learning rate, for the rest of the run`;
}
