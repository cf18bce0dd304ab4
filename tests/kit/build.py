"""Builds the kit from its stored weights: a checkpoint that the stock loader takes, and the captioner's folder.

PYTHONPATH=tests python -m kit.build --out DIR --host HOST
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from kit.captioner import NAME, new_model, new_processor
from kit.nets import WEIGHTS, dequantise, load_parts
from kit.text import clip_state_dict

CHECKPOINT = "kiln-kit.safetensors"


def build_checkpoint(path: Path) -> None:
    """Writes UNet, text encoder and VAE as one SD1.5 checkpoint in fp16."""
    weights = {f"model.diffusion_model.{k}": w for k, w in dequantise(load_parts(WEIGHTS.glob("unet-*"))).items()}
    weights |= {f"first_stage_model.{k}": w for k, w in load_file(WEIGHTS / "vae.safetensors").items()}
    weights |= clip_state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)


def build_captioner(folder: Path) -> None:
    """Writes the captioner as transformers keeps a model and its processor."""
    new_processor(folder)
    model = new_model()
    missing, unexpected = model.load_state_dict(load_file(WEIGHTS / "captioner.safetensors"), strict=False)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys) | {"text_decoder.cls.predictions.bias"}
    if unexpected or not set(missing) <= tied | {name for name in missing if name.endswith("position_ids")}:
        raise SystemExit(f"The captioner's weights do not fit: missing {missing}, unexpected {unexpected}.")
    model.half().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--host", type=Path, help="ComfyUI's source; the kit needs nothing of it to be built")
    options = parser.parse_args()
    if options.host:
        sys.path.insert(0, str(options.host))
    build_checkpoint(options.out / "checkpoints" / CHECKPOINT)
    build_captioner(options.out / "captioner" / NAME)


if __name__ == "__main__":
    main()
