// The filter and the summary of a folder's pictures.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Captions } from "../../web/captions.mjs";
import { filterPictures, summary } from "../../web/dataset_pictures.mjs";

const picture = (name, caption, more = {}) => ({ name, caption, bucket: [512, 512], enlarged: false, same_as: null, ...more });
const PICTURES = [picture("a", "a cat, red, on grass"), picture("b", "a dog, red"), picture("c", "")];

function captions(pictures = PICTURES) {
  const made = new Captions();
  made.load(pictures);
  return made;
}

test("a filter shows the pictures that match all its parts", () => {
  const pictures = [...PICTURES, picture("d", "red", { enlarged: true }), picture("e", "x", { same_as: "a" })];
  const made = captions(pictures);
  made.change({ b: "mine" });
  const names = (choice) => filterPictures(pictures, made, choice).map((each) => each.name).join("");
  assert.equal(names({}), "abcde");
  assert.equal(names({ show: "uncaptioned" }), "c");
  assert.equal(names({ show: "unsaved" }), "b");
  assert.equal(names({ show: "small" }), "d");
  assert.equal(names({ show: "same" }), "ae");
  assert.equal(names({ find: "RED" }), "ad");
  assert.equal(names({ find: "RED", matchCase: true }), "");
  assert.equal(names({ tag: "red" }), "ad");
});

test("the summary counts pictures and buckets, and what is unusual where there is any", () => {
  assert.deepEqual(summary([PICTURES[0]], captions()), ["1 picture", "1 bucket"]);
  const pictures = [...PICTURES, picture("d", "red", { enlarged: true, bucket: [64, 64] }), picture("e", "x", { same_as: "a" })];
  assert.deepEqual(summary(pictures, captions(pictures)), ["5 pictures", "2 buckets", "1 without caption", "1 too small", "1 twice"]);
});
