// The chart's geometry: round ticks, everything inside its box, gaps where the loss is no number.

import assert from "node:assert/strict";
import { test } from "node:test";

import { lastShownStep, layout, logTicks, ticks } from "../../web/chart_layout.mjs";
import { Series, Smoothing } from "../../web/series.mjs";

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

const seriesOf = (losses) => new Series(losses.map((loss, index) => [index + 1, loss, 1e-4 * (index + 1)]));
const falling = Array.from({ length: STEPS }, (_, step) => 1 / (1 + step));

function dataOf(losses = falling, more = {}) {
  const series = seriesOf(losses);
  const smooth = new Smoothing().of(series, 0.9);
  return { series, smooth, validation: new Series(), marks: [], best: null, step: losses.length, steps: losses.length, ...more };
}

const plan = (losses, more, options) => layout(dataOf(losses, more), WIDTH, HEIGHT, options);

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

for (const [low, high] of [[0.001, 1], [0.05, 0.3], [1e-7, 10], [0.11, 0.13], [1e-30, 1e30]]) {
  test(`logarithmic ticks of ${low} to ${high} are few and inside`, () => {
    const values = logTicks(low, high, 5);
    assert.ok(values.length >= 1 && values.length <= 6, values.join());
    assert.ok(values.every((value) => value >= low && value <= high * (1 + 1e-9)), values.join());
  });
}

test("a run that has only begun fills its chart, one under way shows all its steps", () => {
  assert.equal(lastShownStep(900, 1000), 1000);
  assert.equal(lastShownStep(500, 1000), 1000);
  for (const step of [1, 10, 40, 200, 3000]) {
    const end = lastShownStep(step, 100_000);
    assert.ok(end >= step && end <= Math.max(40, step * 2.5), `${step}: ${end}`);
  }
  assert.equal(lastShownStep(0, 5), 5);
  assert.equal(lastShownStep(30, 0), 30);
});

test("the box lies within the canvas, also with an axis at the right and a legend over it", () => {
  for (const options of [{}, { rate: true, top: 30 }]) {
    const { box } = plan(falling, {}, options);
    assert.ok(box.x > 0 && box.y > 0 && box.x + box.width < WIDTH && box.y + box.height < HEIGHT);
    assert.ok(box.y >= (options.top ?? 0));
  }
});

test("all curves and ticks lie within the box", () => {
  const validation = new Series([[0, 2], [50, 0.5], [100, 3]]);
  for (const log of [false, true]) {
    const run = plan(falling, { validation }, { rate: true, log });
    const { box, raw, smooth, rate, xTicks, yTicks, rateTicks } = run;
    for (const places of [raw, smooth, run.validation, rate]) {
      assert.ok(places.length > 1);
      for (const place of places) assertInside(box, place);
    }
    for (const tick of xTicks) assertInside(box, [tick.at, box.y]);
    for (const tick of [...yTicks, ...rateTicks]) assertInside(box, [box.x, tick.at]);
    assert.ok(xTicks.length >= 2 && yTicks.length >= 2 && rateTicks.length >= 2);
  }
});

test("ticks stand where their values are drawn", () => {
  const run = plan([0, 0.5, 1]);
  const half = run.yTicks.find((tick) => tick.label === "0.5") ?? assert.fail(JSON.stringify(run.yTicks));
  assert.ok(Math.abs(half.at - run.raw[1][1]) < 1e-9);
  const two = run.xTicks.find((tick) => tick.label === "2");
  assert.ok(Math.abs(two.at - run.raw[1][0]) < 1e-9);
});

test("a step's place and the step at a place are each other's inverse", () => {
  for (const range of [null, [20, 40]]) {
    const { xOf, stepAt } = plan(falling, {}, { range });
    assert.ok(Math.abs(stepAt(xOf(33)) - 33) < 1e-9);
  }
});

test("the curve goes right with the steps and down with the loss", () => {
  for (const log of [false, true]) {
    const { raw } = plan(falling, {}, { log });
    for (let index = 1; index < raw.length; index++) {
      assert.ok(raw[index][0] > raw[index - 1][0]);
      assert.ok(raw[index][1] >= raw[index - 1][1]);
    }
  }
});

test("on a logarithmic scale equal factors are equal heights", () => {
  const { raw } = plan([1, 0.1, 0.01, 0.1, 1], {}, { log: true });
  assert.ok(Math.abs(raw[1][1] - raw[0][1] - (raw[2][1] - raw[1][1])) < 1e-6);
  assert.ok(raw[1][1] > raw[0][1]);
});

test("a loss of zero or less does no harm to a logarithmic scale", () => {
  for (const losses of [[0, 1, 0.5], [0, 0], [-1, -2]]) {
    const { box, raw, yTicks } = plan(losses, {}, { log: true });
    for (const place of raw) assertInside(box, place);
    for (const tick of yTicks) assert.ok(Number.isFinite(tick.at));
  }
});

