// The samples of a run: one row per prompt, one picture per sampling, the newest last.
import { element, setText } from "./dom.mjs";
import { openOverlay } from "./overlay.mjs";
import { samplesByPrompt } from "./run_store.mjs";

/** The API path of an image file in one of the host's folders. */
export const samplePath = ({ filename, subfolder = "", type = "output" }) =>
  `/view?${new URLSearchParams({ filename, subfolder, type })}`;

const keyOf = (sample) => `${sample.subfolder}/${sample.filename}`;

/** The panel of a run's samples. */
export class SamplesPanel {
  #rows = new Map(); // a prompt's key -> {strip, shown: keys of its pictures}
  #run;
  #count = 0; // samples shown
  #urlOf;

  /** @param {(path: string) => string} urlOf the URL of an API path */
  constructor(urlOf) {
    this.#urlOf = urlOf;
    this.empty = element("div", { className: "kiln-hint" }, "Sample pictures appear here as the run draws them.");
    this.root = element("div", { className: "kiln-samples", tabIndex: -1, "data-capture-wheel": "true" }, this.empty);
  }

  show(run) {
    const count = run?.samples.length ?? 0;
    const wentBack = count < this.#count; // to an earlier step: later samples are gone
    if (run?.key !== this.#run?.key || wentBack) this.#clear();
    this.#run = run;
    this.#count = count;
    const rows = samplesByPrompt(run?.samples ?? []);
    this.empty.hidden = rows.length > 0;
    for (const row of rows) this.#showRow(row);
  }

  #clear() {
    for (const { root } of this.#rows.values()) root.remove();
    this.#rows.clear();
  }

  #showRow({ key, prompt, samples }) {
    const row = this.#rows.get(key) ?? this.#addRow(key, prompt);
    const added = samples.filter((sample) => !row.shown.has(keyOf(sample)));
    if (!added.length) return;
    for (const sample of added) {
      row.shown.add(keyOf(sample));
      // The strip runs from right to left, so that it stays scrolled to the newest.
      row.strip.prepend(this.#thumbnail(sample, prompt));
    }
  }

  #addRow(key, prompt) {
    const label = element("div", { className: "kiln-prompt", title: prompt });
    setText(label, prompt || "(empty prompt)");
    const strip = element("div", { className: "kiln-strip", tabIndex: -1, "data-capture-wheel": "true" });
    const root = element("div", {}, label, strip);
    this.root.append(root);
    const row = { root, strip, shown: new Set() };
    this.#rows.set(key, row);
    return row;
  }

  #thumbnail(sample, prompt) {
    const picture = element("img", { alt: prompt, loading: "lazy", decoding: "async", draggable: false });
    picture.src = this.#urlOf(samplePath(sample));
    const step = element("span", {}, String(sample.step));
    const title = `Step ${sample.step}: open large`;
    return element("button", { type: "button", className: "kiln-thumbnail", title, onclick: () => this.#open(sample) }, picture, step);
  }

  #open(sample) {
    openOverlay(() => samplesByPrompt(this.#run?.samples ?? []).map((row) => row.samples.map((item) => this.#large(item))), keyOf(sample));
  }

  #large(sample) {
    return { key: keyOf(sample), url: this.#urlOf(samplePath(sample)), title: sample.prompt ?? "", detail: `step ${sample.step}` };
  }
}
