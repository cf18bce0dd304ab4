// How a run's messages add up, and which node a run belongs to.

import assert from "node:assert/strict";
import { test } from "node:test";

import { RunStore, isActive, runKey, samplesByPrompt } from "../../web/run_store.mjs";

const WORKFLOW = "aaaa";
const pointsOf = (from, to) => Array.from({ length: to - from }, (_, index) => [from + index + 1, 1 / (from + index + 1), 1e-4]);
const message = (from, to, more = {}) => ({
  run: "anna/1", workflow_id: WORKFLOW, prompt_id: "p", node_id: "5", state: "training", step: to, steps: 100,
  started_at: 1000, elapsed: to, points: pointsOf(from, to), ...more,
});
const { run: _, workflow_id: __, started_at: ___, ...unnamed } = message(0, 0);
const old = (from, to, more = {}) => ({ ...unnamed, step: to, points: pointsOf(from, to), learning_rate: 3e-4, ...more });
const upTo = (last) => Array.from({ length: last }, (_, index) => index + 1);

function after(...messages) {
  const store = new RunStore();
  return messages.map((given) => store.receive(given).run).at(-1);
}

test("messages in a row add up", () => {
  const run = after(message(0, 3), message(3, 5), message(5, 9));
  assert.deepEqual(run.series.steps, upTo(9));
  assert.equal(run.step, 9);
});

test("what is known is not added again", () => {
  assert.deepEqual(after(message(0, 5), message(2, 8)).series.steps, upTo(8));
});

test("a message without new points keeps the curve", () => {
  const run = after(message(0, 3), message(3, 3, { state: "finished" }));
  assert.deepEqual([run.series.steps, run.state], [upTo(3), "finished"]);
});

test("a message with the least a server may send does no harm", () => {
  const run = after({ run: "a/1", node_id: "5", state: "preparing" });
  assert.deepEqual([run.series.length, run.marks, run.samples], [0, [], []]);
});

test("two runs of one node are kept apart", () => {
  const run = after(message(0, 5), message(0, 2, { run: "anna/2" }));
  assert.deepEqual(run.series.steps, upTo(2));
});

test("a run that goes on from an earlier step takes the later ones again", () => {
  const known = { marks: [{ step: 2, kind: "checkpoint", text: "" }, { step: 5, kind: "checkpoint", text: "" }] };
  const run = after(message(0, 5, known), message(2, 3, { points: [[3, 7, 1e-4]] }));
  assert.deepEqual(run.series.loss, [1, 0.5, 7]);
  assert.deepEqual(run.marks.map((mark) => mark.step), [2]);
});

test("a validation that is made again takes the place of the first", () => {
  const run = after(message(0, 4, { validation: [[2, 0.4], [4, 0.3]] }), message(4, 4, { validation: [[4, 0.1]] }));
  assert.deepEqual([run.validation.steps, run.validation.loss], [[2, 4], [0.4, 0.1]]);
});

test("validation, marks and samples add up too, and double ones are one", () => {
  const mark = { step: 2, kind: "checkpoint", text: "kept" };
  const sample = { step: 2, prompt_index: 0, prompt: "a cat", filename: "2.png", subfolder: "s" };
  const first = message(0, 2, { validation: [[2, 0.4]], marks: [mark], samples: [sample] });
  const run = after(first, message(2, 4, { validation: [[2, 0.4], [4, 0.3]], marks: [mark], samples: [sample, { ...sample, step: 4, filename: "4.png" }] }));
  assert.deepEqual(run.validation.steps, [2, 4]);
  assert.deepEqual(run.marks, [mark]);
  assert.deepEqual(run.samples.map((item) => item.filename), ["2.png", "4.png"]);
});

test("steps that a message skips are missed, and the history mends it", () => {
  const store = new RunStore();
  assert.equal(store.receive(message(0, 3)).isMissing, false);
  assert.equal(store.receive(message(3, 5)).isMissing, false);
  assert.equal(store.receive(message(7, 9)).isMissing, true);
  const run = store.receiveHistory(message(0, 9));
  assert.deepEqual(run.series.steps, upTo(9));
  assert.equal(store.receive(message(9, 10)).isMissing, false);
});

test("a page that opens in the middle of a run misses its beginning", () => {
  assert.equal(new RunStore().receive(message(50, 52)).isMissing, true);
});

