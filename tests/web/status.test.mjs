// How a run's messages add up, and what the node says.

import assert from "node:assert/strict";
import { test } from "node:test";

import { duration, mergeRun, statusLines } from "../../web/status.mjs";

const message = (from, to, more = {}) => ({
  prompt_id: "p", node_id: "7", state: "training", message: "", step: to, steps: 100, loss: 0.5, smoothed: 0.6,
  learning_rate: 1e-4, seconds_per_step: 0.5, seconds_left: 75, elapsed: 3661,
  points: Array.from({ length: to - from }, (_, index) => [from + index + 1, 1 / (from + index + 1), 1]),
  ...more,
});
const steps = (run) => run.points.map((point) => point[0]);
const upTo = (last) => Array.from({ length: last }, (_, index) => index + 1);

test("the first message is the run", () => {
  assert.deepEqual(steps(mergeRun(undefined, message(0, 3))), upTo(3));
});

test("messages in a row add up", () => {
  const run = [message(0, 3), message(3, 5), message(5, 9)].reduce(mergeRun, undefined);
  assert.deepEqual(steps(run), upTo(9));
  assert.equal(run.step, 9);
});

test("what is known is not added again", () => {
  assert.deepEqual(steps(mergeRun(mergeRun(undefined, message(0, 5)), message(2, 8))), upTo(8));
});

test("a whole history over what is known changes nothing but the end", () => {
  assert.deepEqual(steps(mergeRun(mergeRun(undefined, message(0, 5)), message(0, 8))), upTo(8));
});

test("a message without new points keeps the curve", () => {
  const run = mergeRun(mergeRun(undefined, message(0, 3)), message(3, 3, { state: "finished" }));
  assert.deepEqual(steps(run), upTo(3));
  assert.equal(run.state, "finished");
});

test("another prompt begins anew", () => {
  const run = mergeRun(mergeRun(undefined, message(0, 5)), message(0, 2, { prompt_id: "q" }));
  assert.deepEqual(steps(run), upTo(2));
});

test("a run that starts again in its prompt begins anew", () => {
  const run = mergeRun(mergeRun(undefined, message(0, 5)), message(0, 0, { state: "preparing" }));
  assert.deepEqual(steps(run), []);
});

test("merging changes neither of the two", () => {
  const known = mergeRun(undefined, message(0, 3));
  const before = JSON.stringify(known);
  mergeRun(known, message(3, 6));
  assert.equal(JSON.stringify(known), before);
});

for (const [seconds, text] of [
  [0, "0:00"], [5, "0:05"], [59.6, "1:00"], [75, "1:15"], [3599.7, "1:00:00"], [3661, "1:01:01"],
  [90061, "25:01:01"], [-3, "0:00"],
]) {
  test(`${seconds} seconds are ${text}`, () => assert.equal(duration(seconds), text));
}

test("before a run the node says what will be there", () => {
  assert.equal(statusLines(undefined).length, 1);
});

test("while it trains it says step, losses, rate and time left", () => {
  const text = statusLines(message(0, 3)).join("\n");
  for (const part of ["step 3 of 100", "0.5000", "0.6000", "1.0e-4", "2.0 steps a second", "1:15 left"]) {
    assert.ok(text.includes(part), `${part} in ${text}`);
  }
});

test("slow steps are told in seconds", () => {
  assert.ok(statusLines(message(0, 3, { seconds_per_step: 2.345 })).join().includes("2.35 s a step"));
});

test("while it prepares it says what", () => {
  const run = message(0, 0, { state: "preparing", message: "encoding pictures 2 of 9", loss: null, smoothed: null });
  assert.deepEqual(statusLines(run), ["Preparing: encoding pictures 2 of 9"]);
});

for (const [state, word] of [["finished", "Finished"], ["interrupted", "Stopped"], ["failed", "Failed"]]) {
  test(`a run that is ${state} says so, with the time in all`, () => {
    const text = statusLines(message(0, 3, { state, message: "why" })).join("\n");
    for (const part of [word, "1:01:01 in all", "why"]) assert.ok(text.includes(part), `${part} in ${text}`);
  });
}

test("a loss that is no number is said in words", () => {
  assert.ok(statusLines(message(0, 3, { loss: null, smoothed: null }))[0].includes("loss not a number"));
});

test("a run of no length yet says only its state", () => {
  assert.deepEqual(statusLines(message(0, 0, { loss: null, smoothed: null })), ["Training: step 0 of 100"]);
});
