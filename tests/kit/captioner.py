"""The kit's captioner: a small BLIP in the standard layout, loadable offline by transformers."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from kit.draw import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, TEXTURES

NAME = "kiln-kit-blip"
NOUN = "sign"  # what the captioner calls a glyph that it knows no name for
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """The tokens: the special ones, the grammar's words, and letters so that any word can be spelled."""
    words = {"a", "an", "on", "ground", "picture", "of", ",", NOUN, *COLOURS, *PLACES, *SHAPES, *SIZES, *TEXTURES}
    words |= {word for relation in RELATIONS for word in relation.split()}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    return [*SPECIAL, *sorted(words | set(letters)), *(f"##{c}" for c in letters)]


def new_processor(folder: Path) -> BlipProcessor:
    """Writes the processor's files to the folder and gives the processor."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = folder / "vocab.txt"
    vocab.write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(
        vocab={token: i for i, token in enumerate(vocabulary())},
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=True,
    )
    half = [0.5, 0.5, 0.5]
    images = BlipImageProcessor(size={"height": 128, "width": 128}, image_mean=half, image_std=half)
    processor = BlipProcessor(images, tokenizer)
    processor.save_pretrained(folder)
    return processor


def new_model() -> BlipForConditionalGeneration:
    """A BLIP of about 4 M parameters for 128 px pictures, with fresh weights."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    text = {
        "vocab_size": len(ids), "hidden_size": 192, "encoder_hidden_size": 192, "intermediate_size": 768,
        "projection_dim": 192, "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "label_smoothing": 0.0,
        "bos_token_id": ids["[CLS]"], "eos_token_id": ids["[SEP]"], "sep_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"],
    }  # fmt: skip
    vision = {
        "hidden_size": 192, "intermediate_size": 768, "projection_dim": 192, "num_hidden_layers": 4,
        "num_attention_heads": 6, "image_size": 128, "patch_size": 8,
        "initializer_range": 0.02,  # BLIP's own is 1e-10, for weights that are loaded: from it no vision tower learns
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=192, image_text_hidden_size=192)
    return BlipForConditionalGeneration(config)


def plain(text: str) -> str:
    """A decoded caption with its commas where they belong."""
    return re.sub(r"\s+,", ",", text).strip()
