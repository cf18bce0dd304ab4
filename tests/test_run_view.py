"""The live view of Train LoRA in a real browser: what it shows of a run, and what it lets one do with it.

The messages are put into the page as its websocket would put them: so every state can be looked at, without
training for it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import fresh_page
from host import Server
from kit.demo import WORKFLOW
from test_page import open_page

TRAIN = "KilnTrainLoRA"
STEPS = 3000
POINTS = [[step, 0.1 + 1 / (10 + step), 1e-4] for step in range(1, STEPS + 1)]
ALL_CONTROLS = ["pause", "finish", "checkpoint", "sample", "learning_rate", "sample_prompts"]
TRICK = "<img src=x onerror='window.pwned=1'>"
PROMPTS = ["a cat", "a dog"]
SUBFOLDER = "lora_kiln/anna & co/run/samples"


def workflow() -> dict[str, Any]:
    return json.loads(WORKFLOW.read_text(encoding="utf-8"))


def train_id(graph: dict[str, Any]) -> str:
    return str(next(node["id"] for node in graph["nodes"] if node["type"] == TRAIN))


GRAPH = workflow()
NODE = train_id(GRAPH)


def run_id(number: int = 1) -> str:
    """Of a run of the workflow that is open: a page keeps the runs it has seen, and the tests share one."""
    return f"anna/{GRAPH['id']}-{number}"


def message(**changes: Any) -> dict[str, Any]:
    """A message in the middle of a run."""
    usual = {
        **{"run": run_id(), "workflow_id": GRAPH["id"], "prompt_id": "p", "node_id": NODE, "name": "anna"},
        **{"state": "training", "phase": "training", "phase_done": 0, "phase_total": 0, "message": ""},
        **{"step": 0, "steps": STEPS, "epoch": 2, "epochs": 10, "loss": 0.1, "smoothed": 0.1, "learning_rate": 1e-4},
        **{"validation_loss": None, "best": None, "seconds_per_step": 0.5, "seconds_left": 75, "elapsed": 3661},
        **{"started_at": 1.0, "memory": {"used": 2**32, "total": 2**35, "device": "a card"}, "points": []},
        **{"validation": [], "marks": [], "samples": [], "notes": [], "sample_prompts": PROMPTS},
        "controls": ALL_CONTROLS,
    }
    return usual | changes


def half_way(**changes: Any) -> dict[str, Any]:
    half = STEPS // 2
    return message(step=half, points=POINTS[:half], **changes)


def send(page, data: dict[str, Any]) -> None:
    page.evaluate("data => window.app.api.dispatchCustomEvent('kiln.run', data)", data)


def open_graph(page, graph: dict[str, Any]) -> None:
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    page.wait_for_selector(".kiln-run canvas", state="attached")
    look_at_node(page)


def look_at_node(page, width: int = 420, height: int = 700) -> None:
    """Puts the node in the middle of the window, at its natural size."""
    page.evaluate(
        """([type, width, height]) => {
          const node = window.app.canvas.graph.nodes.find(node => node.type === type);
          node.setSize([width, height]);
          const view = window.app.canvas.ds;
          view.scale = 1;
          view.offset[0] = 300 - node.pos[0];
          view.offset[1] = 120 - node.pos[1];
          window.app.canvas.setDirty(true, true);
        }""",
        [TRAIN, width, height],
    )
    page.wait_for_function("document.querySelector('.kiln-run')?.getBoundingClientRect().left > 200")


@pytest.fixture(scope="module")
def shared_page(server: Server, browser):
    """One page for all tests of this file: to start one takes longer than most of them."""
    with fresh_page(browser) as page:
        open_page(page, server)
        yield page


@pytest.fixture
def page(shared_page):
    shared_page.unroute_all()
    shared_page.route("**/kiln/runs*", lambda route: route.fulfill(json=[]))  # no runs but those of the test
    shared_page.mouse.move(0, 0)
    shared_page.keyboard.press("Escape")  # what a test before this one has left open
    shared_page.evaluate("localStorage.removeItem('LoRAKiln.chart')")
    return shared_page


@pytest.fixture
def view(page):
    """The view of the demo's Train LoRA node in a workflow of its own, without a run."""
    GRAPH["id"] = str(uuid.uuid4())
    open_graph(page, GRAPH)
    return page.locator(".kiln-run")


