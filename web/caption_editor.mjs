// The caption editor: all pictures of a folder over the whole page, with search and replace, and tags.

import { filterPictures } from "./dataset_pictures.mjs";
import { button, element } from "./dom.mjs";
import { plural } from "./format.mjs";
import { lazyGrid } from "./lazy_grid.mjs";
import { pictureCard } from "./picture_card.mjs";
import { saveBar } from "./save_bar.mjs";

const MOST_TAGS = 500; // shown; search finds the rest
const TYPING_PAUSE = 250; // milliseconds without a key, after which the tags are counted anew
const THUMBNAIL = 400; // pixels of its longer side
const SHOWN = [
  ["all", "all pictures"],
  ["uncaptioned", "without caption"],
  ["unsaved", "unsaved"],
  ["small", "too small"],
  ["same", "same content"],
];

/**
 * Opens the editor.
 * @param {import("./caption_folder.mjs").CaptionFolder} folder
 * @param {object[]} pictures the folder's pictures as the server scanned them
 * @param {import("./server.mjs").Server} server
 * @param {string | null} name of the picture whose caption gets the focus
 */
export function openCaptionEditor(folder, pictures, server, name = null) {
  document.querySelector(".kiln-editor")?.close();
  new CaptionEditor(folder, pictures, server).open(name);
}

/** The editor's dialog on the pictures of one folder. */
class CaptionEditor {
  #folder;
  #pictures;
  #server;
  #tag = ""; // only pictures with this tag are shown; "" shows all
  #updates = new Map(); // name -> updates the picture's card
  #timer = 0;
  #unwatch;

  constructor(folder, pictures, server) {
    this.#folder = folder;
    this.#pictures = pictures;
    this.#server = server;
    this.#build();
    this.#keepEventsFromCanvas();
  }

