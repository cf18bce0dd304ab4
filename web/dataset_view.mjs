// The view on a Load Dataset node: the pictures of the dataset in a contact sheet, and the buttons above it.

import { openCaptionEditor } from "./caption_editor.mjs";
import { unsavedElsewhere } from "./caption_folder.mjs";
import { triggerBefore } from "./caption_text.mjs";
import { summary } from "./dataset_pictures.mjs";
import { button, element, onceAFrame } from "./dom.mjs";
import { plural } from "./format.mjs";
import { lazyGrid } from "./lazy_grid.mjs";
import { pictureCard } from "./picture_card.mjs";
import { saveBar } from "./save_bar.mjs";
import { ACCEPT, bringsFiles, chosenFiles, droppedFiles } from "./upload.mjs";

export const MIN_HEIGHT = 320; // pixels
const THUMBNAIL = 192; // pixels of its longer side

/** The view of one node's dataset. */
export class DatasetView {
  #dataset;
  #server;
  #handlers;
  #uploadForm;
  #shown = []; // the lists of pictures that the sheet shows
  #updates = []; // of the cards in the sheet

  /**
   * @param {import("./dataset.mjs").Dataset} dataset
   * @param {import("./server.mjs").Server} server
   * @param {HTMLElement} uploadForm where the name of a new folder is asked for
   * @param {object} handlers what the view asks of its node: reload(), addFiles([{path, file}], or a promise of it), and
   *   triggerWord(), which gives the trigger word
   */
  constructor(dataset, server, uploadForm, handlers) {
    this.#dataset = dataset;
    this.#server = server;
    this.#uploadForm = uploadForm;
    this.#handlers = handlers;
    this.paintSoon = onceAFrame(() => this.paint());
    this.#build();
    keepPointerFromCanvas(this.root);
    scrollByWheelInVueNodes(this.root, this.sheet);
    this.#acceptDrops();
  }