@pytest.fixture
def sample_files(server: Server) -> list[dict[str, Any]]:
    """Three samples of each prompt, in the server's output folder."""
    folder = Path(server.workspace, "output", SUBFOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for step in (100, 200, 300):
        for index, prompt in enumerate(PROMPTS):
            name = f"{step} #{index}.png"
            Image.new("RGB", (64, 64), (step % 256, 100 * index, 80)).save(folder / name)
            sample = {"step": step, "prompt_index": index, "prompt": prompt, "filename": name}
            samples.append({**sample, "subfolder": SUBFOLDER})
    return samples


def figure(view, name: str) -> str:
    return view.locator(f"[data-figure={name}]").inner_text()


def wait_until(page, is_so: Callable[[], bool]) -> None:
    """Until something in the test itself is so; the page goes on meanwhile."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        page.wait_for_timeout(50)


def tab(view, name: str) -> None:
    view.locator(f".kiln-tab[data-tab={name}]").click()


# ---------------------------------------------------------------- what it shows


def test_each_state_is_told_in_words_and_changes_the_node(page, view):
    assert view.locator(".kiln-chip").inner_text() == "No run yet"
    send(page, message(state="preparing", phase="encoding", phase_done=30, phase_total=120))
    assert view.locator(".kiln-chip").inner_text() == "Encoding 30 of 120"
    assert view.locator(".kiln-bar").get_attribute("aria-valuenow") == "25"
    send(page, half_way())
    assert view.locator(".kiln-chip").inner_text() == "Training"
    assert view.locator(".kiln-bar").get_attribute("aria-valuenow") == "50"
    head = view.locator(".kiln-head").inner_text()
    for part in (f"step {STEPS // 2} of {STEPS}", "epoch 2 of 10", "2.0 steps/s", "1:15 left", "4.0 of 32 GB"):
        assert part in head
    send(page, half_way(state="failed", message="out of memory", notes=["kept at step 1400"], controls=[]))
    assert view.get_attribute("data-state") == "failed"
    assert view.locator(".kiln-message").inner_text() == "out of memory\nkept at step 1400"


def test_the_legend_tells_the_newest_figures_and_those_under_the_crosshair(page, view):
    validation = [[1000, 0.3], [1500, 0.25]]
    marks = [{"step": 750, "kind": "checkpoint", "text": "kept step 750"}]
    send(page, half_way(validation=validation, marks=marks, best={"step": 1500, "validation_loss": 0.25}))
    page.wait_for_function("document.querySelector('[data-figure=loss]')?.textContent.startsWith('loss 0.1')")
    assert figure(view, "validation") == "validation 0.2500"
    assert figure(view, "best") == "best at step 1500"

    box = view.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.wait_for_function("!document.querySelector('[data-figure=step]').hidden")
    step = int(figure(view, "step").removeprefix("step "))
    assert 500 < step < 1000 and not view.locator("[data-figure=validation]").is_visible()
    assert figure(view, "loss") == f"loss {POINTS[step - 1][1]:.4f}"
    assert figure(view, "rate") == "LR 1e-4"
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 300)
    page.wait_for_function("document.querySelector('[data-figure=step]').hidden")


def test_the_chart_is_used_by_keyboard_and_its_settings_last(page, server: Server, view):
    send(page, half_way())
    view.locator("canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("!document.querySelector('[data-figure=step]').hidden")
    first = figure(view, "step")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("first => document.querySelector('[data-figure=step]').textContent !== first", arg=first)

    view.get_by_role("button", name="log").press("Enter")
    view.locator(".kiln-slider").fill("0")
    page.wait_for_function(
        """() => {
          const value = name => document.querySelector(`[data-figure=${name}]`).textContent.split(' ')[1];
          return value('loss') === value('smoothed');
        }"""
    )
    page.reload()
    open_page(page, server)
    open_graph(page, GRAPH)
    assert view.get_by_role("button", name="log").get_attribute("aria-pressed") == "true"
    assert view.locator(".kiln-slider").input_value() == "0"


def test_dragging_over_the_chart_looks_closer_and_a_double_click_shows_all(page, view):
    send(page, half_way())
    box = view.locator("canvas").bounding_box()
    shows_all = view.locator(".kiln-tools button[title^='Show all']")
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 100, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, middle, steps=4)
    page.mouse.up()
    shows_all.wait_for(state="visible")
    view.locator("canvas").dblclick()
    shows_all.wait_for(state="hidden")


def test_text_of_a_run_is_text_and_never_html(page, view):
    sample = {"step": 100, "prompt_index": 0, "prompt": TRICK, "filename": f"{TRICK}.png", "subfolder": TRICK}
    marks = [{"step": 750, "kind": TRICK, "text": TRICK}]
    pictures = [{"name": TRICK, "caption": TRICK, "loss": 1.0, "count": 1, "thumbnail": None}]
    page.route("**/kiln/run/pictures*", lambda route: route.fulfill(json={"pictures": pictures}))
    told = {"message": TRICK, "notes": [TRICK], "name": TRICK, "memory": {"used": 1, "total": 0, "device": TRICK}}
    send(
        page,
        half_way(run=f"{TRICK}{run_id()}", samples=[sample], marks=marks, sample_prompts=[TRICK], phase=TRICK, **told),
    )
    assert TRICK in view.locator(".kiln-message").inner_text()
    for name in ("samples", "pictures", "adjust", "loss"):
        tab(view, name)
    tab(view, "pictures")
    view.locator(".kiln-card").first.wait_for()
    tab(view, "samples")
    assert view.locator(".kiln-prompt").inner_text() == TRICK
    view.locator(".kiln-thumbnail").first.click()
    assert page.locator(".kiln-overlay-title").inner_text() == TRICK
    page.keyboard.press("Escape")
    assert page.evaluate("document.querySelectorAll('[onerror]').length") == 0
    assert page.evaluate("window.pwned") is None


# ---------------------------------------------------------------- samples and pictures


def test_samples_stand_in_rows_and_open_large_with_keys_through_time(page, view, sample_files):
    send(page, half_way(samples=sample_files))
    tab(view, "samples")
    assert view.locator(".kiln-prompt").all_inner_texts() == PROMPTS
    row = view.locator(".kiln-strip").first
    places = row.locator("button").evaluate_all(
        "all => all.map(one => [Number(one.textContent), one.getBoundingClientRect().left])"
    )
    assert [step for step, _ in sorted(places, key=lambda place: place[1])] == [100, 200, 300]
    page.wait_for_function("[...document.querySelectorAll('.kiln-strip img')].every(one => one.naturalWidth === 64)")

    row.get_by_text("200").click()
    detail = page.locator(".kiln-overlay-detail")
    assert detail.inner_text() == "step 200 · 2 of 3"
    for key, told, prompt in (
        ("ArrowRight", "step 300 · 3 of 3", "a cat"),
        ("ArrowRight", "step 300 · 3 of 3", "a cat"),
        ("ArrowDown", "step 300 · 3 of 3", "a dog"),
        ("Home", "step 100 · 1 of 3", "a dog"),
        ("ArrowUp", "step 100 · 1 of 3", "a cat"),
    ):
        page.keyboard.press(key)
        assert detail.inner_text() == told
        assert page.locator(".kiln-overlay-title").inner_text() == prompt
    newest = {**sample_files[0], "step": 400, "filename": "400.png"}
    send(page, half_way(samples=[newest]))
    page.keyboard.press("End")
    assert detail.inner_text() == "step 400 · 4 of 4"
    page.keyboard.press("Escape")
    page.locator(".kiln-overlay").wait_for(state="detached")
    assert page.evaluate("window.app.graph.nodes.length") == len(GRAPH["nodes"])


def test_samples_of_steps_that_are_taken_again_are_forgotten(page, view, sample_files):
    send(page, message(step=300, points=POINTS[:300], samples=sample_files))
    tab(view, "samples")
    assert view.locator(".kiln-thumbnail").count() == 6
    send(page, message(step=250, points=[]))
    assert view.locator(".kiln-thumbnail").all_inner_texts() == ["200", "100", "200", "100"]


def test_pictures_are_a_sheet_sorted_by_loss_and_asked_for_rarely(page, view, sample_files):
    path = f"/view?filename={sample_files[0]['filename'].replace(' ', '%20').replace('#', '%23')}"
    thumbnail = f"{path}&subfolder={SUBFOLDER.replace(' ', '%20').replace('&', '%26')}&type=output"
    pictures = [
        {"name": "cat/b.png", "caption": "b", "loss": 0.5, "count": 2, "thumbnail": None},
        {"name": "cat/a.png", "caption": "a grey cat", "loss": 2.0, "count": 3, "thumbnail": thumbnail},
    ]
    asked: list[str] = []
    page.route(
        "**/kiln/run/pictures*",
        lambda route: (asked.append(route.request.url), route.fulfill(json={"pictures": pictures})),
    )
    send(page, half_way())
    assert asked == []
    tab(view, "pictures")
    view.locator(".kiln-card").first.wait_for()
    assert view.locator(".kiln-card").all_inner_texts() == ["a.png\n2.00×", "b.png\n0.50×"]
    assert asked[0].endswith(f"run=anna%2F{GRAPH['id']}-1")
    for step in range(1501, 1511):
        send(page, message(step=step, points=[POINTS[step - 1]]))
    send(page, message(step=1510, state="finished", controls=[]))
    page.wait_for_function("document.querySelector('.kiln-run').dataset.state === 'finished'")
    wait_until(page, lambda: len(asked) == 2)
    send(page, message(step=1511, state="finished", run=run_id(2), started_at=2.0))
    wait_until(page, lambda: len(asked) == 3)  # on opening, after the end, and of the next run
    page.wait_for_timeout(300)
    assert len(asked) == 3

    view.locator(".kiln-card").first.click()
    assert page.locator(".kiln-overlay-title").inner_text() == "a grey cat"
    page.wait_for_function("document.querySelector('.kiln-overlay img').naturalWidth === 64")


def test_many_pictures_keep_their_shape_and_scroll(page, view):
    pictures = [{"name": f"{n}.png", "caption": "", "loss": 1.0, "count": 1, "thumbnail": None} for n in range(80)]
    page.route("**/kiln/run/pictures*", lambda route: route.fulfill(json={"pictures": pictures}))
    send(page, half_way())
    tab(view, "pictures")
    page.wait_for_function("document.querySelectorAll('.kiln-run .kiln-card').length === 80")
    shape, inside, whole = page.evaluate(
        """() => {
          const card = document.querySelector('.kiln-run .kiln-card').getBoundingClientRect();
          const panel = document.querySelector('.kiln-pictures');
          return [card.height / card.width, panel.clientHeight, panel.scrollHeight];
        }"""
    )
    assert shape > 1 and whole > 2 * inside


def test_a_server_without_pictures_says_so(page, view):
    page.route("**/kiln/run/pictures*", lambda route: route.fulfill(status=404, json={"error": "No such run."}))
    send(page, half_way())
    tab(view, "pictures")
    view.get_by_text("No such run.").wait_for()


# ---------------------------------------------------------------- what it lets one do


def test_controls_are_open_when_the_run_takes_them(page, view):
    row = view.locator(".kiln-controls")
    assert not row.is_visible()
    send(page, half_way(controls=["pause", "finish"]))
    is_open = {button.inner_text(): button.is_enabled() for button in row.locator("button:visible").all()}
    assert is_open == {"Pause": True, "Finish": True, "Checkpoint": False, "Sample": False}
    assert all(button.get_attribute("title") for button in row.locator("button").all())
    assert not view.locator(".kiln-tab[data-tab=adjust]").is_visible()
    send(page, half_way(state="paused", phase="paused", controls=["resume"]))
    assert row.get_by_role("button", name="Resume").is_enabled()
    assert not row.get_by_role("button", name="Pause").is_visible()
    send(page, half_way(state="finished", controls=[]))
    assert not row.is_visible()


def test_a_control_tells_the_server_which_run_and_what(page, view):
    sent: list[dict[str, Any]] = []
    page.route("**/kiln/run/control", lambda route: (sent.append(route.request.post_data_json), route.fulfill(json={})))
    send(page, half_way())
    for name, action in (("Pause", "pause"), ("Finish", "finish"), ("Checkpoint", "checkpoint"), ("Sample", "sample")):
        with page.expect_response("**/kiln/run/control"):
            view.locator(".kiln-controls").get_by_role("button", name=name).press("Enter")
        assert sent[-1] == {"run": run_id(), "prompt_id": "p", "node_id": NODE, "action": action}

    tab(view, "adjust")
    with page.expect_response("**/kiln/run/control"):
        view.get_by_role("button", name="×0.5").click()
    assert (sent[-1]["action"], sent[-1]["value"]) == ("learning_rate", 0.5)
    with page.expect_response("**/kiln/run/control"):
        view.locator(".kiln-adjust input").fill("x 0,25")
        view.locator(".kiln-adjust input").press("Enter")
    assert (sent[-1]["action"], sent[-1]["value"]) == ("learning_rate", 0.25)
    prompts = view.locator(".kiln-adjust textarea")
    assert prompts.input_value() == "\n".join(PROMPTS)
    prompts.fill("a bird\n\n a fish ")
    send(page, half_way(sample_prompts=["from elsewhere"]))  # what is typed stays
    with page.expect_response("**/kiln/run/control"):
        view.get_by_role("button", name="Set prompts").click()
    assert (sent[-1]["action"], sent[-1]["value"]) == ("sample_prompts", ["a bird", "a fish"])

    many = len(sent)
    view.locator(".kiln-adjust input").fill("fast")
    view.locator(".kiln-adjust input").press("Enter")
    prompts.fill("\n".join(["a cat"] * 17))
    view.get_by_role("button", name="Set prompts").click()
    assert view.locator(".kiln-wrong").count() == 2 and len(sent) == many
    assert '"fast" is no factor: write a number above 0, at most 1000.' in view.locator(".kiln-adjust").inner_text()
    assert "17 prompts are too many: write at most 16" in view.locator(".kiln-adjust").inner_text()


def test_what_the_server_refuses_is_told_in_its_own_words(page, view):
    answer = {"error": f"This run has ended. {TRICK}"}
    page.route("**/kiln/run/control", lambda route: route.fulfill(status=409, json=answer))
    send(page, half_way())
    view.get_by_role("button", name="Pause").click()
    page.get_by_text(answer["error"]).wait_for()
    assert view.get_by_role("button", name="Pause").is_enabled()
    assert page.evaluate("window.pwned") is None


# ---------------------------------------------------------------- whose run it is


def test_two_nodes_and_two_workflows_show_their_own_runs(page, view):
    second = {**next(node for node in GRAPH["nodes"] if str(node["id"]) == NODE), "id": 77, "inputs": [], "outputs": []}
    both = {**GRAPH, "nodes": [*GRAPH["nodes"], second]}
    open_graph(page, both)
    send(page, half_way(message="of the first"))
    send(page, half_way(run=run_id(2), node_id="77", message="of the second", state="paused"))
    states = "() => [...document.querySelectorAll('.kiln-run')].map(one => one.dataset.state).toSorted()"
    page.wait_for_function(f"({states})().join() === 'paused,training'")

    other = {**GRAPH, "id": str(uuid.uuid4())}
    open_graph(page, other)
    page.wait_for_function(f"({states})().join() === 'idle'")
    send(page, half_way(run=run_id(3), workflow_id=other["id"], state="failed", message="of the other"))
    page.wait_for_function(f"({states})().join() === 'failed'")
    open_graph(page, both)
    page.wait_for_function(f"({states})().join() === 'paused,training'")


def test_the_same_id_in_the_graph_and_in_a_subgraph_are_two_nodes(page, view):
    page.evaluate(
        """type => {
          const graph = window.app.graph;
          const node = graph.findNodesByType(type)[0];
          const {node: holder} = graph.convertToSubgraph(new Set([node]));
          const inner = holder.subgraph.nodes.find(inner => inner.type === type);
          const outer = window.LiteGraph.createNode(type);
          outer.id = inner.id;
          outer.pos = [4000, 0];
          graph.add(outer);
          window.ids = {holder: holder.id, inner: inner.id, outer: outer.id};
          window.stateOf = node => node.widgets.find(widget => widget.name === 'kiln_run').element.dataset.state;
          window.nodesOf = () => [outer, inner].map(window.stateOf);
        }""",
        TRAIN,
    )
    ids = page.evaluate("window.ids")
    assert ids["inner"] == ids["outer"]
    send(page, half_way(run=run_id(2), node_id=f"{ids['holder']}:{ids['inner']}", state="paused"))
    assert page.evaluate("window.nodesOf()") == ["idle", "paused"]
    send(page, half_way(run=run_id(3), node_id=str(ids["outer"]), state="failed"))
    assert page.evaluate("window.nodesOf()") == ["failed", "paused"]


def test_a_page_that_opens_in_the_middle_asks_for_what_it_missed(page, view):
    histories: list[dict[str, Any]] = [half_way()]
    asked: list[str] = []
    page.route("**/kiln/runs*", lambda route: (asked.append(route.request.url), route.fulfill(json=histories)))
    send(page, message(step=1503, points=POINTS[1500:1503]))
    page.wait_for_function("window.asked || document.querySelector('[data-figure=loss]')?.textContent")
    assert asked and asked[0].endswith(f"workflow_id={GRAPH['id']}")
    assert view.get_attribute("data-step") == "1503"
    histories[0] = message(step=STEPS, points=POINTS, state="finished", elapsed=9999)
    page.evaluate("window.app.api.dispatchCustomEvent('reconnected')")
    page.wait_for_function("document.querySelector('.kiln-run').dataset.state === 'finished'")


# ---------------------------------------------------------------- where it stands


def test_the_view_stays_as_wide_as_its_node_when_the_side_panel_lists_it(page, view):
    width = view.bounding_box()["width"]
    page.evaluate("window.app.canvas.selectItems(window.app.graph.findNodesByType('KilnTrainLoRA'))")
    page.get_by_test_id("info-button").dispatch_event("click")
    page.get_by_role("tab", name="Parameters").click()
    page.get_by_text("kiln_run", exact=True).wait_for()
    page.wait_for_timeout(500)  # the panel sets it after it was painted
    page.evaluate("window.app.canvas.deselectAll()")
    page.wait_for_timeout(500)
    assert view.bounding_box()["width"] == width


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue nodes"])
@pytest.mark.parametrize("width", [420, 300])
def test_nothing_is_clipped_or_overlaps(page, view, sample_files, vue: bool, width: int):
    try:
        page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)
        open_graph(page, GRAPH)
        look_at_node(page, width, 480)
        long = "CUDA out of memory. " * 40
        for data in (half_way(samples=sample_files), half_way(state="failed", message=long, controls=[])):
            send(page, data)
            page.wait_for_timeout(100)  # two frames, so that the sizes have settled
            parts = view.evaluate(
                """root => {
                  const box = element => {
                    const {left, top, right, bottom} = element.getBoundingClientRect();
                    return {name: element.className, left, top, right, bottom};
                  };
                  const shown = [...root.children].filter(child => child.getClientRects().length);
                  return [root, ...shown].map(box);
                }"""
            )
            root, children = parts[0], parts[1:]
            assert root["bottom"] - root["top"] >= 200
            assert len(children) >= 4
            for child in children:
                assert child["left"] >= root["left"] - 1 and child["right"] <= root["right"] + 1, child
                assert child["bottom"] <= root["bottom"] + 1, child
            for above, below in zip(children, children[1:], strict=False):
                assert above["bottom"] <= below["top"] + 1, (above, below)
            assert view.locator("canvas").bounding_box()["height"] >= 60
    finally:
        page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_the_wheel_over_the_view_zooms_the_graph(page, view):
    send(page, half_way())
    before = page.evaluate("window.app.canvas.ds.scale")
    box = view.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.wheel(0, 200)
    page.wait_for_function("before => window.app.canvas.ds.scale < before", arg=before)


def test_a_hundred_thousand_points_are_taken_and_drawn(page, view):
    page.evaluate(
        """data => {
          const points = Array.from({length: 100000}, (_, index) => [index + 1, index === 50000 ? 9 : 0.1, 1e-4]);
          window.app.api.dispatchCustomEvent('kiln.run', {...data, step: 100000, steps: 100000, points});
        }""",
        message(),
    )
    page.wait_for_function("document.querySelector('[data-figure=loss]')?.textContent === 'loss 0.1000'")
    assert view.get_attribute("data-step") == "100000"
    inked = """() => {
      const canvas = document.querySelector('.kiln-run canvas');
      const row = canvas.getContext('2d').getImageData(0, Math.round(canvas.height * 0.3), canvas.width, 1).data;
      let spike = 0;
      for (let i = 0; i < row.length; i += 4) if (row[i] > row[i + 2] + 30) spike++;
      return spike;
    }"""
    page.wait_for_function(f"({inked})() > 0")  # the one spike goes up through the empty part of the chart


def test_a_server_of_before_run_ids_is_understood(page, view):
    """Last in this file: its run is of no workflow, and so of every one that opens in the page."""
    old = {key: half_way()[key] for key in ("prompt_id", "node_id", "name", "state", "message", "step", "steps")}
    figures = {"loss": 0.1, "smoothed": 0.1, "learning_rate": 3e-4, "seconds_per_step": 0.5, "elapsed": 1}
    points = [[step, loss, loss] for step, loss, _ in POINTS[: STEPS // 2]]
    send(page, {**old, **figures, "points": points})
    assert view.locator(".kiln-chip").inner_text() == "Training"
    assert not view.locator(".kiln-controls").is_visible()
    page.wait_for_function("document.querySelector('[data-figure=loss]')?.textContent.startsWith('loss 0.1')")


def test_a_run_that_was_refused_says_why_in_place_of_the_run_before(page, view):
    send(page, message(state="finished", notes=["as it was"]))
    error = {"prompt_id": "another", "node_id": NODE, "node_type": TRAIN, "exception_message": f"stopped {TRICK}"}
    page.evaluate("error => window.app.api.dispatchCustomEvent('execution_error', error)", error)
    wait_until(page, lambda: view.locator(".kiln-message").inner_text() == f"stopped {TRICK}")
    assert view.get_attribute("data-state") == "failed"
    send(page, message(state="failed", message="its own words"))
    page.evaluate("error => window.app.api.dispatchCustomEvent('execution_error', error)", {**error, "prompt_id": "p"})
    wait_until(page, lambda: view.locator(".kiln-message").inner_text().startswith("its own words"))


def test_the_chart_follows_another_palette(page, view):
    send(page, half_way(state="finished"))
    picture = "() => document.querySelector('.kiln-run canvas').toDataURL()"
    page.wait_for_timeout(500)  # it is drawn
    before = page.evaluate(picture)
    page.evaluate("() => document.documentElement.style.setProperty('--descrip-text', '#ff0000')")
    page.wait_for_function(f"seen => ({picture})() !== seen", arg=before)
    page.evaluate("() => document.documentElement.style.removeProperty('--descrip-text')")
