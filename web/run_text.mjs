// The state of a run in words. Pure: tested under Node.

import { duration, memoryText, speedText } from "./format.mjs";

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

/** The progress: "step 120 of 1500 · epoch 2 of 10". */
export function progressText(run) {
  if (!run?.steps) return "";
  const parts = [`step ${run.step ?? 0} of ${run.steps}`];
  if (run.epochs > 1 && run.epoch) parts.push(`epoch ${run.epoch} of ${run.epochs}`);
  return parts.join(" · ");
}

/** Speed, time and memory: "2.0 steps/s · 11:30 left · 5.2 of 24 GB". */
export function factsText(run) {
  if (!run) return "";
  const parts = [];
  if (run.step > 0 && run.seconds_per_step > 0) parts.push(speedText(run.seconds_per_step));
  if (ENDED.has(run.state)) {
    if (run.elapsed > 0) parts.push(`${duration(run.elapsed)} in all`);
  } else if (run.step > 0 && Number.isFinite(run.seconds_left)) {
    parts.push(`${duration(run.seconds_left)} left`);
  }
  if (!ENDED.has(run.state) && run.memory?.used > 0) parts.push(memoryText(run.memory));
  return parts.join(" · ");
}

/** What the progress bar shows, 0 to 1: the share of the preparation that is done, later of the steps. */
export function progress(run) {
  if (!run) return 0;
  const share =
    run.state === "preparing" && run.phase_total > 0 ? (run.phase_done ?? 0) / run.phase_total : (run.step ?? 0) / run.steps;
  return Number.isFinite(share) ? Math.min(1, Math.max(0, share)) : 0;
}

/** The run's message (why it failed, where its files are), then its notes, the newest first: few lines are seen at once. */
export function messageText(run) {
  return [run?.message, ...(run?.notes ?? []).toReversed()].filter(Boolean).join("\n");
}
