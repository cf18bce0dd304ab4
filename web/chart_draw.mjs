// Draws a run's chart on a canvas.
import { layout } from "./chart_layout.mjs";

/** These read well on dark and on light ground. */
export const COLORS = { loss: "#e8862e", validation: "#3b9ede", rate: "#9a7fe0", checkpoint: "#3fae74", sample: "#d4679d" };
const SHARPEST = 4; // device pixels a CSS pixel, at most

/**
 * Draws a chart on a canvas element, sharp at any zoom of the screen and of the graph.
 * @param {HTMLCanvasElement} canvas
 * @param {object} data and `options`: as `layout` takes them
 * @param {CSSStyleDeclaration} style the computed style, for the colours of the host's palette
 * @param {object} state pointer: the step under the crosshair, or null; selection: the steps dragged over, or null
 * @returns {object | null} the layout; null where the canvas is not visible
 */
export function drawChart(canvas, data, options, style, { pointer = null, selection = null } = {}) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return null;
  const zoom = canvas.getBoundingClientRect().width / width || 1;
  const ratio = Math.min(SHARPEST, Math.max(1, (globalThis.devicePixelRatio || 1) * zoom));
  const thin = Math.max(1, 1 / zoom); // of the screen's pixels: thinner lines vanish when the graph is zoomed out
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
  if (plan.validation.length <= box.width / 8) for (const point of plan.validation) if (point) dot(pen, point, 2.5, COLORS.validation);
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

function curve(pen, points, color, width, alpha) {
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.globalAlpha = alpha;
  line(pen, points);
  pen.globalAlpha = 1;
  points.forEach((point, index) => {
    if (point && !points[index - 1] && !points[index + 1]) dot(pen, point, width, color); // a line needs two
  });
}

/** A line through points [x, y]; a null interrupts it. */
function line(pen, points) {
  pen.beginPath();
  let isDown = false;
  for (const point of points) {
    if (point) isDown ? pen.lineTo(point[0], point[1]) : pen.moveTo(point[0], point[1]);
    isDown = Boolean(point);
  }
  pen.stroke();
}

function dot(pen, [x, y], radius, color) {
  pen.fillStyle = color;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

/** A sample is a dot on the x axis, a checkpoint a triangle under it. */
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

/** Any other mark is a dashed vertical line. */
function drawEvent(pen, { at }, box, color) {
  pen.strokeStyle = color;
  pen.lineWidth = 1;
  pen.setLineDash([3, 3]);
  line(pen, [[at, box.y], [at, box.y + box.height]]);
  pen.setLineDash([]);
}

/** A ring around the best validation loss. */
function drawBest(pen, point, ground) {
  dot(pen, point, 5, COLORS.validation);
  dot(pen, point, 2.5, ground);
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
