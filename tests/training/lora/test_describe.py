"""A LoRA is described in words."""

import torch
from lora_kiln.training.lora.describe import describe_lora

from loras import core_trainers_file, random_lora
from models import sd15, sdxl


def test_a_lora_is_described() -> None:
    lora = random_lora(sdxl(), precision="fp16")
    lora.metadata = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "ss_steps": "12"}
    text = describe_lora(lora)
    layers = sum(key.endswith("lora_up.weight") for key in lora)
    in_text = sum(key.startswith("lora_te") and key.endswith("lora_up.weight") for key in lora)
    assert f"Kind: LoRA ({layers})" in text and f"Rank: 4 ({layers})\nAlpha: 3 ({layers})\n" in text
    assert f"Layers: {layers - in_text} of the diffusion model, {in_text} of text encoders" in text
    assert "float16" in text and "stable-diffusion-xl-v1-base/lora" in text and "Steps: 12" in text


def test_layers_without_alpha_are_told_apart() -> None:
    lora = {"lora_unet_a.lora_down.weight": torch.ones(2, 4), "lora_unet_b.lora_down.weight": torch.ones(2, 4)}
    lora |= {"lora_unet_b.alpha": torch.tensor(0.5), "lora_unet_c.diff": torch.ones(4)}
    assert "Rank: 2 (2)\nAlpha: as rank (1), 0.5 (1)\n" in describe_lora(lora)


def test_other_kinds_are_described() -> None:
    lora = core_trainers_file(sd15().model, "LoKr")
    text = describe_lora(lora)
    assert "LoKr" in text and "differences" in text and "Base model: not said" in text


def test_what_is_no_adapters_is_named() -> None:
    lora = {"lora_unet_a.lora_down.weight": torch.ones(2, 4), "bundle_emb.anna.clip_l": torch.ones(2, 4)}
    assert "Beside adapters: 1 entries, such as bundle_emb.anna.clip_l" in describe_lora(lora)
