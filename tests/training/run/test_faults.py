"""What goes wrong in the middle of a run, on small models.

Whatever it is, the base model stays as it was, bit for bit, the message says what to do, and the same run, queued again
when the fault is gone, gives the same LoRA as if there had been none. `tests/test_faults.py` tries the real server.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.basics.files import atomic_write
from lora_kiln.training.data import store
from lora_kiln.training.data.dataset import Dataset, Picture
from lora_kiln.training.learning.loop import Diverged
from lora_kiln.training.learning.prefetch import made_ahead, on_device
from lora_kiln.training.learning.step import Step
from lora_kiln.training.model.state import Damaged
from lora_kiln.training.run import checkpoints, trainer
from lora_kiln.training.run import live as events
from lora_kiln.training.run.checkpoints import State, newest_state, read_state, write_state
from lora_kiln.training.run.folder import RunFolder
from lora_kiln.training.run.recorder import Record
from lora_kiln.training.run.records import read_metrics
from lora_kiln.training.run.resume import ANEW, CONTINUE_CHANGED
from lora_kiln.training.run.run_recorder import RunRecorder
from lora_kiln.training.run.trainer import Trained
from PIL import Image

import models
from disk import Writes, files_of_at_most
from training_runs import (
    SETTINGS,
    SHAPES,
    assert_same,
    assert_untouched,
    at_step,
    at_steps,
    changed,
    dataset,
    interrupt_at,
    run,
    stopped_at,
    watched,
)

pytestmark = pytest.mark.usefixtures("lora_folder")
CONFIG = changed(steps=3, batch_size=1, checkpoint_minutes=0.0)
BUSY = changed(
    steps=2, batch_size=1, checkpoint_minutes=0.0, keep_checkpoints=1, save_every=1, sample_every=2,
    sample_prompts=("a",), sample_steps=1,
)  # fmt: skip
"""writes all that a run can write"""
CUTS = 30


@dataclass
class Ground:
    """One model for many runs, how it was, and what a run gives that nothing befell."""

    small: models.Small
    before: dict[str, torch.Tensor]
    whole: Trained

    def again(self, config: Any = CONFIG, **values: Any) -> Trained:
        """The run queued again."""
        return run(config, small=self.small, **values)

    def assert_nothing_is_lost(self, config: Any = CONFIG, **values: Any) -> Trained:
        """The model is as it was, and the run, queued again, gives the LoRA of one that nothing befell."""
        assert_untouched(self.small, self.before)
        trained = self.again(config, **values)
        assert_same(trained, self.whole)
        return trained


def ground_of(config: Any = CONFIG, data: Dataset | None = None) -> Ground:
    small = models.few_blocks()
    return Ground(small, models.state(small), run(config, "whole", small=small, data=data))


@pytest.fixture
def ground(folders) -> Ground:
    return ground_of()


def run_folder(folders: Path, name: str = "test") -> Path:
    """The newest run's of a name."""
    return sorted((folders / "output" / "lora_kiln" / name).iterdir())[-1]


def message() -> str:
    """What the page and run.json say of the last run."""
    return events.histories()[-1]["message"]


def times_back() -> int:
    """How often the last run went back."""
    return sum("Went back" in note for note in events.histories()[-1]["notes"])


# ---------------------------------------------------------------- the disk


def test_a_disk_that_is_full_from_any_write_on_loses_nothing(folders):
    """The first, the second ... thing that a run makes fails, and all that come after it."""
    ground = ground_of(BUSY)
    with Writes(folders) as writes:
        ground.again(BUSY, name="counted")
    assert writes.count > 20
    shutil.rmtree(folders / "loras")
    for left in range(writes.count):
        name, problem = f"run_{left}", ""
        with Writes(folders, left):
            try:
                ground.again(BUSY, name=name)
            except InputError as error:
                problem = str(error)
        told = problem + " ".join(events.histories()[-1]["notes"])
        assert "No space left" in told and "free some space on the disk" in told.lower(), (left, told)
        ground.assert_nothing_is_lost(BUSY, name=name)
        assert not list(folders.rglob(".*.writing"))


