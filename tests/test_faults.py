"""What goes wrong in the middle of a run, in a real server whose output folder lies on a small disk of its own.

`tests/training/run/test_faults.py` tries more faults, on small models.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import leaks
from client import Client, PromptFailed, PromptInterrupted
from disk import SmallDisk
from host import Server
from kit.demo import draw, node_id, write_data
from soak import CONCEPT, lora_of, saved_lora

STEPS = 4
SHUT = "shut"
LEAK_RUNS, WARM_UP = 5, 3


class Ground:
    """A server, what its base model draws, and the LoRA of a run that nothing befell."""

    def __init__(self, server: Server, disk: SmallDisk):
        self.server, self.disk, self.draws = server, disk, 0
        with server.client() as client:
            self.picture = self.drawn(client)
            self.whole = lora_of(client, self.prompt(client, "whole"))

    def prompt(self, client: Client, name: str) -> dict[str, Any]:
        return leaks.short_prompt(client, name, steps=STEPS, sample_every=0, save_every=0)

    def drawn(self, client: Client) -> torch.Tensor:
        """A picture of the model that the host has loaded, drawn anew."""
        self.draws += 1
        return draw(client, ["a star"], steps=2, untold=" " * self.draws)

    def run_folder(self, name: str) -> Path:
        return sorted((self.disk.seen / "lora_kiln" / name).iterdir())[-1]

    def notes(self) -> str:
        return " ".join(Client(self.server.url).get("/kiln/runs")[-1]["notes"])

    def assert_nothing_is_lost(self, name: str) -> None:
        """The model draws what it drew, and the run, queued again, gives the LoRA of one that nothing befell."""
        with self.server.client() as client:
            assert torch.equal(self.drawn(client), self.picture)
            self.assert_whole(lora_of(client, self.prompt(client, name)))

    def assert_whole(self, lora: dict[str, torch.Tensor]) -> None:
        assert lora.keys() == self.whole.keys()
        assert [key for key in lora if not torch.equal(lora[key], self.whole[key])] == []


@pytest.fixture(scope="module")
def ground(host_dir: Path, kit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    workspace = tmp_path_factory.mktemp("small_disk").resolve()
    disk = SmallDisk(workspace / "output", f"lora_kiln/{SHUT}")
    with Server(host_dir, workspace, kit=kit_dir, through=disk.through) as server:
        assert server.process is not None
        disk.pid = server.process.pid
        write_data(workspace / "input", CONCEPT)
        yield Ground(server, disk)


def test_a_disk_that_fills_up_and_a_stop_lose_nothing(ground: Ground):
    name = "full"

    def fill(kind: str, data: dict[str, Any]) -> None:
        if kind == "kiln.run" and data["step"] == 2 and data["phase"] == "training":
            ground.disk.fill()
        if kind == "kiln.run" and any("could not be written" in note for note in data["notes"]):
            client.interrupt()

    with ground.server.client() as client, pytest.raises(PromptInterrupted):
        client.run(ground.prompt(client, name), on_event=fill)
    assert "free some space on the disk" in ground.notes()
    ground.disk.empty()
    ground.assert_nothing_is_lost(name)
    assert "Goes on from step" in ground.notes()


def test_a_folder_that_may_only_be_read_is_said_in_the_node(ground: Ground):
    with ground.server.client() as client, pytest.raises(PromptFailed, match="Make ComfyUI's output folder writable"):
        client.run(ground.prompt(client, SHUT))
    with ground.server.client() as client:
        assert torch.equal(ground.drawn(client), ground.picture)


def test_models_that_the_host_unloads_between_two_nodes_train_the_same(ground: Ground):
    with ground.server.client() as client:
        ground.drawn(client)  # its loader is kept by the host, its models are on the device
        client.post("/free", {"unload_models": True})
        prompt, ran = ground.prompt(client, "unloaded"), []
        outputs = client.run(prompt, on_event=lambda kind, data: kind == "executing" and ran.append(data["node"]))
        assert node_id(prompt, "KilnTrainLoRA") in ran and outputs
    ground.assert_nothing_is_lost("unloaded")


def test_a_patch_whose_content_cannot_be_told_is_known_by_the_graph(ground: Ground):
    """HyperTile changes what it encloses. After another graph the host has forgotten its patch, and makes it anew."""

    def notes_of(swap_size: int) -> str:
        with ground.server.client() as client:
            prompt = ground.prompt(client, "patched")
            inputs = prompt[node_id(prompt, "KilnTrainLoRA")]["inputs"]
            tiles = {"tile_size": 32, "swap_size": swap_size, "max_depth": 0, "scale_depth": False}
            prompt["tiles"] = {"class_type": "HyperTile", "inputs": {"model": inputs["model"], **tiles}}
            inputs["model"] = ["tiles", 0]
            client.run(prompt)
            notes = ground.notes()
            ground.drawn(client)
        return notes

    assert "run patched" not in notes_of(2)
    assert "its LoRA is taken" in notes_of(2)
    assert "model is another" in notes_of(3)


def test_a_run_goes_on_without_its_page(ground: Ground):
    with ground.server.client() as client:
        prompt = ground.prompt(client, "alone")
        prompt_id = client.queue(prompt)
        next(kind for kind, data in client.events(prompt_id) if kind == "kiln.run" and data["phase"] == "training")
    Client(ground.server.url).wait(prompt_id)
    ground.assert_nothing_is_lost("alone")
    assert "its LoRA is taken" in ground.notes()


def test_two_queues_give_each_its_lora(ground: Ground):
    with ground.server.client() as one, ground.server.client() as other:
        prompts = {one: ground.prompt(one, "one"), other: ground.prompt(other, "other")}
        ids = {client: client.queue(prompt) for client, prompt in prompts.items()}
        for client, prompt_id in ids.items():
            ground.assert_whole(saved_lora(prompts[client], client.wait(prompt_id)))
    for name in ("one", "other"):
        ground.assert_nothing_is_lost(name)


def test_a_run_that_another_process_has_open_is_refused_and_its_owner_named(ground: Ground):
    name = "twice"

    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "kiln.run" and data["step"] == 2 and data["phase"] == "training":
            client.interrupt()

    with ground.server.client() as client, pytest.raises(PromptInterrupted):
        client.run(ground.prompt(client, name), on_event=stop)
    folder = ground.run_folder(name)
    (folder / "owner.json").write_text('{"pid": 4711, "host": "attic", "since": "2026-01-01 00:00:00"}')
    with (folder / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with ground.server.client() as client, pytest.raises(PromptFailed, match="is open in process 4711 on attic"):
            client.run(ground.prompt(client, name))
    ground.assert_nothing_is_lost(name)


def test_too_few_runs_to_tell_a_leak_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    given = ["leaks", "--host-dir", "h", "--workspace", "w", "--kit", "k", "--runs", str(leaks.WARM_UP + 1)]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit):
        leaks.main()
    assert "it takes 12 or more" in capsys.readouterr().err


def test_runs_one_after_another_leave_nothing_behind(ground: Ground):
    """The short form of `dev.py leaks`."""
    found = leaks.leaks(ground.server, LEAK_RUNS)[WARM_UP - 1 :]
    grown = leaks.growth(found)
    assert grown.files <= 0 and grown.threads <= 0 and grown.gpu < 1.0, found
