"""The kit's text encoder: frozen random word vectors plus small positions, layer-normalised.

It is a full-shape CLIP-L whose residual branches end in zero weights, so it need not be shipped: it is written from
`numpy.random.RandomState`, whose stream is frozen. Training uses the same tables, rounded to fp16 as in the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 20260
WORDS, WIDTH, LENGTH, LAYERS, HIDDEN = 49408, 768, 77, 12, 3072
POSITION_STD = 0.4  # beside word vectors of standard deviation 1
START, END = 49406, 49407


def _normal(random: np.random.RandomState, *shape: int, std: float = 1.0) -> Tensor:
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32) * np.float32(std)).half()


def tables() -> tuple[Tensor, Tensor]:
    """Word vectors (49408, 768) and position vectors (77, 768), fp16."""
    random = np.random.RandomState(SEED)
    positions = _normal(random, LENGTH, WIDTH, std=POSITION_STD)
    return _normal(random, WORDS, WIDTH), positions


def clip_state_dict(prefix: str = "cond_stage_model.transformer.text_model.") -> dict[str, Tensor]:
    """The whole CLIP-L in fp16, under the names of an SD1.5 checkpoint."""
    words, positions = tables()
    random = np.random.RandomState(SEED + 1)
    state = {"embeddings.token_embedding.weight": words, "embeddings.position_embedding.weight": positions}
    for layer in (f"encoder.layers.{i}." for i in range(LAYERS)):
        for name in ("q_proj", "k_proj", "v_proj"):
            state[f"{layer}self_attn.{name}.weight"] = _normal(random, WIDTH, WIDTH, std=WIDTH**-0.5)
        state[f"{layer}self_attn.out_proj.weight"] = torch.zeros(WIDTH, WIDTH, dtype=torch.half)
        state[f"{layer}mlp.fc1.weight"] = _normal(random, HIDDEN, WIDTH, std=WIDTH**-0.5)
        state[f"{layer}mlp.fc2.weight"] = torch.zeros(WIDTH, HIDDEN, dtype=torch.half)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc2"):
            state[f"{layer}{name}.bias"] = torch.zeros(WIDTH, dtype=torch.half)
        state[f"{layer}mlp.fc1.bias"] = torch.zeros(HIDDEN, dtype=torch.half)
        for name in ("layer_norm1", "layer_norm2"):
            state[f"{layer}{name}.weight"] = torch.ones(WIDTH, dtype=torch.half)
            state[f"{layer}{name}.bias"] = torch.zeros(WIDTH, dtype=torch.half)
    state["final_layer_norm.weight"] = torch.ones(WIDTH, dtype=torch.half)
    state["final_layer_norm.bias"] = torch.zeros(WIDTH, dtype=torch.half)
    return {prefix + name: value for name, value in state.items()}


class TextEmbedding(nn.Module):
    """What the host's CLIP text encoder gives with `clip_state_dict`: token ids (B, 77) to (B, 77, 768)."""

    def __init__(self) -> None:
        super().__init__()
        words, positions = tables()
        self.register_buffer("words", words)
        self.register_buffer("positions", positions.float())

    def forward(self, ids: Tensor) -> Tensor:
        return F.layer_norm(self.words[ids].float() + self.positions, (WIDTH,))


class Tokens:
    """The host's CLIP tokenizer, one word at a time: words are tokenised apart from each other, so they are cached."""

    def __init__(self) -> None:
        from comfy.sd1_clip import SDTokenizer

        self._tokenizer = SDTokenizer().tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, 77) ids: start, the words, and the end token up to the full length."""
        rows = np.full((len(texts), LENGTH), END, dtype=np.int32)
        rows[:, 0] = START
        for row, text in zip(rows, texts, strict=True):
            ids = [i for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower()) for i in self._word(word)]
            row[1 : 1 + len(ids)] = ids
        return torch.from_numpy(rows)

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = self._tokenizer(word)["input_ids"][1:-1]
        return self._known[word]