@pytest.mark.parametrize("size", [0, 400, 20_000, 90_000])
def test_files_that_break_off_while_they_are_written_lose_nothing(folders, size):
    """Each file is cut as on a full disk, whoever writes it: Python, safetensors, Pillow, SQLite."""
    ground = ground_of(BUSY)
    try:
        with files_of_at_most(size):
            ground.again(BUSY)
    except InputError as error:
        assert "could not be written" in str(error) or "cannot be written" in str(error)
    ground.assert_nothing_is_lost(BUSY)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(ground, folders):
    (folders / "output" / "lora_kiln" / "test").write_text("in the way")
    with pytest.raises(InputError, match="name: the run's folder .* cannot be written .* Make ComfyUI's output folder"):
        ground.again()
    (folders / "output" / "lora_kiln" / "test").unlink()
    ground.assert_nothing_is_lost()


def test_a_disk_that_has_room_again_gets_the_runs_end(ground, folders):
    with Writes(folders) as writes:
        acts = {1: lambda: setattr(writes, "left", 0), 2: lambda: setattr(writes, "left", 10**9)}
        trained = ground.again(record=at_steps(acts))
    assert_same(trained, ground.whole)
    assert json.loads((run_folder(folders) / "run.json").read_text())["state"] == "finished"
    assert "could not be written" in trained.report


# ---------------------------------------------------------------- memory, numbers


def too_much_ram() -> None:
    torch.empty(2**50)


def too_much_for_python() -> None:
    bytearray(2**62)


def too_much_for_a_mac() -> None:
    raise RuntimeError("MPS backend out of memory (MPS allocated: 17.83 GB, max allowed: 18.13 GB).")


def too_much_on_the_gpu() -> None:
    if torch.cuda.is_available():
        torch.empty(2**50, device="cuda")
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("take", "kind", "words"),
    [
        (too_much_ram, MemoryError, "memory .RAM. is full. Close other programs"),
        (too_much_for_python, MemoryError, "memory .RAM. is full. Close other programs"),
        (too_much_for_a_mac, torch.OutOfMemoryError, "GPU's memory is full. In LoRA Config turn gradient_checkpoint"),
        (too_much_on_the_gpu, torch.OutOfMemoryError, "GPU's memory is full. In LoRA Config turn gradient_checkpoint"),
    ],
)
def test_full_memory_says_what_to_do_and_loses_nothing(take, kind, words, ground):
    with torch.inference_mode(), pytest.raises(kind, match=words):
        ground.again(record=at_step(2, take))
    assert "goes on from step 2" in message() and "is kept in" in message()
    ground.assert_nothing_is_lost()


@pytest.mark.parametrize(
    ("rate", "step", "words"),
    [(0.1, 2, "The (loss is|gradients are) n"), (1e-3, 21, "more than 100 times the largest")],
)
def test_a_run_that_diverges_leaves_the_last_good_checkpoint(rate, step, words, ground, folders):
    """The rate is raised by hand after a step: the next step's loss is still good, what it leaves is not."""
    wild = changed(
        steps=step + 5, batch_size=1, checkpoint_minutes=0.0, max_grad_norm=0.0, learning_rate=rate,
        scheduler="constant", targets="all linear and convolution",
    )  # fmt: skip

    def raise_rate() -> None:
        live = events.live_run(events.histories()[-1]["run"])
        assert live is not None
        live.controls.ask("learning_rate", 1000.0)

    with pytest.raises(Diverged, match=f"{words}.* at step {step + 2}: .*Lower learning_rate"):
        ground.again(wild, record=at_step(step, raise_rate))
    assert f"a better recipe goes on from step {step}." in message()
    assert_untouched(ground.small, ground.before)
    state, damage = newest_state(run_folder(folders) / "checkpoints")
    assert state is not None and state.step == step and not damage
    trained = ground.again(wild.changed(learning_rate=1e-4), previous=CONTINUE_CHANGED)
    assert "Takes over what the run" in trained.report and max(trained.losses) < 10.0


