"""The ids of workflows: the page's graph_ids.mjs has the same rule."""

NO_ID = "00000000-0000-0000-0000-000000000000"
"""the id that the page gives a workflow that was cleared or never loaded: all such share it"""


def workflow_of(found: object) -> str:
    """The id that a workflow's runs are kept under, from what the page has sent; empty: the workflow has none."""
    return found if isinstance(found, str) and found != NO_ID else ""
