// The live view of a run in its Train LoRA node: state, progress and controls, and below them one of four panels.
import { ChartPanel } from "./chart_panel.mjs";
import { AdjustPanel, isAdjustable } from "./adjust_panel.mjs";
import { button, element, setText } from "./dom.mjs";
import { PicturesPanel } from "./pictures_panel.mjs";
import { RunControls } from "./run_controls.mjs";
import { factsText, messageText, progress, progressText, stateText } from "./run_text.mjs";
import { SamplesPanel } from "./samples_panel.mjs";

export const MIN_HEIGHT = 230; // pixels
const TALL = 420; // pixels: from this height on, the samples are below the chart
const TABS = [
  ["loss", "Loss", "The loss by step"],
  ["samples", "Samples", "What the run has drawn so far"],
  ["pictures", "Pictures", "The training pictures, the hardest first"],
  ["adjust", "Adjust", "Learning rate and sample prompts for the rest of the run"],
];

/** The view of one run. */
export class RunView {
  run; // the run that is shown; undefined where there is none
  #tab = "loss";

  /**
   * @param {object} host urlOf(path): the URL of an API path; send(run, action, value): sends a control action, resolves to
   *   whether the server took it; fetchPictures(run): resolves to the training pictures with their losses
   */
  constructor(host) {
    this.chip = element("span", { className: "kiln-chip" });
    this.progress = element("span", { className: "kiln-progress" });
    this.facts = element("span", { className: "kiln-facts" });
    this.bar = element("div", { className: "kiln-bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, element("div"));
    this.message = element("div", { className: "kiln-message", tabIndex: -1, "data-capture-wheel": "true" });
    this.controls = new RunControls(host.send);
    this.chart = new ChartPanel();
    this.panels = {
      loss: this.chart,
      samples: new SamplesPanel(host.urlOf),
      pictures: new PicturesPanel(host.fetchPictures, host.urlOf),
      adjust: new AdjustPanel(host.send),
    };
    this.tabs = TABS.map(([name, label, title]) => {
      const tab = button(label, title, () => this.#open(name), "kiln-tab");
      tab.dataset.tab = name;
      return tab;
    });
    this.root = element("div", { className: "kiln-run" },
      element("div", { className: "kiln-head" }, this.chip, this.progress, this.facts),
      this.bar,
      this.message,
      this.controls.root,
      element("div", { className: "kiln-tabs" }, ...this.tabs, this.chart.tools),
      element("div", { className: "kiln-panels" }, ...Object.values(this.panels).map((panel) => panel.root)),
    );
    this.root.style.minHeight = `${MIN_HEIGHT}px`; // Vue nodes follow this one
    this.root.addEventListener("keydown", keepFromGraph);
    this.resized = new ResizeObserver(() => this.root.classList.toggle("kiln-tall", this.root.clientHeight >= TALL));
    this.resized.observe(this.root);
    this.show(undefined);
  }

  show(run) {
    this.run = run;
    this.root.dataset.state = run?.state ?? "idle";
    this.root.dataset.step = String(run?.step ?? 0);
    this.root.dataset.phase = run?.phase ?? "";
    setText(this.chip, stateText(run));
    setText(this.progress, progressText(run));
    setText(this.facts, factsText(run));
    this.facts.title = run?.memory?.device ?? "";
    const percent = 100 * progress(run);
    this.bar.firstChild.style.width = `${percent}%`;
    this.bar.setAttribute("aria-valuenow", Math.round(percent));
    setText(this.message, messageText(run));
    this.message.hidden = !this.message.textContent;
    this.controls.show(run);
    this.#showTabs();
    this.#showPanels();
  }

  /** Shows why the node failed before its run began, until the next message of a run. */
  refuse(reason) {
    this.root.dataset.state = "failed";
    setText(this.chip, "Not started");
    setText(this.message, reason);
    this.message.hidden = false;
  }

  remove() {
    this.resized.disconnect();
    this.chart.remove();
  }

  #open(name) {
    this.#tab = name;
    if (name === "adjust") this.panels.adjust.open(this.run);
    this.#showTabs();
    this.#showPanels();
    const panel = this.panels[name].root;
    if (panel.dataset.captureWheel) panel.focus({ preventScroll: true }); // so that the wheel scrolls it
  }

  #showTabs() {
    if (this.#tab === "adjust" && !isAdjustable(this.run)) this.#tab = "loss";
    this.root.dataset.tab = this.#tab;
    for (const tab of this.tabs) {
      const name = tab.dataset.tab;
      tab.setAttribute("aria-pressed", name === this.#tab);
      if (name === "adjust") tab.hidden = !isAdjustable(this.run);
      if (name === "samples") setText(tab, this.run?.samples.length ? `Samples ${this.run.samples.length}` : "Samples");
    }
  }

  #showPanels() {
    const hasSamples = Boolean(this.run?.samples.length);
    this.root.classList.toggle("kiln-has-samples", hasSamples);
    for (const [name, panel] of Object.entries(this.panels)) {
      const isOpen = name === this.#tab;
      panel.root.classList.toggle("kiln-open", isOpen);
      if (isOpen || name === "samples") panel.show(this.run);
    }
  }
}

/** Keeps keys that are pressed in the view from the graph, except for its shortcuts with a modifier key. */
function keepFromGraph(event) {
  const isTyping = event.target.matches("input, textarea");
  if (isTyping || !(event.ctrlKey || event.metaKey || event.altKey)) event.stopPropagation();
}
