// Captions while they are edited: what was read, what it is now, undo, search and tags. No page: tested under Node.

/** The captions of one folder. Names are the pictures' names; captions are text. */
export class Captions {
  #read = new Map();
  #now = new Map();
  #names = [];
  #steps = []; // each [Map(name -> [from, to]), key]
  #done = 0; // steps that are not undone

  /** Takes what is on disk: [{name, caption}]. What is edited stays, and so does what it was read as. */
  load(pictures) {
    this.#names = pictures.map((picture) => picture.name);
    for (const { name, caption } of pictures) {
      if (!this.isEdited(name)) this.accept(name, caption);
    }
  }

  /** The caption stands so on disk, and is shown so. */
  accept(name, caption) {
    this.#read.set(name, caption);
    this.#now.set(name, caption);
  }

  get names() {
    return this.#names;
  }

  text(name) {
    return this.#now.get(name) ?? "";
  }

  isEdited(name) {
    return this.#now.has(name) && this.#now.get(name).trim() !== this.#read.get(name);
  }

  /** What is to be saved: [{name, caption, before}]. */
  get edits() {
    return this.#names
      .filter((name) => this.isEdited(name))
      .map((name) => ({ name, caption: this.text(name).trim(), before: this.#read.get(name) }));
  }

  /** These of the edits are on disk now. */
  saved(edits) {
    for (const { name, caption } of edits) this.#read.set(name, caption);
    this.endTyping();
  }

  /**
   * One step that undo takes back: {name: caption}. Steps of one key in a row are one, as letters typed in one field
   * are. Returns how many captions it changes.
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
      for (const [name, [from, to]] of step) last[0].set(name, [last[0].get(name)?.[0] ?? from, to]);
    } else {
      this.#steps.push([step, key]);
    }
    this.#done = this.#steps.length;
    for (const [name, [, to]] of step) this.#now.set(name, to);
    return step.size;
  }

  /** What is typed next is a step of its own. */
  endTyping() {
    if (this.#steps.length) this.#steps.at(-1)[1] = null;
  }

  get canUndo() {
    return this.#done > 0;
  }

  get canRedo() {
    return this.#done < this.#steps.length;
  }

  /** The names that it changes back. */
  undo() {
    if (!this.canUndo) return [];
    const [step] = this.#steps[--this.#done];
    for (const [name, [from]] of step) this.#now.set(name, from);
    this.endTyping();
    return [...step.keys()];
  }

  redo() {
    if (!this.canRedo) return [];
    const [step] = this.#steps[this.#done++];
    for (const [name, [, to]] of step) this.#now.set(name, to);
    return [...step.keys()];
  }

  /** Where a text stands: {captions: how many have it, places: how often in all}. */
  count(find, matchCase = false) {
    const counts = this.#names.map((name) => countIn(this.text(name), find, matchCase)).filter(Boolean);
    return { captions: counts.length, places: counts.reduce((sum, count) => sum + count, 0) };
  }

  /** One step; returns how many captions it changes. */
  replace(find, by, matchCase = false) {
    return this.#changeEach((text) => replaceIn(text, find, by, matchCase));
  }

  /** [[tag, how many captions have it]], the most frequent first. */
  get tags() {
    const counts = new Map();
    for (const name of this.#names) {
      for (const tag of new Set(tagsOf(this.text(name)))) counts.set(tag, (counts.get(tag) ?? 0) + 1);
    }
    return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  }

  /** One step; returns how many captions it changes. */
  removeTag(tag) {
    return this.#changeEach((text) => withoutTag(text, tag));
  }

  #changeEach(change) {
    return this.change(Object.fromEntries(this.#names.map((name) => [name, change(this.text(name))])));
  }
}

/** "a cat, on grass" -> ["a cat", "on grass"]. */
export function tagsOf(caption) {
  return caption.split(",").map((tag) => tag.trim()).filter(Boolean);
}

/** The caption without a tag; one that lacks it stays as it is, to the letter. */
export function withoutTag(caption, tag) {
  const tags = tagsOf(caption);
  return tags.includes(tag) ? tags.filter((each) => each !== tag).join(", ") : caption;
}

export function countIn(text, find, matchCase = false) {
  return find ? [...text.matchAll(pattern(find, matchCase))].length : 0;
}

export function replaceIn(text, find, by, matchCase = false) {
  return find ? text.replace(pattern(find, matchCase), () => by) : text;
}

/** The pictures that a choice leaves. show: all, uncaptioned, unsaved, small or same; tag and find: text or "". */
export function chosen(pictures, captions, { show = "all", find = "", matchCase = false, tag = "" } = {}) {
  const twins = new Set(pictures.map((picture) => picture.same_as));
  const kinds = {
    all: () => true,
    uncaptioned: (picture) => !captions.text(picture.name).trim(),
    unsaved: (picture) => captions.isEdited(picture.name),
    small: (picture) => picture.enlarged,
    same: (picture) => picture.same_as !== null || twins.has(picture.name),
  };
  return pictures.filter(
    (picture) =>
      kinds[show](picture) &&
      (!find || countIn(captions.text(picture.name), find, matchCase)) &&
      (!tag || tagsOf(captions.text(picture.name)).includes(tag)),
  );
}

/** What a folder holds, in a few words each. */
export function summary(pictures, captions) {
  const count = (test) => pictures.filter(test).length;
  const buckets = new Set(pictures.map((picture) => picture.bucket.join("x"))).size;
  const parts = [
    plural(pictures.length, "picture"),
    plural(buckets, "bucket"),
    [count((picture) => !captions.text(picture.name).trim()), "without caption"],
    [count((picture) => picture.enlarged), "too small"],
    [count((picture) => picture.same_as !== null), "twice"],
  ];
  return parts.filter((part) => typeof part === "string" || part[0]).map((part) => (part.join ? part.join(" ") : part));
}

/** What training puts before a caption: the trigger word, unless it stands in it already. */
export function triggerBefore(caption, trigger) {
  const word = trigger.trim();
  const stands = new RegExp(`(?<![\\p{L}\\p{N}_])${word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")}(?![\\p{L}\\p{N}_])`, "iu");
  if (!word || stands.test(caption)) return "";
  return caption ? `${word}, ` : word;
}

export function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function pattern(find, matchCase) {
  return new RegExp(find.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), matchCase ? "gu" : "giu");
}