def when_updating(monkeypatch: pytest.MonkeyPatch, act: Callable[[Step, int], Any]) -> None:
    """Does something to a step, from 1, when its loss and gradients are there and nothing is updated yet."""
    update = Step.update

    def acting(self: Step) -> None:
        act(self, events.histories()[-1]["step"] + 1)
        update(self)

    monkeypatch.setattr(Step, "update", acting)


def spoil_gradients(step: Step, number: int) -> None:
    if number == 3:
        for parameter in step.parameters:
            assert parameter.grad is not None
            parameter.grad.fill_(torch.nan)


def spoil_loss(step: Step, number: int) -> None:
    if number == 3:
        step.loss.fill_(torch.nan)


def test_gradients_that_are_no_numbers_leave_the_checkpoint_before_them(ground, folders, monkeypatch):
    config = CONFIG.changed(keep_checkpoints=1)
    with monkeypatch.context() as patched, pytest.raises(Diverged, match="The gradients are no numbers at step 3"):
        when_updating(patched, spoil_gradients)
        ground.again(config)
    assert "a better recipe goes on from step 2." in message()
    assert_untouched(ground.small, ground.before)
    trained = ground.again(config.changed(learning_rate=1e-4), previous=CONTINUE_CHANGED)
    assert "had learned in 2 steps" in trained.report


def test_gradients_that_are_no_numbers_are_gone_back_behind(ground, folders, monkeypatch):
    """From the step before, any rate leads to the same gradients."""
    with monkeypatch.context() as patched:
        when_updating(patched, lambda step, number: times_back() or spoil_gradients(step, number))
        trained = ground.again(CONFIG.changed(on_divergence="step back"))
    assert "Went back to step 1 " in trained.report and len(trained.losses) == 3


def test_a_loss_that_spoils_the_only_checkpoint_says_that_none_is_left(ground, folders, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Diverged, match="The loss is nan at step 3"):
        when_updating(patched, spoil_loss)
        ground.again(CONFIG.changed(keep_checkpoints=1))
    assert newest_state(run_folder(folders) / "checkpoints") == (None, [])
    assert "No checkpoint is left to go on from" in message() and "is kept in" in message()
    ground.assert_nothing_is_lost()


def test_a_loss_after_losses_of_zero_is_no_explosion(ground, monkeypatch):
    with monkeypatch.context() as patched:
        when_updating(patched, lambda step, number: number > 21 or step.loss.zero_())
        trained = ground.again(CONFIG.changed(steps=22))
    assert trained.losses[:21] == [0.0] * 21 and trained.losses[21] > 0.0


# ---------------------------------------------------------------- pictures


@pytest.fixture
def files(folders) -> Dataset:
    """The usual pictures, as files."""
    made = []
    for picture, (width, height) in zip(dataset().pictures, SHAPES, strict=True):
        assert picture.pixels is not None
        path = folders / "input" / f"{picture.name}.png"
        Image.fromarray((picture.pixels.numpy() * 255).astype("uint8")).save(path)
        made.append(Picture(path.name, width, height, picture.caption, path=path))
    return Dataset(tuple(made), SETTINGS)


def other_picture(path: Path) -> None:
    Image.new("RGB", Image.open(path).size, "red").save(path)


def when_encoding(act: Callable[[], Any]) -> Record:
    """Does something when the first picture is about to be encoded."""
    acted = []

    def shown(recorder: RunRecorder, phase: str, message: str) -> None:
        if message == "pictures" and not acted:
            acted.append(act())

    return watched(shown=shown)


