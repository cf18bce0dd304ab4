// What the panels of the view reckon before they draw: figures under the crosshair, ranks, what may be pressed.

import assert from "node:assert/strict";
import { test } from "node:test";

import { placeOf, readout, weightOf } from "../../web/chart_panel.mjs";
import { factorOf, factorProblem, isAdjustable, promptsOf, takes } from "../../web/controls.mjs";
import { SHORTEST_PAUSE, isDue, rankedPictures } from "../../web/pictures.mjs";
import { samplePath } from "../../web/samples.mjs";
import { Series } from "../../web/series.mjs";

const run = {
  key: "a/1", state: "training", step: 40,
  series: new Series([[10, 1, 1e-4], [20, 0.5, 2e-4], [30, 0.25, 3e-4]]),
  validation: new Series([[15, 0.7], [30, 0.6]]),
  marks: [{ step: 20, kind: "checkpoint", text: "kept" }, { step: 22, kind: "sample" }],
};
const smooth = [1, 0.9, 0.8];

test("under the crosshair are the figures of the nearest step, and the validation before it", () => {
  assert.deepEqual(readout(run, smooth, 21), { step: 20, loss: 0.5, smoothed: 0.9, rate: 2e-4, validation: 0.7, marks: ["kept"] });
  assert.equal(readout(run, smooth, Infinity).step, 30);
  assert.ok(Number.isNaN(readout(run, smooth, 0).validation));
});

test("marks within reach are named, those without a text by their kind", () => {
  assert.deepEqual(readout(run, smooth, 20, 2).marks, ["kept", "sample 22"]);
});

test("a run without points has no figures", () => {
  assert.equal(readout({ ...run, series: new Series() }, [], 5), null);
});

test("the slider goes from none to very smooth, and back to where it stood", () => {
  assert.equal(weightOf(0), 0);
  assert.ok(weightOf(1) > 0.998 && weightOf(1) < 1);
  for (const weight of [0, 0.5, 0.95, 0.999]) assert.ok(Math.abs(weightOf(placeOf(weight)) - weight) < 1e-12);
});

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

test("an action is open while the run goes on and lists it", () => {
  assert.equal(takes({ state: "training", controls: ["pause"] }, "pause"), true);
  assert.equal(takes({ state: "training", controls: ["pause"] }, "finish"), false);
  assert.equal(takes({ state: "finished", controls: ["pause"] }, "pause"), false);
  assert.equal(takes({ state: "training" }, "pause"), false);
  assert.equal(takes(undefined, "pause"), false);
});

test("there is something to adjust when the run takes a rate or prompts", () => {
  assert.equal(isAdjustable({ state: "training", controls: ["pause"] }), false);
  assert.equal(isAdjustable({ state: "paused", controls: ["sample_prompts"] }), true);
});

for (const [text, factor] of [["0.5", 0.5], ["x2", 2], ["×0,1", 0.1], [" 1e-2 ", 0.01]]) {
  test(`"${text}" is the factor ${factor}`, () => assert.equal(factorOf(text), factor));
}

for (const text of ["", " ", "0", "-1", "fast", "Infinity", "x", "1001"]) {
  test(`"${text}" is no factor`, () => assert.ok(Number.isNaN(factorOf(text))));
}

test("a wrong factor is said in words", () => {
  assert.equal(factorProblem("0.5"), "");
  assert.match(factorProblem("fast"), /"fast" is no factor: write a number above 0, at most 1000/);
  assert.match(factorProblem(" "), /There is no factor/);
});

test("prompts are lines without the empty ones", () => {
  assert.deepEqual(promptsOf(" a cat \n\n a dog\r\n"), ["a cat", "a dog"]);
});

test("a sample's path is safe in a URL, whatever its name", () => {
  const query = new URL(samplePath({ filename: "a&type=temp #1.png", subfolder: "lora_kiln/anna?/x" }), "http://host").searchParams;
  assert.deepEqual([...query], [["filename", "a&type=temp #1.png"], ["subfolder", "lora_kiln/anna?/x"], ["type", "output"]]);
});
