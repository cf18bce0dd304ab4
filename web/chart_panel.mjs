// The chart of a run with its legend, the values under the pointer, smoothing, scale, and zoom by dragging.
import { COLORS, drawChart } from "./chart_draw.mjs";
import { button, element, onceAFrame, setText } from "./dom.mjs";
import { firstAfter, nearest, Series, Smoothing } from "./series.mjs";
import { lossText, rateText } from "./format.mjs";

const SETTINGS = "LoRAKiln.chart"; // key in the browser's localStorage
const DEFAULTS = { smoothing: 0.95, log: false, rate: false };
const SMALLEST_DRAG = 5; // pixels; less is a click
const LEGEND_GAP = 8; // pixels between the legend and the curves
const MOST_TOP = 38; // pixels above the curves at most, whatever the legend's height
const MARK_REACH = 4; // pixels from the crosshair within which a mark is listed
const NO_RUN = { series: new Series(), validation: new Series(), marks: [], samples: [] };

/**
 * The values of a run at a step: those of the nearest point, the last validation loss before it, and the marks around it.
 * @param {object} run
 * @param {number[]} smooth the smoothed losses
 * @param {number} step Infinity for the newest point
 * @param {number} reach steps to either side within which marks are listed
 * @returns {object | null} {step, loss, smoothed, rate, validation, marks: texts}; null without points
 */
export function readout(run, smooth, step, reach = 0) {
  const index = nearest(run.series.steps, step);
  if (index < 0) return null;
  const at = run.series.steps[index];
  const validated = firstAfter(run.validation.steps, at) - 1;
  return {
    step: at,
    loss: run.series.loss[index],
    smoothed: smooth[index],
    rate: run.series.rate[index],
    validation: validated < 0 ? NaN : run.validation.loss[validated],
    marks: run.marks.filter((mark) => Math.abs(mark.step - at) <= reach).map((mark) => mark.text || `${mark.kind} ${mark.step}`),
  };
}

/** The weight of smoothing at a position of the slider, 0 to 1: logarithmic, as weights near 1 differ most. */
export const weightAt = (position) => (position <= 0 ? 0 : 1 - 10 ** (-3 * position));

/** The slider's position for a weight: the inverse of weightAt. */
export const positionOf = (weight) => (weight <= 0 ? 0 : -Math.log10(1 - weight) / 3);

/** The chart of a run, its legend and its tools. */
export class ChartPanel {
  #run = NO_RUN;
  #settings = loadSettings();
  #smoothing = new Smoothing();
  #pointer = null; // the step under the crosshair
  #selection = null; // the steps being dragged over, [from, to]
  #range = null; // the steps shown, [from, to]; null for all
  #plan = null; // the layout of the last paint
  #top = 0; // pixels above the curves, for the legend
  #figures = {}; // name -> its element in the legend
  #resized;
  #restyled;

