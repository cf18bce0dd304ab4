// What a run says in words, and how its messages add up. No page, no app: tested under Node.

const STATES = { finished: "Finished", interrupted: "Stopped", failed: "Failed" };

/** The run after a message: the same run's points go on, another run's begin anew. */
export function mergeRun(known, message) {
  const goesOn = known && known.prompt_id === message.prompt_id && message.step >= known.step;
  const old = goesOn ? known.points : [];
  const last = old.length ? old[old.length - 1][0] : 0;
  return { ...message, points: [...old, ...message.points.filter((point) => point[0] > last)] };
}

/** One to three short lines for the node. */
export function statusLines(run) {
  if (!run) return ["The loss appears here while training runs."];
  const head =
    run.state === "preparing"
      ? `Preparing: ${run.message}`
      : `${STATES[run.state] ?? "Training"}: step ${run.step} of ${run.steps}`;
  const lines = [head];
  if (run.step > 0) {
    lines[0] += ` · loss ${number(run.loss)}, smoothed ${number(run.smoothed)}`;
    lines.push(`learning rate ${run.learning_rate.toExponential(1)} · ${rate(run)}`);
  }
  if (run.message && run.state !== "preparing") lines.push(run.message);
  return lines;
}

/** 3661 -> "1:01:01", 75 -> "1:15". */
export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, index) => (index ? String(part).padStart(2, "0") : String(part))).join(":");
}

function rate(run) {
  const each = run.seconds_per_step;
  const speed = each > 1 ? `${each.toFixed(2)} s a step` : `${(1 / Math.max(each, 1e-9)).toFixed(1)} steps a second`;
  return run.state === "training"
    ? `${speed} · ${duration(run.seconds_left)} left`
    : `${speed} · ${duration(run.elapsed)} in all`;
}

function number(value) {
  return value === null || value === undefined ? "not a number" : value.toFixed(4);
}
