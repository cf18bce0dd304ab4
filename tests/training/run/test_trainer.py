"""Whole runs on small models: what they leave behind, and what they give."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import ADAPTERS, OPTIMIZERS, LoRAConfig
from lora_kiln.training.data.dataset import Dataset
from lora_kiln.training.learning.loop import Diverged
from lora_kiln.training.run import live as events
from lora_kiln.training.run.prepare import Models
from lora_kiln.training.run.recorder import Record
from lora_kiln.training.run.resume import CONTINUE
from lora_kiln.training.run.run_recorder import recorded
from lora_kiln.training.run.trainer import train_lora
from safetensors.torch import load_file

import models
from training_runs import (
    CONFIG,
    SIDE,
    assert_same,
    assert_untouched,
    changed,
    dataset,
    graph_models,
    interrupt_at,
    watched,
)

pytestmark = pytest.mark.usefixtures("lora_folder")


def run(
    small: models.Small, config: LoRAConfig = CONFIG, data: Dataset | None = None, start=None, record: Record = recorded
):
    return train_lora(graph_models(small), data or dataset(), config, "test", start=start, record=record)


@pytest.mark.parametrize("make", [models.sd15, models.sdxl])
def test_a_run_leaves_the_models_as_they_were(make):
    small = make()
    before = models.state(small)
    with torch.inference_mode():  # as the host runs nodes
        run(small)
    assert_untouched(small, before)


def test_an_interrupt_leaves_the_models_as_they_were_and_keeps_what_was_learned(lora_folder):
    small = models.sd15()
    before = models.state(small)
    with pytest.raises(host.Interrupted), torch.inference_mode():
        run(small, record=interrupt_at(2))
    assert_untouched(small, before)
    kept = load_file(lora_folder / "test-step000002-partial.safetensors")
    assert any(tensor.any() for name, tensor in kept.items() if "lora_up" in name)
    assert events.histories()[-1]["state"] == "interrupted"


def test_an_error_leaves_the_models_as_they_were_and_keeps_what_was_learned(lora_folder):
    small = models.sd15()
    before = models.state(small)

    def failing(recorder):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(small, record=watched(failing))
    assert_untouched(small, before)
    assert (lora_folder / "test-step000001-partial.safetensors").is_file()
    assert "the disk is gone" in events.histories()[-1]["message"]


def test_a_loss_that_is_no_number_ends_the_run_with_advice():
    small = models.sd15()
    before = models.state(small)
    with pytest.raises(Diverged, match="Lower learning_rate"):
        run(small, LoRAConfig.of(rank=4, layer_rules="* lr=1e30", steps=20, max_grad_norm=0, precision="fp32"))
    assert_untouched(small, before)


def test_same_seed_same_lora_other_seed_another():
    first, again = run(models.sd15()), run(models.sd15())
    other = run(models.sd15(), CONFIG.changed(seed=4))
    assert first.losses == again.losses
    assert all(torch.equal(first.lora[name], again.lora[name]) for name in first.lora)
    downs = [name for name in first.lora if "lora_down" in name]
    assert not any(torch.equal(first.lora[name], other.lora[name]) for name in downs)


def test_the_global_generators_neither_matter_nor_move():
    torch.manual_seed(1)
    first = run(models.sd15())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = run(models.sd15())
    assert torch.equal(torch.get_rng_state(), state)
    assert first.losses == again.losses


def merging_tokens(seed: int = 0) -> models.Small:
    """SD1.5, small, with a patch of the core's that draws from torch's generator (ToMe)."""
    from comfy_extras.nodes_tomesd import TomePatchModel

    small = models.sd15(seed)
    small.model = TomePatchModel.execute(small.model, 0.5).args[0]
    return small


def test_what_a_patched_model_draws_is_the_runs_own() -> None:
    """It follows from seed, step and pass: not from the process, recomputation, samples, or how often a run stopped."""
    torch.manual_seed(1)
    first = run(merging_tokens())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    config = CONFIG.changed(gradient_checkpointing=True, sample_every=2, sample_prompts=("a",), sample_steps=2)
    again = run(merging_tokens(), config)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.losses == pytest.approx(again.losses, rel=1e-6)
    for name, tensor in first.lora.items():
        assert torch.allclose(tensor, again.lora[name], rtol=1e-3, atol=1e-5), name


def test_a_patched_run_that_stopped_goes_on_as_if_it_had_not() -> None:
    whole = run(merging_tokens())
    with pytest.raises(host.Interrupted):
        train_lora(graph_models(merging_tokens()), dataset(), CONFIG, "stopped", record=interrupt_at(2))
    comfy.model_management.interrupt_current_processing(False)
    torch.manual_seed(5)
    resumed = train_lora(graph_models(merging_tokens()), dataset(), CONFIG, "stopped", previous=CONTINUE)
    assert_same(whole, resumed)


def test_an_object_patch_around_the_base_models_layers_is_named() -> None:
    """It calls the layers of the base model, not those of its twin, so what is trained there is never reached."""
    small = models.sd15()
    path = "diffusion_model.middle_block.1.transformer_blocks.0.attn1"
    attention: Any = small.model.model.get_submodule(path)
    for layer in attention.modules():  # as loaders leave them that do not load in inference mode
        for name, parameter in layer.named_parameters(recurse=False):
            setattr(layer, name, torch.nn.Parameter(parameter.clone(), requires_grad=False))
    small.model.add_object_patch(f"{path}.forward", lambda *args, **options: type(attention).forward(attention, *args))
    with pytest.raises(InputError, match=rf"gradients do not pass its patches {path}.forward \(.*layer {path}"):
        run(small)


def test_an_object_patch_without_gradients_is_named() -> None:
    small = models.sd15()
    forward = small.model.model.diffusion_model.forward

    @torch.no_grad()
    def fast(*args: Any, **options: Any) -> torch.Tensor:
        return forward(*args, **options)

    small.model.add_object_patch("diffusion_model.forward", fast)
    with pytest.raises(InputError, match=r"its patches diffusion_model.forward \(.*fast of .*does not require grad"):
        run(small)


def test_what_commonly_fails_is_said_in_the_report():
    assert "Note: learning_rate is 0.01, high for adamw" in run(models.sd15()).report


def test_samples_on_the_way_do_not_change_the_lora():
    plain = run(models.sd15())
    sampled = run(
        models.sd15(),
        CONFIG.changed(sample_every=2, sample_prompts=("a", "b"), sample_steps=2),
    )
    assert plain.losses == sampled.losses
    assert [(sample.step, sample.prompt) for sample in sampled.samples] == [
        (step, prompt) for step in (0, 2, 4) for prompt in ("a", "b")
    ]
    assert sampled.samples[0].pixels.shape == (SIDE, SIDE, 3)


def test_the_loss_falls_on_few_pictures():
    trained = run(
        models.sd15(), LoRAConfig.of(rank=8, alpha=8, learning_rate=2e-2, steps=60, batch_size=4, precision="fp32")
    )
    assert sum(trained.losses[-10:]) < 0.9 * sum(trained.losses[:10])


def test_checkpointing_changes_memory_not_numbers():
    plain = run(models.sdxl())
    saving = run(models.sdxl(), CONFIG.changed(gradient_checkpointing=True))
    assert saving.losses == pytest.approx(plain.losses, rel=1e-5)


def test_an_fp8_base_runs_near_fp32_and_the_report_says_so():
    small = models.sdxl()
    before = models.state(small)
    exact, rough = run(small), run(small, changed(base_precision="fp8"))
    assert rough.losses != exact.losses
    assert rough.losses == pytest.approx(exact.losses, rel=0.05)
    assert "linear weights in fp8" in rough.report and "fp8" not in exact.report
    assert rough.lora.metadata["ss_fp8_base"] == "True"
    assert_untouched(small, before)


def test_bf16_runs_near_fp32():
    exact = run(models.sd15())
    rough = run(models.sd15(), CONFIG.changed(precision="bf16"))
    assert rough.losses != exact.losses
    assert rough.losses == pytest.approx(exact.losses, rel=0.05)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (models.sdxl, {}),
        (models.sd15, {"adapter": "dora"}),
        (models.sdxl, {"text_encoder_learning_rate": 1e-3, "rank_dropout": 0.1}),
    ],
)
def test_fp16_runs_near_fp32(make, values):
    exact, rough = (run(make(), changed(precision=each, **values)) for each in ("fp32", "fp16"))
    assert rough.losses != exact.losses
    assert rough.losses == pytest.approx(exact.losses, rel=0.02)
    assert rough.lora.metadata["ss_mixed_precision"] == "fp16"


def test_fp16_is_refused_for_a_model_that_the_host_does_not_run_in_it():
    small = models.sd15()
    small.model.model.model_config.supported_inference_dtypes = [torch.bfloat16, torch.float32]
    with pytest.raises(
        InputError, match="(?s)zero_terminal_snr is on.*precision is fp16, in which ComfyUI does not run"
    ):
        run(small, changed(precision="fp16", zero_terminal_snr=True))
    assert run(small, changed(steps=1)).losses


def test_a_model_with_a_lora_on_trains_with_it():
    """The twin has the patched weights; training from a changed base gives other losses."""
    small = models.sd15()
    first = run(small)
    boosted = {name: tensor * (30.0 if "lora_up" in name else 1.0) for name, tensor in first.lora.items()}
    patched = models.Small(*host.with_lora(small.model, small.clip, boosted, 1.0), small.vae)
    before = models.state(patched)
    second = run(patched)
    assert second.losses != first.losses
    assert_untouched_but_patched(patched, before)


def assert_untouched_but_patched(small: models.Small, before: dict[str, torch.Tensor]) -> None:
    after = models.state(small)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert small.model.patches


def test_models_of_different_families_are_refused():
    mixed = models.Small(models.sd15().model, models.sdxl().clip, models.sd15().vae)
    with pytest.raises(InputError, match="clip gives embeddings 64 wide, the model takes 32"):
        run(mixed)


def test_missing_models_are_named_and_nothing_is_written(folders):
    small = models.sd15()
    with pytest.raises(InputError, match="clip is missing: .*\n- vae is missing: "):
        train_lora(Models(small.model, None, None), dataset(), CONFIG, "test")
    assert list((folders / "output").iterdir()) == []


def test_a_vae_of_another_family_is_refused():
    import comfy.latent_formats

    small = models.sd15()
    small.model.add_object_patch("latent_format", comfy.latent_formats.Flux())
    with pytest.raises(InputError, match="vae gives latents with 4 channels, the model .Flux. takes 16"):
        run(small)


def test_a_dataset_of_regularisation_pictures_alone_is_refused():
    from dataclasses import replace

    data = dataset()
    prior = replace(data, pictures=tuple(replace(picture, is_regularisation=True) for picture in data.pictures))
    with pytest.raises(InputError, match="no picture to train on"):
        run(models.sd15(), data=prior)


def test_the_report_says_what_was_done():
    report = run(models.sd15()).report
    for words in ("rank 4, alpha 2", "seed 3", "4 pictures", "Steps: 4 of batch 2", "eps prediction"):
        assert words in report


# ---------------------------------------------------------------- adapters, text encoders, continuing


def outputs(model, clip, text: str = "picture number 1") -> torch.Tensor:
    """What the host makes of MODEL and CLIP: x_0 for a fixed latent and noise level."""

    with torch.inference_mode():
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(model.load_device)
        conds = host.batch_conds(model.model, [conditioning], latent)
        return host.predict(model.model, {}, latent, torch.tensor([3.0], device=latent.device), conds).cpu()


@pytest.mark.parametrize("make", [models.sd15, models.sdxl])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_learns_leaves_the_models_and_loads(make, adapter):
    small = make()
    before = models.state(small)
    plain = outputs(small.model, small.clip)
    trained = run(small, changed(adapter=adapter, targets="all linear and convolution", save_precision="fp32"))
    assert_untouched(small, before)
    assert torch.isfinite(torch.tensor(trained.losses)).all()
    with_lora = outputs(*host.with_lora(small.model, small.clip, trained.lora, 1.0))
    assert not torch.allclose(with_lora, plain, atol=1e-4)


@pytest.mark.parametrize("make", [models.sd15, models.sdxl])
def test_text_encoders_learn_at_their_own_rate_and_are_left_alone(make):
    small = make()
    before = models.state(small)
    with torch.inference_mode():
        trained = run(small, changed(text_encoder_learning_rate=1e-2))
    assert_untouched(small, before)
    assert small.clip.patcher.patches == {} and models.hooks(small.clip.cond_stage_model) == 0
    text = {name for name in trained.lora if name.startswith("lora_te")}
    prefixes = {name.split("_text_model")[0] for name in text}
    assert prefixes == ({"lora_te"} if make is models.sd15 else {"lora_te1", "lora_te2"})
    last = "_text_model_encoder_layers_2_"  # SDXL leaves the last layer's output out of the embedding
    ups = [name for name in text if "lora_up" in name and last not in name]
    assert ups and all(trained.lora[name].any() for name in ups)
    _, clip = host.with_lora(small.model, small.clip, trained.lora, 1.0)
    plain = small.clip.encode_from_tokens(small.clip.tokenize("a cat"))
    assert not torch.allclose(clip.encode_from_tokens(clip.tokenize("a cat")), plain, atol=1e-4)


def test_text_encoders_stay_out_by_default():
    assert not any(name.startswith("lora_te") for name in run(models.sd15()).lora)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_run_goes_on_from_a_lora_as_it_is(adapter):
    """One step with next to no learning rate: the LoRA that comes out is the one that went in."""
    first = run(models.sd15(), changed(adapter=adapter, save_precision="fp32", text_encoder_learning_rate=1e-2))
    on = changed(learning_rate=1e-12, text_encoder_learning_rate=1e-12, weight_decay=0.0, steps=1, rank=9, alpha=1.0,
                 save_precision="fp32")  # fmt: skip
    second = run(models.sd15(), on, start=first.lora)
    assert second.lora.keys() == first.lora.keys()
    for name, tensor in first.lora.items():
        assert torch.allclose(second.lora[name], tensor, atol=1e-6), name


def test_a_text_encoder_lora_that_is_not_trained_is_kept_and_in_force():
    first = run(models.sd15(), changed(text_encoder_learning_rate=1e-1, save_precision="fp32"))
    second = run(models.sd15(), changed(save_precision="fp32"), start=first.lora)
    text = [name for name in first.lora if name.startswith("lora_te")]
    assert text and all(torch.equal(first.lora[name], second.lora[name]) for name in text)
    without = {name: tensor for name, tensor in first.lora.items() if not name.startswith("lora_te")}
    third = run(models.sd15(), changed(save_precision="fp32"), start=without)
    assert third.losses[0] != pytest.approx(second.losses[0], rel=1e-4)


def test_a_lora_of_another_model_is_refused():
    first = run(models.sdxl())
    strange = {name.replace("lora_unet_", "lora_unet_elsewhere_"): tensor for name, tensor in first.lora.items()}
    with pytest.raises(InputError, match="holds no layer of this model"):
        run(models.sd15(), CONFIG, start=strange)


def test_an_average_lies_between_start_and_end():
    end = run(models.sd15(), changed(save_precision="fp32"))
    average = run(models.sd15(), changed(save_precision="fp32", ema_decay=0.9))
    assert average.losses == end.losses  # the average is looked at, never trained on
    ups = [name for name in end.lora if "lora_up" in name]
    smaller = [average.lora[name].norm() < end.lora[name].norm() for name in ups]
    assert sum(smaller) > 0.9 * len(ups)


def test_dropout_is_off_in_samples_and_repeats_with_the_seed():
    values = dict(dropout=0.1, rank_dropout=0.2, module_dropout=0.2)
    first, again = run(models.sd15(), changed(**values)), run(models.sd15(), changed(**values))
    sampled = run(models.sd15(), changed(**values, sample_every=2, sample_prompts=("a",), sample_steps=2))
    assert first.losses == again.losses == sampled.losses
    assert first.losses != run(models.sd15()).losses


def test_dropout_is_the_same_with_gradient_checkpointing():
    values = dict(dropout=0.1, rank_dropout=0.2, module_dropout=0.2)
    plain, saving = (
        run(models.sd15(), changed(**values)),
        run(models.sd15(), changed(**values, gradient_checkpointing=True)),
    )
    assert saving.losses == pytest.approx(plain.losses, rel=1e-5)


def test_zero_terminal_snr_wants_a_v_model():
    with pytest.raises(InputError, match="zero_terminal_snr is on, but the model predicts eps"):
        run(models.sd15(), changed(zero_terminal_snr=True))
    small = models.v_prediction(models.sd15())
    table = small.model.get_model_object("model_sampling").sigmas.clone()
    trained = run(small, changed(zero_terminal_snr=True))
    assert torch.isfinite(torch.tensor(trained.losses)).all() and "ModelSamplingDiscrete" in trained.report
    assert torch.equal(small.model.get_model_object("model_sampling").sigmas, table)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "adamw8bit"])
def test_every_optimizer_learns_and_samples_do_not_disturb_it(optimizer):
    values = dict(optimizer=optimizer, learning_rate=1.0 if optimizer == "prodigy" else 1e-2, scheduler="constant")
    plain = run(models.sd15(), changed(**values))
    sampled = run(models.sd15(), changed(**values, sample_every=2, sample_prompts=("a",), sample_steps=2))
    assert plain.losses == sampled.losses
    assert all(torch.equal(plain.lora[name], sampled.lora[name]) for name in plain.lora)
    assert any(tensor.any() for name, tensor in plain.lora.items() if "lora_up" in name)


def test_the_report_counts_layers_and_says_what_has_no_effect():
    report = run(models.sd15(), changed(adapter="oft", text_encoder_learning_rate=1e-3)).report
    assert "alpha has no effect on OFT" in report and "text encoder" in report


# ---------------------------------------------------------------- flow models


@pytest.mark.parametrize("make", [models.sd3, models.flux])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_flow_model_learns_is_left_alone_and_the_host_loads_the_lora(make, checkpointing, caplog):
    small = make()
    before = models.state(small)
    with torch.inference_mode():
        trained = run(
            small,
            changed(gradient_checkpointing=checkpointing, sample_every=4, sample_prompts=("a",), sample_steps=2),
        )
    assert_untouched(small, before)
    ups = [tensor for name, tensor in trained.lora.items() if "lora_up" in name]
    assert ups and sum(bool(tensor.any()) for tensor in ups) > 0.9 * len(ups)
    model, _ = host.with_lora(small.model, small.clip, trained.lora, 1.0)
    assert len(model.patches) == len(ups) and "not loaded" not in caplog.text


# ---------------------------------------------------------------- refused before anything is encoded


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layer_rules": "*nowhere* lr=2"}, "fits none of"),
        ({"optimizer_args": "beta=1"}, "does not know"),
        ({"adapter": "lokr", "rank_dropout": 0.1}, "rank_dropout is 0.1"),
        ({"adapter": "oft", "dropout": 0.1}, "dropout is 0.1"),
        ({"optimizer": "prodigy", "learning_rate": 1.0, "text_encoder_learning_rate": 0.5}, "one rate for all"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_pictures_are_encoded(values, words, monkeypatch):
    encoded = []
    monkeypatch.setattr(host, "encode_pixels", lambda *args: encoded.append(args))
    with pytest.raises(InputError, match=words):
        run(models.sd15(), changed(**values))
    assert not encoded


# ---------------------------------------------------------------- what a continued LoRA says of itself


def test_a_continued_lora_says_what_it_is_not_what_the_recipe_asked_for():
    first = run(models.sd15(), changed(adapter="loha", rank=3, alpha=2.0))
    asked = changed(adapter="lora", rank=9, alpha=5.0, conv_rank=4, text_encoder_learning_rate=1e-3)
    second = run(models.sd15(), asked, start=first.lora)
    metadata = second.lora.metadata
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "2.0")
    assert '"algo": "loha"' in metadata["ss_network_args"]
    assert float(metadata["ss_text_encoder_lr"]) == 0.0
    assert "rank 3, alpha 2" in second.report and "text encoders are not trained" in second.report


def test_a_rule_of_rank_0_leaves_a_continued_layer_as_it_is():
    first = run(models.sd15(), changed(save_precision="fp32"))
    rules = changed(layer_rules="*attn1* rank=0", save_precision="fp32")
    second = run(models.sd15(), rules, start=first.lora)
    assert second.lora.keys() == first.lora.keys()
    same = {name for name in first.lora if torch.equal(first.lora[name], second.lora[name])}
    ups = {name for name in first.lora if "lora_up" in name}
    assert {name for name in ups if "attn1" in name} == ups & same


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_twin_goes_with_the_run(checkpointing, monkeypatch):
    """Without waiting for the garbage collector: the next node needs the memory."""
    import gc
    import weakref

    twins = []
    make = host.trainable_twin

    def noted(*args, **kwargs):
        twins.append(weakref.ref(twin := make(*args, **kwargs)))
        return twin

    monkeypatch.setattr(host, "trainable_twin", noted)
    gc.collect()
    gc.disable()
    try:
        run(models.sd15(), changed(gradient_checkpointing=checkpointing))
        alive = [ref for ref in twins if ref() is not None]
    finally:
        gc.enable()
    assert twins and not alive
