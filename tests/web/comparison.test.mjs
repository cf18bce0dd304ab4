import assert from "node:assert/strict";
import { test } from "node:test";
import { choiceText, groupByPrompt, rowStep } from "../../web/comparison.mjs";

const file = (name) => ({ filename: name, subfolder: "", type: "temp" });
const SHOWN = {
  strengths: [0, 0.8],
  rows: [
    { number: 0, prompt: "a cat", step: 500, label: "step 500", pictures: [file("a"), file("b")] },
    { number: 1, prompt: "a dog", step: 500, label: "step 500", pictures: [file("c"), file("d")] },
    { number: 0, prompt: "a cat", step: 0, label: "step 900", pictures: [file("e"), file("f")] },
  ],
};

test("rows of one prompt stand together, in their order", () => {
  const groups = groupByPrompt(SHOWN);
  assert.deepEqual(groups.map((group) => [group.prompt, group.rows.map((row) => row.label)]), [
    ["a cat", ["step 500", "step 900"]],
    ["a dog", ["step 500"]],
  ]);
  assert.deepEqual(groups[0].rows[1].cells.map((cell) => [cell.strength, cell.step, cell.file.filename]), [[0, 0, "e"], [0.8, 0, "f"]]);
  const keys = groups.flatMap((group) => group.rows.flatMap((row) => row.cells.map((cell) => cell.key)));
  assert.equal(new Set(keys).size, 6);
});

test("the same prompt twice, with two seeds, is two groups", () => {
  const row = { prompt: "a cat", step: 0, label: "", pictures: [file("a")] };
  assert.equal(groupByPrompt({ strengths: [1], rows: [{ ...row, number: 0 }, { ...row, number: 1 }] }).length, 2);
});

test("a row with fewer pictures, or none, has fewer cells", () => {
  const groups = groupByPrompt({ strengths: [0, 1], rows: [{ number: 0, prompt: "x", step: 0, label: "", pictures: [file("a")] }, { number: 1, prompt: "y", step: 0, label: "" }] });
  assert.deepEqual(groups.map((group) => group.rows[0].cells.length), [1, 0]);
  assert.deepEqual(groupByPrompt(undefined), []);
});

test("the LoRA's own step is the row of the LoRA as it came in", () => {
  assert.equal(rowStep(900, { ...SHOWN, last: 900 }), 0);
  assert.equal(rowStep(500, { ...SHOWN, last: 900 }), 500);
  assert.equal(rowStep(0, null), 0);
  assert.equal(choiceText({ strength: 1, step: 900 }, { ...SHOWN, last: 900 }), "Output: step 900 at strength 1");
});

test("the choice is described in words", () => {
  assert.equal(choiceText({ strength: 0.8, step: 500 }, SHOWN), "Output: step 500 at strength 0.8");
  assert.equal(choiceText({ strength: 0.7000000001, step: 0 }, SHOWN), "Output: step 900 at strength 0.7");
  assert.equal(choiceText({ strength: 1, step: 0 }, null), "Output: the LoRA at strength 1");
  assert.equal(choiceText({ strength: 1, step: 70 }, SHOWN), "Output: step 70 at strength 1");
  assert.equal(choiceText({ strength: 0, step: 0 }, SHOWN), "Output: the model without the LoRA");
});
