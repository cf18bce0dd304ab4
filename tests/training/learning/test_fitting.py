"""What is tried when memory is short, and that it is the same step."""

from functools import partial
from itertools import cycle

import pytest
import torch
from comfy_extras.nodes_tomesd import TomePatchModel
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import attached, make_adapters
from lora_kiln.training.adapters.dropout import draw_dropout
from lora_kiln.training.adapters.flat import FlatParameters
from lora_kiln.training.basics.randomness import seed_generators
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.learning.batches import Batch, parts
from lora_kiln.training.learning.engine import EagerEngine
from lora_kiln.training.learning.fitting import FittingEngine, Placement, placements
from lora_kiln.training.learning.objective import batch_loss
from lora_kiln.training.learning.optimizers import make_optimizer
from lora_kiln.training.learning.step import Step

import models
from targets import find_targets

ASKED = Placement(checkpointing=False, pictures=4)
CONFIG = LoRAConfig.of(rank=4, learning_rate=1e-3, batch_size=4, targets="attention and feed-forward")
DROPPING = CONFIG.changed(rank_dropout=0.5, module_dropout=0.3)


class Small(EagerEngine):
    """Op by op, with memory for so many pictures at once; what does not fit breaks off when half is done."""

    def __init__(self, step: Step, room: int, room_later: int):
        super().__init__(step)
        self.room, self.room_later = room, room_later
        self.passes: list[int] = []
        words = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
        self.errors = cycle([torch.OutOfMemoryError("full"), RuntimeError(words)])

    def accumulate(self, batch: Batch) -> None:
        super().accumulate(batch)
        if len(batch.x_0) > self.room:
            raise next(self.errors)
        self.passes.append(len(batch.x_0))
        self.room = self.room_later or self.room


def run(
    room: int,
    most: int = 4,
    may_split: bool = True,
    batches: int = 1,
    room_later: int = 0,
    config: LoRAConfig = CONFIG,
    merges_tokens: bool = False,
):
    """Gradients and loss of a step of SDXL batches, and the engine."""
    small, said = models.sdxl(), []
    if merges_tokens:
        small.model = TomePatchModel.execute(small.model, 0.5).args[0]
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.float32)
        targets = find_targets(twin, config.adapter.targets)
        adapters = make_adapters(targets, config.adapter, config.run.seed)
        for number, adapter in enumerate(adapters.values()):
            adapter.up.data = 0.05 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(number))
        flat = FlatParameters(adapters.values(), torch.device("cpu"), torch.float32)
        optimizer = make_optimizer(config.optimization, [{"params": [flat.values], "learning_rate": 1e-3}])
        options = host.transformer_options(small.model)

        def predict(x, sigma, cond):
            return host.predict(twin, options, x, sigma, cond)

        loss_of = partial(batch_loss, predict, host.family(small.model).prediction, config.objective)
        inner = Small(Step(loss_of, optimizer, config.optimization, flats=[flat]), room, room_later)
        engine = FittingEngine(inner, most, may_split, said.append, adapters.values())
        with attached(targets, adapters, host.PRODUCTS):
            for number in range(batches):
                draw_dropout(adapters, config.adapter, config.run.seed, 0, number)
                seed_generators(config.run.seed, 0, number)
                engine.accumulate(batch(small, twin, number))
            return flat.values.grad.clone(), engine.step.loss.item(), inner, said


