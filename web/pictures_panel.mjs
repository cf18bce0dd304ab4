// The training pictures of a run in a contact sheet, those with the highest loss first.
import { element, setText } from "./dom.mjs";
import { openOverlay } from "./overlay.mjs";
import { isActive } from "./run_store.mjs";

export const SHORTEST_PAUSE = 10_000; // milliseconds between two requests while a run goes on
const MOST_SHOWN = 300; // pictures
const LARGE = 1024; // pixels of the longer side of an opened picture

/**
 * Sorts pictures by their loss, the highest first; those without a loss come last.
 * @param {object[]} pictures {name, caption, thumbnail, loss: relative to the average at the same noise level, count}
 * @returns {object[]} the pictures, each with share: its loss divided by the highest; text: its loss; title: its tooltip
 */
export function rankedPictures(pictures) {
  const ranked = [...pictures].sort((a, b) => (b.loss ?? -Infinity) - (a.loss ?? -Infinity));
  const worst = Math.max(0, ...ranked.map((picture) => picture.loss ?? 0));
  return ranked.map((picture) => ({
    ...picture,
    share: worst > 0 ? Math.max(0, picture.loss ?? 0) / worst : 0,
    text: Number.isFinite(picture.loss) ? `${picture.loss.toFixed(2)}×` : "–",
    title: [
      picture.name,
      Number.isFinite(picture.loss) ? `${picture.loss.toFixed(3)} times the average loss at the same noise level` : "no loss yet",
      Number.isFinite(picture.count) ? `seen ${picture.count} times` : "",
      picture.caption ?? "",
    ].filter(Boolean).join("\n"),
  }));
}

/**
 * Whether to fetch the pictures: on opening, then at intervals while the run goes on, and once after its end.
 * @param {object | undefined} run
 * @param {object | null} asked the last request: {key, step, wasActive: of the run; at: its time}
 * @param {number} now milliseconds
 */
export function isDue(run, asked, now) {
  if (!run) return false;
  if (!asked || asked.key !== run.key) return true;
  if (isActive(run)) return run.step !== asked.step && now - asked.at >= SHORTEST_PAUSE;
  return asked.wasActive;
}

/** The panel of a run's training pictures. */
export class PicturesPanel {
  #asked = null; // the last request, as `isDue` takes it
  #pictures = [];
  #fetchPictures;
  #urlOf;

  /**
   * @param {(run: object) => Promise<object[]>} fetchPictures fails with an error whose message is for people
   * @param {(path: string) => string} urlOf the URL of an API path
   */
  constructor(fetchPictures, urlOf) {
    this.#fetchPictures = fetchPictures;
    this.#urlOf = urlOf;
    this.hint = element("div", { className: "kiln-hint" });
    this.sheet = element("div", { className: "kiln-sheet" });
    this.root = element("div", { className: "kiln-pictures", tabIndex: -1, "data-capture-wheel": "true" }, this.hint, this.sheet);
  }

  /** Shows the pictures of a run. Does nothing while the panel is not visible. */
  async show(run) {
    if (!run) this.#fill([], "The loss of each training picture appears here during a run.");
    if (document.hidden || !this.root.getClientRects().length) return;
    const now = Date.now();
    if (!isDue(run, this.#asked, now)) return;
    const asked = { key: run.key, at: now, step: run.step, wasActive: isActive(run) };
    if (this.#asked?.key !== run.key) this.#fill([], "Loading …");
    this.#asked = asked;
    let pictures = [];
    let hint = "No picture has been trained on yet.";
    try {
      pictures = await this.#fetchPictures(run);
    } catch (error) {
      hint = error.message;
    }
    if (this.#asked === asked) this.#fill(rankedPictures(pictures), pictures.length ? "" : hint);
  }

  #fill(pictures, hint) {
    this.#pictures = pictures;
    const more = pictures.length - MOST_SHOWN;
    const text = more > 0 ? `The worst ${MOST_SHOWN} of ${pictures.length} pictures.` : hint;
    setText(this.hint, text);
    this.hint.hidden = !text;
    this.sheet.replaceChildren(...pictures.slice(0, MOST_SHOWN).map((picture) => this.#card(picture)));
  }

  #card(picture) {
    const bar = element("div", { className: "kiln-loss-bar" }, element("div"));
    bar.firstChild.style.width = `${(100 * picture.share).toFixed(1)}%`;
    const name = element("span", { className: "kiln-name" }, picture.name.split("/").at(-1));
    const face = picture.thumbnail
      ? element("img", { alt: picture.name, loading: "lazy", decoding: "async", draggable: false, src: this.#urlOf(picture.thumbnail) })
      : element("div", { className: "kiln-no-picture" });
    return element("button", {
      type: "button", className: "kiln-card", title: picture.title, disabled: !picture.thumbnail,
      onclick: () => openOverlay(() => [this.#large()], picture.name),
    }, face, bar, element("span", { className: "kiln-card-text" }, name, element("b", {}, picture.text)));
  }

  #large() {
    return this.#pictures.filter((picture) => picture.thumbnail).map((picture) => ({
      key: picture.name,
      url: this.#urlOf(`${picture.thumbnail}&side=${LARGE}`),
      title: picture.caption || picture.name,
      detail: `${picture.name} · ${picture.text} the average loss`,
    }));
  }
}
