"""Code of other nodes in the forward pass: what changes tensors in place, what breaks gradients, what raises."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.host.guard import Guarded, name_of

import models
from gradients import Probe, distance

Gradients = list[torch.Tensor]


@pytest.fixture(scope="module")
def small() -> models.Small:
    return models.sd15()


@pytest.fixture(scope="module")
def plain(small: models.Small) -> Gradients:
    """The gradients without any patch."""
    return gradients(small.model, small)


def gradients(model: Any, small: models.Small, checkpointing: bool = False) -> Gradients:
    with host.training_mode():
        twin = host.trainable_twin(model, torch.float32)
        if checkpointing:
            host.checkpoint_blocks(twin, draws=True)
        return Probe(models.Small(model, small.clip, small.vae), 3.0, twin, targets="attention").gradients()


# ---------------------------------------------------------------- in place


def skips_in_place(h: torch.Tensor, hsp: torch.Tensor, options: Any) -> Any:
    hsp.mul_(0.5).add_(h.mean())
    h[:, :3] = h[:, :3] * h.mean(1, keepdim=True)
    return h, hsp


def skips(h: torch.Tensor, hsp: torch.Tensor, options: Any) -> Any:
    hsp = hsp * 0.5 + h.mean()
    return torch.cat([h[:, :3] * h.mean(1, keepdim=True), h[:, 3:]], 1), hsp


def queries_in_place(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Any) -> Any:
    q *= q.sigmoid()  # q, k and v are one tensor here
    return q, k, v


def queries(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Any) -> Any:
    q = q * q.sigmoid()
    return q, q, q


def middle_in_place(args: dict[str, Any]) -> dict[str, Any]:
    args["h"].mul_(args["h"].sigmoid())
    return args


def middle(args: dict[str, Any]) -> dict[str, Any]:
    return {**args, "h": args["h"] * args["h"].sigmoid()}


IN_PLACE = {
    "output_block_patch": (skips_in_place, skips),
    "attn1_patch": (queries_in_place, queries),
    "middle_block_after_patch": (middle_in_place, middle),
}
"""Place of the patch -> (in place, its plain form)"""


@pytest.mark.parametrize("place", IN_PLACE)
def test_a_patch_in_place_has_the_gradient_of_its_plain_form(place: str, small: models.Small, plain: Gradients) -> None:
    found = []
    for patch, checkpointing in zip((*IN_PLACE[place], IN_PLACE[place][0]), (False, False, True), strict=True):
        model = small.model.clone()
        model.set_model_patch(patch, place)
        found.append(gradients(model, small, checkpointing))
    in_place, expected, checkpointed = found
    assert distance(in_place, expected) < 1e-5 and distance(checkpointed, expected) < 1e-5
    assert distance(in_place, plain) > 1e-3


def test_what_is_changed_in_place_and_left_out_of_the_result_is_in_it() -> None:
    def control(args: dict[str, Any]) -> dict[str, Any]:
        args.pop("txt")
        args.pop("img").add_(1.0)
        return args

    img, txt = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    result = Guarded(control, "control")({"img": img * 1.0, "txt": txt * 1.0, "block_index": 3})
    assert result.keys() == {"img", "block_index"} and result["img"].tolist() == [1.0, 1.0]
    assert result["img"].requires_grad and img.tolist() == [0.0, 0.0]


# ---------------------------------------------------------------- broken gradients and errors


def test_a_patch_that_breaks_the_gradient_is_named(small: models.Small) -> None:
    model = small.model.clone()
    model.set_model_attn1_replace(lambda q, k, v, options: q.detach() + v.detach(), "middle", 0)
    name = "test_a_patch_that_breaks_the_gradient_is_named.<lambda> of .*test_guard gives back"
    with pytest.raises(InputError, match=name):
        gradients(model, small)


def test_a_patch_that_raises_is_named_with_its_error(small: models.Small) -> None:
    model = small.model.clone()

    def reads_too_much(h: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return h * options["what no sampler tells"]

    model.set_model_input_block_patch(reads_too_much)
    with pytest.raises(
        InputError, match=r"its patch .*reads_too_much of .*test_guard does not .*KeyError: 'what no sam"
    ):
        gradients(model, small)


@pytest.mark.parametrize("error", [RuntimeError("MPS backend out of memory"), MemoryError(), host.Interrupted()])
def test_what_is_no_fault_of_a_patch_passes(error: BaseException) -> None:
    def breaks_off(h: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(type(error)), torch.enable_grad():
        Guarded(breaks_off, "breaks_off")(torch.zeros(1))


def test_a_class_in_a_patch_stays_a_class(small: models.Small, plain: Gradients) -> None:
    """The host asks of a forward_timestep_embed_patch which layers it is for."""
    model = small.model.clone()

    def doubled(
        layer: Any, x: torch.Tensor, emb: Any, context: Any, options: Any, output_shape: Any, *rest: Any
    ) -> Any:
        return 2.0 * layer(x, output_shape=output_shape)

    model.set_model_patch((Upsample, doubled), "forward_timestep_embed_patch")
    assert distance(gradients(model, small), plain) > 1e-3


def test_names_say_which_pack() -> None:
    def local() -> None: ...

    local.__module__ = "/home/me/ComfyUI/custom_nodes/some_pack.nodes.speed"
    assert name_of(local) == "test_names_say_which_pack.local of some_pack.nodes.speed"


# ---------------------------------------------------------------- object patches

ATTENTION = "diffusion_model.middle_block.1.transformer_blocks.0.attn1"


def with_object_patch(small: models.Small, path: str, patch: Any) -> Any:
    model = small.model.clone()
    model.add_object_patch(path, patch)
    return model


def test_an_object_patch_that_breaks_the_gradient_is_named(small: models.Small) -> None:
    model = with_object_patch(small, f"{ATTENTION}.forward", lambda x, **options: x.detach())
    with pytest.raises(InputError, match=rf"its patch {ATTENTION}.forward \(.*<lambda> of .*test_guard\) gives back"):
        gradients(model, small)


class Detached(torch.nn.Module):
    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return x.detach()


def test_a_module_that_breaks_the_gradient_is_named(small: models.Small) -> None:
    with pytest.raises(InputError, match=rf"its patch {ATTENTION} \(Detached of .*test_guard\) gives back"):
        gradients(with_object_patch(small, ATTENTION, Detached()), small)


def test_an_object_patch_in_place_has_the_gradient_of_its_plain_form(small: models.Small) -> None:
    found = []
    for patch in (lambda x, **options: x.mul_(x.sigmoid()), lambda x, **options: x * x.sigmoid()):
        model = with_object_patch(small, f"{ATTENTION}.forward", patch)
        found.append(gradients(model, small, checkpointing=True))
    assert distance(*found) < 1e-5


def test_a_guarded_object_patch_keeps_no_twin_alive(small: models.Small) -> None:
    model = with_object_patch(small, f"{ATTENTION}.forward", lambda x, **options: x)
    with host.training_mode():
        twin = weakref.ref(host.trainable_twin(model, torch.float32))
    gc.collect()
    assert twin() is None
