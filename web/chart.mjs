// The chart of a run. Geometry first, pure; then ink on a canvas.
import { decimate, firstAfter, spread } from "./series.mjs";
import { rateText } from "./format.mjs";

/** They read well on dark and on light ground. */
export const COLORS = { loss: "#e8862e", validation: "#3b9ede", rate: "#9a7fe0", checkpoint: "#3fae74", sample: "#d4679d" };
const PAD = { left: 44, right: 10, rightAxis: 44, top: 8, bottom: 24 };
const OUTLIERS = 0.02; // the share of the raw losses, at either end, that may lie outside the y axis
const FEWEST_STEPS = 20;

/** Round numbers that cover [low, high], about `count` of them. */
export function ticks(low, high, count) {
  const span = high - low || 1;
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step) * step;
  const last = Math.floor((high - first) / step + 1e-9);
  return Array.from({ length: Math.max(0, last + 1) || 0 }, (_, index) => first + index * step);
}

/** Round numbers for a logarithmic axis: powers of ten, with their doubles and fives while there is room. */
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

/** The last step of the x axis: the run's own once it is well under way, before that a part of it. */
export function lastShownStep(step, steps) {
  let end = Math.max(1, steps, step);
  while (end / 2 >= FEWEST_STEPS && end / 2 >= step * 1.1) end /= 2;
  return Math.ceil(end);
}

/**
 * Where everything lies, in CSS pixels.
 * data: {series, smooth (one value a point), validation (a series), marks, best, step, steps}
 * options: {log, rate: whether to show the learning rate, range: [from, to] in steps or null, top: pixels left free}
 * The y axis holds the smoothed and the validation curve whole and most raw losses; higher ones touch its edge.
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
  const places = (steps, values, y) =>
    drawn(steps, values).map((index) => (index < 0 ? null : [xOf(steps[index]), y(values[index])]));

  plan.raw = places(series.steps, series.loss, yOf);
  plan.smooth = places(series.steps, smooth, yOf);
  plan.validation = places(validation.steps, validation.loss, yOf);
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
      const rateOf = (value) => box.y + box.height * (1 - clamp(value / (rates[1] * 1.1)));
      plan.rate = places(series.steps, series.rate, rateOf);
      plan.rateTicks = ticks(0, rates[1] * 1.1, 2).map((value) => ({ at: rateOf(value), label: rateText(value) }));
    }
  }
  return plan;
}

/** {low, high, isLog, share(value)} of the loss axis; null where there is nothing to show. */
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

/**
 * Draws a run onto a canvas element, sharp at any zoom of the screen and of the graph. Gives the layout.
 * pointer: the step under the crosshair, or null; selection: the steps that are being dragged over, or null.
 */
export function drawChart(canvas, data, options, style, { pointer = null, selection = null } = {}) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return null;
  const zoom = canvas.getBoundingClientRect().width / width || 1;
  const ratio = Math.min(4, Math.max(1, (globalThis.devicePixelRatio || 1) * zoom));
  const thin = Math.max(1, 1 / zoom); // a hairline of the zoomed-out graph is no line
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const color = (name, fallback) => style.getPropertyValue(name).trim() || fallback;
  const ink = { text: color("--input-text", "#ddd"), faint: color("--descrip-text", "#999"), line: color("--border-color", "#4e4e4e") };
  const ground = color("--comfy-input-bg", "#222");
  pen.fillStyle = ground;
  pen.fillRect(0, 0, width, height);

  const plan = layout(data, width, height, options);
  const { box } = plan;
  drawAxes(pen, plan, width, ink);
  pen.save();
  pen.beginPath();
  pen.rect(box.x, 0, box.width + 1, box.y + box.height + 2);
  pen.clip();
  for (const mark of plan.marks) if (mark.kind !== "checkpoint" && mark.kind !== "sample") drawEvent(pen, mark, box, ink.faint);
  pen.lineJoin = "round";
  curve(pen, plan.rate, COLORS.rate, thin, 0.9);
  curve(pen, plan.raw, COLORS.loss, thin, 0.35);
  curve(pen, plan.smooth, COLORS.loss, 2 * thin, 1);
  curve(pen, plan.validation, COLORS.validation, 2 * thin, 1);
  if (plan.validation.length <= box.width / 8) for (const place of plan.validation) if (place) dot(pen, place, 2.5, COLORS.validation);
  if (plan.best) drawBest(pen, plan.best, ground);
  if (selection) drawSelection(pen, plan, selection, ink.text);
  if (pointer !== null) drawCrosshair(pen, plan, pointer, ink.text);
  pen.restore();
  for (const mark of plan.marks) drawMark(pen, mark, box);
  return plan;
}