  constructor() {
    this.canvas = element("canvas", { tabIndex: 0, role: "img", "aria-label": "Loss by step. The arrow keys move the crosshair." });
    this.legend = element("div", { className: "kiln-legend" });
    this.tools = this.#makeTools();
    this.hint = element("div", { className: "kiln-chart-hint" }, "The loss appears here while training runs.");
    this.root = element("div", { className: "kiln-chart" }, this.canvas, this.legend, this.hint);
    this.repaint = onceAFrame(() => this.#paint());
    this.#listen();
    this.#resized = new ResizeObserver(this.repaint);
    this.#resized.observe(this.canvas);
    this.#restyled = new MutationObserver(this.repaint); // the host's palette is in these attributes
    for (const holder of [document.documentElement, document.body]) {
      this.#restyled.observe(holder, { attributeFilter: ["class", "style"] });
    }
  }

  show(run) {
    if ((run ?? NO_RUN).key !== this.#run.key) this.#range = null;
    this.#run = run ?? NO_RUN;
    this.repaint();
  }

  remove() {
    this.#resized.disconnect();
    this.#restyled.disconnect();
    this.repaint.cancel();
  }

  #makeTools() {
    const slider = element("input", {
      type: "range", min: "0", max: "1", step: "0.01", className: "kiln-slider",
      title: "Smoothing of the loss: a moving average over the steps", "aria-label": "Smoothing",
    });
    slider.value = String(positionOf(this.#settings.smoothing));
    const shown = element("output");
    const showWeight = () => setText(shown, this.#settings.smoothing.toFixed(this.#settings.smoothing > 0.985 ? 3 : 2));
    slider.oninput = () => {
      this.#change({ smoothing: weightAt(Number(slider.value)) });
      showWeight();
    };
    showWeight();
    this.all = button("all", "Show all steps again (double-click on the chart); drag over the chart to look closer", () => this.#zoom(null));
    return element("div", { className: "kiln-tools" },
      this.all,
      element("label", {}, slider, shown),
      this.#toggle("log", "Logarithmic scale of the loss"),
      this.#toggle("rate", "Show the learning rate, with its axis at the right", "LR"),
    );
  }

  #toggle(name, title, label = name) {
    const made = button(label, title, () => {
      this.#change({ [name]: !this.#settings[name] });
      made.setAttribute("aria-pressed", this.#settings[name]);
    }, "kiln-toggle");
    made.setAttribute("aria-pressed", this.#settings[name]);
    return made;
  }

  #change(changes) {
    Object.assign(this.#settings, changes);
    saveSettings(this.#settings);
    this.repaint();
  }

  #listen() {
    const { canvas } = this;
    canvas.onpointermove = (event) => {
      this.#pointer = this.#stepUnder(event);
      if (this.#selection) this.#selection[1] = this.#pointer;
      this.repaint();
    };
    canvas.onpointerleave = () => {
      if (!this.#selection) this.#pointer = null;
      this.repaint();
    };
    canvas.onpointerdown = (event) => {
      if (event.button !== 0 || !this.#plan) return;
      canvas.setPointerCapture(event.pointerId);
      this.#selection = [this.#stepUnder(event), this.#stepUnder(event)];
    };
    canvas.onpointerup = () => {
      if (!this.#selection) return;
      const [from, to] = [Math.min(...this.#selection), Math.max(...this.#selection)];
      this.#selection = null;
      const isDrag = this.#plan.xOf(to) - this.#plan.xOf(from) >= SMALLEST_DRAG && to - from >= 1;
      this.#zoom(isDrag ? [from, to] : this.#range);
    };
    canvas.onpointercancel = () => {
      this.#selection = null;
      this.repaint();
    };
    canvas.ondblclick = () => this.#zoom(null);
    canvas.onkeydown = (event) => this.#moveByKey(event);
    canvas.onblur = () => {
      this.#pointer = null;
      this.repaint();
    };
  }

  #zoom(range) {
    this.#range = range;
    this.repaint();
  }

  #stepUnder(event) {
    if (!this.#plan) return 0;
    const bounds = this.canvas.getBoundingClientRect();
    const { box, stepAt, from, to } = this.#plan;
    const x = ((event.clientX - bounds.left) * this.canvas.clientWidth) / (bounds.width || 1);
    return Math.min(to, Math.max(from, stepAt(Math.min(box.x + box.width, Math.max(box.x, x)))));
  }

  #moveByKey(event) {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction || !this.#plan) return;
    event.preventDefault();
    const pixel = (this.#plan.to - this.#plan.from) / Math.max(1, this.#plan.box.width);
    const step = (this.#pointer ?? this.#run.series.lastStep) + direction * Math.max(1, pixel * (event.shiftKey ? 20 : 2));
    this.#pointer = Math.min(this.#plan.to, Math.max(this.#plan.from, step));
    this.repaint();
  }

  #paint() {
    const run = this.#run;
    this.hint.hidden = run.series.length > 0;
    const smooth = this.#smoothing.of(run.series, this.#settings.smoothing);
    this.all.hidden = !this.#range;
    const pointed = this.#pointer !== null && readout(run, smooth, this.#pointer, this.#reach());
    this.#showFigures(pointed || readout(run, smooth, Infinity), Boolean(pointed));
    // Not under a crosshair, where the legend has other values: the chart would jump.
    if (!pointed) this.#top = Math.min(MOST_TOP, this.legend.offsetHeight + LEGEND_GAP);
    const options = { log: this.#settings.log, rate: this.#settings.rate, range: this.#range, top: this.#top };
    this.#plan = drawChart(this.canvas, { ...run, smooth }, options, getComputedStyle(this.canvas), {
      pointer: pointed ? pointed.step : null,
      selection: this.#selection,
    });
  }

  /** MARK_REACH in steps. */
  #reach() {
    return this.#plan ? (MARK_REACH * (this.#plan.to - this.#plan.from)) / Math.max(1, this.#plan.box.width) : 0;
  }

  /** Shows the newest values in the legend, or those under the crosshair. */
  #showFigures(figures, isPointed) {
    this.#figure("step", "", figures && isPointed ? `step ${figures.step}` : "");
    this.#figure("loss", COLORS.loss, figures ? `loss ${lossText(figures.loss)}` : "", "kiln-faint");
    this.#figure("smoothed", COLORS.loss, figures ? `smoothed ${lossText(figures.smoothed)}` : "");
    const hasValidation = figures && Number.isFinite(figures.validation);
    this.#figure("validation", COLORS.validation, hasValidation ? `validation ${lossText(figures.validation)}` : "");
    this.#figure("rate", COLORS.rate, (isPointed || this.#settings.rate) && Number.isFinite(figures?.rate) ? `LR ${rateText(figures.rate)}` : "");
    const best = this.#run.best;
    const hasBest = figures && !isPointed && Number.isFinite(best?.validation_loss);
    this.#figure("best", COLORS.validation, hasBest ? `best at step ${best.step}` : "", "kiln-ring");
    this.#figure("marks", "", isPointed ? figures.marks.join(", ") : "");
  }

  #figure(name, color, text, shape = "") {
    if (!this.#figures[name]) {
      this.#figures[name] = element("span", { className: `kiln-figure ${shape}` });
      this.#figures[name].dataset.figure = name;
      if (color) this.#figures[name].style.setProperty("--kiln-color", color);
      this.legend.append(this.#figures[name]);
    }
    setText(this.#figures[name], text);
    this.#figures[name].hidden = !text;
  }
}

function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") };
  } catch {
    return { ...DEFAULTS }; // the browser may refuse storage, and what is stored may be anything
  }
}

function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // the browser refuses storage: the settings last as long as the page
  }
}
