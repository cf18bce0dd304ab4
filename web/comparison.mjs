// The pictures of Apply LoRA Preview: a row a prompt and step, a column a strength; a click chooses one.
import { button, element, setText } from "./dom.mjs";
import { openOverlay } from "./overlay.mjs";
import { samplePath } from "./samples.mjs";

export const MIN_HEIGHT = 180;
const EMPTY = "The pictures appear here. Click one to go on with its strength.";
const keyOf = (row, column) => `${row}/${column}`;

/** Rows in groups of one prompt, by its number: [{prompt, rows: [{index, step, label, cells: [{key, strength, step, file}]}]}]. */
export function groupsOf({ strengths = [], rows = [] } = {}) {
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

/** The step of the row that shows a chosen one: the LoRA as it came in stands in the row 0, whatever its own step. */
export const rowStep = (step, shown) => (step === shown?.last ? 0 : step);

/** What is chosen, in words: "Output: step 500 at strength 0.8". */
export function choiceText({ strength, step }, shown) {
  const label = shown?.rows?.find((row) => row.step === rowStep(step, shown))?.label ?? (step ? `step ${step}` : "the LoRA");
  const text = String(Number(Number(strength).toFixed(4)));
  return Number(strength) === 0 ? "Output: the model without the LoRA" : `Output: ${label} at strength ${text}`;
}

export class ComparisonView {
  isEmpty = true;
  #shown = null;
  #cells = new Map(); // key -> {cell, button}
  #chosen = { strength: 1, step: 0 };

  /** host: {urlOf: the page's URL of a path of the server's API, choose: called with {strength, step}}. */
  constructor(host) {
    this.host = host;
    this.choice = element("span", { className: "kiln-facts" });
    this.hint = element("div", { className: "kiln-hint" });
    this.sheet = element("div", { className: "kiln-comparison-sheet", tabIndex: -1, "data-capture-wheel": "true" });
    this.root = element("div", { className: "kiln-comparison" },
      element("div", { className: "kiln-head" }, this.choice), this.hint, this.sheet);
    this.show(null);
  }

  /** Dims the pictures while a run may draw others in their place. */
  set isOld(isOld) {
    this.root.classList.toggle("kiln-old", isOld);
  }

  /** Shows what the node has drawn: {strengths, last, rows: [{prompt, step, label, pictures}]}; null clears. */
  show(shown) {
    this.isOld = false;
    this.isEmpty = !shown?.rows?.length;
    this.#shown = shown;
    this.#cells.clear();
    const groups = groupsOf(shown ?? undefined);
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

  /** Marks what goes on to the outputs. */
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
    openOverlay(() => groupsOf(this.#shown).flatMap(({ prompt, rows }) => rows.map((row) => row.cells.map((cell) => ({
      key: cell.key,
      url: this.host.urlOf(samplePath(cell.file)),
      title: prompt,
      detail: `${row.label} · strength ${cell.strength}`,
    })))), key);
  }
}
