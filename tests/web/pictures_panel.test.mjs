// The training pictures by loss, and when they are fetched.

import assert from "node:assert/strict";
import { test } from "node:test";

import { SHORTEST_PAUSE, isDue, rankedPictures } from "../../web/pictures_panel.mjs";

const run = { key: "a/1", state: "training", step: 40 };

test("pictures are ranked by loss, the worst first; those without one come last", () => {
  const ranked = rankedPictures([{ name: "b", loss: 0.5 }, { name: "c", loss: null }, { name: "a", loss: 2, count: 3, caption: "a cat" }]);
  assert.deepEqual(ranked.map(({ name, share, text }) => [name, share, text]), [["a", 1, "2.00×"], ["b", 0.25, "0.50×"], ["c", 0, "–"]]);
  for (const part of ["a", "2.000", "seen 3 times", "a cat"]) assert.ok(ranked[0].title.includes(part));
});

test("no pictures and losses of zero are no trouble", () => {
  assert.deepEqual(rankedPictures([]), []);
  assert.equal(rankedPictures([{ name: "a", loss: 0 }])[0].share, 0);
});

test("the pictures are asked for at first, then rarely, and once after the end", () => {
  const asked = { key: "a/1", at: 0, step: 30, wasActive: true };
  assert.equal(isDue(undefined, null, 0), false);
  assert.equal(isDue(run, null, 0), true);
  assert.equal(isDue(run, { ...asked, key: "other" }, 1), true);
  assert.equal(isDue(run, asked, SHORTEST_PAUSE - 1), false);
  assert.equal(isDue(run, asked, SHORTEST_PAUSE), true);
  assert.equal(isDue(run, { ...asked, step: 40 }, SHORTEST_PAUSE), false);
  assert.equal(isDue({ ...run, state: "finished" }, asked, 1), true);
  assert.equal(isDue({ ...run, state: "finished" }, { ...asked, wasActive: false }, 1e9), false);
});
