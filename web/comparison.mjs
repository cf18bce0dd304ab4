// The picture grid of Apply LoRA Preview: a row per prompt and step, a column per strength. A click on a picture chooses it.
import { button, element, setText } from "./dom.mjs";
import { openOverlay } from "./overlay.mjs";
import { samplePath } from "./samples_panel.mjs";

export const MIN_HEIGHT = 180; // pixels
const EMPTY = "The pictures appear here. Click one to go on with its strength.";
const keyOf = (row, column) => `${row}/${column}`;

/**
 * Groups the rows by prompt. The number of a row tells prompts apart: the same prompt with two seeds has two numbers.
 * @param {object} shown what the node sent: strengths; rows: [{number, prompt, step, label, pictures: a file per strength}]
 * @returns {object[]} [{prompt, rows: [{index, step, label, cells: [{key, strength, step, file}]}]}]
 */
export function groupByPrompt({ strengths = [], rows = [] } = {}) {
  const groups = new Map();
  rows.forEach((row, index) => {
    const cells = strengths.flatMap((strength, column) => {
      const file = row.pictures?.[column];
      return file ? [{ key: keyOf(index, column), strength, step: row.step, file }] : [];
    });
    const group = groups.get(row.number) ?? { prompt: row.prompt, rows: [] };
    groups.set(row.number, group);
    group.rows.push({ index, step: row.step, label: row.label, cells });
  });
  return [...groups.values()];
}

/**
 * The step of the row that shows a chosen step. The node's input LoRA is in the row of step 0, although it was trained for
 * `shown.last` steps.
 */
export const rowStep = (step, shown) => (step === shown?.last ? 0 : step);

/** The choice in words: "Output: step 500 at strength 0.8". */
export function choiceText({ strength, step }, shown) {
  const label = shown?.rows?.find((row) => row.step === rowStep(step, shown))?.label ?? (step ? `step ${step}` : "the LoRA");
  const text = String(Number(Number(strength).toFixed(4)));
  return Number(strength) === 0 ? "Output: the model without the LoRA" : `Output: ${label} at strength ${text}`;
}

/** The picture grid of one node. */
export class ComparisonView {
  isEmpty = true; // whether it shows no pictures
  #shown = null;
  #cells = new Map(); // key -> {cell, face: its button}
  #chosen = { strength: 1, step: 0 };

  /** @param {object} host urlOf(path): the URL of an API path; choose({strength, step}): called when a picture is clicked */
  constructor(host) {
    this.host = host;
    this.choice = element("span", { className: "kiln-facts" });
    this.hint = element("div", { className: "kiln-hint" });
    this.sheet = element("div", { className: "kiln-comparison-sheet", tabIndex: -1, "data-capture-wheel": "true" });
    this.root = element("div", { className: "kiln-comparison" },
      element("div", { className: "kiln-head" }, this.choice), this.hint, this.sheet);
    this.show(null);
  }

  /** Dims the pictures while a prompt runs that may replace them. */
  set isOld(isOld) {
    this.root.classList.toggle("kiln-old", isOld);
  }

  /** Shows the pictures that the node sent, as `groupByPrompt` takes them, with `last` and `note`. Null clears the grid. */
  show(shown) {
    this.isOld = false;
    this.isEmpty = !shown?.rows?.length;
    this.#shown = shown;
    this.#cells.clear();
    const groups = groupByPrompt(shown ?? undefined);
    setText(this.hint, groups.length ? (shown.note ?? "") : EMPTY);
    this.hint.hidden = !this.hint.textContent;
    this.sheet.style.setProperty("--kiln-columns", shown?.strengths?.length ?? 1);
    const isNamed = groups.some((group) => group.rows.length > 1);
    this.sheet.classList.toggle("kiln-named", isNamed);
    this.sheet.replaceChildren(
      ...(groups.length ? this.#heads(shown.strengths, isNamed) : []),
      ...groups.flatMap((group) => this.#group(group, isNamed)),
    );
    this.mark(this.#chosen);
  }

  /** Marks the picture of the strength and step that the node's outputs have. */
  mark(chosen) {
    this.#chosen = chosen;
    const step = rowStep(chosen.step, this.#shown);
    setText(this.choice, choiceText(chosen, this.#shown));
    for (const { cell, face } of this.#cells.values()) {
      const isChosen = Math.abs(cell.strength - chosen.strength) < 1e-6 && (cell.step === step || !cell.strength);
      face.setAttribute("aria-pressed", String(isChosen));
    }
  }

  #heads(strengths, isNamed) {
    const heads = strengths.map((strength) => element("div", { className: "kiln-strength" }, String(strength)));
    return isNamed ? [element("div", {}), ...heads] : heads;
  }

  #group({ prompt, rows }, isNamed) {
    const label = element("div", { className: "kiln-prompt", title: prompt }, prompt || "(empty prompt)");
    const cells = rows.flatMap((row) => [
      ...(isNamed ? [element("div", { className: "kiln-step" }, row.label)] : []),
      ...row.cells.map((cell) => this.#cell(cell, row, prompt)),
    ]);
    return [label, ...cells];
  }

  #cell(cell, row, prompt) {
    const picture = element("img", { alt: `${prompt}, ${row.label}, strength ${cell.strength}`, decoding: "async", draggable: false });
    picture.src = this.host.urlOf(samplePath(cell.file));
    const title = `Go on with ${row.label} at strength ${cell.strength}`;
    const face = element("button", { type: "button", className: "kiln-choice", title, onclick: () => this.host.choose(cell) }, picture);
    const large = button("⤢", "Open large", () => this.#open(cell.key), "kiln-large");
    this.#cells.set(cell.key, { cell, face });
    return element("div", { className: "kiln-comparison-cell" }, face, large);
  }

  #open(key) {
    openOverlay(() => groupByPrompt(this.#shown).flatMap(({ prompt, rows }) => rows.map((row) => row.cells.map((cell) => ({
      key: cell.key,
      url: this.host.urlOf(samplePath(cell.file)),
      title: prompt,
      detail: `${row.label} · strength ${cell.strength}`,
    })))), key);
  }
}
