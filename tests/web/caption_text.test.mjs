// The text of one caption: tags, search and replace, the trigger word.

import assert from "node:assert/strict";
import { test } from "node:test";

import { countIn, replaceIn, tagsOf, triggerBefore, withoutTag } from "../../web/caption_text.mjs";

test("a caption is split into tags, and loses one without a change to the rest", () => {
  assert.equal(withoutTag("x ,y", "z"), "x ,y");
  assert.deepEqual(tagsOf(" a, ,b,"), ["a", "b"]);
  assert.equal(withoutTag("red, dark red,cat", "red"), "dark red, cat");
});

test("search takes its text literally", () => {
  const odd = "a.b (c) [d] $& \\ ^ | {e} /f/ * + ?";
  for (const find of odd.split(" ")) assert.equal(countIn(odd, find) >= 1, true, find);
  assert.equal(countIn("axb", "a.b"), 0);
  assert.equal(replaceIn("cat", "a", "$&$1"), "c$&$1t");
  assert.equal(replaceIn("cat", "", "x"), "cat");
  assert.equal(countIn("cat", ""), 0);
});

test("search minds case only when asked", () => {
  assert.equal(countIn("Cat cat CÄT cät", "cat"), 2);
  assert.equal(countIn("Cat cat CÄT cät", "cät"), 2);
  assert.equal(countIn("Cat cat", "cat", true), 1);
  assert.equal(replaceIn("Cat cat", "cat", "dog", true), "Cat dog");
});

test("the trigger word is put before a caption that does not contain it", () => {
  assert.equal(triggerBefore("a cat", " ohwx "), "ohwx, ");
  assert.equal(triggerBefore("", "ohwx"), "ohwx");
  assert.equal(triggerBefore("An OHWX cat", "ohwx"), "");
  assert.equal(triggerBefore("ohwxes", "ohwx"), "ohwx, ");
  assert.equal(triggerBefore("a cat", ""), "");
  assert.equal(triggerBefore("a+b", "a+b"), "");
});
