// The dataset on Load Dataset: a contact sheet, new folders from dropped files, and the way to the caption editor.

import { plural, summary, triggerBefore } from "./captions.mjs";
import { button, element } from "./dom.mjs";
import { openEditor } from "./editor.mjs";
import { folderOf, unsavedElsewhere } from "./folders.mjs";
import { addViewWidget, after, hideOwnPreview, isLinked } from "./node_widgets.mjs";
import { card, lazyGrid, listOfProblems, saveBar } from "./parts.mjs";
import { ACCEPT, bringsFiles, chosenFiles, droppedFiles, planUpload, uploadForm } from "./upload.mjs";

const NODE = "KilnLoadDataset";
const NONE = "none";
const ALWAYS = 0; // the mode of a node that is neither muted nor bypassed
const RUN_TEXT = "$$node-text-preview"; // the host's widget with what a node says while it runs
const HEIGHT = 320;
const EMPTY = [];
const PAUSE_MILLISECONDS = 250;
const ASKED = ["folder", "resolution", "extra_resolutions", "bucket_step", "shortest_side", "longest_side", "masked_loss"];
const PRIOR = "regularisation_folder";
const TRIGGER = "trigger_word";
const FOLDER_WIDGETS = ["folder", PRIOR];
const NOTHING_ADDED = { folder: null, refused: "" };

/** Puts the dataset's view on a Load Dataset node. events: the host's `api`, for its events; warn(text): tells what goes wrong over the page. */
export function addDatasetView(node, { server, events, notify }) {
  const view = new DatasetView(node, server, events, (text) => notify("warn", node.title, text));
  addViewWidget(node, "kiln_dataset", view.root, HEIGHT);
  hideOwnPreview(node, () => view.folder !== null && !isLinked(node, "images")); // what comes over a wire is shown by the host alone
  view.start();
}

class DatasetView {
  constructor(node, server, events, warn) {
    this.node = node;
    this.server = server;
    this.events = events;
    this.warn = warn;
    this.folder = null; // a Folder; null while none is chosen
    this.found = null; // what the server says of it: {pictures, problems}
    this.prior = null; // {folder, found} of the regularisation pictures; null while there are none
    this.added = NOTHING_ADDED; // the folder last made of files, and which of them were refused; until another is chosen
    this.items = EMPTY; // {folder, picture} of all that the sheet shows
    this.turn = 0; // of the newest look at the folder
    this.build();
  }

  build() {
    this.status = element("div", { className: "kiln-status" });
    this.notice = element("div", { className: "kiln-notice", hidden: true });
    this.edit = button("Edit captions…", "Shows all pictures large, with their captions to edit", () => this.open());
    const files = element("input", { type: "file", multiple: true, accept: ACCEPT, hidden: true });
    const folder = element("input", { type: "file", webkitdirectory: true, hidden: true });
    for (const input of [files, folder]) {
      input.addEventListener("change", () => {
        this.offer(chosenFiles(input));
        input.value = "";
      });
    }
    const bar = element("div", { className: "kiln-bar" }, [
      this.edit,
      button("Add pictures…", "Copies pictures, and their .txt or .caption files, into a new folder", () => files.click()),
      button("Add folder…", "Copies a folder of pictures and captions into a new folder", () => folder.click()),
      button("⟳", "Looks at the folder again", () => {
        this.added = NOTHING_ADDED;
        this.refresh();
      }),
      files,
      folder,
    ]);
    this.upload = element("form", { className: "kiln-upload", hidden: true });
    this.sheet = element("div", { className: "kiln-sheet", tabIndex: 0 });
    this.sheet.dataset.captureWheel = "true";
    // In Vue nodes the wheel scrolls what has the focus, and zooms the canvas over all else.
    this.sheet.addEventListener("pointerenter", () => {
      const isTyping = document.activeElement?.matches("input, textarea, select, [contenteditable]");
      if (!isTyping && this.root.closest("[data-node-id]")) this.sheet.focus({ preventScroll: true });
    });
    this.sheet.addEventListener("pointerleave", () => this.sheet.blur());
    this.grid = lazyGrid(this.sheet);
    this.problems = listOfProblems();
    this.save = saveBar(() => this.folder, this.server, () => this.open());
    this.root = element("div", { className: "kiln-dataset" }, [
      bar, this.upload, this.notice, this.status, this.save.root, this.sheet, this.problems.root,
    ]);
    this.root.style.minHeight = `${HEIGHT}px`;
    for (const kind of ["pointerdown", "wheel", "contextmenu"]) {
      this.root.addEventListener(kind, (event) => event.stopPropagation()); // the canvas would drag or zoom
    }
  }

