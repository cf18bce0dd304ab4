// What the chart's panel computes before it draws: the values under the crosshair, and the slider.

import assert from "node:assert/strict";
import { test } from "node:test";

import { positionOf, readout, weightAt } from "../../web/chart_panel.mjs";
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
  assert.equal(weightAt(0), 0);
  assert.ok(weightAt(1) > 0.998 && weightAt(1) < 1);
  for (const weight of [0, 0.5, 0.95, 0.999]) assert.ok(Math.abs(weightAt(positionOf(weight)) - weight) < 1e-12);
});
