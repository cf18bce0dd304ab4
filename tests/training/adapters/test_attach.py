"""Which layers get an adapter, and putting adapters on and off."""

from __future__ import annotations

import math

import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.quant_ops import QuantizedTensor
from lora_kiln.training import host
from lora_kiln.training.adapters import DoRA, LoRA
from lora_kiln.training.adapters.attach import (
    Target,
    adapters_by_rate,
    attached,
    describe,
    find_text_targets,
    make_adapters,
)
from lora_kiln.training.adapters.dropout import check_dropout, clear_dropout, draw_dropout
from lora_kiln.training.adapters.layer_rules import parse_layer_rules
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import ADAPTERS, TARGETS, LoRAConfig
from torch import nn

from models import hooks, randomise, sd15, sdxl
from targets import find_targets

ATTENTION, FEED_FORWARD, BLOCKS, ALL, STYLE, CONTENT = TARGETS
CONFIG = LoRAConfig.of(rank=2, alpha=1.0, targets=ALL, seed=3)
META = {"device": "meta", "dtype": torch.bfloat16, "operations": comfy.ops.disable_weight_init}


class Base(nn.Module):
    """Holds a diffusion model, as the host's BaseModel does."""

    def __init__(self, diffusion_model: nn.Module):
        super().__init__()
        self.diffusion_model = diffusion_model


def adapters_of(found, config: LoRAConfig) -> dict:
    return make_adapters(found, config.adapter, config.run.seed)


def with_(**changes) -> LoRAConfig:
    return CONFIG.changed(**changes)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    """The host's SD1.5 UNet, narrow."""
    return sd15().model.model


@pytest.fixture(scope="module")
def xl():
    """SDXL, narrow."""
    return sdxl()


@pytest.fixture
def small() -> Base:
    """A convolution and a linear layer in a row."""
    base = Base(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 16, 6)))
    randomise(base, 0)
    return base.requires_grad_(False)


def learned(found, config: LoRAConfig = CONFIG):
    """Adapters all of whose parameters have moved."""
    adapters, generator = adapters_of(found, config), torch.Generator().manual_seed(0)
    for adapter in adapters.values():
        for parameter in adapter.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapters


# ---------------------------------------------------------------- which layers


def last_parts(model: nn.Module, targets: str) -> set[str]:
    """The targets' paths without numbers and without the blocks before the transformer's."""
    paths = [target.name.removeprefix("diffusion_model.").split(".") for target in find_targets(Base(model), targets)]
    return {".".join(part for part in path if not part.isdigit()) for path in paths}


def sd_unet(**sizes) -> nn.Module:
    """A full-size UNet without memory."""
    common = dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, legacy=False)
    return UNetModel(**common, use_spatial_transformer=True, **sizes, **META)


@pytest.mark.parametrize(
    ("sizes", "attention", "both", "blocks"),
    [
        (
            dict(
                num_res_blocks=[2] * 4, channel_mult=(1, 2, 4, 4), transformer_depth=[1] * 6 + [0] * 2,
                transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, num_heads=8, context_dim=768,
            ),
            160,
            192,
            278,
        ),
        (
            dict(
                num_res_blocks=[2] * 3, channel_mult=(1, 2, 4), transformer_depth=[0, 0, 2, 2, 10, 10],
                transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10,
                num_head_channels=64, use_linear_in_transformer=True, context_dim=2048, num_classes="sequential",
                adm_in_channels=2816,
            ),
            582,
            722,
            788,
        ),
    ],
    ids=["SD1.5", "SDXL"],
)  # fmt: skip
def test_full_size_unets_have_as_many_layers_as_kohya_trains(sizes, attention: int, both: int, blocks: int) -> None:
    base = Base(sd_unet(**sizes))
    assert len(find_targets(base, ATTENTION)) == attention and len(find_targets(base, FEED_FORWARD)) == both
    locon = {target.name for target in find_targets(base, BLOCKS)}
    assert len(locon) == blocks
    outside = {target.name for target in find_targets(base, ALL)} - locon
    assert all(name.split(".")[1] in ("time_embed", "label_emb", "out", "input_blocks") for name in outside)
    assert "diffusion_model.input_blocks.0.0" in outside


