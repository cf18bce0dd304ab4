// The runs that the page knows: joins the messages of each run, and finds the run of a node. Pure: tested under Node.
import { knownId } from "./graph_ids.mjs";
import { Series } from "./series.mjs";

const MOST_RUNS = 64; // kept; runs that go on are kept beyond
const ACTIVE = new Set(["preparing", "training", "paused"]);

/**
 * A run as the page knows it: the fields of the server's newest message, and all messages' points, marks and samples.
 * @typedef {object} Run
 * @property {string} key identifies the run on the page
 * @property {string} [run] the server's id of it; prompt_id, node_id, workflow_id: what started it
 * @property {"preparing" | "training" | "paused" | "finished" | "interrupted" | "failed"} state
 * @property {string} [phase] what it does in that state, with phase_done of phase_total
 * @property {number} step steps done of `steps`; likewise epoch of `epochs`
 * @property {Series} series loss and learning rate by step
 * @property {Series} validation validation loss by step
 * @property {{step: number, kind: string, text: string}[]} marks checkpoints, samples and other events
 * @property {{step: number, prompt: string, prompt_index: number, filename: string, subfolder: string}[]} samples
 * @property {string[]} [controls] the control actions that it takes now
 */

/** Whether a run goes on. */
export const isActive = (run) => ACTIVE.has(run?.state);

/** The id of a message's run. Servers that send none run a node once per prompt, so prompt and node identify the run. */
export const runKey = (message) => message.run || `${message.prompt_id}/${message.node_id}`;

/** The newest runs, each joined from its messages. */
export class RunStore {
  #runs = new Map(); // id -> run, in the order they began

  /** The runs that go on. */
  get active() {
    return [...this.#runs.values()].filter(isActive);
  }

  /**
   * Takes a live message.
   * @returns {{run: object, isMissing: boolean}} isMissing: whether points are missing between those known and the message's
   */
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

  /** Takes the whole history of a run. Points, marks and samples of live messages beyond its end are kept. */
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

  /** The newest run of a node, by its workflow's id and its `nodePaths`. Runs without a workflow's id come second. */
  runOf(workflowId, paths) {
    const candidates = [...this.#runs.values()].filter((run) => paths.includes(String(run.node_id)));
    const own = candidates.filter((run) => knownId(run.workflow_id) && run.workflow_id === workflowId);
    const unnamed = candidates.filter((run) => !knownId(run.workflow_id));
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

/** A run's samples grouped by prompt, in the order the prompts first appeared; within a group, the newest is last. */
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

/** Adds a message to a run in place: messages come ten times a second, too often to copy a long curve. */
function add(run, message, points) {
  const { points: _, validation = [], marks = [], samples = [], ...summary } = message;
  Object.assign(run, summary, { key: runKey(message) });
  run.series.append(points);
  if (validation.length && validation[0][0] <= run.validation.lastStep) run.validation.cutAfter(validation[0][0] - 1); // made again
  run.validation.append(validation);
  run.marks = union(run.marks, marks, (mark) => `${mark.step} ${mark.kind} ${mark.text}`);
  run.samples = union(run.samples, samples, (sample) => `${sample.subfolder}/${sample.filename}`);
}

/** Removes what lies after a step: the run went back to it, and takes the later steps again. */
function cutAfter(run, step) {
  run.series.cutAfter(step);
  run.validation.cutAfter(step);
  run.marks = run.marks.filter((mark) => mark.step <= step);
  run.samples = run.samples.filter((sample) => sample.step <= step);
}

/** The points [step, loss, learning rate] of a message. Servers that send no run id send a smoothed loss as the third number. */
function pointsOf(message) {
  const points = message.points ?? [];
  return message.run ? points : points.map(([step, loss]) => [step, loss, message.learning_rate]);
}

/** Whether live messages brought the known run further than a history, which was requested earlier. */
function isLater(known, history) {
  if ((known.started_at ?? 0) !== (history.started_at ?? 0)) return false;
  const ahead = (known.elapsed ?? 0) - (history.elapsed ?? 0);
  return ahead > 0 || (ahead === 0 && (known.step ?? 0) > (history.step ?? 0));
}

/** Both lists without duplicates, by step. */
function union(known, added, keyOf) {
  if (!added.length) return known;
  const all = new Map([...known, ...added].map((item) => [keyOf(item), item]));
  return [...all.values()].sort((a, b) => a.step - b.step);
}
