// The ids of nodes and workflows, as the server's messages use them. Pure: tested under Node.

const NO_ID = "00000000-0000-0000-0000-000000000000"; // of a workflow that was cleared, or never loaded: all such share it

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

/** The id that a workflow's runs are kept under; "" where it has none. The server's workflows.py has the same rule. */
export const knownId = (id) => (!id || id === NO_ID ? "" : String(id));

/** The `knownId` of an open workflow, by its root graph. */
export const workflowId = (rootGraph) => knownId(rootGraph?.id);
