// Numbers that grow by steps: appended, thinned out for the pixels there are, smoothed. No page: tested under Node.

/** The curve of a run. A value that is no number is NaN, so that the columns stay numeric and fast. */
export class Series {
  steps = [];
  loss = [];
  rate = [];
  cuts = 0; // how often it was cut: what was reckoned from it before does not hold

  constructor(points = []) {
    this.append(points);
  }

  get length() {
    return this.steps.length;
  }

  get lastStep() {
    return this.steps.at(-1) ?? 0;
  }

  /** points: [step, loss or null, learning rate or null]; those that are known already are passed over. */
  append(points) {
    for (const [step, loss, rate] of points) {
      if (step <= this.lastStep && this.length) continue;
      this.steps.push(step);
      this.loss.push(loss ?? NaN);
      this.rate.push(rate ?? NaN);
    }
  }

  /** Forgets what comes after a step: a run that goes on from an earlier checkpoint takes it again. */
  cutAfter(step) {
    const kept = firstAfter(this.steps, step);
    this.cuts += 1;
    for (const column of [this.steps, this.loss, this.rate]) column.length = kept;
  }

  points(from = 0) {
    return this.steps.slice(from).map((step, index) => [step, this.loss[from + index], this.rate[from + index]]);
  }
}

/** The index of the first of the ascending steps that is greater than `step`. */
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

/** The index of the step nearest to `step`, -1 where there are none. */
export function nearest(steps, step) {
  const after = firstAfter(steps, step);
  if (after === steps.length) return after - 1;
  return after > 0 && step - steps[after - 1] <= steps[after] - step ? after - 1 : after;
}

/**
 * The moving average of a series' losses, kept up to date as it grows.
 * Debiased, so that it begins at the first loss and not at zero; by steps, so that thinned curves look the same.
 */
export class Smoothing {
  #series = null;
  #weight = 0;
  #cuts = 0;
  #average = 0;
  #total = 0; // how much of the average is made of losses
  #lastStep = 0;
  #values = [];

  /** weight: the share of the past, 0 (none) to 1. Gives one value a point. */
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
 * The indices to draw of a curve, -1 for a gap: of each pixel column its first, lowest, highest and last value.
 * A line through these looks like a line through all, spikes and all.
 * columnOf: the pixel column of a step; from, to: the range of indices.
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

/** The lowest and highest of the values but for the `share` of them at either end. A sample of them is enough. */
export function spread(values, share, from = 0, to = values.length) {
  const stride = Math.max(1, Math.floor((to - from) / 2000));
  const sample = [];
  for (let index = from; index < to; index += stride) if (Number.isFinite(values[index])) sample.push(values[index]);
  if (!sample.length) return null;
  sample.sort((a, b) => a - b);
  const out = Math.floor(sample.length * share);
  return [sample[out], sample[sample.length - 1 - out]];
}
