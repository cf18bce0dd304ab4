"""What the model is given: with embeddings from the cache, and live."""

from __future__ import annotations

import pytest

import models
from training_runs import changed, run

pytestmark = pytest.mark.usefixtures("lora_folder")


def test_text_encoder_training_begins_with_the_losses_of_cached_embeddings():
    """At the first step nothing is learned yet: embeddings made on the way are those that are cached."""
    cached = run(changed(steps=1), "cached", small=models.sdxl())
    live = run(changed(steps=1, text_encoder_learning_rate=1e-3), "live", small=models.sdxl())
    assert live.losses == pytest.approx(cached.losses, rel=1e-5)
