// A preset of LoRA Config fills in the widgets that it sets, and no other.

import assert from "node:assert/strict";
import { test } from "node:test";

import { fillInPresets } from "../../web/lora_config.mjs";

test("a chosen preset sets its widgets, with the presets as they are by then", () => {
  let presets = {};
  const called = [];
  const widgets = [{ name: "preset", callback: (name) => called.push(name) }, { name: "rank", value: 1 }, { name: "seed", value: 7 }];
  let isDirty = false;
  fillInPresets({ widgets, setDirtyCanvas: () => (isDirty = true) }, () => presets);
  presets = { large: { rank: 64, unknown: 1 } };
  widgets[0].callback("large");
  assert.deepEqual(widgets.slice(1).map(({ value }) => value), [64, 7]);
  widgets[0].callback("no such preset");
  assert.deepEqual([called, isDirty, widgets[1].value], [["large", "no such preset"], true, 64]);
});

test("a node without the preset widget is left alone", () => {
  fillInPresets({ widgets: [] }, () => ({}));
});
