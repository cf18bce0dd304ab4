"""Layers that read the same tensor, computed as one."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters import DoRA, LoRA, init_lora
from lora_kiln.training.adapters.attach import attached, make_adapters
from lora_kiln.training.adapters.dropout import draw_dropout
from lora_kiln.training.adapters.flat import FlatParameters
from lora_kiln.training.adapters.layer_rules import DIFFUSION_MODEL
from lora_kiln.training.adapters.shared_input import LARGEST_GROUP, AdaptedForward, Readers, block_names, share, watched
from lora_kiln.training.config import LoRAConfig
from torch import nn

import models
from gradients import conditioning
from targets import find_targets

WIDTH, OUT, RANK, ALPHA = 32, 64, 4, 8.0
CPU = torch.device("cpu")
FAMILIES = {"sd15": models.sd15, "sdxl": models.sdxl}


class Attention(nn.Module):
    """Three layers of one input and one behind them."""

    def __init__(self, bias: bool, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(WIDTH, OUT, bias=bias) for _ in range(3))
        self.out = nn.Linear(OUT, WIDTH, bias=bias)
        self.to(dtype).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out(q * k.sigmoid() + v)


def made(model: nn.Module, dtype: torch.dtype = torch.float32, **alphas: float):
    """(forwards on the model's layers, their flat parameters); every LoRA matters."""
    forwards, adapters = {}, []
    for number, (name, layer) in enumerate(model.named_children()):
        down, up = init_lora(tuple(layer.weight.shape), RANK, torch.Generator().manual_seed(number))
        up = torch.randn(up.shape, generator=torch.Generator().manual_seed(number))
        adapters.append(LoRA(down, 0.1 * up, alphas.get(name, ALPHA)))
        forwards[name] = layer.forward = AdaptedForward(layer, adapters[-1])
    return forwards, FlatParameters(adapters, CPU, dtype)


def groups_of(model: nn.Module, forwards, x: torch.Tensor, together=lambda _: ""):
    names = {each: name for name, each in forwards.items()}
    with watched(forwards.values()) as readers:
        model(x)
    return [[names[each] for each in group] for group in readers.groups(together)]


def results(bias: bool, shared: bool, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Output, and gradients of x and of all LoRAs, of two passes."""
    model = Attention(bias, dtype)
    forwards, flat = made(model, dtype)
    if shared:
        share([forwards[name] for name in "qkv"])
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 9, WIDTH, generator=generator).to(dtype).requires_grad_()
    for _ in range(2):
        output = model(x * 1.5)
        output.backward(torch.randn(output.shape, generator=generator).to(dtype))
    return [output.detach().float(), x.grad.float(), flat.values.grad]


@pytest.mark.parametrize("bias", [False, True])
def test_it_gives_what_the_layers_give_one_by_one(bias: bool) -> None:
    for together, apart in zip(results(bias, True), results(bias, False), strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_bf16_is_as_near_to_float32_as_one_by_one() -> None:
    half = torch.bfloat16
    for exact, together, apart in zip(
        results(True, False), results(True, True, half), results(True, False, half), strict=True
    ):
        error, usual = ((each - exact).norm() / exact.norm() for each in (together, apart))
        assert error < 1.2 * usual + 1e-3


def test_who_reads_the_same_tensor_is_found() -> None:
    model = Attention(True)
    forwards, _ = made(model)
    assert groups_of(model, forwards, torch.randn(3, WIDTH)) == [["q", "k", "v"]]
    assert all(each.watch is None for each in forwards.values())


def test_only_what_is_alike_is_joined() -> None:
    x = torch.randn(3, WIDTH)
    model = Attention(False)
    forwards, _ = made(model, k=ALPHA / 2)
    assert groups_of(model, forwards, x) == []  # what lies between q and v is another
    forwards, _ = made(model := Attention(False), v=ALPHA / 2)
    assert groups_of(model, forwards, x) == [["q", "k"]]
    forwards, _ = made(model := Attention(False))
    assert groups_of(model, forwards, x, together=lambda each: each is forwards["q"]) == [["k", "v"]]


def test_weights_without_end_go_in_several_groups() -> None:
    wide, x = LARGEST_GROUP // (2 * 4 * WIDTH), torch.randn(1, WIDTH)  # two layers fit
    model = nn.ModuleDict({name: nn.Linear(WIDTH, wide, bias=False) for name in "abcde"})
    model.forward = lambda x: [layer(x) for layer in model.values()]
    forwards, _ = made(model)
    assert groups_of(model, forwards, x) == [["a", "b"], ["c", "d"]]


def test_layers_that_read_alike_numbers_are_not_taken_for_one() -> None:
    model = Attention(False)
    forwards, _ = made(model)
    readers, numbers = Readers(), torch.randn(3, WIDTH)
    for each in forwards.values():
        readers(each, numbers.clone())
    assert readers.groups(lambda _: "") == []


def test_the_weights_stay_what_they_were() -> None:
    model = Attention(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forwards, _ = made(model)
    share([forwards[name] for name in "qkv"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len({getattr(model, name).weight.untyped_storage().data_ptr() for name in "qkv"}) == 1


class TestWhatIsTaken:
    """The outputs wait for their layers, and for nobody else."""

    def setup_method(self) -> None:
        self.model = Attention(False)
        self.forwards, _ = made(self.model)
        self.alone = {name: made(Attention(False))[0][name] for name in "qkv"}
        self.shared = share([self.forwards[name] for name in "qkv"])
        self.x = torch.randn(3, WIDTH)

    def check(self, name: str, x: torch.Tensor) -> None:
        torch.testing.assert_close(self.forwards[name](x), self.alone[name](x), rtol=1e-5, atol=1e-5)

    def test_another_input_is_computed_anew(self) -> None:
        for name in "qkvq":
            self.check(name, self.x.clone())

    def test_an_input_written_to_is_computed_anew(self) -> None:
        self.check("q", self.x)
        self.x += 1.0
        self.check("k", self.x)

    def test_each_is_taken_once(self) -> None:
        first, again = self.forwards["q"](self.x), self.forwards["q"](self.x)
        assert torch.equal(first, again) and first.data_ptr() != again.data_ptr()

    def test_any_order_will_do(self) -> None:
        for name in "vqk":
            self.check(name, self.x)

    def test_nothing_is_kept_when_all_are_taken_or_forgotten(self) -> None:
        for forget in (False, True):
            x = torch.randn(3, WIDTH, requires_grad=True)
            outputs = [self.forwards[name](x) for name in ("q" if forget else "qkv")]
            if forget:
                self.shared.forget()
            alive = weakref.ref(outputs[0])
            del outputs, x
            gc.collect()
            assert alive() is None and self.shared._read is None and not self.shared._outputs

    def test_what_it_gives_may_be_written_to(self) -> None:
        q, k = self.forwards["q"](self.x), self.forwards["k"](self.x)
        q += 1.0
        torch.testing.assert_close(k, self.alone["k"](self.x), rtol=1e-5, atol=1e-5)
        (q.sum() + k.sum()).backward()

    def test_where_nothing_is_to_be_learned_each_goes_alone(self) -> None:
        with torch.no_grad():
            self.check("q", self.x)
        assert self.shared.output(self.forwards["q"], self.x.half()) is None

    def test_dropped_ranks_are_dropped_together_too(self) -> None:
        for forwards in (self.forwards, self.alone):
            adapters = {name: forwards[name].adapter for name in "qkv"}
            draw_dropout(adapters, LoRAConfig.of(rank_dropout=0.5).adapter, 1, 0, 0)
        self.check("q", self.x)
        assert self.shared.output(self.forwards["q"], self.x) is not None

    def test_a_dropout_on_one_is_left_to_the_plain_way(self) -> None:
        draw_dropout({"k": self.forwards["k"].adapter}, LoRAConfig.of(rank_dropout=0.5).adapter, 1, 0, 0)
        assert self.shared.output(self.forwards["q"], self.x) is None
        self.check("q", self.x)


# ---------------------------------------------------------------- in the host's models


def gradients(family: str, shared: bool, checkpointing: bool) -> tuple[torch.Tensor, list[list[str]]]:
    """Of all LoRAs on the attention of a small model of a family, and what was computed together."""
    small = FAMILIES[family]()
    config, said = LoRAConfig.of(rank=4, alpha=4.0, seed=1), []
    with host.training_mode():
        twin = host.trainable_twin(small.model, torch.float32)
        if checkpointing:
            host.checkpoint_blocks(twin)
        found = find_targets(twin, config.adapter.targets)
        adapters = make_adapters(found, config.adapter, config.run.seed)
        for number, adapter in enumerate(adapters.values()):
            adapter.up.data = 0.05 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(number))
        flat = FlatParameters(adapters.values(), CPU, torch.float32)
        options = host.transformer_options(small.model)
        x_t = models.random_latents(small.model, 2, seed=1)
        cond = host.batch_conds(twin, [conditioning(small)] * 2, x_t)

        def forward() -> torch.Tensor:
            return host.predict(twin, options, x_t, torch.tensor([3.0, 2.0]), cond).square().mean()

        with attached(found, adapters, host.PRODUCTS) as forwards:
            if shared:
                with watched(forwards.values()) as readers:
                    forward().backward()
                blocks = host.repeated_blocks(twin) if checkpointing else ()
                block_of = block_names([DIFFUSION_MODEL + name for name, _ in blocks], forwards)
                keys = {each: key for key, each in forwards.items()}
                for group in readers.groups(block_of.__getitem__):
                    said.append([keys[each] for each in group])
                    share(group)
            flat.values.grad.zero_()
            forward().backward()
            left = [each.shared for each in forwards.values() if each.shared is not None]
            assert not any(each._outputs for each in left)
        assert not any(each.shared for each in forwards.values())
        return flat.values.grad.clone(), said


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_models_gradients_are_the_same(family: str, checkpointing: bool) -> None:
    ours, groups = gradients(family, True, checkpointing)
    plain, _ = gradients(family, False, checkpointing)
    assert (ours - plain).norm() < 1e-4 * plain.norm()
    own = [group for group in groups if all(".attn1." in key for key in group)]
    text = [group for group in groups if all(".attn2." in key for key in group)]
    assert own and len(own) + len(text) == len(groups)
    for group in own:
        assert [key.split(".")[-2] for key in group] == ["to_q", "to_k", "to_v"]
    assert all(key.split(".")[-2] in ("to_k", "to_v") for group in text for key in group)
    if checkpointing:
        assert all(len({key.split(".transformer_blocks")[0] for key in group}) == 1 for group in text)
    else:
        assert max(map(len, text)) > 2  # of several blocks


def test_only_plain_loras_are_computed_together() -> None:
    """DoRA is made of a LoRA and scales the whole weight: as one of a group it would be a LoRA alone."""
    side = 64  # parameters of this size follow each other in memory without gaps
    layers = [nn.Linear(side, side).requires_grad_(False) for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    adapters = [DoRA.new(layer, RANK, ALPHA, generator) for layer in layers]
    FlatParameters(adapters, CPU, torch.float32)
    forwards = [AdaptedForward(layer, adapter) for layer, adapter in zip(layers, adapters, strict=True)]
    x = torch.randn(2, side)
    with watched(forwards) as readers:
        for forward in forwards:
            forward(x)
    assert readers.groups(lambda forward: None) == []
