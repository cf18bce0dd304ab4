"""The origin of a run: what is not known of an earlier run is never taken for the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_extras.nodes_freelunch import FreeU
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.run.origin import differences, origin_of
from lora_kiln.training.run.resume import REFUSE

import models
from training_runs import CONFIG, dataset, graph_models, run, stopped_at


def v_prediction(small: models.Small) -> models.Small:
    (model,) = ModelSamplingDiscrete().patch(small.model, "v_prediction", False)
    return models.Small(model, small.clip, small.vae)


def free_u(small: models.Small, scale: float) -> models.Small:
    return models.Small(FreeU.execute(small.model, scale, 1.2, 0.9, 0.2).args[0], small.clip, small.vae)


def plain(small: models.Small) -> dict[str, Any]:
    return origin_of(graph_models(small), dataset(), CONFIG, None, None).plain()


def of_models(**values: Any) -> dict[str, Any]:
    return {"recipe": {}, "dataset": {}, "models": values}


def test_each_model_has_its_identity() -> None:
    found = plain(models.sd15())["models"]
    assert found.keys() == {"model", "sampling", "clip", "clip in use", "vae", "start"} and found.pop("start") is None
    assert len({*found.values()}) == 5 and all(len(each) == 64 for each in found.values())


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (None, "a" * 64, "not known of the run before"),
        ("a" * 64, "b" * 64, "is another"),
        ("a" * 64, "a" * 64, None),
    ],
)
@pytest.mark.parametrize("name", ["model", "clip", "vae", "sampling"])
def test_unknown_is_never_the_same(name: str, before: str | None, now: str, said: str | None) -> None:
    found = differences(of_models(**{name: before}), of_models(**{name: now}))
    assert len(found) == (said is not None) and all(name in each and str(said) in each for each in found)


def test_what_earlier_versions_do_not_tell_is_no_difference_and_what_is_gone_is_one() -> None:
    now = of_models(model="a" * 64, sampling="b" * 64)
    assert differences(of_models(model="a" * 64), now) == []
    assert differences(of_models(sampling="b" * 64), now) == ["model: not known of the run before"]


@pytest.mark.parametrize(("make", "name", "counts"), [(models.sd15, "l", False), (models.sdxl, "g", True)])
def test_what_a_checkpoint_lacks_and_the_model_does_not_use_does_not_count(make, name: str, counts: bool) -> None:
    """SD1.5 takes no pooled embedding, and its checkpoints lack the weight that makes it: any memory stands there."""
    small, found = make(), []
    projection = getattr(small.clip.cond_stage_model, f"clip_{name}").transformer.text_projection.weight
    for value in (1.0, 2.0):
        with torch.inference_mode():
            projection.fill_(value)
        found.append(plain(small))
    assert differences(*found) == (["clip is another"] if counts else [])
    with torch.inference_mode():
        next(small.clip.cond_stage_model.parameters()).add_(1.0)
    assert differences(found[1], plain(small)) == ["clip is another"]


@pytest.mark.usefixtures("lora_folder")
def test_a_stopped_run_of_a_patched_model_goes_on_with_the_same_and_with_no_other() -> None:
    one, other = models.sd15(), models.sd15(9)
    stopped_at(2, CONFIG, small=v_prediction(one))
    for changed in (v_prediction(models.Small(other.model, one.clip, one.vae)), one, free_u(v_prediction(one), 1.1)):
        with pytest.raises(InputError, match="model is another"):
            run(CONFIG, previous=REFUSE, small=changed)
    assert "Goes on from step 2" in run(CONFIG, previous=REFUSE, small=v_prediction(one)).report


def test_the_settings_of_a_patch_count() -> None:
    small = models.sd15()
    one, same, other = (plain(free_u(small, scale)) for scale in (1.1, 1.1, 3.0))
    assert differences(one, same) == []
    assert differences(one, other) == ["model is another"]