def test_targets_of_a_unet(unet: nn.Module) -> None:
    attention = {name.split("transformer_blocks.")[-1] for name in last_parts(unet.diffusion_model, ATTENTION)}
    both = {name.split("transformer_blocks.")[-1] for name in last_parts(unet.diffusion_model, FEED_FORWARD)}
    projections = {
        f"{block}.{name}"
        for block in ("input_blocks", "middle_block", "output_blocks")
        for name in ("proj_in", "proj_out")
    }
    heads = {f"attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out")}
    assert attention == heads | projections
    assert both == heads | projections | {"ff.net.proj", "ff.net"}


def test_targets_of_flux() -> None:
    flux = Flux(
        image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=64, hidden_size=128,
        mlp_ratio=4.0, num_heads=1, depth=2, depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
        qkv_bias=True, guidance_embed=True, txt_ids_dims=[], **META,
    )  # fmt: skip
    attention = {f"double_blocks.{side}_attn.{name}" for side in ("img", "txt") for name in ("qkv", "proj")}
    attention |= {"single_blocks.linear1", "single_blocks.linear2"}
    assert last_parts(flux, ATTENTION) == attention
    assert last_parts(flux, FEED_FORWARD) == attention | {"double_blocks.img_mlp", "double_blocks.txt_mlp"}
    rest = last_parts(flux, ALL) - last_parts(flux, FEED_FORWARD)
    assert {"img_in", "final_layer.linear", "single_blocks.modulation.lin", "time_in.in_layer"} <= rest


def test_targets_of_sd3() -> None:
    sd3 = OpenAISignatureMMDITWrapper(
        in_channels=16, patch_size=2, depth=2, num_patches=64, pos_embed_max_size=8, adm_in_channels=32,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
        x_block_self_attn_layers=[0], **META,
    )  # fmt: skip
    attention = {f"joint_blocks.{b}.{n}" for b in ("x_block", "context_block") for n in ("attn.qkv", "attn.proj")}
    attention |= {"joint_blocks.x_block.attn2.qkv", "joint_blocks.x_block.attn2.proj"}
    mlp = {f"joint_blocks.{b}.mlp.{n}" for b in ("x_block", "context_block") for n in ("fc1", "fc2")}
    assert last_parts(sd3, ATTENTION) == attention and last_parts(sd3, FEED_FORWARD) == attention | mlp
    rest = last_parts(sd3, ALL) - attention - mlp
    assert {"t_embedder.mlp", "joint_blocks.x_block.adaLN_modulation", "final_layer.linear"} <= rest


class Block(nn.Module):
    """Two blocks with a linear layer at each path."""

    def __init__(self, paths: str):
        super().__init__()
        for path in paths.split():
            parts, module = path.split("."), self
            for part in parts[:-1]:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.add_module(parts[-1], nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("attention", "feed_forward", "rest"),
    [
        ("self_attn.q cross_attn.k_img", "ffn.0 ffn.2", "head.head time_projection.1"),
        ("attention.qkv attention.out", "feed_forward.w1", "adaLN_modulation.1"),
        ("attn.to_q attn.add_k_proj attn.to_out.0", "img_mlp.net.0.proj txt_mlp.net.2", "img_mod.1 txt_mod.1"),
        ("attn.w1q attn.w2o", "mlpX.c_fc1 mlpC.c_proj", "modX.1 modC.1"),
        ("self_attn.q_proj", "mlp.layer1", "adaln_modulation_self_attn.1 adaln_modulation_mlp.1"),
        ("attn1.to_q_t", "ff_i.experts.0.w1 ff_t.w2", "norm1.linear"),
        ("q k v attn_out", "ff_proj ff_out", "norm1.linear"),
    ],
    ids=["Wan", "Lumina", "Qwen-Image", "AuraFlow", "Cosmos-Predict2", "HiDream", "CogVideoX"],
)
def test_blocks_of_other_families(attention: str, feed_forward: str, rest: str) -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([Block(f"{attention} {feed_forward} {rest}")])
    model.t_embedder = Block("mlp.0 attn.qkv")
    names = {
        choice: [t.name.split("blocks.0.")[-1] for t in find_targets(Base(model), choice)]
        for choice in (ATTENTION, FEED_FORWARD, BLOCKS, ALL)
    }
    assert set(names[ATTENTION]) == set(attention.split())
    assert set(names[FEED_FORWARD]) == set(names[BLOCKS]) == {*attention.split(), *feed_forward.split()}
    assert len(names[ALL]) == len(f"{attention} {feed_forward} {rest}".split()) + 2


