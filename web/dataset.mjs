// What a Load Dataset node loads, as the server last scanned it. Does not use the page: tested under Node.

import { captionFolder } from "./caption_folder.mjs";

const NONE = "none"; // the choice of no folder
const EMPTY = Object.freeze([]); // one list, so that the view sees that nothing changed
const isFolder = (name) => Boolean(name) && name !== NONE;

/** The dataset folder that is chosen and its regularisation folder, each with the pictures the server found in it. */
export class Dataset {
  folder = null; // the CaptionFolder that is chosen; null where none is
  scan = null; // the server's scan of it, {pictures, problems}; null before the first
  regularisation = null; // {folder, scan} of the regularisation folder; null where there is none
  error = ""; // why the last scan failed
  #server;
  #handlers;
  #newest = 0; // number of the newest scan: an older one that ends later is dropped
  #unwatch = null;
  #unwatchRegularisation = null;

  /**
   * @param {import("./server.mjs").Server} server
   * @param {{change: () => void, edit: () => void, progress: (done: number, total: number) => void}} handlers
   *   change: the folder, its scan or the error changed; edit: captions were edited or saved; progress: of a scan, in pictures
   */
  constructor(server, handlers) {
    this.#server = server;
    this.#handlers = handlers;
  }

  /** The pictures of the folder. */
  get pictures() {
    return this.scan?.pictures ?? EMPTY;
  }

  /** The pictures of the regularisation folder. */
  get regularisationPictures() {
    return (this.scan && this.regularisation?.scan?.pictures) || EMPTY;
  }

  /** Sentences about files beside the pictures. */
  get notes() {
    return [...(this.scan?.notes ?? []), ...(this.regularisation?.scan?.notes ?? [])];
  }

  /** Sentences about the files that were left out. */
  get problems() {
    return [...(this.scan?.problems ?? []), ...(this.regularisation?.scan?.problems ?? [])];
  }

  /**
   * Scans the folders that a node's settings name. A scan that is under way is given up.
   * @param {object} settings the query of the scan, with `folder`
   * @param {string} regularisationFolder name of that folder; "none" or undefined where there is none
   */
  async refresh(settings, regularisationFolder) {
    const number = ++this.#newest;
    const isNewest = () => number === this.#newest;
    this.error = "";
    if (!isFolder(settings.folder)) {
      this.#leave();
      return this.#handlers.change();
    }
    if (this.folder?.name !== settings.folder) {
      this.#leave();
      this.folder = captionFolder(settings.folder);
      this.#unwatch = this.folder.watch(this.#handlers.edit);
      this.#handlers.change();
    }
    this.#leaveRegularisation();
    const onProgress = (done, total) => {
      if (isNewest() && done < total) this.#handlers.progress(done, total);
      return isNewest();
    };
    try {
      const scan = await this.folder.scan(this.#server, settings, onProgress);
      if (!isNewest()) return;
      this.scan = scan;
      const regularisation = await this.#scanRegularisation(settings, regularisationFolder, onProgress);
      if (!isNewest()) return;
      this.#unwatchRegularisation = regularisation?.folder.watch(this.#handlers.edit);
      this.regularisation = regularisation;
    } catch (error) {
      if (isNewest()) this.error = error.message;
    }
    if (isNewest()) this.#handlers.change();
  }

  /** To be called when a prompt with the dataset is queued. Returns [folder, number of captions that are not saved] of each. */
  markQueued() {
    return [this.folder, this.regularisation?.folder]
      .filter(Boolean)
      .map((folder) => [folder.name, folder.markQueued()])
      .filter(([, unsaved]) => unsaved);
  }

  /** Gives up the scan under way and stops watching the folders. */
  close() {
    this.#newest++;
    this.#leave();
  }

  async #scanRegularisation(settings, name, onProgress) {
    if (!isFolder(name)) return null;
    const folder = captionFolder(name);
    if (folder === this.folder) return null; // its pictures are shown already
    return { folder, scan: await folder.scan(this.#server, { ...settings, folder: name }, onProgress) };
  }

  #leave() {
    this.#unwatch?.();
    this.#unwatch = this.folder = this.scan = null;
    this.#leaveRegularisation();
  }

  #leaveRegularisation() {
    this.#unwatchRegularisation?.();
    this.#unwatchRegularisation = this.regularisation = null;
  }
}
