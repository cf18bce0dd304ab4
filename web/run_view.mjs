// The live view of a run inside its node: state, progress, controls, and what is looked at below.
import { ChartPanel } from "./chart_panel.mjs";
import { AdjustPanel, Controls, isAdjustable } from "./controls.mjs";
import { button, element, setText } from "./dom.mjs";
import { PicturesPanel } from "./pictures.mjs";
import { SamplesPanel } from "./samples.mjs";
import { factsText, messageText, progress, progressText, stateText } from "./run_text.mjs";

export const MIN_HEIGHT = 230;
const TALL = 420; // from this height on the samples stand under the chart
const TABS = [
  ["loss", "Loss", "The loss by step"],
  ["samples", "Samples", "What the run has drawn so far"],
  ["pictures", "Pictures", "The training pictures, the hardest first"],
  ["adjust", "Adjust", "Learning rate and sample prompts for the rest of the run"],
];

export class RunView {
  run;
  #tab = "loss";

  /**
   * host: {urlOf(path), send(run, action, value), fetchPictures(run)}, what the view needs of the page.
   */
  constructor(host) {
    this.chip = element("span", { className: "kiln-chip" });
    this.progress = element("span", { className: "kiln-progress" });
    this.facts = element("span", { className: "kiln-facts" });
    this.bar = element("div", { className: "kiln-bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, element("div"));
    this.message = element("div", { className: "kiln-message", tabIndex: -1, "data-capture-wheel": "true" });
    this.controls = new Controls(host.send);
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
    this.root.style.minHeight = `${MIN_HEIGHT}px`; // the Vue nodes go by this one
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

  /** Why the node ended before there was a run; stays until a run has something to say. */
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
    if (panel.dataset.captureWheel) panel.focus({ preventScroll: true }); // the wheel scrolls what has the focus
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

/** Keys pressed on the view's own parts are not the graph's, but for its shortcuts with a modifier. */
function keepFromGraph(event) {
  const isTyping = event.target.matches("input, textarea");
  if (isTyping || !(event.ctrlKey || event.metaKey || event.altKey)) event.stopPropagation();
}