def test_content_and_style_are_one_block_of_sdxl_each(xl) -> None:
    for choice, block in ((CONTENT, "0"), (STYLE, "1")):
        names = {target.name for target in find_targets(xl.model.model, choice)}
        start = f"diffusion_model.output_blocks.{block}.1."
        assert names == {t.name for t in find_targets(xl.model.model, FEED_FORWARD) if t.name.startswith(start)}
        assert f"{start}transformer_blocks.0.attn2.to_v" in names and f"{start}proj_in" in names


def test_every_linear_and_convolution_layer_is_a_target_where_all_are_asked(unet: nn.Module) -> None:
    layers = [m for m in unet.diffusion_model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert {id(target.module) for target in find_targets(unet, ALL)} == {id(layer) for layer in layers}


@pytest.mark.parametrize("targets", TARGETS)
def test_a_model_without_such_layers_is_refused(targets: str) -> None:
    with pytest.raises(InputError, match="no such layer"):
        find_targets(Base(nn.Sequential(nn.SiLU())), targets)


def test_layers_outside_the_diffusion_model_are_left_alone() -> None:
    base = Base(nn.Sequential(nn.Linear(4, 4)))
    base.other = nn.Linear(4, 4)
    assert [target.name for target in find_targets(base, ALL)] == ["diffusion_model.0"]


def test_grouped_convolutions_are_left_alone() -> None:
    base = Base(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4)))
    assert [target.name for target in find_targets(base, ALL)] == ["diffusion_model.1"]


