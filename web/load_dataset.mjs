// The dataset on a Load Dataset node: follows the node's settings, the queue, and files dropped on the node.

import { Dataset } from "./dataset.mjs";
import { DatasetView, MIN_HEIGHT } from "./dataset_view.mjs";
import { plural } from "./format.mjs";
import { addViewWidget, after, hideOwnPreview, isEnabled, isLinked, widgetNamed } from "./node_widgets.mjs";
import { bringsFiles, droppedFiles } from "./upload.mjs";
import { UploadForm } from "./upload_form.mjs";

const NODE = "KilnLoadDataset";
const RUN_TEXT = "$$node-text-preview"; // the host's widget with the text that a node sent while it ran
const PAUSE = 250; // milliseconds after a change of the settings, before the folder is scanned
const SETTINGS = ["folder", "resolution", "extra_resolutions", "bucket_step", "shortest_side", "longest_side", "masked_loss"];
const REGULARISATION = "regularisation_folder";
const TRIGGER = "trigger_word";
const FOLDER_WIDGETS = ["folder", REGULARISATION];
const NO_UPLOAD = { folder: null, refused: "" };

/**
 * Adds the view of the dataset to a Load Dataset node.
 * @param {import("./kiln.js").Page} page
 */
export function addDatasetView(node, page) {
  new DatasetNode(node, page).start();
}

/** Connects a Load Dataset node with its dataset and its view. */
class DatasetNode {
  #node;
  #page;
  #dataset;
  #view;
  #uploadForm;
  #upload = NO_UPLOAD; // the last upload while its folder is chosen: its name, and which files the server refused
  #timer = 0;

  constructor(node, page) {
    this.#node = node;
    this.#page = page;
    this.#dataset = new Dataset(page.server, {
      change: () => this.#paint(),
      edit: () => this.#view.paintSoon(),
      progress: (done, total) => this.#view.showProgress(done, total),
    });
    this.#uploadForm = new UploadForm(page.server, (error, answer) => this.#endUpload(error, answer));
    this.#view = new DatasetView(this.#dataset, page.server, this.#uploadForm.root, {
      reload: () => this.#reload(),
      addFiles: (files) => this.#addFiles(files),
      triggerWord: () => this.#value(TRIGGER) ?? "",
    });
  }

  start() {
    const node = this.#node;
    addViewWidget(node, "kiln_dataset", this.#view.root, MIN_HEIGHT);
    // The host alone shows pictures that come over a wire.
    hideOwnPreview(node, () => this.#dataset.folder !== null && !isLinked(node, "images"));
    this.#followNode();
    this.#followQueue();
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    this.#refreshSoon();
  }

  #followNode() {
    const node = this.#node;
    for (const name of [...SETTINGS, REGULARISATION, TRIGGER]) {
      const widget = widgetNamed(node, name);
      if (!widget) continue;
      after(widget, "callback", () => {
        this.#removeRunText();
        this.#refreshSoon();
      });
    }
    after(node, "onConfigure", () => this.#refreshSoon());
    node.onDragOver = (event) => bringsFiles(event);
    node.onDragDrop = (event) => {
      if (!bringsFiles(event)) return false;
      this.#addFiles(droppedFiles(event.dataTransfer));
      return true;
    };
    after(node, "onRemoved", () => {
      clearTimeout(this.#timer);
      this.#dataset.close();
      this.#view.remove();
    });
  }

  #followQueue() {
    const { events } = this.#page;
    const listeners = {
      execution_success: () => this.#refreshSoon(), // Caption Images may have written captions
      promptQueueing: () => this.#warnOfUnsaved(),
    };
    for (const [event, listener] of Object.entries(listeners)) {
      events.addEventListener(event, listener);
      after(this.#node, "onRemoved", () => events.removeEventListener(event, listener));
    }
  }

  #value(name) {
    return widgetNamed(this.#node, name)?.value;
  }

  #refreshSoon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#refresh(), PAUSE);
  }

  /** Scans the chosen folder with the node's settings. */
  #refresh() {
    clearTimeout(this.#timer);
    if (this.#value("folder") !== this.#upload.folder) this.#upload = NO_UPLOAD;
    this.#view.showNotice(this.#upload.refused);
    const settings = SETTINGS.map((name) => [name, this.#value(name)]).filter(([, value]) => value !== undefined);
    return this.#dataset.refresh(Object.fromEntries(settings), this.#value(REGULARISATION));
  }

  #reload() {
    this.#upload = NO_UPLOAD;
    this.#refresh();
  }

  #paint() {
    if (this.#dataset.error) this.#view.showNotice(this.#dataset.error);
    this.#view.paint();
  }

  /** Removes the text of the last run: it describes the dataset with other settings. */
  #removeRunText() {
    const { widgets } = this.#node;
    const index = widgets.findIndex((widget) => widget.name === RUN_TEXT);
    if (index < 0) return;
    widgets[index].onRemove?.();
    widgets.splice(index, 1);
    this.#node.setDirtyCanvas(true, true);
  }

  /** A run reads the captions on disk: unsaved edits are not trained on. */
  #warnOfUnsaved() {
    if (!isEnabled(this.#node)) return;
    for (const [folder, unsaved] of this.#dataset.markQueued()) {
      const what = `${plural(unsaved, "caption")} of ${folder} not saved: this run reads the captions on disk.`;
      this.#page.notify("warn", this.#node.title, `${what} Save captions, then press Run again.`);
    }
  }

  /** Offers to upload files into a new folder. files: [{path, file}], or a promise of it. */
  async #addFiles(files) {
    try {
      const isOpen = this.#uploadForm.open(await files);
      this.#upload = NO_UPLOAD;
      this.#view.showNotice(isOpen ? "" : "There is no picture among these files (png, jpg, webp, bmp, tif, gif, avif, heic, jxl).");
    } catch (error) {
      this.#view.showNotice(`The files cannot be read: ${error.message}`);
    }
  }

  async #endUpload(error, answer) {
    if (error) return this.#view.showNotice(error.message);
    this.#upload = { folder: answer.folder, refused: answer.refused.length ? `Not added:\n${answer.refused.join("\n")}` : "" };
    this.#choose(answer.folder);
    await this.#refresh();
  }

  /** Lists a new folder on every Load Dataset node of the graph, and chooses it on this one. */
  #choose(folder) {
    const node = this.#node;
    const inGraph = node.graph?.nodes ?? node.graph?._nodes ?? [];
    for (const each of new Set([node, ...inGraph])) {
      if (each.comfyClass !== NODE) continue;
      for (const widget of each.widgets.filter(({ name }) => FOLDER_WIDGETS.includes(name))) {
        widget.options.values = [...new Set([...widget.options.values, folder])];
      }
    }
    const widget = widgetNamed(node, "folder");
    widget.value = folder;
    widget.callback?.(folder);
    node.setDirtyCanvas(true, true);
  }
}
