// Which control actions are open.

import assert from "node:assert/strict";
import { test } from "node:test";

import { takes } from "../../web/run_controls.mjs";

test("an action is open while the run goes on and lists it", () => {
  assert.equal(takes({ state: "training", controls: ["pause"] }, "pause"), true);
  assert.equal(takes({ state: "training", controls: ["pause"] }, "finish"), false);
  assert.equal(takes({ state: "finished", controls: ["pause"] }, "pause"), false);
  assert.equal(takes({ state: "training" }, "pause"), false);
  assert.equal(takes(undefined, "pause"), false);
});
