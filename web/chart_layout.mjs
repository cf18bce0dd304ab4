// The geometry of a run's chart: where its axes, curves and marks lie. Pure: tested under Node.
import { rateText } from "./format.mjs";
import { decimate, firstAfter, spread } from "./series.mjs";

const PAD = { left: 44, right: 10, rightAxis: 44, top: 8, bottom: 24 }; // pixels around the box of the curves
const OUTLIERS = 0.02; // the share of the raw losses, at either end, that may lie outside the y axis
const FEWEST_STEPS = 20; // that the x axis shows
const RATE_MARGIN = 1.1; // the top of the learning rate's axis, as a multiple of the highest rate

/** Round numbers within [low, high], about `count` of them. */
export function ticks(low, high, count) {
  const span = high - low || 1;
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step) * step;
  const last = Math.floor((high - first) / step + 1e-9);
  return Array.from({ length: Math.max(0, last + 1) || 0 }, (_, index) => first + index * step);
}

/** Round numbers for a logarithmic axis: powers of ten, and where there is room, their doubles and fives. */
export function logTicks(low, high, count) {
  const values = (leads) => {
    const out = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const lead of leads) out.push(lead * 10 ** power);
    }
    return out.filter((value) => value >= low && value <= high);
  };
  const fitting = [[1, 2, 5], [1, 3], [1]].map(values).find((list) => list.length <= count + 1) ?? values([1]);
  const stride = Math.ceil(fitting.length / (count + 1));
  return fitting.length < 2 ? ticks(low, high, count) : fitting.filter((_, index) => index % stride === 0);
}

/**
 * The last step of the x axis: the run's last step, halved as long as the steps done still fit in. So the curve of a run
 * that has just begun fills the chart.
 * @param {number} step steps done
 * @param {number} steps steps of the whole run
 */
export function lastShownStep(step, steps) {
  let end = Math.max(1, steps, step);
  while (end / 2 >= FEWEST_STEPS && end / 2 >= step * 1.1) end /= 2;
  return Math.ceil(end);
}

/**
 * Lays out a chart, in CSS pixels. The y axis covers the smoothed and the validation losses entirely, and the raw losses but
 * for outliers, which are drawn at its edge.
 * @param {object} data series, smooth (a value for each point of it), validation (a Series), marks, best, step, steps
 * @param {object} options log: logarithmic y axis; rate: with the learning rate; range: the steps shown, [from, to] or null;
 *   top: pixels left free above the curves
 * @returns {object} box; from, to: the steps shown; xOf(step), stepAt(x); raw, smooth, validation, rate: the points [x, y] of
 *   each curve, null for a gap; marks, best; xTicks, yTicks, rateTicks: [{at, label}]
 */
export function layout(data, width, height, options = {}) {
  const { series, smooth, validation, marks = [], best = null } = data;
  const right = options.rate ? PAD.rightAxis : PAD.right;
  const top = Math.max(PAD.top, options.top ?? 0);
  const box = { x: PAD.left, y: top, width: width - PAD.left - right, height: height - top - PAD.bottom };
  const [from, to] = options.range ?? [0, lastShownStep(Math.max(data.step ?? 0, series.lastStep), data.steps ?? 0)];
  const xOf = (step) => box.x + (box.width * (step - from)) / Math.max(1e-9, to - from);
  const plan = { box, from, to, raw: [], smooth: [], validation: [], rate: [], marks: [], best: null, xOf };
  Object.assign(plan, { xTicks: [], yTicks: [], rateTicks: [], stepAt: (x) => from + ((x - box.x) / box.width) * (to - from) });
  if (box.width <= 0 || box.height <= 0) return plan;

  const shown = (steps) => [Math.max(0, firstAfter(steps, from) - 1), Math.min(steps.length, firstAfter(steps, to) + 1)];
  const drawn = (steps, values) => decimate(steps, values, (step) => Math.floor(xOf(step)), ...shown(steps));
  const axis = yAxis(data, options.log, shown);
  if (!axis) return plan;
  const clamp = (share) => Math.min(1, Math.max(0, share));
  const yOf = (value) => box.y + box.height * (1 - clamp(axis.share(value)));
  const points = (steps, values, y) =>
    drawn(steps, values).map((index) => (index < 0 ? null : [xOf(steps[index]), y(values[index])]));

  plan.raw = points(series.steps, series.loss, yOf);
  plan.smooth = points(series.steps, smooth, yOf);
  plan.validation = points(validation.steps, validation.loss, yOf);
  plan.xTicks = ticks(from, to, Math.min(6, box.width / 60))
    .filter(Number.isInteger)
    .map((step) => ({ at: xOf(step), label: String(step) }));
  const yCount = Math.max(1, Math.min(5, box.height / 28));
  const yValues = axis.isLog ? logTicks(axis.low, axis.high, yCount) : ticks(axis.low, axis.high, yCount);
  plan.yTicks = yValues.map((value) => ({ at: yOf(value), label: label(value) }));
  const isShown = ({ step }) => step >= from && step <= to;
  plan.marks = marks.filter(isShown).map((mark) => ({ ...mark, at: xOf(mark.step) }));
  if (best && isShown(best) && Number.isFinite(best.validation_loss)) plan.best = [xOf(best.step), yOf(best.validation_loss)];
  if (options.rate) {
    const rates = spread(series.rate, 0, ...shown(series.steps));
    if (rates && rates[1] > 0) {
      const rateOf = (value) => box.y + box.height * (1 - clamp(value / (rates[1] * RATE_MARGIN)));
      plan.rate = points(series.steps, series.rate, rateOf);
      plan.rateTicks = ticks(0, rates[1] * RATE_MARGIN, 2).map((value) => ({ at: rateOf(value), label: rateText(value) }));
    }
  }
  return plan;
}

/**
 * The axis of the losses: {low, high, isLog, share(value)}, where share is 0 at `low` and 1 at `high`. Null without a loss.
 * @param {(steps: number[]) => [number, number]} shown the range of indices of the steps that the x axis shows
 */
function yAxis({ series, smooth, validation, best }, log, shown) {
  const range = shown(series.steps);
  const extents = [
    spread(series.loss, OUTLIERS, ...range),
    extent(smooth, ...range),
    extent(validation.loss, ...shown(validation.steps)),
  ].filter(Boolean);
  if (!extents.length) return null;
  let low = Math.min(...extents.map(([lowest]) => lowest));
  let high = Math.max(...extents.map(([, highest]) => highest));
  if (log && high > 0) {
    if (low <= 0) low = high / 1e4;
    [low, high] = [low / 1.1, high * 1.1];
    const scale = Math.log(high / low);
    return { low, high, isLog: true, share: (value) => (value > 0 ? Math.log(value / low) / scale : 0) };
  }
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  high += margin;
  low = low >= 0 && low < (high - low) * 0.5 ? 0 : low - margin;
  return { low, high, isLog: false, share: (value) => (value - low) / (high - low) };
}

/** [lowest, highest] of the finite values of a range of indices; null where there are none. */
function extent(values, from, to) {
  let found = null;
  for (let index = from; index < to; index++) {
    const value = values[index];
    if (!Number.isFinite(value)) continue;
    if (!found) found = [value, value];
    else if (value < found[0]) found[0] = value;
    else if (value > found[1]) found[1] = value;
  }
  return found;
}

function label(value) {
  return Math.abs(value) >= 0.01 || value === 0
    ? String(Number(value.toPrecision(3)))
    : Number(value.toPrecision(2)).toExponential();
}
