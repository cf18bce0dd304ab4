// The state of a run in words.

import assert from "node:assert/strict";
import { test } from "node:test";

import { factsText, messageText, progress, progressText, stateText } from "../../web/run_text.mjs";

const GB = 2 ** 30;
const run = (more = {}) => ({
  state: "training", phase: "training", phase_done: 0, phase_total: 0, message: "", step: 30, steps: 100, epoch: 2,
  epochs: 10, seconds_per_step: 0.5, seconds_left: 75, elapsed: 3661, memory: { used: 5.2 * GB, total: 24 * GB }, notes: [],
  ...more,
});

for (const [more, text] of [
  [{}, "Training"],
  [{ state: "preparing", phase: "" }, "Preparing"],
  [{ state: "preparing", phase: "loading" }, "Loading"],
  [{ state: "preparing", phase: "encoding", phase_done: 37, phase_total: 120 }, "Encoding 37 of 120"],
  [{ phase: "sampling", phase_done: 1, phase_total: 4 }, "Sampling 1 of 4"],
  [{ phase: "sampling", phase_done: 0, phase_total: 1 }, "Sampling"],
  [{ phase: "validating" }, "Validating"],
  [{ phase: "saving" }, "Saving"],
  [{ state: "paused", phase: "paused" }, "Paused"],
  [{ phase: "paused" }, "Paused"],
  [{ state: "finished", phase: "saving" }, "Finished"],
  [{ state: "interrupted" }, "Stopped"],
  [{ state: "failed" }, "Failed"],
  [{ phase: undefined }, "Training"],
]) {
  test(`${JSON.stringify(more)} is called ${text}`, () => assert.equal(stateText(run(more)), text));
}

test("before a run the node says that there is none", () => {
  assert.equal(stateText(undefined), "No run yet");
  assert.deepEqual([progressText(undefined), factsText(undefined), messageText(undefined), progress(undefined)], ["", "", "", 0]);
});

test("the progress tells step and epoch", () => assert.equal(progressText(run()), "step 30 of 100 · epoch 2 of 10"));

test("a run without epochs tells its steps", () => {
  assert.equal(progressText(run({ epoch: undefined, epochs: undefined })), "step 30 of 100");
});

test("while it trains it tells rate, time left and memory", () => {
  assert.equal(factsText(run()), "2.0 steps/s · 1:15 left · 5.2 of 24 GB");
});

test("slow steps are told in seconds", () => {
  assert.ok(factsText(run({ seconds_per_step: 2.345 })).startsWith("2.35 s/step"));
});

test("what the server does not tell is left out", () => {
  assert.equal(factsText({ state: "training", step: 3, steps: 9, seconds_per_step: 0, seconds_left: null, memory: null }), "");
  assert.equal(factsText(run({ step: 0 })), "5.2 of 24 GB");
});

for (const state of ["finished", "interrupted", "failed"]) {
  test(`a run that is ${state} tells the time in all`, () => {
    assert.equal(factsText(run({ state })), "2.0 steps/s · 1:01:01 in all");
  });
}

test("the bar shows the steps, and while it prepares the preparation", () => {
  assert.equal(progress(run()), 0.3);
  assert.equal(progress(run({ state: "preparing", phase_done: 30, phase_total: 120, step: 0 })), 0.25);
  assert.equal(progress(run({ step: 5, steps: 0 })), 0);
  assert.equal(progress(run({ step: 500 })), 1);
});

test("message and notes stand in lines", () => {
  assert.equal(messageText(run({ message: "why", notes: ["one", "two"] })), "why\ntwo\none");
});
