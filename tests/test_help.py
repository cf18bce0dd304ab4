"""Help where people look: a page and translated texts for every node of the real server, true to its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host import PACK, Server
from kit.demo import WORKFLOW
from test_page import open_page

DOCS, LOCALES = PACK / "web" / "docs", PACK / "locales"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir())
"""The languages beside English; a new one is there when its folder is."""
HELP_SUFFIXES = ["", *(f"/{language}" for language in LANGUAGES)]
"""What follows a node's name in the path of its help page."""
SYNTAX = set("@{}|%")
"""What the page's translator would read as its own in a name."""
NOT_FIELDS = {"d_coef", "discrete_flow_shift", "flux_shift", "my_pictures", "10_cat"}
"""Words with underscores in code marks that are names of other programs, or of files."""


@pytest.fixture(scope="module")
def nodes(server: Server) -> dict[str, Any]:
    """Our nodes, as the page gets them."""
    return {name: facts for name, facts in server.client().object_info().items() if facts["category"] == "LoRA Kiln"}


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def texts(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def chinese() -> dict[str, Any]:
    return json.loads((LOCALES / "zh" / "nodeDefs.json").read_text("utf-8"))


def inputs(node: dict[str, Any]) -> dict[str, Any]:
    """Every input's options, by name."""
    sections = (node["input"].get(section) or {} for section in ("required", "optional"))
    return {name: spec[1] if len(spec) > 1 else {} for section in sections for name, spec in section.items()}


def pairs(nodes: dict[str, Any], texts: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Where a text stands, in English and in the other language."""
    for name, node in nodes.items():
        yield name, node["description"], texts[name]["description"]
        for field, options in inputs(node).items():
            yield f"{name}.{field}", options["tooltip"], texts[name]["inputs"][field]["tooltip"]
        for index, tooltip in enumerate(node["output_tooltips"]):
            yield f"{name} output {index}", tooltip, texts[name]["outputs"][str(index)]["tooltip"]


def test_every_node_input_and_output_has_a_translated_text_and_nothing_else_has(nodes, texts):
    assert texts.keys() == nodes.keys()
    for name, node in nodes.items():
        assert texts[name].keys() == {"display_name", "description", "inputs", "outputs"}
        assert texts[name]["inputs"].keys() == inputs(node).keys(), name
        assert list(texts[name]["outputs"]) == [str(index) for index in range(len(node["output"]))], name
        # No texts for a combo's options: their values are what workflows hold.
        slots = [*texts[name]["inputs"].values(), *texts[name]["outputs"].values()]
        assert all(slot.keys() == {"name", "tooltip"} and all(slot.values()) for slot in slots), name


def test_names_are_told_apart_and_hold_none_of_the_translators_own_marks(texts):
    assert len({each["display_name"] for each in texts.values()}) == len(texts)
    for node in texts.values():
        names = [slot["name"] for slot in node["inputs"].values()]
        assert len(set(names)) == len(names)
        outputs = [slot["name"] for slot in node["outputs"].values()]
        assert not SYNTAX & set("".join([node["display_name"], node["description"], *names, *outputs]))


def test_translated_texts_say_the_same_numbers_files_and_names_of_other_programs(nodes, texts):
    lost = {
        place: missing
        for place, english, translated in pairs(nodes, texts)
        for said in [re.findall(r"\(kohya: (\w+)|(?<![\w.])(\d[\d.e-]*\d|\d)(?!\w)|(\.\w+)\b", english)]
        if (missing := [word for words in said for word in words if word and word not in translated])
    }
    assert lost == {}


def test_the_server_gives_the_page_the_translated_texts(server: Server, language: str, texts):
    given = server.client().get("/i18n")[language]
    assert given["nodeDefs"] == texts
    assert given["nodeCategories"].keys() == {"LoRA Kiln"}


@pytest.mark.parametrize("suffix", HELP_SUFFIXES)
def test_every_node_has_a_help_page_that_is_served(server: Server, nodes, suffix: str):
    pages = sorted(DOCS.glob(f"*{suffix}.md"))
    assert {page.parent.name if suffix else page.stem for page in pages} == nodes.keys()
    client = server.client()
    for name in nodes:
        text = client.request(f"/extensions/lora-kiln/docs/{name}{suffix}.md").decode()
        assert text.startswith("# ")


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_help_page_names_only_fields_that_exist(page: Path, nodes):
    name = page.stem if page.parent == DOCS else page.parent.name
    node, text = nodes[name], page.read_text("utf-8")
    own = {*inputs(node), *node["output_name"]}
    heads = [re.split(": |：", line)[0] for line in text.splitlines() if line.startswith("- `")]
    assert {field for head in heads for field in re.findall(r"`(\w+)`", head)} <= own
    everywhere = {field for each in nodes.values() for field in (*inputs(each), *each["output_name"])}
    assert set(re.findall(r"`(\w+_\w+)`", text)) - NOT_FIELDS <= everywhere


@pytest.mark.parametrize("suffix", HELP_SUFFIXES)
def test_a_help_page_has_every_input_of_its_node(nodes, suffix: str):
    lacking = {
        name: missing
        for name, node in nodes.items()
        for text in [(DOCS / f"{name}{suffix}.md").read_text("utf-8")]
        if (missing := [field for field in inputs(node) if f"`{field}`" not in text])
    }
    assert lacking == {}


HELP = ".node-help-content"
SELECT_NEW = """name => {
  const node = window.LiteGraph.createNode(name);
  window.app.graph.add(node);
  window.app.canvas.selectItems([node]);
}"""
CUT = """help => [...document.querySelectorAll(`${help} *:not(pre, pre *)`)]
  .filter(each => getComputedStyle(each).display !== 'inline' && each.scrollWidth > each.clientWidth + 1)
  .map(each => each.outerHTML.slice(0, 100))"""


def test_help_is_whole_at_the_panels_usual_width(page, server: Server, nodes):
    open_page(page, server)
    page.evaluate("workflow => window.app.loadGraphData(workflow)", json.loads(WORKFLOW.read_text("utf-8")))
    page.evaluate("window.app.canvas.selectItems(window.app.graph.findNodesByType('KilnLoRAConfig'))")
    page.get_by_test_id("info-button").dispatch_event("click")
    for name, node in nodes.items():
        page.evaluate(SELECT_NEW, name)
        page.locator(f"{HELP} h1", has_text=node["display_name"]).wait_for(timeout=30_000)
        assert page.evaluate(CUT, HELP) == [], name


def test_a_page_in_chinese_has_chinese_titles_fields_and_help(page, server: Server, chinese):
    client = server.client()
    client.post("/settings/Comfy.Locale", "zh")
    try:
        open_page(page, server)
        page.evaluate("workflow => window.app.loadGraphData(workflow)", json.loads(WORKFLOW.read_text("utf-8")))
        titles = page.evaluate("window.app.graph.nodes.map(node => [node.type, node.title])")
        ours = {kind: title for kind, title in titles if kind in chinese}
        assert ours and ours == {kind: chinese[kind]["display_name"] for kind in ours}
        labels = page.evaluate(
            """() => Object.fromEntries(window.app.graph.findNodesByType('KilnLoRAConfig')[0].widgets
                 .map(widget => [widget.name, widget.label]))"""
        )
        assert labels["learning_rate"] == "学习率"
        value = page.evaluate("window.app.graph.findNodesByType('KilnLoRAConfig')[0].widgets[0].value")
        assert value == "custom"
        page.evaluate("window.app.canvas.selectItems(window.app.graph.findNodesByType('KilnLoRAConfig'))")
        page.get_by_test_id("info-button").dispatch_event("click")  # the templates may lie over it
        page.locator(".node-help-content h1", has_text="LoRA 配置").wait_for(timeout=30_000)
    finally:
        client.post("/settings/Comfy.Locale", "en")
