// What is changed on the host's nodes and widgets.

import assert from "node:assert/strict";
import { test } from "node:test";

import { acceptNumbersAsTyped, addViewWidget, after, hideOwnPreview, isEnabled, isLinked, widgetNamed } from "../../web/node_widgets.mjs";

test("a view's widget is saved nowhere, keeps the node's width and has the options given", () => {
  const node = { addDOMWidget: (name, type, element, options) => ({ name, type, element, options }) };
  const widget = addViewWidget(node, "kiln_run", "root", 230, { hideOnZoom: true });
  assert.deepEqual([widget.name, widget.type, widget.element], ["kiln_run", "KILN_RUN", "root"]);
  assert.deepEqual([widget.serialize, widget.options.serialize, widget.options.hideOnZoom, widget.options.getMinHeight()], [false, false, true, 230]);
  widget.width = 300;
  assert.equal(widget.width, undefined);
  assert.equal(addViewWidget(node, "x", "root", 1).options.hideOnZoom, false);
});

test("a function called after a method gets its arguments; the method keeps its own result and `this`", () => {
  const calls = [];
  const object = { own(argument) { return calls.push(["own", this === object, argument]); } };
  after(object, "own", (argument) => calls.push(["then", argument]));
  after(object, "missing", () => calls.push(["missing"]));
  assert.equal(object.own("a"), 1);
  assert.equal(object.missing(), undefined);
  assert.deepEqual(calls, [["own", true, "a"], ["then", "a"], ["missing"]]);
});

test("the host's own preview is hidden only as long as it must be", () => {
  let isHidden = true;
  let drawn = 0;
  const node = { onDrawBackground: () => (drawn += 1) };
  hideOwnPreview(node, () => isHidden);
  node.onDrawBackground();
  assert.deepEqual([node.hideOutputImages, drawn], [true, 0]);
  isHidden = false;
  node.onDrawBackground();
  assert.deepEqual([node.hideOutputImages, drawn], [false, 1]);
});

test("number widgets take what is typed; seeds and other widgets keep their bounds", () => {
  const widget = (type, min, max) => ({ type, options: { min, max } });
  const widgets = [widget("number", 1, 10), widget("number", -1, 1), widget("number", 0, Number.MAX_SAFE_INTEGER), widget("slider", 1, 10)];
  acceptNumbersAsTyped({ widgets });
  const LARGEST = Number.MAX_SAFE_INTEGER;
  assert.deepEqual(widgets.map(({ options }) => [options.min, options.max]), [[0, LARGEST], [-1, LARGEST], [0, LARGEST], [1, 10]]);
  acceptNumbersAsTyped({});
});

test("widgets, wires and the mode of a node are read by name", () => {
  const node = { mode: 0, widgets: [{ name: "step" }], inputs: [{ name: "images", link: 0 }, { name: "x", widget: { name: "step" }, link: null }] };
  assert.equal(widgetNamed(node, "step"), node.widgets[0]);
  assert.equal(widgetNamed({}, "step"), undefined);
  assert.deepEqual(["images", "step", "other"].map((name) => isLinked(node, name)), [true, false, false]);
  node.inputs[1].link = 7;
  assert.equal(isLinked(node, "step"), true);
  assert.equal(isLinked({}, "step"), false);
  assert.deepEqual([isEnabled(node), isEnabled({ mode: 4 })], [true, false]);
});
