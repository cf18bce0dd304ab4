// The chart on a canvas, with a pen that records what it draws.

import assert from "node:assert/strict";
import { test } from "node:test";

import { COLORS, drawChart } from "../../web/chart_draw.mjs";
import { Series } from "../../web/series.mjs";

const series = new Series([[1, 1, 1e-4], [2, 0.5, 1e-4], [3, 0.25, 1e-4]]);
const DATA = { series, smooth: series.loss, validation: new Series([[2, 0.6]]), marks: [], best: null, step: 3, steps: 3 };
const STYLE = { getPropertyValue: () => "" };

/** A canvas of 400 x 160 CSS pixels at a zoom of the graph, and the calls of its pen: [method, its arguments, its fill colour]. */
function canvasAt(zoom) {
  const calls = [];
  const pen = new Proxy({}, {
    get: (target, name) => target[name] ?? ((...values) => (calls.push([name, values, target.fillStyle]), { width: 20 })),
  });
  const canvas = { clientWidth: 400, clientHeight: 160, getBoundingClientRect: () => ({ width: 400 * zoom }), getContext: () => pen };
  return { canvas, calls };
}

test("a canvas without size is left alone", () => {
  drawChart({ clientWidth: 0, clientHeight: 0, getContext: () => assert.fail("drawn on") }, DATA, {}, null);
});

for (const [zoom, width] of [[0.5, 400], [1, 400], [2.5, 1000], [9, 1600]]) {
  test(`a graph zoomed to ${zoom} has ${width} pixels on 400`, () => {
    const { canvas } = canvasAt(zoom);
    drawChart(canvas, DATA, {}, STYLE);
    assert.equal(canvas.width, width);
  });
}

test("the layout comes back, and every mark is drawn in its colour", () => {
  const { canvas, calls } = canvasAt(1);
  const marks = [{ step: 1, kind: "checkpoint" }, { step: 2, kind: "sample" }, { step: 3, kind: "note" }];
  const plan = drawChart(canvas, { ...DATA, marks, best: { step: 2, validation_loss: 0.6 } }, {}, STYLE, { pointer: 2, selection: [1, 2] });
  assert.equal(plan.marks.length, 3);
  const filled = new Set(calls.filter(([method]) => method === "fill").map(([, , color]) => color));
  for (const name of ["checkpoint", "sample", "validation"]) assert.ok(filled.has(COLORS[name]), name);
  assert.ok(calls.some(([method, [dashes]]) => method === "setLineDash" && dashes.length));
  for (const [method, values] of calls) if (["moveTo", "lineTo", "arc"].includes(method)) assert.ok(values.every(Number.isFinite), method);
});