@pytest.mark.parametrize("cache", ["20", "0"])
@pytest.mark.parametrize("act", [Path.unlink, other_picture])
def test_a_picture_that_goes_while_it_is_wanted_is_named_and_spoils_nothing(cache, act, files, monkeypatch):
    monkeypatch.setenv("LORA_KILN_CACHE_GB", cache)
    path = files.pictures[-1].path
    assert path is not None
    kept = path.read_bytes()
    with pytest.raises(InputError, match="queue again"):
        run(CONFIG, data=files, record=when_encoding(lambda: act(path)))
    path.write_bytes(kept)
    trained = run(CONFIG, data=files)
    monkeypatch.setenv("LORA_KILN_CACHE_GB", "0")
    assert_same(trained, run(CONFIG, "whole", data=files))  # no latent of the other picture was kept for this one


@pytest.mark.parametrize("act", [Path.unlink, other_picture])
def test_a_picture_that_goes_while_the_run_trains_is_not_missed(act, files):
    ground = ground_of(CONFIG, files)
    going = at_step(1, lambda: act(files.pictures[0].path))
    assert_same(ground.again(data=files, record=going), ground.whole)
    assert_untouched(ground.small, ground.before)


def when_the_cache_goes(
    monkeypatch: pytest.MonkeyPatch, folders: Path, act: Callable[[], Any]
) -> tuple[Record, list[str]]:
    """After step 1 the cache forgets all, and something else is done. Gives also which threads encode pictures."""
    encode_pixels, encoded_by = host.encode_pixels, []

    def watched(vae, pixels):
        encoded_by.append(threading.current_thread().name)
        return encode_pixels(vae, pixels)

    def forget() -> None:
        encoded_by.clear()
        with closing(sqlite3.connect(next(folders.rglob("encoded.sqlite")), isolation_level=None)) as db:
            db.execute("DELETE FROM blobs")
        act()

    monkeypatch.setattr(store, "MEMORY", 0)
    monkeypatch.setattr(host, "encode_pixels", watched)
    monkeypatch.setattr(
        trainer,
        "prefetched",  # as on a GPU: a thread makes the batches
        lambda make, order, device, say: made_ahead(lambda *place: on_device(make(*place), device, say), order),
    )
    return at_step(1, forget), encoded_by


def test_what_has_gone_from_the_cache_is_encoded_by_the_runs_own_thread(files, folders, monkeypatch):
    """The host's management of models knows one thread, and what it is told by another changes the step under way."""
    config = CONFIG.changed(steps=8)
    ground = ground_of(config, files)
    with monkeypatch.context() as patched:
        record, encoded_by = when_the_cache_goes(patched, folders, lambda: None)
        assert_same(ground.again(config, data=files, record=record), ground.whole)
    assert set(encoded_by) == {threading.current_thread().name}
    assert_untouched(ground.small, ground.before)


@pytest.mark.parametrize(("act", "words"), [(Path.unlink, "cannot be read any more"), (other_picture, "was replaced")])
def test_a_picture_that_goes_with_the_cache_is_named_and_loses_nothing(act, words, files, folders, monkeypatch):
    config = CONFIG.changed(steps=8)
    ground = ground_of(config, files)
    kept = [(picture.path, picture.path.read_bytes()) for picture in files.pictures if picture.path]
    with monkeypatch.context() as patched, pytest.raises(InputError, match=words):
        record, _ = when_the_cache_goes(patched, folders, lambda: [act(path) for path, _ in kept])
        ground.again(config, data=files, record=record)
    assert "it goes on from step" in message()
    for path, content in kept:
        path.write_bytes(content)
    ground.assert_nothing_is_lost(config, data=files)


# ---------------------------------------------------------------- clocks, owners, the host


def test_a_clock_that_was_set_back_changes_nothing(ground, folders):
    """A run's folder and its files are of a time that has yet to come."""
    stopped_at(2, CONFIG)
    folder = run_folder(folders)
    later = folder.rename(folder.with_name("20991231-235959"))
    for place, time in zip(checkpoints.checkpoints(later / "checkpoints"), (4e9, 3e9), strict=True):
        os.utime(place, (time, time))
    assert "Goes on from step 2" in ground.assert_nothing_is_lost().report
    assert_same(ground.again(previous=ANEW), ground.whole)
    assert run_folder(folders).name == "20991231-235959-002"
    assert "its LoRA is taken" in ground.again().report


