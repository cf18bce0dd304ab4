// The text of one caption: its tags, search and replace, and the trigger word.

/** The comma-separated tags: "a cat, on grass" -> ["a cat", "on grass"]. */
export function tagsOf(caption) {
  return caption.split(",").map((tag) => tag.trim()).filter(Boolean);
}

/** The caption without a tag; unchanged, spaces included, where it has no such tag. */
export function withoutTag(caption, tag) {
  const tags = tagsOf(caption);
  return tags.includes(tag) ? tags.filter((each) => each !== tag).join(", ") : caption;
}

/** How often a text occurs. The text is literal, no regular expression; an empty one occurs nowhere. */
export function countIn(text, find, matchCase = false) {
  return find ? [...text.matchAll(literal(find, matchCase))].length : 0;
}

/** Replaces every occurrence of a literal text by another. */
export function replaceIn(text, find, by, matchCase = false) {
  return find ? text.replace(literal(find, matchCase), () => by) : text;
}

/** What training puts before a caption: the trigger word, unless the caption has it as a word already. */
export function triggerBefore(caption, trigger) {
  const word = trigger.trim();
  const asWord = new RegExp(`(?<![\\p{L}\\p{N}_])${escaped(word)}(?![\\p{L}\\p{N}_])`, "iu");
  if (!word || asWord.test(caption)) return "";
  return caption ? `${word}, ` : word;
}

function literal(text, matchCase) {
  return new RegExp(escaped(text), matchCase ? "gu" : "giu");
}

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
