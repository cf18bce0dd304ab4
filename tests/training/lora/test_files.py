"""LoRA files of other programs: read as adapters, kept where they cannot be trained, refused where they are none."""

import json
import struct
from pathlib import Path

import comfy.lora
import pytest
import torch
from comfy.weight_adapter import LoHaAdapter, LoRAAdapter
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import find_targets, make_adapters
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.lora.describe import describe_lora
from lora_kiln.training.lora.export import as_format, lora_tensors
from lora_kiln.training.lora.files import read_adapters, read_lora_file
from lora_kiln.training.lora.keys import layers_of, split_key
from lora_kiln.training.lora.lora import LoRAModel
from lora_kiln.training.lora.merge import Part, merge_loras
from lora_kiln.training.lora.save import save_lora
from safetensors.torch import load_file, save_file

import models
from loras import core_trainers_file, random_adapters, random_lora
from models import flux, sd3, sd15, sdxl

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
WIDTH = models.WIDTH


@pytest.fixture(scope="module", params=[sd15, sdxl, sd3, flux], ids=["sd15", "sdxl", "sd3", "flux"])
def small(request: pytest.FixtureRequest):
    return request.param()


@pytest.fixture(scope="module")
def names():
    small = sd15()
    return host.layer_names(small.model, small.clip)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_our_own_file_comes_back_bit_for_bit(small, form: str) -> None:
    names = host.layer_names(small.model, small.clip)
    lora = random_lora(small)
    found = read_adapters(as_format(lora, form), names)
    assert found.kept == {} and found.unknown == []
    assert same(lora_tensors(found.adapters, names, "fp32"), dict(lora))


def test_half_precision_comes_back_bit_for_bit(names) -> None:
    tensors = lora_tensors(random_adapters(names), names, "fp16")
    assert same(lora_tensors(read_adapters(tensors, names).adapters, names, "fp16"), tensors)


@pytest.mark.parametrize("alpha", [4.0, 3.0])
def test_the_peft_form_means_the_same_and_keeps_the_rank(small, alpha: float) -> None:
    """Also where diffusers splits q, k and v: the parts have one lora_A, so they are one adapter again."""
    names = host.layer_names(small.model, small.clip)
    adapters = random_adapters(names, rank=4, alpha=alpha)
    wanted = {key: adapter for key, adapter in adapters.items() if names[key].diffusers}
    lora = LoRAModel(lora_tensors(wanted, names, "fp32"), {}, "a", {names[key].kohya: names[key] for key in wanted})
    form = as_format(lora, "diffusers")
    found = read_adapters(form, names)
    assert found.unknown == [] and found.kept == {} and found.adapters.keys() == wanted.keys()
    for key, adapter in found.adapters.items():
        assert adapter.rank == adapter.alpha == 4
        torch.testing.assert_close(adapter.difference(), wanted[key].difference())
    again = as_format(LoRAModel(form, {}, "a"), "diffusers", names)
    assert same(dict(again), dict(form))
    kohya = as_format(LoRAModel(form, {}, "a"), "kohya", names)
    assert same(lora_tensors(found.adapters, names, "fp32"), dict(kohya))


# ---------------------------------------------------------------- other spellings


SPELLINGS = [
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight", "A", "B"),
    ("base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight", "A", "B"),
    ("unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight", "A", "B"),
    ("base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.default.weight", "A", "B"),
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight", "down", "up"),
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight", "down", "up"),
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight", "down", "up"),
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_linear_layer.{}.weight", "down", "up"),
    ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_{}.weight", "down", "up"),
    ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_{}.weight", "down", "up"),
    ("lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_{}.weight", "down", "up"),
    ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_{}.weight", "down", "up"),
]


@pytest.mark.parametrize(("pattern", "down", "up"), SPELLINGS, ids=[pattern for pattern, *_ in SPELLINGS])
def test_every_spelling_finds_the_weight(pattern: str, down: str, up: str, names) -> None:
    factors = {"down": torch.randn(2, WIDTH), "up": torch.randn(WIDTH, 2)}
    found = read_adapters({pattern.format(down): factors["down"], pattern.format(up): factors["up"]}, names)
    assert found.unknown == [] and list(found.adapters) == [KEY]
    torch.testing.assert_close(found.adapters[KEY].difference(), factors["up"] @ factors["down"])