def test_a_run_that_is_open_elsewhere_is_refused_and_its_owner_named(ground, folders):
    stopped_at(2, CONFIG)
    owner = RunFolder(run_folder(folders), folders / "output" / "lora_kiln")
    owner.write_owner({"pid": 4711, "host": "attic", "since": "2026-01-01 00:00:00"})
    with pytest.raises(InputError, match="is open in process 4711 on attic, since 2026.* Wait until it has ended"):
        ground.again()
    owner.close()
    ground.assert_nothing_is_lost()


def test_models_that_the_host_unloads_in_between_train_the_same(ground):
    """Before the run, as between two nodes, and in the middle of it."""
    comfy.model_management.load_models_gpu([ground.small.model], force_full_load=True)
    comfy.model_management.unload_all_models()
    with torch.inference_mode():
        unloading = at_step(1, comfy.model_management.unload_all_models)
        assert_same(ground.again(record=unloading), ground.whole)
    assert_untouched(ground.small, ground.before)


# ---------------------------------------------------------------- torn files


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_files_cut_at_any_length_lose_nothing(folders):
    """Each file of a stopped run in turn, then some at once: the run goes on from what is whole, or begins again."""
    config = CONFIG.changed(sample_every=2, sample_prompts=("a",), sample_steps=1)
    ground = ground_of(config)
    stopped_at(2, config)
    kept, draw = folders / "kept", random.Random(1)
    shutil.copytree(run_folder(folders).parent, kept)
    names = [path.relative_to(kept) for path in files_below(kept)]
    assert {name.name for name in names} >= {"run.json", "metrics.jsonl", "owner.json", "state.json"}
    went_on = 0
    for number in range(CUTS):
        place = run_folder(folders).parent
        shutil.rmtree(place)
        shutil.copytree(kept, place)
        cut = [names[number % len(names)]] if number < 2 * len(names) else draw.sample(names, 3)
        for name in cut:
            size = (place / name).stat().st_size
            os.truncate(place / name, draw.randrange(max(1, size)))
        trained = ground.assert_nothing_is_lost(config)
        went_on += "Goes on from step" in trained.report
    assert went_on > CUTS / 2


# ---------------------------------------------------------------- checkpoints


@pytest.fixture
def states(tmp_path: Path) -> Iterator[Path]:
    for step in (1, 2, 3):
        write_state(tmp_path / "states", State(step, {"a": torch.full((8,), float(step))}, {"b": step}))
    yield tmp_path / "states"


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """state.json with other facts and, as an attacker would, with the digest that fits them."""
    found = json.loads((path / checkpoints.FACTS).read_text())
    change(found)
    found["digest"] = checkpoints._digest(path / checkpoints.TENSORS, found["step"], found["facts"])
    (path / checkpoints.FACTS).write_text(json.dumps(found))


@pytest.mark.parametrize("key", ["step", "facts"])
def test_a_checkpoint_whose_facts_were_changed_is_none(states: Path, key: str):
    place = states / "step000003" / checkpoints.FACTS
    found = json.loads(place.read_text())
    place.write_text(json.dumps({**found, key: {"step": 7, "facts": {"b": 7}}[key]}))
    with pytest.raises(Damaged, match="is not what was written"):
        read_state(states / "step000003")
    state, damage = newest_state(states)
    assert state is not None and state.step == 2 and len(damage) == 1


def test_a_checkpoint_that_is_made_again_is_never_missing(states: Path):
    """The disk fills up at any write of the second."""
    with Writes(states) as writes:
        write_state(states, State(3, {"a": torch.zeros(8)}, {"b": "counted"}))
    for left in range(writes.count):
        with Writes(states, left), pytest.raises(OSError, match="No space left"):
            write_state(states, State(3, {"a": torch.ones(8)}, {"b": "new"}))
        state, damage = newest_state(states)
        assert state is not None and state.step == 3 and not damage
    assert [path.name for path in checkpoints.checkpoints(states)][:2] == ["step000001", "step000002"]
    write_state(states, State(3, {"a": torch.ones(8)}, {"b": "newest"}))
    state, _ = newest_state(states)
    assert state is not None and state.facts == {"b": "newest"}
    assert len(checkpoints.checkpoints(states)) == 3


