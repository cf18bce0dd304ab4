// Where a sample's picture is.

import assert from "node:assert/strict";
import { test } from "node:test";

import { samplePath } from "../../web/samples_panel.mjs";

test("a sample's path is safe in a URL, whatever its name", () => {
  const query = new URL(samplePath({ filename: "a&type=temp #1.png", subfolder: "lora_kiln/anna?/x" }), "http://host").searchParams;
  assert.deepEqual([...query], [["filename", "a&type=temp #1.png"], ["subfolder", "lora_kiln/anna?/x"], ["type", "output"]]);
});
