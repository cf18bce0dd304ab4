"""The kit's captioner: its grammar, what its training sees, and that its stored weights caption fresh pictures."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from kit.build import build_captioner
from kit.captioner import NOUN, new_model, new_processor, plain
from kit.concepts import scribbles
from kit.draw import SHAPES, Atlas, base_atlas, random_scene, render
from kit.train_captioner import caption_loss, caption_of, causal, fuse


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captioner as `dev.py` builds it."""
    path = tmp_path_factory.mktemp("captioner")
    build_captioner(path)
    return path


def test_every_caption_is_made_of_whole_words(tmp_path: Path) -> None:
    tokenizer, rng = new_processor(tmp_path).tokenizer, Random(1)
    shapes = [*scribbles(1, 3).names, *SHAPES]
    for _ in range(300):
        caption = caption_of(random_scene(rng, shapes, pairs=0.3))
        ids = tokenizer(caption).input_ids
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert not any(token == "[UNK]" or token.startswith("##") for token in tokens)
        assert plain(tokenizer.decode(ids, skip_special_tokens=True)) == caption


def test_the_processor_gives_what_training_saw(tmp_path: Path) -> None:
    processor = new_processor(tmp_path)
    picture = (render([random_scene(Random(2))], base_atlas())[0] * 255).round().byte()
    seen = processor(images=Image.fromarray(picture.numpy()), return_tensors="pt").pixel_values
    torch.testing.assert_close(seen[0], (picture.float() / 255).movedim(-1, 0) * 2 - 1)


def test_the_training_loss_is_transformers_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer, model = new_processor(tmp_path).tokenizer, new_model()
    assert model.vision_model.embeddings.patch_embedding.weight.std() > 0.01
    texts = ["a big red circle on a blue ground, left", "a red ring"]
    words = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    pictures, pad = torch.rand(2, 3, 128, 128), tokenizer.pad_token_id
    labels = words.masked_fill(words == pad, -100)
    own = model(
        pixel_values=pictures * 2 - 1, input_ids=words, attention_mask=(words != pad).long(), labels=labels
    ).loss
    fuse(model)
    mine = caption_loss(model, pictures, words, causal(words.shape[1], words.device), pad)
    torch.testing.assert_close(mine, own)


@pytest.mark.parametrize("kind, bound", [("base", 0.9), ("glyphs", 0.8)])
def test_captions_of_fresh_pictures_are_right(folder: Path, kind: str, bound: float) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).float().eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    fresh: Atlas = scribbles(4321, 8)
    names = fresh.names if kind == "glyphs" else tuple(SHAPES)
    rng = Random(4321)
    scenes = [random_scene(rng, names, pairs=0) for _ in range(48)]
    pictures = (render(scenes, base_atlas().plus(fresh.names, fresh.fields)) * 255).round().byte().numpy()
    inputs = processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    ids = model.generate(pixel_values=inputs.pixel_values, max_new_tokens=20)
    said = [plain(text) for text in processor.batch_decode(ids, skip_special_tokens=True)]
    wanted = [caption_of(scene) for scene in scenes]
    assert np.mean([a == b for a, b in zip(said, wanted, strict=True)]) >= bound
    assert kind == "base" or all(NOUN in text for text in wanted)