def test_clip_encoders_give_attention_and_feed_forward(xl) -> None:
    encoder = xl.clip.cond_stage_model
    found = find_text_targets(encoder)
    assert {target.key for target in found} <= set(encoder.state_dict())
    assert {target.name.split(".")[0] for target in found} == {"clip_l", "clip_g"}
    layers = {target.name.split("encoder.layers.0.")[1] for target in found if ".layers.0." in target.name}
    assert layers == {*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"}
    assert len(found) == 2 * 3 * 6


def test_other_text_encoders_are_refused() -> None:
    with pytest.raises(InputError, match="text_encoder_learning_rate"):
        find_text_targets(Block("t5xxl.transformer.encoder.block.layer.SelfAttention.q"))


# ---------------------------------------------------------------- making them


def test_each_layer_has_its_rank_and_alpha(small: Base) -> None:
    found = find_targets(small, ALL)
    convolution, linear = adapters_of(found, with_(conv_rank=3, conv_alpha=6.0)).values()
    assert (convolution.rank, convolution.alpha, linear.rank, linear.alpha) == (3, 6.0, 2, 1.0)
    convolution, linear = adapters_of(found, CONFIG).values()
    assert (convolution.rank, convolution.alpha, linear.rank, linear.alpha) == (2, 1.0, 2, 1.0)


def test_a_convolution_of_size_one_counts_as_linear() -> None:
    found = find_targets(Base(nn.Sequential(nn.Conv2d(4, 4, 1))), ALL)
    assert [adapter.rank for adapter in adapters_of(found, with_(conv_rank=7)).values()] == [2]


def test_rslora_scales_by_the_root_of_the_rank(small: Base) -> None:
    for adapter in adapters_of(find_targets(small, ALL), with_(rslora=True, rank=9, alpha=6.0)).values():
        assert adapter.scale == pytest.approx(6.0 / math.sqrt(9))
        assert adapter.tensors()["alpha"] / adapter.rank == pytest.approx(6.0 / math.sqrt(9))


def test_layer_rules_set_rank_alpha_and_learning_rate(small: Base) -> None:
    found = find_targets(small, ALL)
    rules = "* lr=0.5\n2 rank=5 alpha=10 lr=0.1"
    adapters = adapters_of(found, with_(layer_rules=rules))
    convolution, linear = adapters.values()
    assert (convolution.rank, convolution.scale, linear.rank, linear.scale) == (2, 0.5, 5, 2.0)
    groups = adapters_by_rate(adapters, 1e-3, parse_layer_rules(rules))
    assert list(groups) == pytest.approx([5e-4, 1e-4]) and list(groups.values()) == [[convolution], [linear]]


def test_layers_of_one_learning_rate_are_one_group(small: Base) -> None:
    ((rate, members),) = adapters_by_rate(adapters_of(find_targets(small, ALL), CONFIG), 1e-3, ()).items()
    assert len(members) == 2 and rate == 1e-3


def test_a_rank_of_zero_leaves_the_layer_out(small: Base) -> None:
    found = find_targets(small, ALL)
    adapters = adapters_of(found, with_(layer_rules="diffusion_model.0 rank=0"))
    assert list(adapters) == ["diffusion_model.2.weight"]
    with attached(found, adapters, host.PRODUCTS):
        assert "forward" not in vars(found[0].module) and "forward" in vars(found[1].module)
    with pytest.raises(InputError, match="every layer rank=0"):
        adapters_of(found, with_(layer_rules="* rank=0"))


def test_rules_are_judged_over_all_targets_together(small: Base, xl) -> None:
    found, text = find_targets(small, ALL), find_text_targets(xl.clip.cond_stage_model)
    config = with_(layer_rules="clip_g.* rank=4")
    with pytest.raises(InputError, match=r"clip_g\.\*"):
        adapters_of(found, config)
    ranks = {key.split(".")[0]: adapter.rank for key, adapter in adapters_of([*found, *text], config).items()}
    assert ranks == {"diffusion_model": 2, "clip_l": 2, "clip_g": 4}


@pytest.mark.parametrize(("kind", "field"), [("lokr", "rank_dropout"), ("oft", "rank_dropout"), ("oft", "dropout")])
def test_a_dropout_that_has_no_place_is_refused(small: Base, kind: str, field: str) -> None:
    with pytest.raises(InputError, match=rf"\b{field} is 0.1, but {kind}"):
        adapters_of(find_targets(small, ALL), with_(adapter=kind, **{field: 0.1}))


def test_dropouts_that_have_a_place_are_taken(small: Base) -> None:
    found = find_targets(small, ALL)
    for kind in ADAPTERS:
        adapters = adapters_of(found, with_(adapter=kind, module_dropout=0.1))
        assert {adapter.kind for adapter in adapters.values()} == {kind}
    check_dropout(adapters_of(found, CONFIG).values(), with_(dropout=0.1, rank_dropout=0.1).adapter)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_adapters_follow_from_the_seed(small: Base, kind: str) -> None:
    found = find_targets(small, ALL)
    one, same, other = (adapters_of(found, with_(adapter=kind, seed=seed)) for seed in (1, 1, 2))
    for key in one:
        a, b, c = (adapters[key].tensors() for adapters in (one, same, other))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert not all(torch.equal(a[name], c[name]) for name in a)


def test_an_adapter_does_not_know_the_others(small: Base) -> None:
    found = find_targets(small, ALL)
    key = found[1].key
    alone, together = adapters_of(found[1:], CONFIG)[key], adapters_of(found, CONFIG)[key]
    assert isinstance(alone, LoRA) and isinstance(together, LoRA) and torch.equal(alone.down, together.down)


def test_a_description_counts_layers_and_parameters(small: Base, xl) -> None:
    found, text = find_targets(small, ALL), find_text_targets(xl.clip.cond_stage_model)
    adapters = adapters_of(found, CONFIG)
    assert describe(adapters) == "lora on 2 layers, 202 parameters"
    both = adapters | adapters_of(text[:1], with_(adapter="dora"))
    assert describe(both) == "lora on 2 layers, 202 parameters; dora on 1 layer, 160 parameters in the text encoders"
    assert describe(adapters_of(text[:1], CONFIG)) == "lora on 1 layer, 128 parameters in the text encoders"


# ---------------------------------------------------------------- on and off


@pytest.mark.parametrize("kind", ADAPTERS)
def test_fresh_adapters_change_nothing(small: Base, kind: str) -> None:
    found, x = find_targets(small, ALL), torch.randn(2, 3, 4, 4)
    expected = small.diffusion_model(x)
    with attached(found, adapters_of(found, with_(adapter=kind))):
        assert torch.equal(small.diffusion_model(x), expected)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_attached_adapters_are_the_merged_weights(small: Base, kind: str) -> None:
    found, x = find_targets(small, ALL), torch.randn(2, 3, 4, 4)
    adapters = learned(found, with_(adapter=kind))
    with torch.no_grad():
        with attached(found, adapters, host.PRODUCTS):
            bypass = small.diffusion_model(x)
        for target in found:
            target.module.weight.copy_(adapters[target.key].merged(target.module.weight))
        torch.testing.assert_close(bypass, small.diffusion_model(x), rtol=1e-4, atol=1e-4)


def test_adapters_come_off_at_the_end(small: Base) -> None:
    found, x = find_targets(small, ALL), torch.randn(2, 3, 4, 4)
    expected, before = small.diffusion_model(x), hooks(small)
    with attached(found, learned(found)):
        assert not torch.allclose(small.diffusion_model(x), expected)
    assert hooks(small) == before and torch.equal(small.diffusion_model(x), expected)


def test_adapters_come_off_after_an_error(small: Base) -> None:
    found, before = find_targets(small, ALL), hooks(small)
    with pytest.raises(KeyboardInterrupt), attached(found, learned(found)):
        raise KeyboardInterrupt
    assert hooks(small) == before


def test_an_adapter_without_a_layer_is_an_error_and_leaves_nothing_behind(small: Base) -> None:
    found, before = find_targets(small, ALL), hooks(small)
    with pytest.raises(KeyError), attached(found[:1], learned(found)):
        pass
    assert hooks(small) == before


def test_a_forward_that_others_have_put_on_stays(small: Base) -> None:
    found, x = find_targets(small, ALL), torch.randn(2, 3, 4, 4)
    theirs = small.diffusion_model[0].forward
    small.diffusion_model[0].forward = lambda x: theirs(x) + 1
    patched, expected = small.diffusion_model[0].forward, small.diffusion_model(x)
    with attached(found, adapters_of(found, CONFIG)):
        assert torch.equal(small.diffusion_model(x), expected)
    assert small.diffusion_model[0].forward is patched and "forward" not in vars(small.diffusion_model[2])


@pytest.mark.parametrize("kind", ADAPTERS)
def test_weights_do_not_change_while_adapters_learn(small: Base, kind: str) -> None:
    found = find_targets(small, ALL)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    adapters = learned(found, with_(adapter=kind))
    parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
    with attached(found, adapters, host.PRODUCTS):
        small.diffusion_model(torch.randn(2, 3, 4, 4)).square().sum().backward()
    torch.optim.SGD(parameters, lr=1.0).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_gradients_agree_with_and_without_checkpointing(kind: str) -> None:
    """On the host's own UNet, with every dropout that the kind has."""
    model, gradients = sd15().model, []
    is_dropping = {"module_dropout": 0.2, "dropout": 0.0 if kind == "oft" else 0.2}
    is_dropping["rank_dropout"] = 0.2 if kind in ("lora", "dora", "loha") else 0.0
    config = with_(adapter=kind, targets=FEED_FORWARD, **is_dropping)
    with host.training_mode():
        for checkpointed in (False, True):
            twin = host.trainable_twin(model, torch.float32)
            if checkpointed:
                assert host.checkpoint_blocks(twin)
            found = find_targets(twin, config.adapter.targets)
            adapters = learned(found, config)
            draw_dropout(adapters, config.adapter, config.run.seed, 0, 0)
            generator = torch.Generator().manual_seed(5)
            x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 32, generator=generator)
            options = host.transformer_options(model)
            with attached(found, adapters, host.PRODUCTS):
                output = twin.diffusion_model(x, torch.tensor([10.0, 700.0]), context, transformer_options=options)
                output.square().mean().backward()
            gradients.append([p.grad for adapter in adapters.values() for p in adapter.parameters()])
    assert any(gradient is None or not gradient.any() for gradient in gradients[0])  # of the adapters left out
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.allclose(one, other, rtol=1e-4, atol=1e-7))


