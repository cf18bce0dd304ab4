// The captions of one folder while they are edited, with undo. Does not use the page: tested under Node.

import { countIn, replaceIn, tagsOf, withoutTag } from "./caption_text.mjs";

/** Captions by their pictures' names. */
export class Captions {
  #saved = new Map(); // name -> caption on disk
  #current = new Map(); // name -> caption as edited
  #names = [];
  #steps = []; // undo steps: [Map(name -> [before, after]), key]
  #done = 0; // number of steps that are not undone

  /** Takes the captions on disk, [{name, caption}]. An edited caption stays, with the text on disk that it was made from. */
  load(pictures) {
    this.#names = pictures.map((picture) => picture.name);
    for (const { name, caption } of pictures) {
      if (this.isEdited(name)) continue;
      this.#saved.set(name, caption);
      this.#current.set(name, caption);
    }
  }

  get names() {
    return this.#names;
  }

  text(name) {
    return this.#current.get(name) ?? "";
  }

  isEdited(name) {
    return this.#current.has(name) && this.#current.get(name).trim() !== this.#saved.get(name);
  }

  /** The unsaved captions: [{name, caption, before: the caption on disk}]. */
  get edits() {
    return this.#names
      .filter((name) => this.isEdited(name))
      .map((name) => ({ name, caption: this.text(name).trim(), before: this.#saved.get(name) }));
  }

  /** Notes that these edits are on disk now. */
  markSaved(edits) {
    for (const { name, caption } of edits) this.#saved.set(name, caption);
    this.endTyping();
  }

  /**
   * Changes captions in one undo step.
   * @param {object} captions {name: caption}
   * @param {string | null} key consecutive changes with the same key become one step, as letters typed in one field
   * @returns {number} how many captions differ from before
   */
  change(captions, key = null) {
    const step = new Map(
      Object.entries(captions)
        .filter(([name, text]) => text !== this.text(name))
        .map(([name, text]) => [name, [this.text(name), text]]),
    );
    if (!step.size) return 0;
    this.#steps.length = this.#done;
    const last = this.#steps.at(-1);
    if (key !== null && last?.[1] === key) {
      for (const [name, [before, after]] of step) last[0].set(name, [last[0].get(name)?.[0] ?? before, after]);
    } else {
      this.#steps.push([step, key]);
    }
    this.#done = this.#steps.length;
    for (const [name, [, after]] of step) this.#current.set(name, after);
    return step.size;
  }

  /** Makes the next change a step of its own, whatever its key. */
  endTyping() {
    if (this.#steps.length) this.#steps.at(-1)[1] = null;
  }

  get canUndo() {
    return this.#done > 0;
  }

  get canRedo() {
    return this.#done < this.#steps.length;
  }

  /** Undoes one step. Returns the names of the captions that it changed back. */
  undo() {
    if (!this.canUndo) return [];
    const [step] = this.#steps[--this.#done];
    for (const [name, [before]] of step) this.#current.set(name, before);
    this.endTyping();
    return [...step.keys()];
  }

  /** Redoes one step. Returns the names of the captions that it changed again. */
  redo() {
    if (!this.canRedo) return [];
    const [step] = this.#steps[this.#done++];
    for (const [name, [, after]] of step) this.#current.set(name, after);
    return [...step.keys()];
  }

  /** Counts a text: {captions: how many contain it, places: its occurrences in all captions}. */
  count(find, matchCase = false) {
    const counts = this.#names.map((name) => countIn(this.text(name), find, matchCase)).filter(Boolean);
    return { captions: counts.length, places: counts.reduce((sum, count) => sum + count, 0) };
  }

  /** Replaces a text in all captions, in one undo step. Returns how many captions it changed. */
  replace(find, by, matchCase = false) {
    return this.#changeEach((text) => replaceIn(text, find, by, matchCase));
  }

  /** [tag, number of captions with it] of every tag, the most frequent first. */
  get tags() {
    const counts = new Map();
    for (const name of this.#names) {
      for (const tag of new Set(tagsOf(this.text(name)))) counts.set(tag, (counts.get(tag) ?? 0) + 1);
    }
    return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  }

  /** Removes a tag from all captions, in one undo step. Returns how many captions it changed. */
  removeTag(tag) {
    return this.#changeEach((text) => withoutTag(text, tag));
  }

  #changeEach(change) {
    return this.change(Object.fromEntries(this.#names.map((name) => [name, change(this.text(name))])));
  }
}
