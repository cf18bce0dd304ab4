// Numbers as text.

import assert from "node:assert/strict";
import { test } from "node:test";

import { duration, lossText, memoryText, plural, rateText, speedText } from "../../web/format.mjs";

test("a noun follows its number", () => {
  assert.deepEqual([0, 1, 2].map((count) => plural(count, "tag")), ["0 tags", "1 tag", "2 tags"]);
});

for (const [seconds, text] of [
  [0, "0:00"], [5, "0:05"], [59.6, "1:00"], [75, "1:15"], [3599.7, "1:00:00"], [3661, "1:01:01"],
  [90061, "25:01:01"], [-3, "0:00"],
]) {
  test(`${seconds} seconds are ${text}`, () => assert.equal(duration(seconds), text));
}

for (const [value, text] of [[0.12345, "0.1235"], [0, "0.0000"], [12.345, "12.35"], [0.00012, "1.20e-4"], [1e7, "1.00e+7"], [NaN, "–"], [null, "–"]]) {
  test(`a loss of ${value} is written ${text}`, () => assert.equal(lossText(value), text));
}

for (const [value, text] of [[1e-4, "1e-4"], [3.45e-5, "3.45e-5"], [2.5e-4, "2.5e-4"], [1, "1"], [0.05, "0.05"], [0, "0"], [NaN, "–"]]) {
  test(`a learning rate of ${value} is written ${text}`, () => assert.equal(rateText(value), text));
}

for (const [seconds, text] of [[0.01, "100.0 steps/s"], [1, "1.0 steps/s"], [2.345, "2.35 s/step"]]) {
  test(`${seconds} seconds a step are ${text}`, () => assert.equal(speedText(seconds), text));
}

test("memory is told in GB, with the total where it is known", () => {
  assert.equal(memoryText({ used: 5.2 * 2 ** 30, total: 24 * 2 ** 30 }), "5.2 of 24 GB");
  assert.equal(memoryText({ used: 12 * 2 ** 30, total: 0 }), "12 GB");
});