@pytest.mark.parametrize(
    "module",
    [
        "text_encoder.text_model.encoder.layers.1.self_attn.out_proj.lora_linear_layer.{}.weight",
        "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.{}.weight",
        "text_encoder.encoder.layers.1.self_attn.out_proj.lora.{}.weight",
        "lora_te_text_model_encoder_layers_1_self_attn_out_proj.lora_{}.weight",
        "lora_te1_text_model_encoder_layers_1_self_attn_out_proj.lora_{}.weight",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.1.self_attn.out_proj.lora_{}.weight",
    ],
)
def test_every_spelling_finds_the_text_encoders_weight(module: str, names) -> None:
    lora = {module.format("down"): torch.randn(2, WIDTH), module.format("up"): torch.randn(WIDTH, 2)}
    found = read_adapters(lora, names)
    assert list(found.adapters) == ["clip_l.transformer.text_model.encoder.layers.1.self_attn.out_proj.weight"]


def test_the_older_name_of_the_output_projection(names) -> None:
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora"
    lora = {f"{module}.down.weight": torch.randn(2, 2 * WIDTH), f"{module}.up.weight": torch.randn(2 * WIDTH, 2)}
    assert list(read_adapters(lora, names).adapters) == [
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_out.0.weight"
    ]


def test_separate_adapters_of_q_k_and_v_become_one_that_does_the_same() -> None:
    small = sd3()
    names = host.layer_names(small.model)
    key = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    generator = torch.Generator().manual_seed(0)
    lora, expected = {}, torch.zeros(384, 128)
    for number, (part, rank, alpha) in enumerate([("to_v", 3, 1.5), ("to_q", 2, None)]):
        down, up = torch.randn(rank, 128, generator=generator), torch.randn(128, rank, generator=generator)
        lora[f"transformer.transformer_blocks.0.attn.{part}.lora_A.weight"] = down
        lora[f"transformer.transformer_blocks.0.attn.{part}.lora_B.weight"] = up
        if alpha:
            lora[f"transformer.transformer_blocks.0.attn.{part}.alpha"] = torch.tensor(alpha)
        start = (256, 0)[number]
        expected[start : start + 128] = up @ down * (alpha or rank) / rank
    adapters = read_adapters(lora, names).adapters
    assert list(adapters) == [key] and adapters[key].rank == adapters[key].alpha == 5
    torch.testing.assert_close(adapters[key].difference(), expected)
    model, _ = host.with_lora(small.model, None, lora, 1.0)  # what the host makes of the parts
    weight = torch.zeros(384, 128)
    torch.testing.assert_close(comfy.lora.calculate_weight(model.patches[key], weight, key), expected)


def test_halves_in_the_other_order_find_their_rows() -> None:
    small = sd3()
    names = host.layer_names(small.model)
    down, up = torch.randn(2, 128), torch.randn(256, 2)
    lora = {"transformer.norm_out.linear.lora_A.weight": down, "transformer.norm_out.linear.lora_B.weight": up}
    adapter = read_adapters(lora, names).adapters["diffusion_model.final_layer.adaLN_modulation.1.weight"]
    torch.testing.assert_close(adapter.difference(), torch.cat([up[128:], up[:128]]) @ down)


# ---------------------------------------------------------------- the host's own trainer