function drawAxes(pen, { box, xTicks, yTicks, rateTicks }, width, ink) {
  pen.font = "10px Inter, system-ui, sans-serif";
  pen.lineWidth = 0.5;
  pen.strokeStyle = ink.line;
  pen.fillStyle = ink.faint;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const tick of yTicks) {
    line(pen, [[box.x, tick.at], [box.x + box.width, tick.at]]);
    pen.fillText(tick.label, box.x - 6, tick.at);
  }
  pen.textAlign = "left";
  pen.fillStyle = COLORS.rate;
  for (const tick of rateTicks) pen.fillText(tick.label, box.x + box.width + 5, tick.at);
  pen.fillStyle = ink.faint;
  pen.textBaseline = "top";
  for (const tick of xTicks) {
    const text = pen.measureText(tick.label).width;
    pen.fillText(tick.label, Math.min(tick.at - text / 2, width - text - 2), box.y + box.height + 13);
  }
}

function curve(pen, places, color, width, alpha) {
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.globalAlpha = alpha;
  line(pen, places);
  pen.globalAlpha = 1;
  places.forEach((place, index) => {
    if (place && !places[index - 1] && !places[index + 1]) dot(pen, place, width, color); // a lone point has no line
  });
}

function line(pen, places) {
  pen.beginPath();
  let isDown = false;
  for (const place of places) {
    if (place) isDown ? pen.lineTo(place[0], place[1]) : pen.moveTo(place[0], place[1]);
    isDown = Boolean(place);
  }
  pen.stroke();
}

function dot(pen, [x, y], radius, color) {
  pen.fillStyle = color;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

/** Samples are dots on the step axis, checkpoints are triangles under it. */
function drawMark(pen, { kind, at }, box) {
  const axis = box.y + box.height;
  if (kind === "sample") return dot(pen, [at, axis], 2.5, COLORS.sample);
  if (kind !== "checkpoint") return;
  const y = axis + 7;
  pen.fillStyle = COLORS.checkpoint;
  pen.beginPath();
  pen.moveTo(at, y - 4);
  pen.lineTo(at + 4, y + 4);
  pen.lineTo(at - 4, y + 4);
  pen.fill();
}

function drawEvent(pen, { at }, box, color) {
  pen.strokeStyle = color;
  pen.lineWidth = 1;
  pen.setLineDash([3, 3]);
  line(pen, [[at, box.y], [at, box.y + box.height]]);
  pen.setLineDash([]);
}

function drawBest(pen, place, ground) {
  dot(pen, place, 5, COLORS.validation);
  dot(pen, place, 2.5, ground);
}

function drawSelection(pen, { box, xOf }, [from, to], color) {
  pen.fillStyle = color;
  pen.globalAlpha = 0.15;
  pen.fillRect(Math.min(xOf(from), xOf(to)), box.y, Math.abs(xOf(to) - xOf(from)), box.height);
  pen.globalAlpha = 1;
}

function drawCrosshair(pen, { box, xOf }, step, color) {
  pen.strokeStyle = color;
  pen.lineWidth = 1;
  pen.globalAlpha = 0.6;
  line(pen, [[xOf(step), box.y], [xOf(step), box.y + box.height]]);
  pen.globalAlpha = 1;
}
