// The pictures of a scanned dataset folder: a filter, and a summary in words.

import { countIn, tagsOf } from "./caption_text.mjs";
import { plural } from "./format.mjs";

const isUncaptioned = (picture, captions) => !captions.text(picture.name).trim();

/**
 * The pictures that match all parts of a filter.
 * @param {object[]} pictures as the server scanned them
 * @param {import("./captions.mjs").Captions} captions
 * @param {object} filter show: "all", "uncaptioned", "unsaved", "small" (enlarged to fill its bucket) or "same" (another file
 *   has the same content); find: text in the caption, tag: one of its tags, each "" for any
 */
export function filterPictures(pictures, captions, { show = "all", find = "", matchCase = false, tag = "" } = {}) {
  const originals = new Set(pictures.map((picture) => picture.same_as));
  const matches = {
    all: () => true,
    uncaptioned: (picture) => isUncaptioned(picture, captions),
    unsaved: (picture) => captions.isEdited(picture.name),
    small: (picture) => picture.enlarged,
    same: (picture) => picture.same_as !== null || originals.has(picture.name),
  };
  return pictures.filter(
    (picture) =>
      matches[show](picture) &&
      (!find || countIn(captions.text(picture.name), find, matchCase)) &&
      (!tag || tagsOf(captions.text(picture.name)).includes(tag)),
  );
}

/** The counts of a folder in a few words each: ["5 pictures", "2 buckets", "1 without caption"]. */
export function summary(pictures, captions) {
  const count = (test) => pictures.filter(test).length;
  const buckets = new Set(pictures.map((picture) => picture.bucket.join("x"))).size;
  const unusual = [
    [count((picture) => isUncaptioned(picture, captions)), "without caption"],
    [count((picture) => picture.enlarged), "too small"],
    [count((picture) => picture.same_as !== null), "twice"],
  ];
  return [
    plural(pictures.length, "picture"),
    plural(buckets, "bucket"),
    ...unusual.filter(([number]) => number).map((part) => part.join(" ")),
  ];
}