def test_an_adapter_sits_on_a_quantised_layer() -> None:
    """The host's linear layer for quantised models is no nn.Linear."""
    layer = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(32, 16, dtype=torch.float32)
    weight, x = 0.1 * torch.randn(16, 32), torch.randn(3, 32)
    quantised = QuantizedTensor.from_float(weight, "TensorCoreFP8E4M3Layout", scale="recalculate")
    layer.weight = nn.Parameter(quantised, requires_grad=False)
    layer.bias = nn.Parameter(torch.randn(16), requires_grad=False)
    for kind in ADAPTERS:
        found = find_targets(Base(nn.ModuleList([layer])), ALL)
        adapters = learned(found, with_(adapter=kind))
        expected = nn.functional.linear(x, adapters[found[0].key].merged(quantised.dequantize()), layer.bias)
        with attached(found, adapters, host.PRODUCTS):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- dropout


def outputs(small: Base, found: list[Target], adapters, config: LoRAConfig, *times: tuple[int, int]):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), attached(found, adapters, host.PRODUCTS):
        for step, micro in times:
            draw_dropout(adapters, config.adapter, config.run.seed, step, micro)
            yield small.diffusion_model(x)


@pytest.mark.parametrize("field", ["dropout", "rank_dropout", "module_dropout"])
def test_dropout_follows_from_seed_step_and_batch(small: Base, field: str) -> None:
    found = find_targets(small, ALL)
    config = with_(rank=8, **{field: 0.5})
    adapters = learned(found, config)
    one, other, again = outputs(small, found, adapters, config, (4, 0), (4, 1), (4, 0))
    assert torch.equal(one, again) and (not torch.equal(one, other) or field == "module_dropout")
    many = list(outputs(small, found, adapters, config, *((step, 0) for step in range(12))))
    assert len({output.sum().item() for output in many}) > 2


