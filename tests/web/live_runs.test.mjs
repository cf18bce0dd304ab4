// Which node shows which run, and when the page asks the server for what it missed.

import assert from "node:assert/strict";
import { test } from "node:test";

import { LiveRuns, SILENCE } from "../../web/live_runs.mjs";

const message = (step, more = {}) => ({
  run: "anna/1", workflow_id: "first", prompt_id: "p", node_id: "5", state: "training", step, steps: 100, started_at: 1,
  elapsed: step, points: [[step, 0.5, 1e-4]], ...more,
});

/** A page with one Train LoRA node per id, whose server answers with `histories`, and a record of all that happens. */
function pageWith(histories = [], ids = [5]) {
  const root = { id: "first", nodes: [] };
  root.nodes = ids.map((id) => ({ id, graph: root }));
  const asked = [];
  const server = {
    async get(path, query) {
      asked.push([path, query.workflow_id]);
      if (histories instanceof Error) throw histories;
      return typeof histories === "function" ? histories() : histories;
    },
  };
  const runs = new LiveRuns(server, () => root);
  const views = root.nodes.map((node) => {
    const view = { shown: [], refused: [], show(run) { this.run = run; this.shown.push(run?.step); }, refuse(reason) { this.refused.push(reason); } };
    runs.add(node, view);
    return view;
  });
  return { root, runs, views, asked };
}

test("a message is shown on its node, and on no other that shows the same as before", () => {
  const { runs, views: [own, other] } = pageWith([], [5, 6]);
  runs.show();
  runs.receive(message(1));
  runs.receive(message(2));
  assert.deepEqual([own.shown, other.shown], [[undefined, 1, 2], [undefined]]);
});

test("a message that leaves steps out makes the page fetch the history", async () => {
  const { runs, views: [view], asked } = pageWith([message(9, { points: [[1, 1, 1], [2, 1, 1], [9, 1, 1]] })]);
  runs.receive(message(5));
  await runs.fetch();
  assert.deepEqual(asked, [["/kiln/runs", "first"]]); // once: the second call shared the request
  assert.deepEqual([view.run.step, view.run.series.steps], [9, [1, 2, 9]]);
});

test("an opened workflow shows what is known, and fetches where a node can show it", async () => {
  const { root, runs, views: [view], asked } = pageWith([message(3)]);
  runs.refresh();
  assert.deepEqual([view.shown, asked.length], [[undefined], 1]);
  await runs.fetch();
  assert.equal(view.run.step, 3);
  runs.remove(root.nodes[0]);
  runs.refresh();
  assert.equal(asked.length, 1);
});

test("a workflow opened during a request is asked for too", async () => {
  const { root, runs, views: [view], asked } = pageWith([message(3, { workflow_id: "second" })]);
  const fetched = runs.fetch();
  root.id = "second";
  await fetched;
  assert.deepEqual(asked.map(([, workflow]) => workflow), ["first", "second"]);
  assert.equal(view.run.step, 3);
});

test("a server that fails changes nothing, and may be asked again", async () => {
  const { runs, views: [view], asked } = pageWith(new Error("away"));
  await runs.fetch();
  await runs.fetch();
  assert.deepEqual([view.shown, asked.length], [[], 2]);
});

test("a workflow opened during a request that fails is asked for too", async () => {
  const { root, runs, views: [view], asked } = pageWith(() => {
    if (asked.length === 1) throw new Error("away");
    return [message(3, { workflow_id: "second" })];
  });
  const fetched = runs.fetch();
  root.id = "second";
  await fetched;
  assert.deepEqual(asked.map(([, workflow]) => workflow), ["first", "second"]);
  assert.equal(view.run.step, 3);
});

test("a run of a cleared workflow is shown, whichever way its server says that it has no id", () => {
  for (const workflow_id of ["", undefined, "00000000-0000-0000-0000-000000000000"]) {
    const { root, runs, views: [view] } = pageWith();
    root.id = "00000000-0000-0000-0000-000000000000";
    runs.receive(message(1, { workflow_id }));
    assert.equal(view.run?.step, 1);
  }
});

test("only the silence of an active run makes the page ask", (t) => {
  t.mock.timers.enable({ apis: ["Date"], now: 1e6 });
  const { runs, asked } = pageWith();
  t.mock.timers.tick(SILENCE + 1);
  runs.fetchAfterSilence();
  assert.equal(asked.length, 0); // no run
  runs.receive(message(1));
  runs.fetchAfterSilence();
  assert.equal(asked.length, 0); // just heard
  t.mock.timers.tick(SILENCE + 1);
  runs.fetchAfterSilence();
  assert.equal(asked.length, 1);
  runs.receive(message(2, { state: "finished" }));
  t.mock.timers.tick(SILENCE + 1);
  runs.fetchAfterSilence();
  assert.equal(asked.length, 1); // ended
});

test("an error of a prompt without a run of its own is shown in place of the run before", () => {
  const { runs, views: [own, other] } = pageWith([], [5, 6]);
  runs.receive(message(1));
  runs.receiveError({ prompt_id: "q", node_id: 5, exception_message: "refused" });
  runs.receiveError({ prompt_id: "p", node_id: 5, exception_message: "its own run reports it" });
  assert.deepEqual([own.refused, other.refused], [["refused"], []]);
});