def batch(small, twin, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x_0, noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    conds = []
    for row in range(4):  # texts of two lengths: two groups
        text = host.encode_text(small.clip, "a " * (100 if row == 1 else row + 1))
        conds.append([[text[0][0], {**text[0][1], "width": 64 + row, "height": 64}]])
    mask = torch.rand(4, 1, 8, 8, generator=generator)
    sigma, weight = torch.tensor([0.3, 1.0, 4.0, 12.0]), torch.tensor([1.0, 0.5, 1.0, 2.0])
    return Batch(x_0, noise, sigma, weight, host.batch_conds(twin, conds, x_0), mask, 0.1 * noise)


@pytest.fixture(scope="module")
def whole():
    return run(room=4, batches=2)


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_batch_in_parts_is_the_same_step(whole, room) -> None:
    gradient, loss, inner, said = run(room, batches=2)
    assert loss == pytest.approx(whole[1], rel=1e-5)
    assert (gradient - whole[0]).norm() < 1e-5 * whole[0].norm()
    assert max(inner.passes) <= room and len(said) == (1 if room > 1 else 2) and "memory" in said[0]


def test_parts_stay_as_small_as_they_were_found_to_fit() -> None:
    assert run(room=2, batches=3)[2].passes == [2] * 6


def test_memory_that_runs_out_later_does_the_step_anew(whole) -> None:
    gradient, loss, inner, said = run(room=4, batches=2, room_later=2)
    assert inner.passes == [4, 2, 2, 2, 2] and len(said) == 1
    assert loss == pytest.approx(whole[1], rel=1e-5)
    assert (gradient - whole[0]).norm() < 1e-5 * whole[0].norm()


def test_a_step_done_anew_drops_what_each_of_its_batches_drops() -> None:
    gradient, loss, inner, _ = run(room=4, batches=3, room_later=2, config=DROPPING)
    expected = run(room=4, batches=3, config=DROPPING)
    assert inner.passes == [4, *[2] * 6]
    assert loss == pytest.approx(expected[1], rel=1e-5)
    assert (gradient - expected[0]).norm() < 1e-5 * expected[0].norm()


def test_a_step_done_anew_draws_in_the_model_what_each_of_its_batches_drew() -> None:
    expected = run(room=4, batches=2, merges_tokens=True)
    gradient, loss, inner, _ = run(room=4, batches=2, room_later=2, merges_tokens=True)
    assert inner.passes == [4, 2, 2, 2, 2]
    assert loss == pytest.approx(expected[1], rel=1e-5)
    assert (gradient - expected[0]).norm() < 1e-5 * expected[0].norm()


@pytest.mark.parametrize(("room", "may_split"), [(0, True), (2, False)])
def test_what_fits_in_no_way_ends_the_run(room, may_split) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="one picture"):
        run(room, may_split=may_split)


def test_parts_cover_the_batch_once() -> None:
    x = torch.arange(5.0).reshape(5, 1, 1, 1)
    made = list(parts(Batch(x, x, x[:, 0, 0, 0], torch.ones(5), [(list(range(5)), {"c": x})]), 2))
    assert [len(part.x_0) for part in made] == [2, 2, 1]
    assert torch.equal(torch.cat([part.cond[0][1]["c"] for part in made]), x)
    assert sum(part.weight.mean() * 1 for part in made) == pytest.approx(1.0)


def test_the_recipe_comes_first_and_each_placement_takes_less() -> None:
    tried = list(placements(ASKED, may_split=True, weights_fit=True))
    assert tried[0] == ASKED and tried[1] == Placement(True, 4) and Placement(True, 1) in tried
    assert tried[-1] == Placement(True, 1, 0.0) and len(set(tried)) == len(tried)
    for before, after in zip(tried, tried[1:], strict=False):
        assert after.pictures <= before.pictures and after.resident <= before.resident


def test_weights_that_do_not_fit_are_streamed_at_once_and_live_batches_stay_whole() -> None:
    assert all(each.resident < 1.0 for each in placements(ASKED, may_split=True, weights_fit=False))
    assert all(each.pictures == 4 for each in placements(ASKED, may_split=False, weights_fit=True))


def test_a_placement_says_what_it_is() -> None:
    assert Placement(True, 1, 0.25).words(4) == (
        "gradient checkpointing, 1 of 4 pictures at a time, 75% of the blocks' weights brought from RAM"
    )