  get #captions() {
    return this.#folder.captions;
  }

  #build() {
    this.undo = button("Undo", "Ctrl+Z", () => this.#step("undo"));
    this.redo = button("Redo", "Ctrl+Shift+Z", () => this.#step("redo"));
    this.save = saveBar(() => this.#folder, this.#server);
    const options = SHOWN.map(([value, text]) => element("option", { value, textContent: text }));
    this.show = element("select", { ariaLabel: "pictures to show" }, options);
    this.find = element("input", { type: "text", placeholder: "find", ariaLabel: "find" });
    this.by = element("input", { type: "text", placeholder: "replace by", ariaLabel: "replace by" });
    this.matchCase = element("input", { type: "checkbox" });
    this.found = element("span", { className: "kiln-faint kiln-found" });
    const replaceAll = () => this.#captions.replace(this.find.value, this.by.value, this.matchCase.checked);
    this.replace = button("Replace all", "In all captions of the folder", () => this.#edit(replaceAll));
    for (const input of [this.show, this.find, this.matchCase]) input.addEventListener("input", () => this.#list());
    this.scroller = element("div", { className: "kiln-cards", tabIndex: -1 });
    this.grid = lazyGrid(this.scroller);
    this.tags = element("div", { className: "kiln-tags" });
    this.dialog = element("dialog", { className: "kiln-editor" }, [
      element("div", { className: "kiln-head" }, [
        element("h2", { textContent: `Captions of ${this.#folder.name}` }),
        this.undo,
        this.redo,
        this.save.root,
        element("div", { className: "kiln-space" }),
        button("Close", "Esc. Unsaved edits stay on the page until you save them.", () => this.dialog.close()),
      ]),
      element("div", { className: "kiln-head" }, [
        this.show,
        element("div", { className: "kiln-bar" }, [
          this.find,
          this.by,
          element("label", {}, [this.matchCase, " match case"]),
          this.replace,
          this.found,
        ]),
      ]),
      element("div", { className: "kiln-body" }, [this.scroller, this.tags]),
    ]);
    this.dialog.addEventListener("keydown", (event) => this.#onKey(event));
    this.dialog.addEventListener("close", () => this.#onClose());
  }

  /** The canvas listens on the whole page, under the dialog too. */
  #keepEventsFromCanvas() {
    for (const kind of ["keyup", "paste", "copy", "cut", "wheel", "drop", "dragover"]) {
      this.dialog.addEventListener(kind, (event) => event.stopPropagation());
    }
    // A click beside the fields must not take the focus from its field: without one, keys go to the canvas.
    this.dialog.addEventListener("mousedown", (event) => {
      if (!event.target.closest("input, textarea, select, label")) event.preventDefault();
    });
  }

  open(name) {
    document.body.append(this.dialog);
    this.#unwatch = this.#folder.watch(() => this.#paint());
    this.dialog.showModal();
    this.#list();
    this.find.focus();
    if (name === null) return;
    this.grid.reveal((picture) => picture.name === name);
    const card = this.#cardOf(name);
    card?.scrollIntoView({ block: "center" });
    card?.querySelector("textarea").focus({ preventScroll: true });
  }

  #onClose() {
    this.#captions.endTyping();
    clearTimeout(this.#timer);
    this.#unwatch();
    this.grid.stop();
    this.dialog.remove();
    this.#folder.changed();
  }

  #onKey(event) {
    event.stopPropagation();
    if (!(event.ctrlKey || event.metaKey)) return;
    const key = event.key.toLowerCase();
    if (key === "s") this.#folder.save(this.#server);
    else if (key === "z") this.#step(event.shiftKey ? "redo" : "undo");
    else if (key === "y") this.#step("redo");
    else return;
    event.preventDefault();
  }

  #cardOf(name) {
    return [...this.scroller.querySelectorAll(".kiln-card")].find((card) => card.dataset.name === name);
  }

  /** Undoes or redoes a step, and scrolls to the first caption that it changes. */
  #step(direction) {
    const [name] = this.#captions[direction]();
    this.#folder.changed();
    this.#paintTags();
    this.#cardOf(name)?.scrollIntoView({ block: "nearest" });
  }

  #edit(change) {
    change();
    this.#captions.endTyping();
    this.#folder.changed();
    this.#paintTags();
  }

  /** Shows the pictures that match the filter. */
  #list() {
    const filter = { show: this.show.value, find: this.find.value, matchCase: this.matchCase.checked, tag: this.#tag };
    const matching = filterPictures(this.#pictures, this.#captions, filter);
    this.#updates.clear();
    this.grid.show(matching, (picture) => this.#card(picture));
    if (!matching.length) this.scroller.prepend(element("div", { className: "kiln-hint", textContent: "No picture of this kind." }));
    this.#paint();
    this.#paintTags();
  }

  #paint() {
    const { places, captions } = this.#captions.count(this.find.value, this.matchCase.checked);
    this.found.textContent = this.find.value ? `${plural(places, "place")} in ${plural(captions, "caption")}` : "";
    this.replace.disabled = !places;
    this.undo.disabled = !this.#captions.canUndo;
    this.redo.disabled = !this.#captions.canRedo;
    this.save.paint();
    for (const update of this.#updates.values()) update();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#paintTags(), TYPING_PAUSE);
  }

  #paintTags() {
    clearTimeout(this.#timer);
    const tags = this.#captions.tags;
    const rows = tags.slice(0, MOST_TAGS).map(([tag, count]) => this.#tagRow(tag, count));
    if (this.#tag && !tags.some(([tag]) => tag === this.#tag)) this.#tag = "";
    this.tags.replaceChildren(element("h3", { textContent: plural(tags.length, "tag") }), ...rows);
  }

  #tagRow(tag, count) {
    const choose = element("button", { type: "button", textContent: tag, title: `${tag}\nShows the pictures that have it` });
    choose.addEventListener("click", () => {
      this.#tag = this.#tag === tag ? "" : tag;
      this.#list();
    });
    const title = `Removes it from ${plural(count, "caption")}`;
    const remove = element("button", { type: "button", textContent: "✕", title, ariaLabel: `remove ${tag}` });
    remove.addEventListener("click", () => this.#edit(() => this.#captions.removeTag(tag)));
    const row = element("div", { className: "kiln-tag" }, [choose, element("span", { textContent: String(count) }), remove]);
    row.classList.toggle("kiln-on", tag === this.#tag);
    return row;
  }

  /** A picture with the field for its caption. */
  #card(picture) {
    const { name } = picture;
    const text = element("textarea", { rows: 4, spellcheck: true, ariaLabel: `caption of ${name}`, placeholder: "no caption" });
    text.addEventListener("input", () => {
      this.#captions.change({ [name]: text.value }, name);
      this.#folder.changed();
    });
    text.addEventListener("blur", () => this.#captions.endTyping());
    const tooltip = picture.source ? `${name}\ncaption from ${picture.source}` : name;
    const title = element("div", { className: "kiln-name", textContent: name, title: tooltip });
    const card = pictureCard(this.#server, this.#folder, picture, THUMBNAIL, element("div", {}, [title, text]));
    const update = () => {
      if (text.value !== this.#captions.text(name)) text.value = this.#captions.text(name);
      card.update();
    };
    this.#updates.set(name, update);
    update();
    return card.root;
  }
}
