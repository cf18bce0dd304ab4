// The ids of nodes and workflows, as the server's messages use them. Pure: tested under Node.

const NO_ID = "00000000-0000-0000-0000-000000000000"; // the id of a graph that no workflow was loaded into

/**
 * The ids that the server uses for a node: "5" in the root graph, "12:5" in the subgraph of node 12. A node of a subgraph that
 * is used twice has two.
 */
export function nodePaths(rootGraph, node) {
  const paths = [];
  const visit = (graph, prefix, above) => {
    if (node.graph === graph) paths.push(`${prefix}${node.id}`);
    for (const holder of graph?.nodes ?? []) {
      const inner = holder.subgraph;
      if (inner && !above.includes(inner)) visit(inner, `${prefix}${holder.id}:`, [...above, inner]);
    }
  };
  visit(rootGraph, "", [rootGraph]);
  return paths;
}

/** The id that the server knows a workflow's runs by; "" where the workflow has none. */
export function workflowId(rootGraph) {
  const id = rootGraph?.id ?? "";
  return id === NO_ID ? "" : String(id);
}
