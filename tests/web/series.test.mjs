// Curves that grow: appended, thinned out without hiding spikes, smoothed from the first value on.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Series, Smoothing, decimate, firstAfter, nearest, spread } from "../../web/series.mjs";

const upTo = (last) => Array.from({ length: last }, (_, index) => index + 1);
const seriesOf = (losses) => new Series(losses.map((loss, index) => [index + 1, loss, 1e-4]));
const close = (a, b) => assert.ok(Math.abs(a - b) < 1e-9, `${a} is not ${b}`);

test("points are appended once, in the order of their steps", () => {
  const series = new Series([[1, 0.5, 1e-4], [2, 0.4, 1e-4]]);
  series.append([[2, 9, 9], [3, 0.3, 2e-4]]);
  assert.deepEqual(series.points(), [[1, 0.5, 1e-4], [2, 0.4, 1e-4], [3, 0.3, 2e-4]]);
  assert.deepEqual([series.length, series.lastStep], [3, 3]);
});

test("validation may begin before the first step", () => {
  assert.deepEqual(new Series([[0, 0.5]]).steps, [0]);
});

test("what is no number is kept as a gap", () => {
  assert.ok(Number.isNaN(new Series([[1, null, null]]).loss[0]));
});

test("cutting forgets the steps after it in all columns", () => {
  const series = seriesOf([5, 4, 3, 2]);
  series.cutAfter(2);
  assert.deepEqual([series.steps, series.loss, series.rate], [[1, 2], [5, 4], [1e-4, 1e-4]]);
});

for (const [step, after, near] of [[0, 0, 0], [10, 1, 0], [14, 1, 0], [16, 1, 1], [20, 2, 1], [99, 3, 2]]) {
  test(`of steps 10, 20, 30 the first after ${step} is number ${after}, the nearest number ${near}`, () => {
    assert.equal(firstAfter([10, 20, 30], step), after);
    assert.equal(nearest([10, 20, 30], step), near);
  });
}

test("no step is near where there are none", () => assert.equal(nearest([], 5), -1));

test("without smoothing the curve is the loss", () => {
  assert.deepEqual(new Smoothing().of(seriesOf([3, 1, 2]), 0), [3, 1, 2]);
});

test("smoothing begins at the first loss and follows the debiased average", () => {
  const [first, second] = new Smoothing().of(seriesOf([3, 1]), 0.9);
  close(first, 3);
  close(second, (0.9 * 0.1 * 3 + 0.1 * 1) / (1 - 0.9 ** 2));
});

test("a constant stays constant, however smooth", () => {
  for (const value of new Smoothing().of(seriesOf([2, 2, 2, 2]), 0.999)) close(value, 2);
});

test("a series that grows is smoothed as if it had been there at once", () => {
  const losses = upTo(50).map((step) => Math.sin(step));
  const growing = seriesOf(losses.slice(0, 20));
  const smoothing = new Smoothing();
  smoothing.of(growing, 0.8);
  growing.append(losses.slice(20).map((loss, index) => [21 + index, loss]));
  const whole = new Smoothing().of(seriesOf(losses), 0.8);
  smoothing.of(growing, 0.8).forEach((value, index) => close(value, whole[index]));
});

test("another weight, another series and a cut one begin anew", () => {
  const smoothing = new Smoothing();
  const series = seriesOf([4, 2, 0]);
  smoothing.of(series, 0.9);
  assert.deepEqual(smoothing.of(series, 0), [4, 2, 0]);
  assert.deepEqual(smoothing.of(seriesOf([7]), 0), [7]);
  smoothing.of(series, 0.5);
  series.cutAfter(1);
  series.append([[2, 8], [3, 8]]);
  assert.deepEqual([...smoothing.of(series, 0.5)], [...new Smoothing().of(seriesOf([4, 8, 8]), 0.5)]);
});

test("smoothing goes by steps: a gap of ten forgets as ten steps do", () => {
  const [, value] = new Smoothing().of(new Series([[1, 0], [11, 1]]), 0.9);
  const past = 0.9 ** 10;
  close(value, (1 - past) / (past * 0.1 + 1 - past));
});

test("a step without a number is a gap in the smoothed curve and does not spoil the rest", () => {
  const values = new Smoothing().of(seriesOf([1, null, 1]), 0.5);
  assert.ok(Number.isNaN(values[1]));
  close(values[2], 1);
});

const SPIKES = [4321, 77_777, 99_999];
const noisy = upTo(100_000).map((step) => (SPIKES.includes(step) ? 50 : 0.1 + 0.01 * Math.sin(step * 12.9898)));

test("of 100,000 points as many are drawn as the pixels need, and every spike is among them", () => {
  const steps = upTo(100_000);
  const kept = decimate(steps, noisy, (step) => Math.floor((step * 400) / 100_000));
  assert.ok(kept.length <= 4 * 401, String(kept.length));
  for (const spike of SPIKES) assert.ok(kept.includes(spike - 1), String(spike));
  assert.deepEqual([kept[0], kept.at(-1)], [0, 99_999]);
  assert.deepEqual(kept, [...new Set(kept)].sort((a, b) => a - b));
});

test("each column keeps its first, lowest, highest and last", () => {
  const values = [5, 1, 6, 9, 4, 5, 2, 2.5];
  assert.deepEqual(decimate(upTo(8), values, (step) => (step <= 6 ? 0 : 1)), [0, 1, 3, 5, 6, 7]);
});

test("few points are all drawn", () => {
  assert.deepEqual(decimate(upTo(3), [1, 2, 3], (step) => step), [0, 1, 2]);
});

test("gaps stay gaps, also within a column", () => {
  assert.deepEqual(decimate(upTo(5), [1, NaN, NaN, 2, NaN], () => 0), [0, -1, 3, -1]);
  assert.deepEqual(decimate(upTo(2), [NaN, 1], () => 0), [1]);
});

test("only the range that is looked at is drawn", () => {
  assert.deepEqual(decimate(upTo(5), [1, 2, 3, 4, 5], (step) => step, 1, 3), [1, 2]);
});

test("the spread leaves the outliers out", () => {
  const values = upTo(100).map((step) => (step === 50 ? 1e6 : step / 100));
  const [low, high] = spread(values, 0.02);
  assert.ok(low > 0 && low < 0.05 && high > 0.9 && high <= 1, `${low} ${high}`);
  assert.deepEqual(spread([3, NaN, 1], 0), [1, 3]);
  assert.equal(spread([NaN], 0), null);
});
