"""Which run goes on: of all of a name the newest of the same origin, unless another process has it open."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.run import live
from lora_kiln.training.run.folder import RunFolder
from lora_kiln.training.run.origin import Origin
from lora_kiln.training.run.records import RECORD, read_record
from lora_kiln.training.run.resume import CONTINUE, CONTINUE_CHANGED, REFUSE, open_run

from training_runs import CONFIG, assert_same, changed, run, stopped_at

pytestmark = pytest.mark.usefixtures("lora_folder")
OTHER = changed(seed=4)


def runs() -> list[Path]:
    return sorted((host.runs_root() / "test").iterdir())


@pytest.mark.parametrize("previous", [CONTINUE_CHANGED, REFUSE])
def test_two_nodes_of_one_name_both_go_on(previous: str) -> None:
    """One has finished, the other was stopped; then the same graph is queued again."""
    first = run(OTHER)
    stopped_at(2, CONFIG)
    again = run(OTHER, previous=previous)
    assert_same(again, first)
    assert "its LoRA is taken" in again.report
    assert "Goes on from step 2" in run(CONFIG, previous=previous).report
    assert len(runs()) == 2


def test_a_quick_test_in_between_hides_no_stopped_run() -> None:
    stopped_at(2, CONFIG)
    run(changed(steps=1))
    runs()[0].rename(runs()[0].with_name("the long one"))
    assert "Goes on from step 2" in run(CONFIG).report
    assert len(runs()) == 2


def test_a_run_without_a_checkpoint_hides_none() -> None:
    stopped_at(2, CONFIG)
    (first,) = runs()
    newer = first.with_name("20991231-235959")
    newer.mkdir()
    (newer / RECORD).write_bytes((first / RECORD).read_bytes())
    assert "Goes on from step 2" in run(CONFIG).report
    assert "stopped before its first checkpoint" not in run(CONFIG).report


def test_what_is_open_elsewhere_has_not_stopped() -> None:
    """Also before its first checkpoint, and when it is another run of this name."""
    stopped_at(2, CONFIG)
    (path,) = runs()
    with closing(RunFolder(path, host.runs_root())) as owner:
        owner.write_owner({"pid": 4711, "host": "attic", "since": "2026-01-01 00:00:00"})
        for previous in (CONTINUE_CHANGED, REFUSE):
            with pytest.raises(InputError, match="is open in process 4711 on attic"):
                run(OTHER, previous=previous)
        (path / "checkpoints").rename(path / "gone")
        with pytest.raises(InputError, match="is open in process 4711 on attic"):
            run(CONFIG)
        assert runs() == [path]
        report = run(OTHER).report
    assert "which is open in process 4711 on attic" in report and "stopped" not in report.split("Note:", 1)[1]


def test_the_epoch_of_a_stored_run_is_the_one_it_reached() -> None:
    def epochs(**facts) -> tuple[int, int]:
        (path,) = runs()
        folder = RunFolder(path, host.runs_root())
        folder.record({"workflow_id": "w", "prompt_id": "", "node_id": "", "message": "", **facts})
        folder.close()
        (history,) = live.histories(host.runs_root(), "w")
        return history["epoch"], history["epochs"]

    stopped_at(4, changed(steps=12, batch_size=4))  # three shapes of pictures are three batches
    assert read_record(runs()[0]).get("epoch") == 2
    assert epochs() == epochs(epoch=0) == (2, 4)


def test_a_run_whose_name_differs_in_case_alone_is_another() -> None:
    """On Windows and macOS both lie in one folder."""
    stopped_at(2, CONFIG)
    (path,) = runs()
    with closing(RunFolder(path, host.runs_root())) as folder:
        folder.record({"name": "Test"})
    report = run(CONFIG).report
    assert "Goes on" not in report and "There are runs of Test too" in report and len(runs()) == 2


def test_runs_of_a_name_that_differs_in_case_alone_are_told(tmp_path: Path) -> None:
    (tmp_path / "People" / "Anna").mkdir(parents=True)
    for name, other in (("people/anna", "People/Anna"), ("People/anna", "People/Anna"), ("People/Anna", "")):
        opened = open_run(tmp_path, name, Origin(CONFIG, {}, {}), CONTINUE)
        opened.folder.close()
        assert [note for note in opened.notes if f"There are runs of {other} too" in note] == opened.notes
        assert bool(opened.notes) == bool(other)
        shutil.rmtree(tmp_path / name)
