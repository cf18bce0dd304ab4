// The folders whose captions the page has read, with their unsaved edits: these outlive nodes and the choice of a folder.

import { Captions } from "./captions.mjs";

const folders = new Map(); // name -> CaptionFolder

/** The captions of one dataset folder while they are edited, and the outcome of saving them. */
export class CaptionFolder {
  #watchers = new Set();

  constructor(name) {
    this.name = name;
    this.captions = new Captions();
    this.readOnlyReason = ""; // why captions cannot be saved in this folder; "" where they can
    this.conflict = null; // {picture's name: caption on disk} of a refused save that waits for a decision
    this.saveError = "";
    this.wasQueuedUnsaved = false; // whether a prompt was queued since the edits began: it reads the captions on disk
  }

  /** Calls `watcher` after each change. Returns a function that ends this. */
  watch(watcher) {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** To be called after each change of `captions`. */
  changed() {
    if (!this.captions.edits.length) this.wasQueuedUnsaved = false;
    for (const watcher of this.#watchers) watcher();
  }

  /**
   * Lets the server scan the folder, and takes the captions that it finds. Edits are kept.
   * A large folder takes several requests, each of which answers with the progress so far.
   * @param {import("./server.mjs").Server} server
   * @param {object} query the folder and the settings of the dataset
   * @param {(done: number, total: number) => boolean} onProgress in pictures; false gives the scan up
   * @returns {Promise<object | null>} the server's answer, {pictures, problems, ...}; null where the scan was given up
   */
  async scan(server, query, onProgress) {
    for (;;) {
      const answer = await server.get("/kiln/dataset", query);
      if (!onProgress(answer.done, answer.total)) return null;
      if (!answer.pictures) continue;
      this.readOnlyReason = answer.locked;
      this.captions.load(answer.pictures);
      this.changed();
      return answer;
    }
  }

  /** To be called when a prompt that uses the folder is queued. Returns the number of unsaved captions. */
  markQueued() {
    const unsaved = this.captions.edits.length;
    this.wasQueuedUnsaved = unsaved > 0;
    this.changed();
    return unsaved;
  }

  /**
   * Saves the edits. Nothing is saved where a caption changed on disk since it was read: `conflict` names these.
   * @param {boolean} overwrite saves also over captions that changed
   */
  async save(server, overwrite = false) {
    const edits = this.captions.edits;
    if (!edits.length) return;
    this.saveError = "";
    this.conflict = null;
    try {
      const answer = await server.post("/kiln/dataset/captions", { folder: this.name, captions: edits, overwrite });
      this.captions.markSaved(edits.filter(({ name }) => answer.saved.includes(name)));
      this.saveError = Object.values(answer.failed).join("\n");
    } catch (error) {
      if (error.body?.changed) this.conflict = error.body.changed;
      else this.saveError = error.message;
    }
    this.changed();
  }

  /** Ends a conflict: replaces the edits of the captions that changed by those on disk. Undo brings the edits back. */
  takeFromDisk() {
    for (const [name, caption] of Object.entries(this.conflict)) {
      if (caption === null) continue; // the file cannot be read
      this.captions.change({ [name]: caption });
      this.captions.markSaved([{ name, caption }]);
    }
    this.conflict = null;
    this.changed();
  }
}

/** The one CaptionFolder of a folder's name. */
export function captionFolder(name) {
  if (!folders.size) globalThis.addEventListener?.("beforeunload", askBeforeUnload);
  if (!folders.has(name)) folders.set(name, new CaptionFolder(name));
  return folders.get(name);
}

/** [name, number of edits] of every folder with unsaved edits, but for `folder`. */
export function unsavedElsewhere(folder) {
  return [...folders.values()]
    .filter((each) => each !== folder)
    .map((each) => [each.name, each.captions.edits.length])
    .filter(([, count]) => count);
}

/** Makes the browser ask before it leaves the page. */
function askBeforeUnload(event) {
  if (unsavedElsewhere(null).length) event.preventDefault();
}
