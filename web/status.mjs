// What a run says in words. No page, no app: tested under Node.

const STATES = {
  preparing: "Preparing",
  training: "Training",
  paused: "Paused",
  finished: "Finished",
  interrupted: "Stopped",
  failed: "Failed",
};
const PHASES = {
  loading: "Loading",
  encoding: "Encoding",
  sampling: "Sampling",
  validating: "Validating",
  saving: "Saving",
  paused: "Paused",
};
const ENDED = new Set(["finished", "interrupted", "failed"]);

/** The state in a word or two: "Encoding 37 of 120". */
export function stateText(run) {
  if (!run) return "No run yet";
  const phase = !ENDED.has(run.state) && run.state !== "paused" && PHASES[run.phase];
  if (!phase) return STATES[run.state] ?? String(run.state ?? "");
  return run.phase_total > 1 ? `${phase} ${run.phase_done ?? 0} of ${run.phase_total}` : phase;
}

/** How far the run is: "step 120 of 1500 · epoch 2 of 10". */
export function progressText(run) {
  if (!run?.steps) return "";
  const parts = [`step ${run.step ?? 0} of ${run.steps}`];
  if (run.epochs > 1 && run.epoch) parts.push(`epoch ${run.epoch} of ${run.epochs}`);
  return parts.join(" · ");
}

/** Rate, time and memory: "2.0 steps/s · 11:30 left · 5.2 of 24 GB". */
export function factsText(run) {
  if (!run) return "";
  const parts = [];
  if (run.step > 0 && run.seconds_per_step > 0) parts.push(rate(run.seconds_per_step));
  if (ENDED.has(run.state)) {
    if (run.elapsed > 0) parts.push(`${duration(run.elapsed)} in all`);
  } else if (run.step > 0 && Number.isFinite(run.seconds_left)) {
    parts.push(`${duration(run.seconds_left)} left`);
  }
  if (!ENDED.has(run.state) && run.memory?.used > 0) parts.push(memory(run.memory));
  return parts.join(" · ");
}

/** The share that the progress bar shows: of the preparation, else of the steps. */
export function progress(run) {
  if (!run) return 0;
  const share =
    run.state === "preparing" && run.phase_total > 0 ? (run.phase_done ?? 0) / run.phase_total : (run.step ?? 0) / run.steps;
  return Number.isFinite(share) ? Math.min(1, Math.max(0, share)) : 0;
}

/** What the run has to say: why it failed, where its files are, then what it noticed, the newest first: little is seen at once. */
export function messageText(run) {
  return [run?.message, ...(run?.notes ?? []).toReversed()].filter(Boolean).join("\n");
}

/** 3661 -> "1:01:01", 75 -> "1:15". */
export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, index) => (index ? String(part).padStart(2, "0") : String(part))).join(":");
}

/** A loss: four digits that do not jump about. */
export function lossText(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return value.toFixed(size < 10 ? 4 : 2);
}

/** A learning rate: 0.0001 -> "1e-4". */
export function rateText(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 0.01 || value === 0 ? String(Number(value.toPrecision(3))) : trimmed(value.toExponential(2));
}

function trimmed(text) {
  return text.replace(/\.?0+e/, "e");
}

function rate(secondsPerStep) {
  return secondsPerStep > 1 ? `${secondsPerStep.toFixed(2)} s/step` : `${(1 / secondsPerStep).toFixed(1)} steps/s`;
}

function memory({ used, total }) {
  const inGigabytes = (bytes) => {
    const value = bytes / 2 ** 30;
    return value < 10 ? value.toFixed(1) : String(Math.round(value));
  };
  return total > 0 ? `${inGigabytes(used)} of ${inGigabytes(total)} GB` : `${inGigabytes(used)} GB`;
}
