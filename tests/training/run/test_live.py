"""What a run tells the page, over the host's own server object."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from comfy_execution.utils import CurrentNodeContext
from lora_kiln.training.basics.errors import InputError, Refusal
from lora_kiln.training.run import live as events
from lora_kiln.training.run import page as requests
from lora_kiln.training.run.controls import Controls
from lora_kiln.training.run.history import MOST_POINTS, points
from lora_kiln.training.run.live import KEPT_RUNS, LiveRun, histories
from lora_kiln.training.run.progress import SMOOTHING, Mark, Progress, SampleFile
from server import PromptServer

STEPS = 20


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_runs", type(events._runs)())


def run(prompt: str = "p", node: str = "7", steps: int = STEPS) -> LiveRun:
    with CurrentNodeContext(prompt, node):
        return LiveRun(Progress(), Controls(), steps=steps, name="anna")


class Page:
    """What the host's server has queued for its pages."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.server = PromptServer(self.loop)

    def heard(self) -> list[dict]:
        """The runs' messages so far, as JSON carries them."""
        self.loop.run_until_complete(asyncio.sleep(0))
        queued = [self.server.messages.get_nowait() for _ in range(self.server.messages.qsize())]
        return [json.loads(json.dumps(data, allow_nan=False)) for event, data, _ in queued if event == events.EVENT]


@pytest.fixture
def page() -> Iterator[Page]:
    before = getattr(PromptServer, "instance", None)
    page = Page()
    yield page
    page.loop.close()
    if before is None:
        del PromptServer.instance
    else:
        PromptServer.instance = before


def learn(a_run: LiveRun, losses: list[float]) -> None:
    for loss in losses:
        a_run.progress.add_step(loss, 1e-4)
        a_run.stepped()


def mark(a_run: LiveRun, step: int, kind: str) -> None:
    a_run.progress.marks.append(Mark(step=step, kind=kind, text=""))


def sample(a_run: LiveRun, step: int) -> None:
    a_run.progress.samples.append(SampleFile(step=step, prompt="a", prompt_index=0, filename="a.png", subfolder=""))
    a_run.send()


def test_a_run_needs_no_server() -> None:
    a_run = run()
    learn(a_run, [1.0, 0.5])
    assert a_run.summary()["step"] == 2


def test_a_run_knows_its_prompt_and_node() -> None:
    summary = run("prompt", "12").summary()
    assert (summary["prompt_id"], summary["node_id"], summary["name"]) == ("prompt", "12", "anna")


def test_before_the_first_step_there_is_no_loss() -> None:
    summary = run().summary()
    assert summary["loss"] is None and summary["smoothed"] is None and summary["step"] == 0


def test_the_smoothed_loss_is_the_unbiased_exponential_average() -> None:
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    a_run = run()
    learn(a_run, losses)
    weights = [SMOOTHING ** (len(losses) - 1 - n) for n in range(len(losses))]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert a_run.summary()["smoothed"] == pytest.approx(expected)


def test_a_constant_loss_is_its_own_average() -> None:
    a_run = run()
    learn(a_run, [0.25] * 9)
    assert a_run.progress.smoothed == pytest.approx(0.25)


def test_the_pages_points_are_all_steps_once_in_order(page: Page) -> None:
    a_run = run()
    a_run.training()
    learn(a_run, [float(n) for n in range(STEPS)])
    points = [point for message in page.heard() for point in message["points"]]
    assert [point[:2] for point in points] == [[n + 1, float(n)] for n in range(STEPS)]


def test_the_last_step_is_sent_at_once(page: Page) -> None:
    a_run = run(steps=5)
    learn(a_run, [1.0] * 5)
    assert page.heard()[-1]["step"] == 5


def test_quick_steps_are_sent_together(page: Page) -> None:
    a_run = run(steps=1000)
    learn(a_run, [1.0] * 100)
    assert len(page.heard()) < 100


