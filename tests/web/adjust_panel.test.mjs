// What may be adjusted, and what may be typed.

import assert from "node:assert/strict";
import { test } from "node:test";

import { factorOf, factorProblem, isAdjustable, promptsOf } from "../../web/adjust_panel.mjs";

test("there is something to adjust when the run takes a rate or prompts", () => {
  assert.equal(isAdjustable({ state: "training", controls: ["pause"] }), false);
  assert.equal(isAdjustable({ state: "paused", controls: ["sample_prompts"] }), true);
});

for (const [text, factor] of [["0.5", 0.5], ["x2", 2], ["×0,1", 0.1], [" 1e-2 ", 0.01]]) {
  test(`"${text}" is the factor ${factor}`, () => assert.equal(factorOf(text), factor));
}

for (const text of ["", " ", "0", "-1", "fast", "Infinity", "x", "1001"]) {
  test(`"${text}" is no factor`, () => assert.ok(Number.isNaN(factorOf(text))));
}

test("a wrong factor is said in words", () => {
  assert.equal(factorProblem("0.5"), "");
  assert.match(factorProblem("fast"), /"fast" is no factor: write a number above 0, at most 1000/);
  assert.match(factorProblem(" "), /There is no factor/);
});

test("prompts are lines without the empty ones", () => {
  assert.deepEqual(promptsOf(" a cat \n\n a dog\r\n"), ["a cat", "a dog"]);
});
