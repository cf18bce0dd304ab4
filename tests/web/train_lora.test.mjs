// What the view of a run asks of the server, and what it tells people.

import assert from "node:assert/strict";
import { test } from "node:test";

import { control, fetchPictures } from "../../web/train_lora.mjs";

const RUN = { run: "anna/1", prompt_id: "p", node_id: "5", step: 3 };

/** A page whose server takes every request or refuses it with `error`. */
function pageWith(error = null) {
  const posted = [];
  const notified = [];
  const server = {
    async post(path, body) {
      posted.push([path, body]);
      if (error) throw error;
    },
  };
  return { posted, notified, server, notify: (...all) => notified.push(all) };
}

test("a control action names the run, and its success needs no words", async () => {
  const page = pageWith();
  assert.equal(await control(page, RUN, "pause"), true);
  assert.deepEqual(page.posted, [["/kiln/run/control", { run: "anna/1", prompt_id: "p", node_id: "5", action: "pause", value: undefined }]]);
  assert.deepEqual(page.notified, []);
});

test("a changed value is confirmed", async () => {
  const page = pageWith();
  await control(page, { ...RUN, run: undefined }, "learning_rate", 0.5);
  assert.deepEqual([page.posted[0][1].run, page.posted[0][1].value], ["", 0.5]);
  assert.deepEqual(page.notified, [["success", "Train LoRA", "The run goes on with it."]]);
});

test("a refusal is told in the error's words", async () => {
  const page = pageWith(new Error("This run has ended."));
  assert.equal(await control(page, RUN, "pause"), false);
  assert.deepEqual(page.notified, [["error", "Train LoRA", "This run has ended."]]);
});

test("the pictures are those of the run; an answer without any is none", async () => {
  const asked = [];
  const serverOf = (answer) => ({ get: async (path, query) => (asked.push([path, query]), answer) });
  assert.deepEqual(await fetchPictures(serverOf({ pictures: [1] }), RUN), [1]);
  assert.deepEqual(await fetchPictures(serverOf({}), {}), []);
  assert.deepEqual(asked, [["/kiln/run/pictures", { run: "anna/1" }], ["/kiln/run/pictures", { run: "" }]]);
});