def test_the_page_hears_each_state(page: Page) -> None:
    a_run = run()
    a_run.preparing("encoding", 3, 7, "captions")
    a_run.training()
    a_run.paused()
    a_run.ended("failed", "why")
    heard = [(m["state"], m["phase"], m["phase_done"], m["phase_total"], m["message"]) for m in page.heard()]
    assert heard == [
        ("preparing", "encoding", 3, 7, "captions"), ("training", "training", 0, 0, ""), ("paused", "paused", 0, 0, ""),
        ("failed", "", 0, 0, "why"),
    ]  # fmt: skip


def test_a_run_takes_what_fits_its_state() -> None:
    a_run = run()
    with pytest.raises(Refusal, match="preparing"):
        a_run.ask("pause")
    a_run.training()
    a_run.ask("pause")
    a_run.preparing("sampling")
    a_run.training()  # a picture drawn in a pause does not end it
    assert a_run.state == "paused" and "resume" in a_run.summary()["controls"]
    with pytest.raises(Refusal, match="paused"):
        a_run.ask("pause")
    assert a_run.controls.is_paused and a_run.controls.take("pause") and not a_run.controls.has_requests
    with pytest.raises(Refusal):
        a_run.ask("sample")  # there is no prompt
    a_run.ask("sample_prompts", ["a cat ", ""])
    assert a_run.controls.sample_prompts == ("a cat",)
    a_run.ask("sample")
    for action, value in [("jump", None), ("learning_rate", 0), ("learning_rate", "1"), ("sample_prompts", "a")]:
        with pytest.raises(InputError):
            a_run.ask(action, value)
    a_run.ended("finished", "")
    with pytest.raises(Refusal, match="finished"):
        a_run.ask("checkpoint")


def test_new_marks_samples_and_validations_are_told_once(page: Page) -> None:
    a_run = run()
    mark(a_run, 1, "checkpoint")
    a_run.progress.add_validation(1, 0.5)
    sample(a_run, 1)
    a_run.training()
    heard = page.heard()
    assert [mark["kind"] for m in heard for mark in m["marks"]] == ["checkpoint"]
    assert [each for m in heard for each in m["validation"]] == [[1, 0.5]]
    assert sum(len(m["samples"]) for m in heard) == 1
    assert a_run.history()["best"] == {"step": 1, "validation_loss": 0.5}


def test_what_is_made_again_at_a_step_is_told_again(page: Page) -> None:
    """As a run does that was stopped between its validation and the next step."""
    a_run = run()
    for step, loss in [(1, 0.5), (2, 0.4)]:
        learn(a_run, [1.0])
        a_run.progress.add_validation(step, loss)
        sample(a_run, step)
    page.heard()
    a_run.progress.add_validation(2, 0.3)
    a_run.progress.drop_samples(2)
    a_run.progress.samples.append(SampleFile(step=2, prompt="b", prompt_index=0, filename="b.png", subfolder=""))
    a_run.send()
    (heard,) = page.heard()
    assert heard["validation"] == [[2, 0.3]] and [each["prompt"] for each in heard["samples"]] == ["b"]
    a_run.send()
    assert page.heard()[0]["validation"] == []


def test_of_a_nodes_runs_the_newest_is_shown() -> None:
    for prompt in ("p1", "p2"):
        run(prompt).workflow = "w"
    assert [each["prompt_id"] for each in histories(None, "w")] == ["p2"]


@pytest.mark.parametrize(
    ("action", "value"),
    [("learning_rate", 10**400), ("sample_prompts", ["\ud800"]), ("sample_prompts", {"a": 1})],
    ids=["beyond floats", "half a character", "no list"],
)
def test_a_value_that_cannot_be_taken_is_refused_in_words(action: str, value: object) -> None:
    a_run = run()
    a_run.training()
    with pytest.raises(InputError, match="value"):
        a_run.ask(action, value)


@pytest.mark.parametrize(
    "points",
    ["9" * 5000, "000000009" + "9" * 5000, "\u00b2", "", "-4", "1"],
    ids=["long", "long, with zeros", "raised", "empty", "negative", "too few"],
)
def test_a_number_of_points_that_is_none_is_refused_in_words(points: str) -> None:
    with pytest.raises(InputError, match="points"):
        requests.run({"run": run().run, "points": points})