def test_samples_are_drawn_without_dropout(small: Base) -> None:
    found = find_targets(small, ALL)
    config = with_(dropout=0.5, rank_dropout=0.5, module_dropout=0.5)
    adapters, x = learned(found, config), torch.randn(2, 3, 4, 4)
    with torch.no_grad(), attached(found, adapters, host.PRODUCTS):
        expected = small.diffusion_model(x)
        draw_dropout(adapters, config.adapter, config.run.seed, 0, 0)
        assert not torch.allclose(small.diffusion_model(x), expected)
        clear_dropout(adapters)
        assert torch.equal(small.diffusion_model(x), expected)


def test_module_dropout_leaves_its_share_out_and_never_all(small: Base) -> None:
    found = find_targets(small, ALL)
    config = with_(module_dropout=0.5)
    adapters, left_out = adapters_of(found, config), []
    for step in range(400):
        draw_dropout(adapters, config.adapter, config.run.seed, step, 0)
        left_out.append(sum(not adapter.dropped.ranks.any() for adapter in adapters.values()))
    assert max(left_out) == 1  # of two
    assert sum(left_out) / 400 == pytest.approx(0.75, abs=0.07)  # one of two coins, or both and one comes back


def test_dora_is_dora_on_every_layer_but_those_of_one_row(small: Base) -> None:
    small.diffusion_model.append(nn.Linear(6, 1))
    kinds = [type(adapter) for adapter in adapters_of(find_targets(small, ALL), with_(adapter="dora")).values()]
    assert kinds == [DoRA, DoRA, LoRA]
