// Outputs are shown when a node is executed, and again when the host has made the node anew.

import assert from "node:assert/strict";
import { test } from "node:test";

import { NodeOutputs } from "../../web/node_outputs.mjs";

test("an output is shown on execution and restored by the node's id, in a subgraph with the graph's", () => {
  const root = { id: "root" };
  const nodes = [{ id: 5, graph: root }, { id: 5, graph: { id: "inner" } }];
  const shown = [[], []];
  const outputs = new NodeOutputs();
  nodes.forEach((node, index) => outputs.watch(node, (output) => shown[index].push(output)));
  nodes[0].onExecuted("executed");
  outputs.restore({ 5: "of the root", "inner:5": "of the subgraph" }, root);
  outputs.restore(undefined, root);
  assert.deepEqual(shown, [["executed", "of the root", undefined], ["of the subgraph", undefined]]);
});

test("a removed node is not restored", () => {
  const node = { id: 5 };
  const shown = [];
  const outputs = new NodeOutputs();
  outputs.watch(node, (output) => shown.push(output));
  node.onRemoved();
  outputs.restore({ 5: "x" }, {});
  assert.deepEqual(shown, []);
});
