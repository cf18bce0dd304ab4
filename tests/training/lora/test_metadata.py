"""Metadata of a trained LoRA, in the keys of kohya, ModelSpec and our own."""

import json
from dataclasses import replace

import pytest
from lora_kiln.training.config import ADAPTERS, LoRAConfig
from lora_kiln.training.lora.metadata import DataFacts, Folder, RunFacts, lora_metadata

DATA = DataFacts(
    folders=(
        Folder("10_anna", 3, repeats=10, tags={"zwx": 3}),
        Folder("5_bea", 2, repeats=5, tags={"hat": 1}),
        Folder("1_woman", 4, is_regularisation=True, tags={"woman": 4}),
    ),
    resolution=512, buckets={(512, 512): 4, (640, 384): 1}, trigger_word="zwx", prior_loss_weight=0.5,
    caption_dropout=0.1, flip=True, keep_tokens=1, masked_loss=True,
)  # fmt: skip
RUN = RunFacts(
    name="anna", base_version="sd_v1", architecture="stable-diffusion-v1", prediction="eps", step=100,
    total_steps=200, epoch=4, epochs=8, started_at=0.0, ended_at=60.0,
)  # fmt: skip


def metadata(config: LoRAConfig = LoRAConfig(), data: DataFacts = DATA, **changes) -> dict[str, str]:  # noqa: B008
    return lora_metadata(config, replace(RUN, **changes), data)


def test_metadata_is_text_alone() -> None:
    assert all(isinstance(value, str) for value in metadata().values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ss_base_model_version", "sd_v1"),
        ("ss_v2", "False"),
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "8"),
        ("ss_network_alpha", "4.0"),
        ("ss_network_dropout", "0.2"),
        ("ss_output_name", "anna"),
        ("ss_steps", "100"),
        ("ss_max_train_steps", "200"),
        ("ss_epoch", "4"),
        ("ss_num_epochs", "8"),
        ("ss_unet_lr", "0.0001"),
        ("ss_text_encoder_lr", "1e-05"),
        ("ss_optimizer", "AdamW8bit(weight_decay=0.01,betas=0.9,0.99)"),
        ("ss_lr_scheduler", "constant_with_warmup"),
        ("ss_lr_warmup_steps", "20"),
        ("ss_loss_type", "huber"),
        ("ss_huber_c", "0.1"),
        ("ss_huber_schedule", "snr"),
        ("ss_multires_noise_iterations", "6"),
        ("ss_multires_noise_discount", "0.3"),
        ("ss_ip_noise_gamma", "0.1"),
        ("ss_debiased_estimation", "True"),
        ("ss_zero_terminal_snr", "False"),
        ("ss_prior_loss_weight", "0.5"),
        ("ss_caption_dropout_rate", "0.1"),
        ("ss_flip_aug", "True"),
        ("ss_masked_loss", "True"),
        ("ss_num_train_images", "40"),
        ("ss_num_reg_images", "4"),
        ("ss_mixed_precision", "bf16"),
        ("ss_sd_model_name", "base.safetensors"),
        ("ss_timestep_sampling", "sigmoid"),
        ("ss_logit_mean", "-0.5"),
        ("ss_logit_std", "1.5"),
        ("ss_discrete_flow_shift", "3.1"),
        ("kiln_timestep_sampling", "logit_normal"),
        ("kiln_ema_decay", "0.99"),
        ("kiln_precision", "auto"),
        ("ss_fp8_base", "False"),
        ("kiln_save_precision", "bf16"),
        ("kiln_warmup", "0.1"),
        ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ("modelspec.implementation", "diffusers"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.trigger_phrase", "zwx"),
        ("modelspec.date", "1970-01-01T00:01:00+00:00"),
        ("modelspec.timestep_range", "200,799"),
        ("modelspec.encoder_layer", "2"),
        ("modelspec.resolution", "512x512"),
    ],
)
def test_metadata_says_what_was_trained(key: str, value: str) -> None:
    config = LoRAConfig.of(
        rank=8, alpha=4.0, dropout=0.2, text_encoder_learning_rate=1e-5, optimizer="adamw8bit", warmup=0.1,
        optimizer_args="betas=0.9,0.99", scheduler="constant", loss="huber", multires_noise_iterations=6,
        ip_noise_gamma=0.1, debiased_estimation=True, min_timestep=200, max_timestep=800,
        timestep_sampling="logit_normal", logit_mean=0.5, logit_std=1.5, timestep_shift=3.1, ema_decay=0.99,
        save_precision="bf16",
    )  # fmt: skip
    assert metadata(config, precision="bf16", base_name="base.safetensors", clip_skip=2)[key] == value