  #build() {
    this.status = element("div", { className: "kiln-status" });
    this.notice = element("div", { className: "kiln-notice", hidden: true });
    this.edit = button("Edit captions…", "Shows all pictures large, with their captions to edit", () => this.#openEditor());
    this.sheet = element("div", { className: "kiln-sheet", tabIndex: 0 });
    this.sheet.dataset.captureWheel = "true";
    this.grid = lazyGrid(this.sheet);
    this.problems = listOfProblems();
    this.save = saveBar(() => this.#dataset.folder, this.#server, () => this.#openEditor());
    this.root = element("div", { className: "kiln-dataset" }, [
      this.#bar(), this.#uploadForm, this.notice, this.status, this.save.root, this.sheet, this.problems.root,
    ]);
    this.root.style.minHeight = `${MIN_HEIGHT}px`; // Vue nodes follow this one
  }

  #bar() {
    const chooser = (properties) => {
      const input = element("input", { type: "file", hidden: true, ...properties });
      input.addEventListener("change", () => {
        this.#handlers.addFiles(chosenFiles(input));
        input.value = "";
      });
      return input;
    };
    const files = chooser({ multiple: true, accept: ACCEPT });
    const folder = chooser({ webkitdirectory: true });
    return element("div", { className: "kiln-bar" }, [
      this.edit,
      button("Add pictures…", "Copies pictures, and their .txt or .caption files, into a new folder", () => files.click()),
      button("Add folder…", "Copies a folder of pictures and captions into a new folder", () => folder.click()),
      button("⟳", "Looks at the folder again", () => this.#handlers.reload()),
      files,
      folder,
    ]);
  }

  #acceptDrops() {
    const { root } = this;
    const onFiles = (type, handle) => root.addEventListener(type, (event) => {
      if (!bringsFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      handle(event);
    });
    const mark = (isOver) => root.classList.toggle("kiln-drop", isOver);
    onFiles("dragover", () => mark(true));
    root.addEventListener("dragleave", () => mark(false));
    root.addEventListener("drop", () => mark(false));
    onFiles("drop", (event) => this.#handlers.addFiles(droppedFiles(event.dataTransfer)));
  }

  /** Stops observing the sheet and cancels a pending repaint. */
  remove() {
    this.grid.stop();
    this.paintSoon.cancel();
  }

  /** Shows a message, such as an error; "" hides it. */
  showNotice(text) {
    this.notice.textContent = text;
    this.notice.hidden = !text;
  }

  /** Shows how many pictures of a folder are scanned. */
  showProgress(done, total) {
    this.status.textContent = `Looking at picture ${done} of ${total} …`;
  }

  /** Shows the dataset as it is now. */
  paint() {
    const { folder, scan, pictures, regularisationPictures, problems, notes } = this.#dataset;
    this.edit.disabled = !pictures.length;
    this.root.dataset.pictures = String(pictures.length);
    this.save.paint();
    this.problems.show(problems, notes);
    const parts = scan ? summary(pictures, folder.captions) : [];
    if (regularisationPictures.length) parts.push(`${regularisationPictures.length} for regularisation`);
    const elsewhere = unsavedElsewhere(folder).map(([name, count]) => `${count} unsaved in ${name}`);
    this.status.textContent = [...parts, ...elsewhere].join(" · ");
    this.#showCards();
    for (const update of this.#updates) update();
  }

  /** Makes the cards anew where the lists of pictures are not those shown. */
  #showCards() {
    const { folder, pictures, regularisation, regularisationPictures } = this.#dataset;
    if (this.#shown[0] === pictures && this.#shown[1] === regularisationPictures) return;
    this.#shown = [pictures, regularisationPictures];
    const items = [
      ...pictures.map((picture) => ({ folder, picture })),
      ...regularisationPictures.map((picture) => ({ folder: regularisation.folder, picture: { ...picture, regularisation: true } })),
    ];
    this.#updates = [];
    this.grid.show(items, (item) => this.#card(item));
    if (!items.length) this.sheet.prepend(element("div", { className: "kiln-hint", textContent: this.#hint() }));
  }

  #hint() {
    if (!this.#dataset.folder) return "Drop pictures or a folder of them here, with captions as .txt files if you have them.";
    return this.#dataset.scan ? "No usable picture in this folder." : "";
  }

  #card({ folder, picture }) {
    const open = () => this.#openEditor(picture.name, folder);
    const text = element("div", { className: "kiln-text" });
    const card = pictureCard(this.#server, folder, picture, THUMBNAIL, text);
    card.root.tabIndex = 0;
    card.root.setAttribute("role", "button");
    card.root.addEventListener("click", open);
    card.root.addEventListener("keydown", (event) => event.key === "Enter" && open());
    const update = () => {
      const caption = folder.captions.text(picture.name).trim();
      const trigger = picture.regularisation ? "" : triggerBefore(caption, this.#handlers.triggerWord());
      text.replaceChildren(element("span", { className: "kiln-faint" }, caption ? trigger : trigger || "no caption"), caption);
      card.update();
    };
    this.#updates.push(update);
    update();
    return card.root;
  }

  /** Opens the editor on the pictures of a folder, at the picture of a name. */
  #openEditor(name = null, folder = this.#dataset.folder) {
    const { pictures, regularisationPictures } = this.#dataset;
    const shown = folder === this.#dataset.folder ? pictures : regularisationPictures;
    if (shown.length) openCaptionEditor(folder, shown, this.#server, name);
  }
}

/** Keeps the canvas from dragging, zooming and opening its menu over the view. */
function keepPointerFromCanvas(root) {
  for (const kind of ["pointerdown", "wheel", "contextmenu"]) root.addEventListener(kind, (event) => event.stopPropagation());
}

/** In Vue nodes the wheel scrolls only the element that has the focus: the sheet takes the focus under the pointer. */
function scrollByWheelInVueNodes(root, sheet) {
  sheet.addEventListener("pointerenter", () => {
    const isTyping = document.activeElement?.matches("input, textarea, select, [contenteditable]");
    const isVueNode = root.closest("[data-node-id]");
    if (!isTyping && isVueNode) sheet.focus({ preventScroll: true });
  });
  sheet.addEventListener("pointerleave", () => sheet.blur());
}

/** The files that were left out, and notes about others, as sentences that a click unfolds: {root, show(problems, notes)}. */
function listOfProblems() {
  const head = element("summary");
  const list = element("ul");
  const root = element("details", { className: "kiln-problems", hidden: true }, [head, list]);
  return {
    root,
    show(problems, notes = []) {
      root.hidden = !(problems.length + notes.length);
      const leftOut = problems.length ? [`${plural(problems.length, "file")} left out`] : [];
      head.textContent = [...leftOut, ...(notes.length ? [plural(notes.length, "note")] : [])].join(", ");
      list.replaceChildren(...[...problems, ...notes].map((text) => element("li", { textContent: text })));
    },
  };
}