def test_a_run_that_goes_back_forgets_what_came_after(page: Page) -> None:
    a_run = run()
    progress, states = a_run.progress, []
    for step in (1, 2, 3):
        learn(a_run, [1.0])
        progress.add_validation(step, 0.5)
        mark(a_run, step, "sample")
        sample(a_run, step)
        states.append(progress.state_dict())
    progress.cut(states[1])
    a_run.send_all_again()
    page.heard()
    learn(a_run, [2.0])
    progress.add_validation(3, 0.4)
    mark(a_run, 3, "note")
    a_run.training()
    history, heard = a_run.history(), page.heard()
    assert [point[:2] for point in history["points"]] == [[1, 1.0], [2, 1.0], [3, 2.0]]
    assert [mark["kind"] for mark in history["marks"]] == ["sample", "sample", "note"]
    assert [sample["step"] for sample in history["samples"]] == [1, 2]
    assert [3, 0.4] in [each for m in heard for each in m["validation"]]
    assert "note" in [mark["kind"] for m in heard for mark in m["marks"]]


def test_thinning_keeps_every_spike_and_the_last_point() -> None:
    progress = Progress(losses=[1.0] * 10_000, learning_rates=[0.0] * 10_000)
    progress.losses[4321], progress.losses[77] = 9.0, -3.0
    kept = points(progress, most=100)
    assert len(kept) <= 102 and [4322, 9.0, 0.0] in kept and [78, -3.0, 0.0] in kept and kept[-1] == [10_000, 1.0, 0.0]
    assert [point[0] for point in kept] == sorted(point[0] for point in kept)


def test_a_loss_that_is_no_number_is_null(page: Page) -> None:
    a_run = run(steps=2)
    learn(a_run, [float("nan"), float("inf")])
    assert page.heard()[-1]["loss"] is None
    assert json.dumps(histories(), allow_nan=False)


def test_no_time_is_left_at_the_end() -> None:
    a_run = run(steps=2)
    learn(a_run, [1.0, 1.0])
    assert a_run.summary()["seconds_left"] == 0


def test_a_page_that_opens_later_gets_the_whole_curve() -> None:
    a_run = run()
    learn(a_run, [1.0, 2.0, 3.0])
    assert [point[:2] for point in histories()[0]["points"]] == [[1, 1.0], [2, 2.0], [3, 3.0]]


def test_a_long_history_is_thinned_out() -> None:
    a_run = run(steps=10 * MOST_POINTS)
    a_run.progress.losses = a_run.progress.learning_rates = [1.0] * (5 * MOST_POINTS + 5)
    points = a_run.history()["points"]
    assert MOST_POINTS // 4 < len(points) <= MOST_POINTS
    assert [point[0] for point in points] == sorted({point[0] for point in points})


def test_a_long_history_ends_with_the_newest_step() -> None:
    a_run = run(steps=10 * MOST_POINTS)
    a_run.progress.losses = a_run.progress.learning_rates = [1.0] * (5 * MOST_POINTS + 5)
    assert a_run.history()["points"][-1][0] == 5 * MOST_POINTS + 5


def test_the_newest_runs_are_kept() -> None:
    for number in range(KEPT_RUNS + 5):
        run(f"p{number}")
    assert [each["prompt_id"] for each in histories()] == [f"p{n}" for n in range(5, KEPT_RUNS + 5)]


def test_a_node_that_runs_again_in_a_prompt_is_one_run() -> None:
    learn(run(), [1.0])
    run()
    assert [each["step"] for each in histories()] == [0]


def test_a_runs_time_stops_when_it_ends():
    a_run = run(steps=4)
    a_run.progress.stop_clock()
    a_run.ended("finished", "")
    before = a_run.summary()["elapsed"]
    time.sleep(0.05)
    assert a_run.summary()["elapsed"] == before