@pytest.mark.parametrize(
    ("sampling", "prediction", "written"),
    [
        ("auto", "flow", "shift"),
        ("auto", "eps", None),
        ("uniform", "flow", "uniform"),
        ("resolution_shift", "flow", "flux_shift"),
    ],
)
def test_the_density_of_timesteps_is_the_one_in_use(sampling: str, prediction: str, written: str | None) -> None:
    values = metadata(LoRAConfig.of(timestep_sampling=sampling), prediction=prediction)
    assert values.get("ss_timestep_sampling") == written and values["kiln_timestep_sampling"] == sampling


def test_metadata_holds_buckets_folders_and_tags_as_kohya_writes_them() -> None:
    values = metadata()
    assert json.loads(values["ss_bucket_info"])["buckets"]["1"] == {"resolution": [640, 384], "count": 1}
    assert json.loads(values["ss_tag_frequency"]) == {"10_anna": {"zwx": 3}, "5_bea": {"hat": 1}}
    folders = {"10_anna": {"n_repeats": 10, "img_count": 3}, "5_bea": {"n_repeats": 5, "img_count": 2}}
    assert json.loads(values["ss_dataset_dirs"]) == folders
    assert json.loads(values["ss_reg_dataset_dirs"]) == {"1_woman": {"n_repeats": 1, "img_count": 4}}
    (dataset,) = json.loads(values["ss_datasets"])
    assert [subset["image_dir"] for subset in dataset["subsets"]] == ["10_anna", "5_bea", "1_woman"]
    assert dataset["num_train_images"] == 40 and dataset["resolution"] == [512, 512]


def test_metadata_leaves_out_what_was_off() -> None:
    values = metadata(data=replace(DATA, trigger_word=""), prediction="flow")
    off = {
        "ss_min_snr_gamma", "ss_noise_offset", "ss_huber_c", "ss_multires_noise_discount", "ss_ip_noise_gamma",
        "ss_network_dropout", "ss_clip_skip", "ss_sd_model_name", "ss_mixed_precision", "modelspec.trigger_phrase",
        "ss_logit_mean", "ss_logit_std", "ss_discrete_flow_shift", "modelspec.author", "modelspec.encoder_layer",
        "modelspec.prediction_type", "modelspec.timestep_range",
    }  # fmt: skip
    assert not off & set(values)


CONVOLUTIONS = {"targets": "all linear and convolution"}


@pytest.mark.parametrize(
    ("changes", "module", "args"),
    [
        ({}, "networks.lora", {}),
        ({**CONVOLUTIONS, "conv_rank": 4, "conv_alpha": 1.0}, "networks.lora", {"conv_dim": "4", "conv_alpha": "1.0"}),
        (CONVOLUTIONS, "networks.lora", {"conv_dim": "16", "conv_alpha": "16.0"}),
        ({"targets": "attention, feed-forward and convolutions"}, "networks.lora",
         {"conv_dim": "16", "conv_alpha": "16.0"}),
        ({"rank_dropout": 0.1, "module_dropout": 0.2}, "networks.lora",
         {"rank_dropout": "0.1", "module_dropout": "0.2"}),
        ({"adapter": "dora"}, "lycoris.kohya", {"algo": "locon", "dora_wd": "True"}),
        ({"adapter": "loha"}, "lycoris.kohya", {"algo": "loha"}),
        ({"adapter": "lokr", "lokr_factor": 8}, "lycoris.kohya", {"algo": "lokr", "factor": "8"}),
        ({"adapter": "oft"}, "lycoris.kohya", {"algo": "diag-oft"}),
        ({"rslora": True}, "lycoris.kohya", {"algo": "locon", "rs_lora": "True"}),
    ],
)  # fmt: skip
def test_the_network_is_named_as_the_trainers_name_it(changes: dict, module: str, args: dict) -> None:
    values = metadata(LoRAConfig.of(**changes))
    assert values["ss_network_module"] == module
    assert json.loads(values["ss_network_args"]) == {"targets": changes.get("targets", "attention"), **args}


@pytest.mark.parametrize(("version", "module"), [("flux1", "networks.lora_flux"), ("sd3_m", "networks.lora_sd3")])
def test_transformers_have_networks_of_their_own(version: str, module: str) -> None:
    assert metadata(base_version=version)["ss_network_module"] == module


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_has_metadata(adapter: str) -> None:
    assert metadata(LoRAConfig.of(adapter=adapter))["ss_network_dim"] == "16"
