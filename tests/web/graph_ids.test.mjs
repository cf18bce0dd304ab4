// The ids of nodes and workflows, as the server uses them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { nodePaths, workflowId } from "../../web/graph_ids.mjs";

function graphs() {
  const inner = { id: "inner", nodes: [] };
  const middle = { id: "middle", nodes: [{ id: 3, subgraph: inner }] };
  const root = { id: "root", nodes: [{ id: 12, subgraph: inner }, { id: 13, subgraph: middle }, { id: 5 }] };
  for (const graph of [inner, middle, root]) for (const node of graph.nodes) node.graph = graph;
  return { root, middle, inner };
}

test("a node of the root is called by its id alone", () => {
  const { root } = graphs();
  assert.deepEqual(nodePaths(root, root.nodes[2]), ["5"]);
});

test("a node of a subgraph is called by every way to it", () => {
  const { root, inner } = graphs();
  assert.deepEqual(nodePaths(root, { id: 5, graph: inner }), ["12:5", "13:3:5"]);
});

test("a node of another graph has no way, and a subgraph within itself no endless one", () => {
  const { root, inner } = graphs();
  assert.deepEqual(nodePaths(root, { id: 5, graph: { nodes: [] } }), []);
  inner.nodes.push({ id: 9, subgraph: inner, graph: inner });
  assert.deepEqual(nodePaths(root, { id: 5, graph: inner }), ["12:5", "13:3:5"]);
});

test("a graph that was never configured has no id", () => {
  assert.equal(workflowId({ id: "00000000-0000-0000-0000-000000000000" }), "");
  assert.equal(workflowId(undefined), "");
  assert.equal(workflowId({ id: null }), "");
  assert.equal(workflowId({ id: "aaaa" }), "aaaa");
});
