// The runs that the page knows: how a run's messages add up, and which run is whose. No page: tested under Node.
import { Series } from "./series.mjs";

const MOST_RUNS = 64;
const ACTIVE = new Set(["preparing", "training", "paused"]);
const NO_ID = "00000000-0000-0000-0000-000000000000"; // of a graph that was never configured

export const isActive = (run) => ACTIVE.has(run?.state);

/** A run's id. Servers before run folders have none: there a prompt runs a node once. */
export const runKey = (message) => message.run || `${message.prompt_id}/${message.node_id}`;

export class RunStore {
  #runs = new Map(); // id -> run, in the order they began

  get active() {
    return [...this.#runs.values()].filter(isActive);
  }

  /** Takes a live message. Gives the run and whether steps are missing between what was known and the message. */
  receive(message) {
    const known = this.#runs.get(runKey(message));
    const run = known ?? emptyRun();
    const points = pointsOf(message);
    const firstNew = points.length ? points[0][0] : Infinity;
    if ((message.step ?? 0) < (run.step ?? 0)) cutAfter(run, Math.min(message.step ?? 0, firstNew - 1));
    const isMissing = points.length > 0 && firstNew > Math.max(run.series.lastStep, Math.min(run.step ?? 0, message.step)) + 1;
    add(run, message, points);
    this.#keep(run);
    return { run, isMissing };
  }

  /** Takes the whole history of a run. What live messages told beyond its end stays. */
  receiveHistory(history) {
    const known = this.#runs.get(runKey(history));
    const run = emptyRun();
    add(run, history, pointsOf(history));
    if (known && isLater(known, history)) {
      const { series, validation, marks, samples, ...summary } = known;
      const newPoints = series.points().filter(([step]) => step > run.series.lastStep);
      add(run, { ...summary, validation: validation.points(), marks, samples }, newPoints);
    }
    this.#keep(run);
    return run;
  }

  /** The newest run of a node, by its workflow's id and the paths that lead to it. */
  runOf(workflowId, paths) {
    const candidates = [...this.#runs.values()].filter((run) => paths.includes(String(run.node_id)));
    const own = candidates.filter((run) => run.workflow_id && run.workflow_id === workflowId);
    const unnamed = candidates.filter((run) => !run.workflow_id);
    return (own.length ? own : unnamed).reduce(
      (newest, run) => ((run.started_at ?? Infinity) >= (newest?.started_at ?? -Infinity) ? run : newest),
      undefined,
    );
  }

  #keep(run) {
    this.#runs.set(runKey(run), run);
    for (const [key, old] of this.#runs) {
      if (this.#runs.size <= MOST_RUNS) break;
      if (!isActive(old) && old !== run) this.#runs.delete(key);
    }
  }
}

/**
 * The ids by which the server may call a node: "5" in the root, "12:5" in the subgraph of node 12.
 * A subgraph that is used twice gives its nodes two.
 */
export function nodePaths(rootGraph, node) {
  const paths = [];
  const visit = (graph, prefix, above) => {
    if (node.graph === graph) paths.push(`${prefix}${node.id}`);
    for (const holder of graph?.nodes ?? []) {
      const inner = holder.subgraph;
      if (inner && !above.includes(inner)) visit(inner, `${prefix}${holder.id}:`, [...above, inner]);
    }
  };
  visit(rootGraph, "", [rootGraph]);
  return paths;
}

/** The id under which the server files a workflow's runs, "" where it has none. */
export function workflowId(rootGraph) {
  const id = rootGraph?.id ?? "";
  return id === NO_ID ? "" : String(id);
}

/** A run's samples by prompt, in the order in which the prompts came; the newest picture last. */
export function samplesByPrompt(samples) {
  const rows = new Map();
  for (const sample of samples) {
    const key = `${sample.prompt_index ?? 0} ${sample.prompt ?? ""}`;
    if (!rows.has(key)) rows.set(key, { key, prompt: sample.prompt ?? "", samples: [] });
    rows.get(key).samples.push(sample);
  }
  for (const row of rows.values()) row.samples.sort((a, b) => a.step - b.step);
  return [...rows.values()];
}

function emptyRun() {
  return { series: new Series(), validation: new Series(), marks: [], samples: [] };
}

/** Adds a message to a run, in place: a long curve is not copied ten times a second. */
function add(run, message, points) {
  const { points: _, validation = [], marks = [], samples = [], ...summary } = message;
  Object.assign(run, summary, { key: runKey(message) });
  run.series.append(points);
  run.validation.append(validation);
  run.marks = union(run.marks, marks, (mark) => `${mark.step} ${mark.kind} ${mark.text}`);
  run.samples = union(run.samples, samples, (sample) => `${sample.subfolder}/${sample.filename}`);
}

function cutAfter(run, step) {
  run.series.cutAfter(step);
  run.validation.cutAfter(step);
  run.marks = run.marks.filter((mark) => mark.step <= step);
  run.samples = run.samples.filter((sample) => sample.step <= step);
}

/** [step, loss, learning rate] of a message. Before run ids the third was a smoothed loss. */
function pointsOf(message) {
  const points = message.points ?? [];
  return message.run ? points : points.map(([step, loss]) => [step, loss, message.learning_rate]);
}

/** Whether the run as known from live messages is ahead of a history that was asked for earlier. */
function isLater(known, history) {
  if ((known.started_at ?? 0) !== (history.started_at ?? 0)) return false;
  const ahead = (known.elapsed ?? 0) - (history.elapsed ?? 0);
  return ahead > 0 || (ahead === 0 && (known.step ?? 0) > (history.step ?? 0));
}

function union(known, added, keyOf) {
  if (!added.length) return known;
  const all = new Map([...known, ...added].map((item) => [keyOf(item), item]));
  return [...all.values()].sort((a, b) => a.step - b.step);
}