@pytest.mark.parametrize(("algorithm", "kind"), [("LoRA", "lora"), ("LoHa", "loha"), ("LoKr", "lokr"), ("OFT", "oft")])
@pytest.mark.parametrize("make", [sd15, sdxl], ids=["sd15", "sdxl"])
def test_a_file_of_the_core_trainer_does_the_same_after_reading(make, algorithm: str, kind: str) -> None:
    """Adapters for what has two dimensions, differences of norms and biases kept; the host sees no change."""
    small = make()
    names = host.layer_names(small.model)
    lora = core_trainers_file(small.model, algorithm)
    found = read_adapters(lora, names)
    assert found.unknown == []
    assert {adapter.kind for adapter in found.adapters.values()} == {kind}
    assert all(key.endswith((".diff", ".diff_b")) for key in found.kept) and found.kept
    again = {**lora_tensors(found.adapters, names, "fp32"), **found.kept}
    before, after = (host.with_lora(small.model, None, tensors, 1.0)[0].patches for tensors in (lora, again))
    assert before.keys() == after.keys()
    weights = small.model.model.state_dict()
    for key in before:
        one, other = (
            comfy.lora.calculate_weight(patches[key], weights[key].clone(), key) for patches in (before, after)
        )
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_core_trainers_file_becomes_kohyas(names) -> None:
    small = sd15()
    lora = core_trainers_file(small.model, "LoRA")
    kohya = as_format(lora, "kohya", names)
    assert all(key.startswith("lora_unet_") for key in kohya) and len(kohya) == len(lora)
    assert kohya[f"{NAME}.lora_up.weight"].shape == (WIDTH, 4)
    assert kohya["lora_unet_conv_in.lora_down.weight"].shape == (4, 4, 3, 3)


# ---------------------------------------------------------------- what is not trained


@pytest.mark.parametrize(
    "entries",
    [
        {"lora_down.weight": (2, WIDTH), "lora_up.weight": (WIDTH, 2), "lora_mid.weight": (2, 2, 1, 1)},
        {"diff": (WIDTH, WIDTH)},
        {"a1.weight": (WIDTH, 2), "a2.weight": (2, WIDTH), "b1.weight": (WIDTH, 2), "b2.weight": (2, WIDTH)},
        {"oft_blocks": (2, 4, 8, 8)},
        {"oft_blocks": (4, 8, 8), "rescale": (WIDTH, 1)},
    ],
    ids=["tucker", "diff", "glora", "boft", "rescale"],
)
def test_what_cannot_be_trained_is_kept(entries: dict, names) -> None:
    path = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    lora = {f"{path}.{entry}": torch.randn(shape) for entry, shape in entries.items()}
    found = read_adapters(lora, names)
    assert found.adapters == {} and found.unknown == []
    assert same(found.kept, {f"{NAME}.{entry}": lora[f"{path}.{entry}"] for entry in entries})


def test_an_adapter_on_a_part_that_is_no_lora_is_kept_as_it_came() -> None:
    names = host.layer_names(sd3().model)
    part = "transformer.transformer_blocks.0.attn.to_q"
    lora = {f"{part}.lokr_w1": torch.randn(8, 8), f"{part}.lokr_w2": torch.randn(16, 16)}
    found = read_adapters(lora, names)
    assert found.adapters == {} and same(found.kept, lora)


def test_keys_of_another_model_are_named(names) -> None:
    lora = lora_tensors(random_adapters(host.layer_names(sdxl().model)), host.layer_names(sdxl().model), "fp32")
    found = read_adapters({**lora, "rubbish": torch.zeros(1)}, names)
    assert "rubbish" in found.unknown
    assert "lora_unet_label_emb_0_0.lora_up.weight" in found.unknown


def test_a_lora_of_another_size_is_not_taken(names) -> None:
    lora = {f"{NAME}.lora_down.weight": torch.zeros(2, 640), f"{NAME}.lora_up.weight": torch.zeros(640, 2)}
    found = read_adapters(lora, names)
    assert found.adapters == {} and set(found.unknown) == set(lora)


