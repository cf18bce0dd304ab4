// The folders that the page has looked at, with the edits that are not saved: they outlive nodes and choices.

import { Captions } from "./captions.mjs";

const folders = new Map(); // name -> Folder

/** A folder's captions as they are edited, and how saving them went. */
export class Folder {
  #watchers = new Set();

  constructor(name) {
    this.name = name;
    this.captions = new Captions();
    this.locked = ""; // why captions cannot be saved here
    this.conflict = null; // {name: caption on disk} while a save waits for a decision
    this.message = ""; // what went wrong when saving
    this.isLeftBehind = false; // whether a run was queued while there were edits
  }

  /** Calls a function after each change; returns what ends that. */
  watch(watcher) {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  changed() {
    if (!this.captions.edits.length) this.isLeftBehind = false;
    for (const watcher of this.#watchers) watcher();
  }

  /**
   * What the server says of the folder with a node's settings: {pictures, problems, ...}. It is asked as often as it
   * takes; onProgress(done, total) returns false to give up, and null comes.
   */
  async look(server, query, onProgress) {
    for (;;) {
      const answer = await server.get("/kiln/dataset", query);
      if (!onProgress(answer.done, answer.total)) return null;
      if (!answer.pictures) continue;
      this.locked = answer.locked;
      this.captions.load(answer.pictures);
      this.changed();
      return answer;
    }
  }

  /** A run is queued, which reads what is on disk. Returns how many captions it does not know of. */
  queued() {
    const unsaved = this.captions.edits.length;
    this.isLeftBehind = unsaved > 0;
    this.changed();
    return unsaved;
  }

  async save(server, overwrite = false) {
    const edits = this.captions.edits;
    if (!edits.length) return;
    this.message = "";
    this.conflict = null;
    try {
      const answer = await server.post("/kiln/dataset/captions", { folder: this.name, captions: edits, overwrite });
      this.captions.saved(edits.filter(({ name }) => answer.saved.includes(name)));
      this.message = Object.values(answer.failed).join("\n");
    } catch (error) {
      if (error.body?.changed) this.conflict = error.body.changed;
      else this.message = error.message;
    }
    this.changed();
  }

  /** Ends a conflict with what is on disk, for the captions that changed there. */
  takeTheirs() {
    for (const [name, caption] of Object.entries(this.conflict)) {
      if (caption === null) continue; // it cannot be read
      this.captions.change({ [name]: caption });
      this.captions.saved([{ name, caption }]);
    }
    this.conflict = null;
    this.changed();
  }
}

/** The one Folder of a name. */
export function folderOf(name) {
  if (!folders.size) globalThis.addEventListener?.("beforeunload", warnOfEdits);
  if (!folders.has(name)) folders.set(name, new Folder(name));
  return folders.get(name);
}

/** [[name, how many edits]] of the other folders that have any. */
export function unsavedElsewhere(folder) {
  return [...folders.values()]
    .filter((each) => each !== folder)
    .map((each) => [each.name, each.captions.edits.length])
    .filter(([, count]) => count);
}

function warnOfEdits(event) {
  if (unsavedElsewhere(null).length) event.preventDefault();
}
