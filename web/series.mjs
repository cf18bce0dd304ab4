// Curves of numbers by step: appended to, thinned out for drawing, smoothed. Pure: tested under Node.

/** Losses and learning rates by ascending step. A missing value is NaN, so that the arrays stay numeric and fast. */
export class Series {
  steps = [];
  loss = [];
  rate = [];
  cuts = 0; // how often it was cut: values computed from it before a cut are outdated

  constructor(points = []) {
    this.append(points);
  }

  get length() {
    return this.steps.length;
  }

  get lastStep() {
    return this.steps.at(-1) ?? 0;
  }

  /** Appends points [step, loss or null, learning rate or null]. Points up to the last known step are ignored. */
  append(points) {
    for (const [step, loss, rate] of points) {
      if (step <= this.lastStep && this.length) continue;
      this.steps.push(step);
      this.loss.push(loss ?? NaN);
      this.rate.push(rate ?? NaN);
    }
  }

  /** Removes the points after a step: a run resumed from an earlier checkpoint takes these steps again. */
  cutAfter(step) {
    const kept = firstAfter(this.steps, step);
    this.cuts += 1;
    for (const column of [this.steps, this.loss, this.rate]) column.length = kept;
  }

  /** The points [step, loss, learning rate] from an index on. */
  points(from = 0) {
    return this.steps.slice(from).map((step, index) => [step, this.loss[from + index], this.rate[from + index]]);
  }
}

/** Index of the first of the ascending steps that is greater than `step`; their number where none is. */
export function firstAfter(steps, step) {
  let low = 0;
  let high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] > step) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Index of the step nearest to `step`; -1 where there are none. */
export function nearest(steps, step) {
  const after = firstAfter(steps, step);
  if (after === steps.length) return after - 1;
  return after > 0 && step - steps[after - 1] <= steps[after] - step ? after - 1 : after;
}

/**
 * The exponential moving average of a series' losses, continued as the series grows. It is debiased, so it begins at the first
 * loss and not at zero, and it decays per step, not per point, so that a thinned series gives the same curve.
 */
export class Smoothing {
  #series = null;
  #weight = 0;
  #cuts = 0;
  #average = 0;
  #total = 0; // the weight of all losses in the average: divides the bias out
  #lastStep = 0;
  #values = [];

  /**
   * @param {Series} series
   * @param {number} weight of the past, per step: 0 (no smoothing) to 1, exclusive
   * @returns {number[]} a value for each point; NaN where its loss is NaN
   */
  of(series, weight) {
    const goesOn = series === this.#series && weight === this.#weight && series.cuts === this.#cuts;
    if (!goesOn) this.#restart(series, weight);
    for (let index = this.#values.length; index < series.length; index++) this.#values.push(this.#next(index));
    return this.#values;
  }

  #restart(series, weight) {
    this.#series = series;
    this.#weight = weight;
    this.#cuts = series.cuts;
    this.#average = this.#total = this.#lastStep = 0;
    this.#values = [];
  }

  #next(index) {
    const step = this.#series.steps[index];
    const loss = this.#series.loss[index];
    const gap = index ? step - this.#lastStep : 1;
    this.#lastStep = step;
    if (!Number.isFinite(loss)) return NaN;
    const past = gap === 1 ? this.#weight : this.#weight ** gap;
    this.#average = past * this.#average + (1 - past) * loss;
    this.#total = past * this.#total + (1 - past);
    return this.#average / this.#total;
  }
}

/**
 * Thins a curve out for drawing: keeps the first, lowest, highest and last value of each pixel column. A line through these
 * looks like a line through all values, spikes included.
 * @param {number[]} steps ascending
 * @param {number[]} values one per step; NaN is a gap
 * @param {(step: number) => number} columnOf the pixel column of a step
 * @param {number} from first index
 * @param {number} to index after the last
 * @returns {number[]} the indices to draw; -1 is a gap
 */
export function decimate(steps, values, columnOf, from = 0, to = steps.length) {
  const kept = [];
  let column = NaN;
  let first, lowest, highest, last;
  const close = () => {
    if (first === undefined) return;
    for (const index of [...new Set([first, lowest, highest, last])].sort((a, b) => a - b)) kept.push(index);
    first = undefined;
  };
  for (let index = from; index < to; index++) {
    const value = values[index];
    if (!Number.isFinite(value)) {
      close();
      if (kept.length && kept.at(-1) !== -1) kept.push(-1);
      continue;
    }
    const here = columnOf(steps[index]);
    if (here !== column || first === undefined) {
      close();
      column = here;
      first = lowest = highest = index;
    }
    if (value < values[lowest]) lowest = index;
    if (value > values[highest]) highest = index;
    last = index;
  }
  close();
  return kept;
}

/** [lowest, highest] of the values without the `share` of them at either end, from a sample of 2,000. Null without a number. */
export function spread(values, share, from = 0, to = values.length) {
  const stride = Math.max(1, Math.floor((to - from) / 2000));
  const sample = [];
  for (let index = from; index < to; index += stride) if (Number.isFinite(values[index])) sample.push(values[index]);
  if (!sample.length) return null;
  sample.sort((a, b) => a - b);
  const out = Math.floor(sample.length * share);
  return [sample[out], sample[sample.length - 1 - out]];
}