test("the last step of the run is at the right edge", () => {
  const { box, raw } = plan();
  assert.ok(Math.abs(raw.at(-1)[0] - box.x - box.width) < 1e-9);
});

test("a single spike is drawn, touches the top and does not flatten the rest", () => {
  const losses = Array.from({ length: STEPS }, () => 0.5);
  losses[50] = 1e6;
  const data = { ...dataOf(losses), smooth: losses.map(() => 0.5) };
  const { box, raw } = layout(data, WIDTH, HEIGHT);
  assert.ok(Math.abs(raw[50][1] - box.y) < 1e-9);
  assert.ok(raw[49][1] > box.y + 1 && raw[49][1] < box.y + 0.6 * box.height);
});

test("100,000 points are drawn by as many places as there are pixels, with the spike", () => {
  const losses = Array.from({ length: 100_000 }, (_, step) => (step === 54_321 ? 9 : 0.1 + 0.01 * Math.sin(step * 12.9)));
  const { box, raw } = plan(losses);
  assert.ok(raw.length <= 4 * (box.width + 1), String(raw.length));
  assert.equal(raw.filter(([, y]) => Math.abs(y - box.y) < 1e-9).length, 1);
});

test("the smoothed and the validation curve are never cut", () => {
  const losses = Array.from({ length: STEPS }, () => 0.1);
  const smooth = losses.map((_, step) => (step === 0 ? 5 : 0.1));
  const run = layout({ ...dataOf(losses), smooth, validation: new Series([[10, 7]]) }, WIDTH, HEIGHT);
  assert.ok(run.smooth[0][1] > run.validation[0][1] && run.validation[0][1] > run.box.y);
});

test("where the loss is no number the curve has a gap", () => {
  const { raw, smooth } = plan([0.5, null, 0.4]);
  assert.equal(raw[1], null);
  assert.equal(smooth[1], null);
  assert.ok(raw[0] && raw[2]);
});

test("a run without any number has no curve", () => {
  for (const losses of [[], [null]]) {
    const { raw, smooth, xTicks, yTicks } = plan(losses);
    assert.deepEqual([raw, smooth, xTicks, yTicks], [[], [], [], []]);
  }
});

for (const loss of [0, 0.25, 1e-9, 1e9]) {
  test(`a constant loss of ${loss} has places that are numbers`, () => {
    for (const log of [false, true]) {
      const { box, raw } = plan([loss, loss], {}, { log });
      for (const place of raw) assertInside(box, place);
    }
  });
}

test("a canvas that is too small has no curves", () => {
  assert.deepEqual(layout(dataOf(), 20, 10).raw, []);
});

test("step labels are whole numbers", () => {
  for (const steps of [1, 2, 3, 7, 100, 12345]) {
    const { xTicks } = plan([1], { steps });
    assert.ok(xTicks.length >= 1 && xTicks.every((tick) => /^\d+$/.test(tick.label)));
  }
});

test("no two labels of an axis are the same", () => {
  for (const top of [1, 0.013, 0.0004, 250]) {
    for (const log of [false, true]) {
      const labels = plan([top, top / 2], {}, { log }).yTicks.map((tick) => tick.label);
      assert.equal(new Set(labels).size, labels.length, labels.join());
    }
  }
});

test("a range of steps fills the width, and the loss axis fits what is in it", () => {
  const { box, raw, xOf } = plan(falling, {}, { range: [40, 60] });
  assert.ok(Math.abs(xOf(40) - box.x) < 1e-9 && Math.abs(xOf(60) - box.x - box.width) < 1e-9);
  const heights = raw.map(([, y]) => y);
  assert.ok(Math.max(...heights) - Math.min(...heights) > box.height / 3);
  assert.ok(raw.length < 30);
});

test("marks and the best validation stand at their steps, those out of sight do not", () => {
  const marks = [{ step: 10, kind: "checkpoint", text: "a" }, { step: 90, kind: "sample", text: "b" }];
  const best = { step: 30, validation_loss: 0.4 };
  const run = plan(falling, { marks, best });
  assert.deepEqual(run.marks.map((mark) => mark.at), [run.xOf(10), run.xOf(90)]);
  assert.equal(run.best[0], run.xOf(30));
  assertInside(run.box, run.best);
  const near = plan(falling, { marks, best }, { range: [50, 100] });
  assert.deepEqual([near.marks.map((mark) => mark.text), near.best], [["b"], null]);
});

test("the learning rate is drawn only when it is asked for", () => {
  assert.deepEqual([plan().rate, plan().rateTicks], [[], []]);
  const { rate } = plan(falling, {}, { rate: true });
  assert.ok(rate.at(-1)[1] < rate[0][1]);
});
