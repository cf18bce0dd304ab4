// The helpers for elements, with a stand-in for the page's document.

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { loadStylesheet, onceAFrame, setText } from "../../web/dom.mjs";

const CSS = new URL("http://host/extensions/lora-kiln/kiln.css");
let links;

beforeEach(() => {
  links = [];
  globalThis.document = { createElement: (tag) => ({ tag, append() {} }), head: { append: (link) => links.push(link) } };
});
afterEach(() => delete globalThis.document);

test("a stylesheet is added as a link and awaited", async () => {
  const loaded = loadStylesheet(CSS);
  assert.deepEqual(links.map(({ tag, rel, href }) => [tag, rel, href]), [["link", "stylesheet", CSS.href]]);
  let isDone = false;
  loaded.then(() => (isDone = true));
  await Promise.resolve();
  assert.equal(isDone, false);
  links[0].onload();
  await loaded;
});

test("a stylesheet that cannot be loaded is logged and does not hold up the views", async (t) => {
  const logged = t.mock.method(console, "error", () => {});
  const loaded = loadStylesheet(CSS);
  links[0].onerror();
  await loaded;
  assert.match(logged.mock.calls[0].arguments[0], /kiln\.css cannot be loaded/);
});

test("a text is set only where it differs", () => {
  let sets = 0;
  const node = { get textContent() { return "same"; }, set textContent(_) { sets += 1; } };
  setText(node, "same");
  assert.equal(sets, 0);
  setText(node, "other");
  assert.equal(sets, 1);
});

test("however often a repaint is requested, it runs once a frame; a cancelled one does not run", () => {
  const frames = new Map();
  let last = 0;
  globalThis.requestAnimationFrame = (callback) => (frames.set(++last, callback), last);
  globalThis.cancelAnimationFrame = (id) => frames.delete(id);
  let painted = 0;
  const request = onceAFrame(() => (painted += 1));
  const nextFrame = () => {
    for (const [id, callback] of [...frames]) {
      frames.delete(id);
      callback();
    }
  };
  request();
  request();
  nextFrame();
  request();
  nextFrame();
  assert.equal(painted, 2);
  request();
  request.cancel();
  nextFrame();
  assert.equal(painted, 2);
});