  /** Follows the node: its settings, its workflow, files dropped on it. */
  start() {
    const { node, root } = this;
    for (const widget of node.widgets.filter((each) => [...ASKED, PRIOR, TRIGGER].includes(each.name))) {
      after(widget, "callback", () => {
        this.removeRunText();
        this.refreshSoon();
      });
    }
    after(node, "onConfigure", () => this.refreshSoon());
    after(node, "onRemoved", () => this.stop());
    node.onDragOver = (event) => bringsFiles(event);
    node.onDragDrop = (event) => bringsFiles(event) && this.take(event.dataTransfer);
    root.addEventListener("dragover", (event) => {
      if (!bringsFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      root.classList.add("kiln-drop");
    });
    root.addEventListener("dragleave", () => root.classList.remove("kiln-drop"));
    root.addEventListener("drop", (event) => {
      root.classList.remove("kiln-drop");
      if (!bringsFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      this.take(event.dataTransfer);
    });
    this.onRan = () => this.refreshSoon(); // Caption Images may have written
    this.events.addEventListener("execution_success", this.onRan);
    this.onQueue = () => this.warnOfUnsaved();
    this.events.addEventListener("promptQueueing", this.onQueue);
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    this.refreshSoon();
  }

  stop() {
    clearTimeout(this.timer);
    this.turn++;
    this.leave();
    this.events.removeEventListener("execution_success", this.onRan);
    this.events.removeEventListener("promptQueueing", this.onQueue);
    this.grid.stop();
  }

  /** What the last run said of the dataset is not true of other settings. */
  removeRunText() {
    const { node } = this;
    const at = node.widgets.findIndex((widget) => widget.name === RUN_TEXT);
    if (at < 0) return;
    node.widgets[at].onRemove?.();
    node.widgets.splice(at, 1);
    node.setDirtyCanvas(true, true);
  }

  /** A run reads the captions on disk, so edits that are not saved are not trained on. */
  warnOfUnsaved() {
    if (this.node.mode !== ALWAYS) return;
    for (const folder of [this.folder, this.prior?.folder]) {
      const unsaved = folder?.queued();
      if (unsaved) this.warn(`${plural(unsaved, "caption")} of ${folder.name} not saved: this run reads the captions on disk. Save captions, then press Run again.`);
    }
  }

  value(name) {
    return this.node.widgets.find((widget) => widget.name === name)?.value;
  }

  refreshSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), PAUSE_MILLISECONDS);
  }

  /** Looks at the chosen folder with the node's settings. */
  async refresh() {
    clearTimeout(this.timer);
    const turn = ++this.turn;
    const name = this.value("folder");
    if (name !== this.added.folder) this.added = NOTHING_ADDED;
    this.say(this.added.refused);
    if (!name || name === NONE) {
      this.leave();
      return this.paint();
    }
    if (this.folder?.name !== name) {
      this.leave();
      this.folder = folderOf(name);
      this.unwatch = this.folder.watch(() => this.paintSoon());
      this.paint();
    }
    this.leavePrior();
    const isTold = (done, total) => {
      if (turn !== this.turn) return false;
      if (done < total) this.status.textContent = `Looking at picture ${done} of ${total} …`;
      return true;
    };
    try {
      const found = await this.folder.look(this.server, this.query(name), isTold);
      if (turn !== this.turn) return;
      this.found = found;
      const prior = await this.lookAtPrior(isTold);
      if (turn !== this.turn) return;
      if (prior) this.unwatchPrior = prior.folder.watch(() => this.paintSoon());
      this.prior = prior;
    } catch (error) {
      if (turn === this.turn) this.say(error.message);
    }
    if (turn === this.turn) this.paint();
  }

  async lookAtPrior(isTold) {
    const name = this.value(PRIOR);
    if (!name || name === NONE) return null;
    const folder = folderOf(name);
    if (folder === this.folder) return null; // they are in the sheet already
    return { folder, found: await folder.look(this.server, this.query(name), isTold) };
  }

  query(folder) {
    const settings = ASKED.map((each) => [each, this.value(each)]).filter(([, value]) => value !== undefined);
    return { ...Object.fromEntries(settings), folder };
  }

  leave() {
    this.unwatch?.();
    this.unwatch = null;
    this.folder = null;
    this.found = null;
    this.leavePrior();
  }

  leavePrior() {
    this.unwatchPrior?.();
    this.unwatchPrior = null;
    this.prior = null;
  }

  say(text) {
    this.notice.textContent = text;
    this.notice.hidden = !text;
  }

  paintSoon() {
    this.painting ??= requestAnimationFrame(() => {
      this.painting = null;
      this.paint();
    });
  }

  paint() {
    const { folder, found, prior } = this;
    const pictures = found?.pictures ?? EMPTY;
    const priors = (found && prior?.found?.pictures) || EMPTY;
    this.edit.disabled = !pictures.length;
    this.root.dataset.pictures = String(pictures.length);
    this.save.paint();
    this.problems.show([...(found?.problems ?? []), ...(prior?.found?.problems ?? [])]);
    const elsewhere = unsavedElsewhere(folder).map(([name, count]) => `${count} unsaved in ${name}`);
    const parts = found ? summary(pictures, folder.captions) : [];
    if (priors.length) parts.push(`${priors.length} for regularisation`);
    this.status.textContent = [...parts, ...elsewhere].join(" · ");
    if (this.shown?.[0] !== pictures || this.shown?.[1] !== priors) {
      this.shown = [pictures, priors];
      this.items = [
        ...pictures.map((picture) => ({ folder, picture })),
        ...priors.map((picture) => ({ folder: prior.folder, picture: { ...picture, regularisation: true } })),
      ];
      this.updates = [];
      this.grid.show(this.items, (item) => this.card(item));
      if (!this.items.length) this.sheet.prepend(element("div", { className: "kiln-hint", textContent: this.hint() }));
    }
    for (const update of this.updates ?? []) update();
  }

  hint() {
    if (!this.folder) return "Drop pictures or a folder of them here, with captions as .txt files if you have them.";
    return this.found ? "No usable picture in this folder." : "";
  }

  card({ folder, picture }) {
    const open = () => this.open(picture.name, folder);
    const text = element("div", { className: "kiln-text" });
    const made = card(this.server, folder, picture, 192, text);
    made.root.tabIndex = 0;
    made.root.setAttribute("role", "button");
    made.root.addEventListener("click", open);
    made.root.addEventListener("keydown", (event) => event.key === "Enter" && open());
    const update = () => {
      const caption = folder.captions.text(picture.name).trim();
      const trigger = picture.regularisation ? "" : triggerBefore(caption, this.value(TRIGGER) ?? "");
      text.replaceChildren(element("span", { className: "kiln-faint" }, caption ? trigger : trigger || "no caption"), caption);
      made.update();
    };
    this.updates.push(update);
    update();
    return made.root;
  }

  open(name = null, folder = this.folder) {
    const pictures = (folder === this.folder ? this.found : this.prior?.found)?.pictures;
    if (pictures?.length) openEditor(folder, pictures, this.server, name);
  }

  /** Files of a drop. True: they are ours. */
  take(dataTransfer) {
    droppedFiles(dataTransfer).then(
      (files) => this.offer(files),
      (error) => this.say(`The files cannot be read: ${error.message}`),
    );
    return true;
  }

  /** Asks for a folder's name, then sends. */
  offer(files) {
    const plan = planUpload(files);
    this.added = NOTHING_ADDED;
    if (!plan.pictures) return this.say("There is no picture among these files (png, jpg, webp, bmp, tif, gif, avif).");
    this.say("");
    const name = element("input", { value: plan.name, maxLength: 100, required: true, ariaLabel: "name of the new folder" });
    const counts = [
      plural(plan.pictures, "picture"),
      plan.captions && plural(plan.captions, "caption"),
      plan.left && `${plural(plan.left, "other file")} left out`,
    ];
    const cancel = button("Cancel", "", () => this.closeUpload());
    const add = element("button", { type: "submit", textContent: "Add", className: "kiln-button kiln-main" });
    this.upload.replaceChildren(
      element("div", { textContent: `${counts.filter(Boolean).join(", ")} into a new folder in ComfyUI's input folder:` }),
      element("div", { className: "kiln-bar" }, [name, add, cancel]),
    );
    this.upload.hidden = false;
    this.upload.onsubmit = (event) => {
      event.preventDefault();
      this.send(name.value, plan.files);
    };
    name.select();
  }

  async send(name, files) {
    const progress = element("progress", { max: 1, value: 0 });
    const text = element("span", { textContent: "Sending …" });
    this.upload.replaceChildren(text, progress);
    try {
      const answer = await this.server.upload("/kiln/dataset/upload", { name }, uploadForm(files), (share) => {
        progress.value = share;
        if (share >= 1) text.textContent = "Looking at the files …";
      });
      this.closeUpload();
      this.added = { folder: answer.folder, refused: answer.refused.length ? `Not added:\n${answer.refused.join("\n")}` : "" };
      this.choose(answer.folder);
      await this.refresh();
    } catch (error) {
      this.closeUpload();
      this.say(error.message);
    }
  }

  closeUpload() {
    this.upload.hidden = true;
    this.upload.replaceChildren();
  }

  /** Lists a new folder on every Load Dataset node, and selects it on this one. */
  choose(name) {
    const nodes = [this.node, ...(this.node.graph?.nodes ?? this.node.graph?._nodes ?? [])].filter((each) => each.comfyClass === NODE);
    for (const node of new Set(nodes)) {
      for (const widget of node.widgets.filter((each) => FOLDER_WIDGETS.includes(each.name))) {
        widget.options.values = [...new Set([...widget.options.values, name])];
      }
    }
    const widget = this.node.widgets.find((each) => each.name === "folder");
    widget.value = name;
    widget.callback?.(name);
    this.node.setDirtyCanvas(true, true);
  }
}
