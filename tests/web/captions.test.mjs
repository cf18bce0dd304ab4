// Captions while they are edited: undo, search and replace, tags, and the unsaved ones.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Captions } from "../../web/captions.mjs";

const picture = (name, caption, more = {}) => ({ name, caption, bucket: [512, 512], enlarged: false, same_as: null, ...more });
const PICTURES = [picture("a", "a cat, red, on grass"), picture("b", "a dog, red"), picture("c", "")];

function captions(pictures = PICTURES) {
  const made = new Captions();
  made.load(pictures);
  return made;
}
const texts = (made) => made.names.map((name) => made.text(name));

test("loaded captions are shown, and none is unsaved", () => {
  assert.deepEqual(texts(captions()), PICTURES.map((each) => each.caption));
  assert.deepEqual(captions().edits, []);
});

test("an edit carries the caption on disk that it was made from", () => {
  const made = captions();
  made.change({ c: "a bird" });
  made.change({ c: "a red bird " });
  assert.deepEqual(made.edits, [{ name: "c", caption: "a red bird", before: "" }]);
});

test("a caption typed back to the one on disk is not an edit", () => {
  const made = captions();
  made.change({ b: "x" });
  made.change({ b: "a dog, red" });
  assert.deepEqual(made.edits, []);
});

test("spaces at the ends are not an edit", () => {
  const made = captions();
  made.change({ b: "a dog, red \n" });
  assert.equal(made.isEdited("b"), false);
});

test("a saved caption is no longer an edit, and undo makes it one again", () => {
  const made = captions();
  made.change({ a: "new" });
  made.markSaved(made.edits);
  assert.deepEqual(made.edits, []);
  made.undo();
  assert.deepEqual(made.edits, [{ name: "a", caption: "a cat, red, on grass", before: "new" }]);
});

test("loading again changes only captions without edits", () => {
  const made = captions();
  made.change({ a: "mine" });
  made.load([picture("a", "theirs"), picture("b", "theirs too")]);
  assert.deepEqual(texts(made), ["mine", "theirs too"]);
  assert.equal(made.edits[0].before, "a cat, red, on grass"); // so that the server sees that the file changed
});

test("undo and redo go through all steps", () => {
  const made = captions();
  const seen = [texts(made)];
  for (const text of ["x", "y", "z"]) {
    made.change({ a: text });
    seen.push(texts(made));
  }
  for (const expected of seen.slice(0, -1).reverse()) {
    made.undo();
    assert.deepEqual(texts(made), expected);
  }
  assert.equal(made.canUndo, false);
  assert.deepEqual(made.undo(), []);
  for (const expected of seen.slice(1)) {
    made.redo();
    assert.deepEqual(texts(made), expected);
  }
  assert.equal(made.canRedo, false);
});

test("an edit after undo drops the steps that could be redone", () => {
  const made = captions();
  made.change({ a: "x" });
  made.undo();
  made.change({ b: "y" });
  assert.equal(made.canRedo, false);
  made.undo();
  assert.deepEqual(texts(made), PICTURES.map((each) => each.caption));
});

test("letters typed in one field are one step, until another field or a pause", () => {
  const made = captions();
  for (const text of ["n", "ne", "new"]) made.change({ a: text }, "a");
  for (const text of ["o", "ot"]) made.change({ b: text }, "b");
  made.endTyping();
  made.change({ b: "other" }, "b");
  made.undo();
  assert.deepEqual(texts(made), ["new", "ot", ""]);
  made.undo();
  made.undo();
  assert.deepEqual(texts(made), PICTURES.map((each) => each.caption));
  assert.equal(made.canUndo, false);
});

test("a change that changes nothing is no step", () => {
  const made = captions();
  assert.equal(made.change({ a: made.text("a") }), 0);
  assert.equal(made.canUndo, false);
});

test("search counts places and captions; replacing is one step", () => {
  const made = captions();
  assert.deepEqual(made.count("red"), { captions: 2, places: 2 });
  assert.equal(made.replace("red", "blue"), 2);
  assert.deepEqual(texts(made), ["a cat, blue, on grass", "a dog, blue", ""]);
  made.undo();
  assert.deepEqual(texts(made), PICTURES.map((each) => each.caption));
});

test("tags are counted once a caption, the most frequent first", () => {
  const made = captions([picture("a", "red, red, cat"), picture("b", "cat , blue"), picture("c", "cat,,")]);
  assert.deepEqual(made.tags, [["cat", 3], ["blue", 1], ["red", 1]]);
});

test("a tag is removed everywhere, and nothing else is touched", () => {
  const made = captions([picture("a", "red,  cat"), picture("b", "dark red,cat"), picture("c", "x , y")]);
  assert.equal(made.removeTag("red"), 1);
  assert.deepEqual(texts(made), ["cat", "dark red,cat", "x , y"]);
});


test("names and captions of any kind are only text", () => {
  const odd = ["__proto__", "constructor", "<img src=x>"].map((name) => picture(name, `${name}, tag`));
  const made = captions(odd);
  assert.equal(made.replace("tag", "x"), 3);
  assert.deepEqual(texts(made), odd.map((each) => `${each.name}, x`));
});