test("a thinned history is no gap", () => {
  const store = new RunStore();
  store.receiveHistory(message(0, 9, { points: [[1, 1, 1], [5, 1, 1]] }));
  assert.equal(store.receive(message(9, 10)).isMissing, false);
});

test("a history that comes late does not undo what live messages told", () => {
  const store = new RunStore();
  store.receive(message(6, 8, { state: "finished", marks: [{ step: 8, kind: "note", text: "" }] }));
  const run = store.receiveHistory(message(0, 7));
  assert.deepEqual([run.series.steps, run.state, run.step, run.marks.length], [upTo(8), "finished", 8, 1]);
});

test("a history that is newer replaces what was known", () => {
  const store = new RunStore();
  store.receive(message(0, 4));
  const run = store.receiveHistory(message(0, 9, { state: "failed" }));
  assert.deepEqual([run.series.steps, run.state], [upTo(9), "failed"]);
});

test("a run without an id is that of its prompt and node, and begins anew with its steps", () => {
  assert.equal(runKey(old(0, 1)), "p/5");
  assert.deepEqual(after(old(0, 5), old(0, 2, { prompt_id: "q" })).series.steps, upTo(2));
  assert.deepEqual(after(old(0, 5), old(0, 0, { state: "preparing" })).series.steps, []);
  assert.deepEqual(after(old(0, 5), old(0, 2, { points: [[1, 7, 0], [2, 8, 0]] })).series.loss, [7, 8]);
});

test("the third number of a point without a run's id is no learning rate", () => {
  assert.deepEqual(after(old(0, 2)).series.rate, [3e-4, 3e-4]);
});

for (const [state, active] of [["preparing", 1], ["training", 1], ["paused", 1], ["finished", 0], ["interrupted", 0], ["failed", 0]]) {
  test(`a run that is ${state} is ${active ? "active" : "over"}`, () => {
    const store = new RunStore();
    store.receive(message(0, 1, { state }));
    assert.equal(store.active.length, active);
  });
}

test("no run is not active", () => assert.equal(isActive(undefined), false));

const shown = (runs, workflow = WORKFLOW, paths = ["5"]) => {
  const store = new RunStore();
  for (const run of runs) store.receive(run);
  return store.runOf(workflow, paths)?.key;
};

test("a node shows its newest run", () => {
  const runs = [message(0, 1, { run: "b", started_at: 2 }), message(0, 1, { run: "a", started_at: 1 })];
  assert.equal(shown(runs), "b");
});

test("a node shows no other node's run, and no other workflow's", () => {
  const runs = [message(0, 1, { node_id: "6" }), message(0, 1, { run: "other", workflow_id: "bbbb" })];
  assert.equal(shown(runs), undefined);
});

test("a run of no workflow is this session's; a run of this workflow goes before it", () => {
  assert.equal(shown([old(0, 1)]), "p/5");
  assert.equal(shown([old(0, 1), old(0, 1, { prompt_id: "q" })]), "q/5");
  assert.equal(shown([message(0, 1), old(0, 1)]), "anna/1");
});

test("the same id in the root and in a subgraph are two nodes", () => {
  const runs = [message(0, 1, { run: "root" }), message(0, 1, { run: "inner", node_id: "12:5" })];
  assert.equal(shown(runs, WORKFLOW, ["5"]), "root");
  assert.equal(shown(runs, WORKFLOW, ["12:5"]), "inner");
});

test("old runs are forgotten, those that go on are not", () => {
  const store = new RunStore();
  store.receive(message(0, 1, { run: "first" }));
  for (let number = 0; number < 100; number++) store.receive(message(0, 1, { run: `${number}`, state: "finished", started_at: 0 }));
  assert.equal(store.runOf(WORKFLOW, ["5"]).key, "first");
});

test("samples stand in a row a prompt, the newest last", () => {
  const sample = (step, prompt_index, prompt) => ({ step, prompt_index, prompt, filename: `${step}_${prompt_index}`, subfolder: "" });
  const rows = samplesByPrompt([sample(20, 0, "cat"), sample(10, 0, "cat"), sample(10, 1, "dog"), sample(30, 0, "bird")]);
  assert.deepEqual(rows.map((row) => [row.prompt, row.samples.map((item) => item.step)]), [["cat", [10, 20]], ["dog", [10]], ["bird", [30]]]);
});
