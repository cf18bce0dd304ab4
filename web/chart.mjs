// The loss curve. Geometry first, pure; then ink on a canvas.

const PAD = { left: 44, right: 8, top: 8, bottom: 20 };

/** Round numbers that cover [low, high], about `count` of them. */
export function ticks(low, high, count) {
  const span = high - low || 1;
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const out = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) out.push(value);
  return out;
}

/**
 * Where everything lies, in CSS pixels.
 * points: [step, loss or null, smoothed or null]; steps: the run's length.
 * The y axis holds the smoothed curve and all raw values up to the 98th percentile; higher ones touch its top.
 */
export function layout(points, steps, width, height) {
  const box = { x: PAD.left, y: PAD.top, width: width - PAD.left - PAD.right, height: height - PAD.top - PAD.bottom };
  const raw = points.map((point) => point[1]).filter((value) => value !== null).sort((a, b) => a - b);
  const smooth = points.map((point) => point[2]).filter((value) => value !== null);
  if (!raw.length || box.width <= 0 || box.height <= 0) return { box, raw: [], smooth: [], xTicks: [], yTicks: [] };
  const top = Math.max(raw[Math.min(raw.length - 1, Math.floor(raw.length * 0.98))], ...spread(smooth)) * 1.05;
  const bottom = Math.min(0, raw[0]);
  const xOf = (step) => box.x + (box.width * step) / Math.max(1, steps);
  const yOf = (value) => box.y + box.height * (1 - Math.min(1, (value - bottom) / (top - bottom || 1)));
  const curve = (column) =>
    points.map((point) => (point[column] === null ? null : [xOf(point[0]), yOf(point[column])]));
  return {
    box,
    raw: curve(1),
    smooth: curve(2),
    xTicks: ticks(0, Math.max(1, steps), 5).filter(Number.isInteger).map((step) => ({ at: xOf(step), label: String(step) })),
    yTicks: ticks(bottom, top, 4).map((value) => ({ at: yOf(value), label: label(value) })),
  };
}

/** Draws the curves onto a canvas element, sharp at any zoom of the screen. */
export function drawChart(canvas, points, steps, style) {
  const ratio = Math.min(3, globalThis.devicePixelRatio || 1);
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const color = (name, fallback) => style.getPropertyValue(name).trim() || fallback;
  pen.fillStyle = color("--comfy-input-bg", "#222");
  pen.fillRect(0, 0, width, height);
  const plan = layout(points, steps, width, height);
  pen.font = "10px Inter, system-ui, sans-serif";
  pen.fillStyle = color("--descrip-text", "#999");
  pen.strokeStyle = color("--border-color", "#4e4e4e");
  pen.lineWidth = 0.5;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const tick of plan.yTicks) {
    line(pen, [[plan.box.x, tick.at], [plan.box.x + plan.box.width, tick.at]]);
    pen.fillText(tick.label, plan.box.x - 6, tick.at);
  }
  pen.textBaseline = "top";
  for (const tick of plan.xTicks) {
    const text = pen.measureText(tick.label).width;
    pen.textAlign = "left";
    pen.fillText(tick.label, Math.min(tick.at - text / 2, width - text - 2), plan.box.y + plan.box.height + 6);
  }
  pen.lineJoin = "round";
  pen.globalAlpha = 0.35;
  pen.strokeStyle = "#f2a65a";
  pen.lineWidth = 1;
  line(pen, plan.raw);
  pen.globalAlpha = 1;
  pen.lineWidth = 2;
  line(pen, plan.smooth);
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

function spread(values) {
  return values.length ? [values.reduce((a, b) => Math.max(a, b))] : [0];
}

function label(value) {
  return Math.abs(value) >= 0.01 || value === 0 ? String(Number(value.toPrecision(3))) : value.toExponential(0);
}