def test_a_file_system_that_syncs_no_folder_takes_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sync, refused = os.fsync, []

    def syncing_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            refused.append(handle)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    monkeypatch.setattr(os, "fsync", syncing_files)
    assert read_state(write_state(tmp_path, State(1, {"a": torch.ones(8)}))).step == 1
    with atomic_write(tmp_path / "a") as unfinished:
        unfinished.write_text("b")
    assert (tmp_path / "a").read_text() == "b" and len(refused) == 3


def test_what_is_damaged_is_not_kept_in_place_of_what_is_whole(states: Path):
    (states / "step000003" / checkpoints.TENSORS).write_bytes(b"")
    checkpoints.prune(write_state(states, State(2, {"a": torch.ones(8)}, {"b": "again"})), keep=1)
    state, damage = newest_state(states)
    assert state is not None and state.facts == {"b": "again"} and not damage
    assert len(checkpoints.checkpoints(states)) == 1


WRONG = [
    *(lambda facts, key=key: facts.pop(key) for key in ("elapsed", "rate_changes", "sample_prompts", "validations")),
    *(lambda facts, key=key: facts.pop(key) for key in ("is_over", "looked_at", "steps_back", "optimizer")),
    lambda facts: facts.update(elapsed="long"),
    lambda facts: facts.update(elapsed=1e400),
    lambda facts: facts.update(rate_changes=[[1]]),
    lambda facts: facts.update(rate_changes=[[1, -1.0]]),
    lambda facts: facts.update(rate_changes=7),
    lambda facts: facts.update(sample_prompts=[{}]),
    lambda facts: facts.update(validations=[[0, float("nan")]]),
    lambda facts: facts.update(is_over="no"),
    lambda facts: facts.update(looked_at=[2]),
    lambda facts: facts.update(steps_back=-1),
    lambda facts: facts.update(optimizer=[]),
    lambda facts: facts["optimizer"].update(state={"x": {}}),
    lambda facts: facts["optimizer"].update(groups=[]),
]


def test_a_checkpoint_with_strange_facts_is_refused_in_words(ground, folders):
    stopped_at(2, CONFIG)
    place = checkpoints.checkpoints(run_folder(folders) / "checkpoints")[-1]
    kept = (place / checkpoints.FACTS).read_text()
    for change in WRONG:
        (place / checkpoints.FACTS).write_text(kept)
        rewritten(place, lambda found, change=change: change(found["facts"]))
        with pytest.raises(InputError, match="previous_run: .* cannot be continued .*choose to start anew"):
            ground.again()
        assert events.histories()[-1]["state"] == "failed" and "cannot be continued" in message()
    rewritten(place, lambda found: found.update(step=1))
    with pytest.raises(InputError, match="holds no losses of a run of 1 steps"):
        ground.again()
    (place / checkpoints.FACTS).write_text(kept)
    ground.assert_nothing_is_lost()


def test_strange_lines_of_a_run_that_goes_on_do_not_matter(ground, folders):
    stopped_at(2, CONFIG)
    with (run_folder(folders) / "metrics.jsonl").open("a") as file:
        for line in ('{"step": 1, "loss": "x", "learning_rate": {}}', '{"step": 2, "validation_loss": []}', "[", "{"):
            file.write(line + "\n")
    ground.assert_nothing_is_lost()
    assert all(line["step"] <= 3 for line in read_metrics(run_folder(folders)))


def test_an_interrupt_loses_nothing(ground):
    with pytest.raises(host.Interrupted), torch.inference_mode():
        ground.again(record=interrupt_at(2))
    comfy.model_management.interrupt_current_processing(False)
    assert "goes on from step 2" in message()
    ground.assert_nothing_is_lost()