LOHA = {"hada_w1_a": (WIDTH, 2), "hada_w1_b": (2, WIDTH), "hada_w2_a": (WIDTH, 2), "hada_w2_b": (2, WIDTH)}
LOKR = {"lokr_w1": (4, 4), "lokr_w2_a": (WIDTH // 4, 2), "lokr_w2_b": (2, WIDTH // 4)}
FACTORS = {"lora_up.weight": (WIDTH, 2), "lora_down.weight": (2, WIDTH)}


@pytest.mark.parametrize(
    ("entries", "changes"),
    [
        (LOHA, {"hada_w1_a": (640, 2), "hada_w2_a": (640, 2)}),
        (LOHA, {"hada_w1_b": (2, 640), "hada_w2_b": (2, 640)}),
        (LOHA, {"hada_w2_b": (3, WIDTH)}),
        (LOHA, {"hada_w2_a": (WIDTH,)}),
        (LOKR, {"lokr_w1": (8, 8)}),
        (LOKR, {"lokr_w1": (4, 4, 3, 3)}),
        (LOKR, {"lokr_w2_b": (3, WIDTH // 4)}),
        (LOKR, {"lokr_w2_b": (2, 640)}),
        ({"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 4), "lokr_w2": (WIDTH // 4, WIDTH // 4)}, {"lokr_w1_b": (2, 4)}),
        ({"oft_blocks": (WIDTH // 8, 8, 8)}, {"oft_blocks": (80, 8, 8)}),
        ({"oft_blocks": (WIDTH // 8, 8, 8)}, {"oft_blocks": (WIDTH // 8, 8, 4)}),
        ({**FACTORS, "dora_scale": (1, WIDTH)}, {"dora_scale": (1, 640)}),
    ],
)
def test_other_kinds_of_another_size_are_not_taken(entries: dict, changes: dict, names) -> None:
    fits = read_adapters({f"{NAME}.{entry}": torch.randn(shape) for entry, shape in entries.items()}, names)
    assert list(fits.adapters) == [KEY] and fits.unknown == []
    assert fits.adapters[KEY].merged(torch.ones(WIDTH, WIDTH)).shape == (WIDTH, WIDTH)
    lora = {f"{NAME}.{entry}": torch.randn(shape) for entry, shape in {**entries, **changes}.items()}
    found = read_adapters(lora, names)
    assert found.adapters == {} and found.kept == {} and set(found.unknown) == set(lora)


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft"])
def test_every_layer_of_our_own_files_of_other_kinds_fits(kind: str, small) -> None:
    names = host.layer_names(small.model)
    targets = [each for each in find_targets(small.model.model, "all linear and convolution") if each.key in names]
    adapters = make_adapters(targets, LoRAConfig.of(adapter=kind, rank=4, alpha=2.0).adapter, 0)
    found = read_adapters(lora_tensors(adapters, names), names)
    assert found.unknown == [] and found.kept == {} and found.adapters.keys() == adapters.keys()


def test_a_dora_of_peft_is_not_taken_for_a_plain_lora(names) -> None:
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {
        f"{path}.lora_A.weight": torch.randn(2, WIDTH), f"{path}.lora_B.weight": torch.randn(WIDTH, 2),
        f"{path}.lora_magnitude_vector.weight": torch.ones(WIDTH),
    }  # fmt: skip
    found = read_adapters(lora, names)
    assert found.adapters == {} and set(found.unknown) == set(lora)
    with pytest.raises(InputError, match="cannot be read"):
        as_format(lora, "kohya", names)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("a.b.lora_A.weight", ("a.b", "lora_down.weight")),
        ("a.b.processor.to_q_lora.up.weight", ("a.b.processor.to_q", "lora_up.weight")),
        ("a.alpha", ("a", "alpha")),
        ("a.lokr_w1_a", ("a", "lokr_w1_a")),
        (".alpha", None),
        ("alpha", None),
        ("model.weight", None),
    ],
)
def test_a_key_is_a_layer_and_an_entry(key: str, place) -> None:
    assert split_key(key) == place


def test_the_hosts_adapters_know_the_entries(names) -> None:
    """Each entry that our keys can end in is one that the host reads, for the two forms its trainer writes most."""
    up, down = ("lora_up.weight", "hada_w1_a", "hada_w2_a"), ("lora_down.weight", "hada_w1_b", "hada_w2_b")
    lora = {f"{NAME}.{entry}": torch.ones(WIDTH, 4) for entry in up}
    lora |= {f"{NAME}.{entry}": torch.ones(4, WIDTH) for entry in down}
    loaded: set[str] = set()
    LoRAAdapter.load(NAME, lora, 1.0, None, loaded)
    LoHaAdapter.load(NAME, lora, 1.0, None, loaded)
    assert loaded == set(lora)
    assert layers_of(lora, names.values()).unknown == []


# ---------------------------------------------------------------- files


def test_a_file_is_read_with_its_metadata(tmp_path: Path) -> None:
    lora = random_lora(sd15(), precision="bf16")
    path = save_lora(tmp_path / "anna.safetensors", lora, {"ss_seed": "7"})
    read = read_lora_file(path)
    assert same(dict(read), dict(lora)) and read.metadata["ss_seed"] == "7" and read.name == "anna"


def write(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


ENTRY = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no safetensors"),
        (b"PK\x03\x04" + b"\0" * 200, "no safetensors|cut short"),
        (struct.pack("<Q", 2**40) + b"{}", "no safetensors"),
        (struct.pack("<Q", 50) + b"{}", "cut short"),
        (struct.pack("<Q", 2) + b"[]", "no safetensors"),
        (struct.pack("<Q", 4) + b"nope", "no safetensors"),
        (struct.pack("<Q", 2) + b"\xff\xff", "no safetensors"),
        (struct.pack("<Q", 2) + b"{}", "no LoRA"),
        (struct.pack("<Q", 20_000) + b"[" * 20_000, "no safetensors"),
        (struct.pack("<Q", 21) + b'{"__metadata__": [1]}', "no safetensors"),
        (struct.pack("<Q", 31) + b'{"a": {"data_offsets": [0, 0]}}', "no safetensors"),
    ],
)
def test_what_is_no_lora_file_is_said(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_lora_file(path)


def test_a_file_that_is_cut_short_is_said(tmp_path: Path) -> None:
    path = save_lora(tmp_path / "a.safetensors", random_lora(sd15()), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut short"):
        read_lora_file(path)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_lora_file(tmp_path / "a.safetensors")


def test_a_checkpoint_is_no_lora(tmp_path: Path) -> None:
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no LoRA.*input_blocks"):
        read_lora_file(tmp_path / "a.safetensors")


def test_strange_number_formats_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"lora_unet_a.lora_up.weight": {**ENTRY, "dtype": "U8"}}).encode()
    with pytest.raises(InputError, match="U8"):
        read_lora_file(write(tmp_path / "a.safetensors", header, b"\0" * 4))


def test_a_header_that_lies_about_its_tensors_is_said(tmp_path: Path) -> None:
    header = json.dumps({"lora_unet_a.lora_down.weight": {**ENTRY, "shape": [7, 7]}}).encode()
    with pytest.raises(InputError, match="cannot be read"):
        read_lora_file(write(tmp_path / "a.safetensors", header, b"\0" * 4))


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({"unet.lora_alpha": 8, "unet.r": 2}, 8.0),
        ({"unet.lora_alpha": 2, "unet.r": 2}, None),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"mid_block.a": 1}}, 1.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 * 2**0.5),
        ({"text_encoder.lora_alpha": 8}, None),
    ],
)
def test_alphas_that_diffusers_keeps_in_the_metadata_count(tmp_path: Path, settings: dict, alpha: float | None) -> None:
    lora = {"unet.mid_block.a.lora_A.weight": torch.ones(2, 3), "unet.mid_block.a.lora_B.weight": torch.ones(3, 2)}
    save_file(lora, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    read = read_lora_file(tmp_path / "a.safetensors").get("unet.mid_block.a.alpha")
    assert (None if read is None else pytest.approx(float(read))) == alpha


@pytest.mark.parametrize(
    ("metadata", "alpha"),
    [
        ({"lora_alpha": "8"}, 8.0),
        ({"lora_alpha": "sixteen"}, None),
        ({"lora_adapter_metadata": '{"lora_alpha": 8, "r": 2}'}, 8.0),
        ({"lora_adapter_metadata": '{"lora_alpha": 8, "transformer.lora_alpha": 4}'}, 4.0),
        ({"lora_adapter_metadata": '{"lora_alpha": 8, "alpha_pattern": {"transformer.a": 6}}'}, 6.0),
        ({"lora_alpha": "8", "lora_adapter_metadata": '{"transformer.lora_alpha": 4}'}, 4.0),
    ],
)
def test_a_bare_alpha_in_the_header_counts(tmp_path: Path, metadata: dict, alpha: float | None) -> None:
    lora = {"transformer.a.lora_A.weight": torch.ones(2, 3), "transformer.a.lora_B.weight": torch.ones(3, 2)}
    save_file(lora, tmp_path / "a.safetensors", metadata)
    read = read_lora_file(tmp_path / "a.safetensors").get("transformer.a.alpha")
    assert (None if read is None else float(read)) == alpha


WHOLE = {"lokr_w1": (4, 4), "lokr_w2": (WIDTH // 4, WIDTH // 4)}


@pytest.mark.parametrize("alpha", [torch.tensor(9999999999.0, dtype=torch.bfloat16), torch.tensor(torch.inf).half()])
def test_an_alpha_that_scales_nothing_is_not_judged(tmp_path: Path, alpha: torch.Tensor, names) -> None:
    """LyCORIS' way to ask for whole factors; of factors that are products the same alpha is broken."""
    lora = {f"{NAME}.{entry}": torch.randn(shape) for entry, shape in WHOLE.items()}
    save_file({**lora, f"{NAME}.alpha": alpha}, tmp_path / "a.safetensors")
    read = read_lora_file(tmp_path / "a.safetensors")
    (adapter,) = read_adapters(read, names).adapters.values()
    torch.testing.assert_close(adapter.difference(), torch.kron(*lora.values()))
    assert 1 <= adapter.rank <= 10**10 and adapter.tensors()["alpha"].isfinite()
    merged = merge_loras([Part(read, 0.5, "lora_1")]).lora
    change = merged[f"{NAME}.lora_up.weight"] @ merged[f"{NAME}.lora_down.weight"]
    torch.testing.assert_close(change, 0.5 * torch.kron(*lora.values()), atol=1e-5, rtol=1e-4)
    if alpha.isinf():
        product = {**LOKR, "lokr_w1": (4, 4)}
        lora = {f"{NAME}.{entry}": torch.randn(shape) for entry, shape in product.items()}
        save_file({**lora, f"{NAME}.alpha": alpha}, tmp_path / "b.safetensors")
        with pytest.raises(InputError, match="alpha holds numbers that are not finite"):
            read_lora_file(tmp_path / "b.safetensors")


def test_a_dora_of_peft_is_read_and_called_one(tmp_path: Path) -> None:
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {f"{path}.lora_A.weight": torch.ones(2, WIDTH), f"{path}.lora_B.weight": torch.ones(WIDTH, 2)}
    save_file({**lora, f"{path}.lora_magnitude_vector.weight": torch.ones(WIDTH)}, tmp_path / "a.safetensors")
    assert "Kind: DoRA (1)" in describe_lora(read_lora_file(tmp_path / "a.safetensors"))


def test_a_file_that_the_hosts_loader_renames_is_renamed_alike(tmp_path: Path) -> None:
    """Flux' own control LoRAs have bare names, biases and norms."""
    lora = {
        "img_in.lora_A.weight": torch.ones(2, 4), "img_in.lora_B.weight": torch.ones(8, 2),
        "img_in.lora_B.bias": torch.ones(8), "single_blocks.0.norm.key_norm.scale": torch.ones(4),
    }  # fmt: skip
    save_file(lora, tmp_path / "a.safetensors")
    assert {"diffusion_model.img_in.diff_b", "diffusion_model.single_blocks.0.norm.key_norm.set_weight"} < set(
        read_lora_file(tmp_path / "a.safetensors")
    )


def test_saved_files_and_read_files_agree_with_safetensors(tmp_path: Path) -> None:
    path = save_lora(tmp_path / "a.safetensors", random_lora(sd15()), {})
    assert same(dict(read_lora_file(path)), load_file(path))
