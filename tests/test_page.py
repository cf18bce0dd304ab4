"""The pack's own part of the page, in a real browser: the example opens, runs, and its chart moves."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lora_kiln.training.lora.header import workflow_metadata
from lora_kiln.training.lora.save import save_lora

from host import Server
from kit.concepts import Concept
from kit.demo import TRIGGER_IN_WORKFLOW, WORKFLOW, write_data
from saved_workflows import workflow_to_prompt

STEPS = 6
CONCEPT = Concept(1)
TEMPLATES = sorted(path.stem for path in WORKFLOW.parent.glob("*.json"))
INK = """() => {
  const canvas = document.querySelector('.kiln-run canvas');
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let ink = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i] > 180 && data[i + 1] < 200 && data[i + 2] < 130) ink++;
  return ink;
}"""  # pixels in the curve's orange


DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name));
  const canvas = document.querySelector('#graph-canvas');
  canvas.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def open_page(page, server: Server) -> None:
    page.goto(server.url)
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=60_000)
    page.wait_for_function("window.app.extensions.some(extension => extension.name === 'lora-kiln')")


def open_workflow(page, **changes) -> None:
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8").replace(TRIGGER_IN_WORKFLOW, CONCEPT.trigger))
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_selector(".kiln-run canvas", state="attached")
    page.evaluate(
        """changes => {
          const config = window.app.graph.findNodesByType('KilnLoRAConfig')[0];
          for (const widget of config.widgets) if (widget.name in changes) widget.value = changes[widget.name];
        }""",
        changes,
    )


def test_the_stylesheet_is_applied_once_before_any_view_is_made(page, server: Server):
    open_page(page, server)
    ours = "[...document.styleSheets].filter(sheet => sheet.href?.endsWith('/kiln.css'))"
    assert page.evaluate(f"{ours}.map(sheet => sheet.cssRules.length > 0)") == [True]
    open_workflow(page)
    assert page.evaluate(f"{ours}.length") == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.kiln-run')).display") == "flex"


def test_the_example_runs_on_the_page_and_the_chart_moves(page, server: Server, kit_dir: Path):
    write_data(server.workspace / "input", CONCEPT)
    open_page(page, server)
    open_workflow(page, steps=STEPS, batch_size=1, rank=4)
    set_widgets(page, "KilnApplyLoRAPreview", steps=2, strengths="0, 1")  # what comes after the run
    page.evaluate("window.app.canvas.ds.fitToBounds?.([0, 0, 2200, 1300])")
    view = page.locator(".kiln-run")
    assert view.get_attribute("data-state") == "idle"
    before = page.evaluate(INK)

    page.evaluate("window.app.queuePrompt(0)")
    page.wait_for_function("Number(document.querySelector('.kiln-run').dataset.step) >= 2", timeout=240_000)
    in_the_middle = page.evaluate(INK)
    assert in_the_middle > before
    page.wait_for_function("document.querySelector('.kiln-run').dataset.state === 'finished'", timeout=240_000)
    assert page.evaluate(INK) > in_the_middle
    assert f"step {STEPS} of {STEPS}" in view.inner_text()

    page.reload()  # a page that opens later shows the run too
    open_page(page, server)
    open_workflow(page)
    page.wait_for_function("document.querySelector('.kiln-run').dataset.state === 'finished'", timeout=30_000)
    assert f"step {STEPS} of {STEPS}" in view.inner_text()
    page.evaluate("fetch('/api/interrupt', {method: 'POST'})")


STATE = "document.querySelector('.kiln-run').dataset.state"
CHOICE = ".kiln-comparison .kiln-choice"
CHOSEN = """() => Object.fromEntries(window.app.graph.findNodesByType('KilnApplyLoRAPreview')[0].widgets
  .filter(widget => ['strength', 'step'].includes(widget.name)).map(widget => [widget.name, widget.value]))"""
CENTRE = """kind => {
  const node = window.app.graph.findNodesByType(kind)[0];
  const {ds} = window.app.canvas;
  ds.scale = 1;
  [ds.offset[0], ds.offset[1]] = [60 - node.pos[0], 120 - node.pos[1]];
  window.app.canvas.setDirty(true, true);
}"""
WIDGET_AT = """name => {
  const node = window.app.graph.findNodesByType('KilnLoRAConfig')[0];
  const widget = node.widgets.find(widget => widget.name === name);
  const {ds} = window.app.canvas;
  const box = window.app.canvas.canvas.getBoundingClientRect();
  return [box.x + node.pos[0] + ds.offset[0] + node.size[0] / 2, box.y + node.pos[1] + ds.offset[1] + widget.y + 10];
}"""  # where to click, at scale 1
WENT_ON = """async strength => {
  const runs = Object.values(await (await fetch('/history')).json()).filter(run => run.status.status_str === 'success');
  const nodes = runs.flatMap(run => Object.values(run.prompt[2]));
  return nodes.some(node => node.class_type === 'KilnApplyLoRAPreview' && node.inputs.strength === strength);
}"""  # whether a run has ended in which that strength was chosen
IDLE = """async () => {
  const queue = await (await fetch('/queue')).json();
  return queue.queue_running.length + queue.queue_pending.length === 0;
}"""


@pytest.fixture
def queue(server: Server) -> Iterator[None]:
    """Ends what a test that failed has left running: it would hold up all others."""
    yield
    server.client().post("/queue", {"clear": True})
    server.client().post("/interrupt", {})


def test_a_real_run_is_steered_from_the_page_and_its_result_chosen_there(
    page, server: Server, queue: None, kit_dir: Path
):
    write_data(server.workspace / "input", CONCEPT)
    open_page(page, server)
    open_short_workflow(page)
    page.evaluate("window.app.queuePrompt(0)")
    page.wait_for_function("Number(document.querySelector('.kiln-run').dataset.step) >= 2", timeout=240_000)
    press(page, "checkpoint")
    press(page, "pause")
    page.wait_for_function(f"{STATE} === 'paused'", timeout=60_000)
    press(page, "sample")
    page.wait_for_selector(".kiln-thumbnail", state="attached", timeout=60_000)
    paused_at = page.locator(".kiln-run").get_attribute("data-step")

    page.reload()
    open_page(page, server)
    open_short_workflow(page)
    page.wait_for_function(f"{STATE} === 'paused'", timeout=30_000)
    assert page.locator(".kiln-run").get_attribute("data-step") == paused_at
    assert page.locator(".kiln-thumbnail").count() == 1
    press(page, "resume")
    page.wait_for_function(f"{STATE} === 'training'", timeout=60_000)
    press(page, "finish")
    page.wait_for_selector(CHOICE, state="attached", timeout=240_000)  # the graph goes on with what was learned
    assert page.evaluate(STATE) == "finished"

    page.wait_for_function(IDLE, timeout=120_000)
    steps = page.locator(".kiln-step").all_inner_texts()
    assert len(steps) == 2 and int(steps[0].removeprefix("step ")) < int(steps[1].removeprefix("step "))
    assert page.locator(CHOICE).count() == 6
    before = page.locator(f"{CHOICE} img").evaluate_all("images => images.map(image => image.src)")
    page.evaluate(CENTRE, "KilnApplyLoRAPreview")
    page.locator(CHOICE).nth(1).click()  # of the earlier step, at 0.5
    assert page.evaluate(CHOSEN) == {"strength": 0.5, "step": int(steps[0].removeprefix("step "))}
    assert [each for each in range(6) if page.locator(CHOICE).nth(each).get_attribute("aria-pressed") == "true"] == [1]
    page.evaluate("window.app.queuePrompt(0)")
    page.wait_for_function(WENT_ON, arg=0.5, timeout=120_000)
    assert page.locator(f"{CHOICE} img").evaluate_all("images => images.map(image => image.src)") == before
    page.evaluate("window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")  # makes all nodes anew
    page.wait_for_function(f"document.querySelectorAll('{CHOICE}').length === 6", timeout=30_000)

    page.reload()  # brings the pictures back
    open_page(page, server)
    open_short_workflow(page)
    page.wait_for_function(f"document.querySelectorAll('{CHOICE}').length === 6", timeout=30_000)
    assert page.locator(f"{CHOICE} img").evaluate_all("images => images.map(image => image.src)") == before
    page.wait_for_function(f"[...document.querySelectorAll('{CHOICE} img')].every(image => image.naturalWidth > 0)")
    set_widgets(page, "KilnApplyLoRAPreview", strength=0.5, step=int(steps[1].removeprefix("step ")))
    page.evaluate(
        """step => window.app.graph.findNodesByType('KilnApplyLoRAPreview')[0].widgets
             .find(widget => widget.name === 'step').callback(step)""",
        int(steps[1].removeprefix("step ")),
    )
    assert [each for each in range(6) if page.locator(CHOICE).nth(each).get_attribute("aria-pressed") == "true"] == [4]
    for picture in (server.workspace / "temp").glob("*.png"):
        picture.unlink()
    page.reload()  # they are gone
    open_page(page, server)
    with page.expect_response("**/kiln/preview*") as answer:
        open_short_workflow(page)
    assert answer.value.json() == {} and page.locator(CHOICE).count() == 0


def press(page, action: str) -> None:
    """A control of the run, as soon as it takes it."""
    page.locator(f".kiln-controls [data-action={action}]:enabled").dispatch_event("click", timeout=120_000)


def open_short_workflow(page) -> None:
    """The example without what is not looked at, with small pictures to choose from."""
    open_workflow(page, steps=500, batch_size=1, rank=4, sample_prompts="a star", sample_steps=2)
    set_widgets(page, "KilnTrainLoRA", name="steered")
    set_widgets(
        page, "KilnApplyLoRAPreview", steps=2, strengths="0, 0.5, 1", prompts="a star", compare="strengths and steps"
    )
    for kind in ("KilnCaptionImages", "KilnSaveLoRA", "LossGraphNode", "KSampler"):
        page.evaluate("kind => window.app.graph.findNodesByType(kind).forEach(node => node.mode = 4)", kind)


def set_widgets(page, kind: str, **values) -> None:
    page.evaluate(
        """([kind, values]) => {
          for (const widget of window.app.graph.findNodesByType(kind)[0].widgets) {
            if (widget.name in values) widget.value = values[widget.name];
          }
        }""",
        [kind, values],
    )


def test_the_comparison_shows_prompts_as_text_and_opens_large(page, server: Server):
    open_page(page, server)
    open_workflow(page)
    page.evaluate(CENTRE, "KilnApplyLoRAPreview")
    trick = "<img src=x onerror='window.pwned=1'>"
    picture = {"filename": "no.png", "subfolder": "", "type": "temp"}
    row = {"number": 0, "prompt": trick, "step": 0, "label": trick, "pictures": [picture, picture]}
    page.evaluate(
        """shown => window.app.graph.findNodesByType('KilnApplyLoRAPreview')[0].onExecuted({kiln_preview: [shown]})""",
        {"strengths": [0, 1], "rows": [row, row | {"step": 7}]},
    )
    assert page.locator(".kiln-comparison .kiln-prompt").inner_text() == trick
    page.locator(".kiln-large").first.dispatch_event("click")
    assert trick in page.locator(".kiln-overlay").inner_text()
    page.keyboard.press("Escape")
    assert page.evaluate("window.pwned") is None
    page.locator(".kiln-overlay").wait_for(state="detached")


def test_the_pictures_of_before_are_dim_while_a_run_goes_on(page, server: Server):
    page.route("**/kiln/preview*", lambda route: route.fulfill(json={}))
    open_page(page, server)
    open_workflow(page)
    picture = {"filename": "no.png", "subfolder": "", "type": "temp"}
    row = {"number": 0, "prompt": "a cat", "step": 0, "label": "the LoRA", "pictures": [picture]}
    show = "shown => window.app.graph.findNodesByType('KilnApplyLoRAPreview')[0].onExecuted({kiln_preview: [shown]})"
    view = page.locator(".kiln-comparison")

    def is_dim_after(event: str) -> bool:
        page.evaluate("event => window.app.api.dispatchCustomEvent(event, {prompt_id: 'p'})", event)
        return "kiln-old" in view.get_attribute("class").split()

    assert not is_dim_after("execution_start")  # there is nothing to be dimmed
    page.evaluate(show, {"strengths": [1], "rows": [row]})
    assert is_dim_after("execution_start") and not is_dim_after("execution_error")
    assert is_dim_after("execution_start")
    page.evaluate(show, {"strengths": [1], "rows": [row]})
    assert "kiln-old" not in view.get_attribute("class").split()


def test_save_lora_says_as_text_where_it_saved_and_again_after_undo(page, server: Server):
    open_page(page, server)
    open_workflow(page)
    node = "window.app.graph.findNodesByType('KilnSaveLoRA')[0]"
    told = "Saved <img src=x onerror='window.pwned=1'>"
    output = {"text": [told]}
    page.evaluate(f"output => {node}.onExecuted(output)", output)
    line = page.locator(".kiln-saved")
    assert line.text_content() == told and page.evaluate("window.pwned") is None
    page.evaluate(
        "workflow => window.app.loadGraphData(workflow, false)", page.evaluate("window.app.graph.serialize()")
    )
    page.evaluate(f"output => {{ window.app.nodeOutputs = {{[{node}.id]: output}}; }}", output)  # as undo puts it back
    assert page.locator(".kiln-saved").text_content() == told


def test_a_preset_fills_in_its_fields_and_leaves_the_rest(page, server: Server):
    open_page(page, server)
    open_workflow(page)
    own = {
        "sample_every": 100, "sample_prompts": "a cat", "save_every": 50, "precision": "fp32", "optimizer": "lion",
        "adapter": "dora", "text_encoder_learning_rate": 2e-5, "seed": 7,
    }  # fmt: skip
    values = page.evaluate(
        """own => {
          const node = window.app.graph.findNodesByType('KilnLoRAConfig')[0];
          const byName = Object.fromEntries(node.widgets.map(widget => [widget.name, widget]));
          for (const [name, value] of Object.entries(own)) byName[name].value = value;
          byName.preset.value = 'SDXL style';
          byName.preset.callback(byName.preset.value);
          return Object.fromEntries(node.widgets.map(widget => [widget.name, widget.value]));
        }""",
        own,
    )
    assert (values["rank"], values["alpha"], values["learning_rate"]) == (32, 16, 5e-5)
    assert values["gradient_checkpointing"] is True
    assert {name: values[name] for name in own} == own


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue nodes"])
def test_a_learning_rate_far_off_is_refused_in_words_and_not_moved(page, server: Server, queue: None, vue: bool):
    server.client().post("/settings/Comfy.VueNodes.Enabled", vue)
    open_page(page, server)
    write_data(server.workspace / "input", CONCEPT)
    open_workflow(page, steps=STEPS)
    page.evaluate(CENTRE, "KilnLoRAConfig")
    page.evaluate("() => new Promise(requestAnimationFrame)")
    if vue:
        field = page.get_by_label("learning_rate", exact=True).locator("input")
        field.click(force=True)  # what lies over it hands it on
        field.fill("100")
        field.press("Enter")
    else:
        at = page.evaluate(WIDGET_AT, "learning_rate")
        page.mouse.click(*at)
        page.locator(".graphdialog input").fill("100")
        page.keyboard.press("Enter")
    page.evaluate("() => void window.app.queuePrompt(0)")
    page.get_by_text(re.compile("above the maximum 10|bigger than max of 10")).first.wait_for(timeout=30_000)
    server.client().post("/settings/Comfy.VueNodes.Enabled", False)


def test_the_view_is_saved_neither_in_the_prompt_nor_in_the_workflow(page, server: Server):
    open_page(page, server)
    open_workflow(page)
    prompt = page.evaluate("async () => (await window.app.graphToPrompt())")
    trainer = next(node for node in prompt["output"].values() if node["class_type"] == "KilnTrainLoRA")
    assert set(trainer["inputs"]) == {"model", "clip", "vae", "dataset", "config", "name", "previous_run"}
    saved = next(node for node in prompt["workflow"]["nodes"] if node["type"] == "KilnTrainLoRA")
    assert [value for value in saved["widgets_values"] if value is not None] == [
        "lora_kiln_demo", "continue it if nothing changed",
    ]  # fmt: skip


def test_a_saved_lora_dropped_on_the_canvas_opens_its_graph(page, server: Server, tmp_path: Path):
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    metadata = workflow_metadata({"1": {"class_type": "KilnSaveLoRA", "inputs": {}}}, {"workflow": workflow})
    path = save_lora(tmp_path / "anna.safetensors", {"a.lora_up.weight": torch.zeros(4, 2)}, metadata)
    open_page(page, server)
    page.evaluate("window.app.graph.clear()")
    page.evaluate(DROP, [path.name, base64.b64encode(path.read_bytes()).decode()])
    page.wait_for_function(f"window.app.graph.nodes.length === {len(workflow['nodes'])}", timeout=30_000)
    kinds = page.evaluate("window.app.graph.nodes.map(node => node.type)")
    assert sorted(kinds) == sorted(node["type"] for node in workflow["nodes"])


def is_error_of_ours(message) -> bool:
    """Whether a line of the page's console is an error of the pack's scripts, not of the host's, nor a file missing."""
    return message.type == "error" and "/extensions/lora-kiln/" in message.location["url"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_whole_and_queues_what_it_says(page, server: Server, name: str):
    client, wrong = server.client(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    open_page(page, server)
    page.on("console", lambda told: wrong.append(told.text) if is_error_of_ours(told) else None)
    saved = client.get(f"/api/workflow_templates/lora-kiln/{urllib.parse.quote(name)}.json")
    page.evaluate("workflow => window.app.loadGraphData(workflow)", saved)
    page.wait_for_timeout(500)  # for what is asked and painted after that
    kinds = page.evaluate(
        """() => window.app.graph.nodes.map(node => [node.type, node.type in window.LiteGraph.registered_node_types])"""
    )
    assert sorted(kind for kind, _ in kinds) == sorted(node["type"] for node in saved["nodes"])
    assert [kind for kind, is_known in kinds if not is_known] == []
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    expected = workflow_to_prompt(saved, client.object_info())
    assert {key: (each["class_type"], each["inputs"]) for key, each in prompt.items()} == {
        key: (each["class_type"], each["inputs"]) for key, each in expected.items()
    }
    assert page.evaluate("window.app.graph.groups.length") == len(saved["groups"])
    assert wrong == []


def test_the_templates_are_listed_with_their_pictures(server: Server):
    listed = server.client().get("/workflow_templates")
    ours = next(names for pack, names in listed.items() if "kiln" in pack.lower())
    assert sorted(ours) == TEMPLATES
    for name in TEMPLATES:
        assert (WORKFLOW.parent / f"{name}.jpg").is_file()
