"""Pictures and masks from the graph."""

import pytest
import torch
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data.graph_pictures import pictures_from_images


@pytest.mark.parametrize("captions", [[], ["same"], ["same", "same"]])
def test_captions_of_images_are_none_one_or_each(captions: list[str]) -> None:
    pictures = pictures_from_images([torch.zeros(2, 64, 64, 3)], captions)
    assert [each.caption for each in pictures] == (["same", "same"] if captions else ["", ""])


def test_grey_images_become_color() -> None:
    assert pictures_from_images([torch.zeros(1, 20, 20, 1)], [])[0].pixels.shape == (20, 20, 3)


def test_an_image_from_the_graph_is_copied() -> None:
    image = torch.zeros(1, 20, 20, 3)
    kept = pictures_from_images([image], [])[0]
    image.fill_(1.0)
    assert kept.pixels.max() == 0


def half(height: int = 32, width: int = 32) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, :, : width // 2] = 1.0
    return mask


@pytest.mark.parametrize("masks", [[half()], [half(), half()], [half().expand(2, -1, -1)], [half()[0]]])
def test_masks_of_images_are_one_or_each(masks: list[torch.Tensor]) -> None:
    pictures = pictures_from_images([torch.zeros(2, 64, 64, 3)], [], masks=masks)
    assert all(torch.equal(picture.mask_pixels, half()[0]) for picture in pictures)


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ([half()] * 2, "masks has 2 for 3 pictures"),
        ([half(16, 32)], "the mask of image 1 is 32 x 16 for a picture of 64 x 64"),
        ([torch.zeros(1, 64, 64)], "the mask of image 1 is black all over.*Invert Mask"),
    ],
)
def test_masks_that_cannot_be_used_are_said(masks: list[torch.Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pictures_from_images([torch.zeros(3, 64, 64, 3)], [], masks=masks)


def test_an_even_mask_of_any_shape_is_taken() -> None:
    """Load Image gives 64 x 64 for a picture without transparency, whatever its size."""
    picture = pictures_from_images([torch.zeros(1, 64, 128, 3)], [], masks=[torch.ones(1, 64, 64)])[0]
    assert picture.mask_pixels.min() == 1


def test_the_alpha_of_an_image_is_its_mask() -> None:
    image = torch.rand(1, 32, 32, 4)
    assert torch.equal(pictures_from_images([image], [])[0].mask_pixels, image[0, ..., 3])
    assert torch.equal(pictures_from_images([image], [], masks=[half()])[0].mask_pixels, half()[0])
    image[..., 3] = 1.0
    assert pictures_from_images([image], [])[0].mask_pixels is None


def test_an_image_of_which_nothing_would_be_learned_is_said() -> None:
    clear = torch.zeros(2, 64, 64, 4)
    clear[0, ..., 3] = 0.5
    assert len(pictures_from_images([clear], [])) == 2
    with pytest.raises(InputError, match="image 2 is transparent all over"):
        pictures_from_images([clear], [], is_masked=True)
    assert len(pictures_from_images([clear], [], masks=[half(64, 64)], is_masked=True)) == 2
