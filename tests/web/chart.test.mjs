// The curve's geometry: round ticks, everything inside its box, gaps where the loss is no number.

import assert from "node:assert/strict";
import { test } from "node:test";

import { drawChart, layout, ticks } from "../../web/chart.mjs";

const WIDTH = 400;
const HEIGHT = 160;
const STEPS = 100;
const RANGES = [
  [0, 1, 5],
  [0, 0.0007, 4],
  [0, 1500, 5],
  [-2, 3, 4],
  [0.13, 0.94, 6],
  [0, 1e6, 1],
];

const points = (losses) => losses.map((loss, index) => [index + 1, loss, loss]);
const falling = points(Array.from({ length: STEPS }, (_, step) => 1 / (1 + step)));
const plan = (run = falling, steps = STEPS) => layout(run, steps, WIDTH, HEIGHT);

function assertInside(box, [x, y]) {
  assert.ok(x >= box.x - 1e-9 && x <= box.x + box.width + 1e-9, `x ${x}`);
  assert.ok(y >= box.y - 1e-9 && y <= box.y + box.height + 1e-9, `y ${y}`);
}

for (const [low, high, count] of RANGES) {
  test(`ticks of ${low} to ${high} are about ${count}, round and even`, () => {
    const values = ticks(low, high, count);
    assert.ok(values.length >= 1 && values.length <= count + 1, values.join());
    assert.ok(values.every((value) => value >= low && value <= high * (1 + 1e-9)));
    const step = values.length > 1 ? values[1] - values[0] : high;
    const lead = Number((step / 10 ** Math.floor(Math.log10(step) + 1e-9)).toFixed(6));
    assert.ok([1, 2, 5, 10].includes(lead), String(step));
    for (const [index, value] of values.entries()) assert.ok(Math.abs(value - values[0] - index * step) < step * 1e-6);
  });
}

test("ticks of a range without extent are few", () => {
  for (const value of [0, 0.5, 100]) assert.ok(ticks(value, value, 4).length <= 1);
});

test("ticks of what is no number are none", () => {
  for (const bad of [NaN, Infinity]) assert.deepEqual(ticks(0, bad, 4), []);
});

test("the box lies within the canvas", () => {
  const { box } = plan();
  assert.ok(box.x > 0 && box.y > 0 && box.x + box.width < WIDTH && box.y + box.height < HEIGHT);
});

test("both curves lie within the box", () => {
  const { box, raw, smooth } = plan();
  for (const place of [...raw, ...smooth]) assertInside(box, place);
});

test("every tick lies within the box", () => {
  const { box, xTicks, yTicks } = plan();
  for (const tick of xTicks) assertInside(box, [tick.at, box.y]);
  for (const tick of yTicks) assertInside(box, [box.x, tick.at]);
  assert.ok(xTicks.length >= 2 && yTicks.length >= 2);
});

test("ticks stand where their values are drawn", () => {
  const run = plan(points([0, 0.5, 1]), 4);
  const half = run.yTicks.find((tick) => tick.label === "0.5") ?? assert.fail(JSON.stringify(run.yTicks));
  assert.ok(Math.abs(half.at - run.raw[1][1]) < 1e-9);
  const two = run.xTicks.find((tick) => tick.label === "2");
  assert.ok(Math.abs(two.at - run.raw[1][0]) < 1e-9);
});

test("the curve goes right with the steps and down with the loss", () => {
  const { raw } = plan();
  for (let index = 1; index < raw.length; index++) {
    assert.ok(raw[index][0] > raw[index - 1][0]);
    assert.ok(raw[index][1] >= raw[index - 1][1]);
  }
});

test("the last step of the run is at the right edge", () => {
  const { box, raw } = plan();
  assert.ok(Math.abs(raw.at(-1)[0] - box.x - box.width) < 1e-9);
});

test("a single spike does not flatten the rest", () => {
  const losses = Array.from({ length: STEPS }, () => 0.5);
  losses[50] = 1e6;
  const { box, raw } = layout(losses.map((loss, step) => [step + 1, loss, 0.5]), STEPS, WIDTH, HEIGHT);
  assert.ok(Math.abs(raw[50][1] - box.y) < 1e-9);
  assert.ok(raw[49][1] < box.y + box.height / 4);
});

test("the smoothed curve is never cut", () => {
  const losses = Array.from({ length: STEPS }, (_, step) => [step + 1, 0.1, step === 0 ? 5 : 0.1]);
  const { box, smooth } = layout(losses, STEPS, WIDTH, HEIGHT);
  assert.ok(smooth[0][1] > box.y);
});

test("where the loss is no number the curve has a gap", () => {
  const { raw, smooth } = plan([[1, 0.5, 0.5], [2, null, null], [3, 0.4, 0.45]], 3);
  assert.equal(raw[1], null);
  assert.equal(smooth[1], null);
  assert.ok(raw[0] && raw[2]);
});

test("a run without any number has no curve", () => {
  for (const run of [[], [[1, null, null]]]) {
    const { raw, smooth, xTicks, yTicks } = plan(run);
    assert.deepEqual([raw, smooth, xTicks, yTicks], [[], [], [], []]);
  }
});

test("a smoothed curve without any number leaves the raw one", () => {
  const { box, raw, smooth } = plan([[1, 0.5, null], [2, 0.4, null]]);
  assert.deepEqual(smooth, [null, null]);
  for (const place of raw) assertInside(box, place);
});

for (const loss of [0, 0.25, 1e-9, 1e9]) {
  test(`a constant loss of ${loss} has places that are numbers`, () => {
    const { box, raw } = plan(points([loss, loss]));
    for (const place of raw) assertInside(box, place);
  });
}

test("a canvas too small for a chart has none", () => {
  assert.deepEqual(layout(falling, STEPS, 20, 10).raw, []);
});

test("step labels are whole numbers", () => {
  for (const steps of [1, 2, 3, 7, 100, 12345]) {
    const { xTicks } = plan(falling.slice(0, 1), steps);
    assert.ok(xTicks.length >= 1 && xTicks.every((tick) => /^\d+$/.test(tick.label)));
  }
});

test("no two labels of an axis are the same", () => {
  for (const top of [1, 0.013, 0.0004, 250]) {
    const labels = plan(points([top, top / 2])).yTicks.map((tick) => tick.label);
    assert.equal(new Set(labels).size, labels.length, labels.join());
  }
});

test("a canvas without size is left alone", () => {
  drawChart({ clientWidth: 0, clientHeight: 0, getContext: () => assert.fail("drawn on") }, falling, STEPS, null);
});
