"""Pictures and masks that come from the graph as tensors."""

from collections.abc import Sequence

import torch

from ..basics.errors import raise_if_any
from .dataset import Picture
from .pictures import SMALLEST_SIDE, same_aspect


def pictures_from_images(
    batches: Sequence[torch.Tensor],
    captions: Sequence[str],
    repeats: int = 1,
    masks: Sequence[torch.Tensor] = (),
    is_masked: bool = False,
) -> list[Picture]:
    """Pictures from the graph's IMAGEs.

    Args:
        batches: (B, H, W, C) each, in [0, 1]; with C = 4, alpha is composited over white and serves as the mask.
        captions: one for each picture, one for all, or none.
        repeats: of each picture in an epoch.
        masks: (B, H, W) or (H, W) each, in [0, 1], white = learn; one for each picture, one for all, or none.
        is_masked: what is black or transparent will not be learned at all.

    Raises:
        InputError: a wrong number of captions or masks; a picture that is too small; a mask that is black all over or
            has another aspect ratio than its picture; with is_masked, a picture that is transparent all over.
    """
    images = [image.detach().float().cpu() for batch in batches for image in batch]
    mask_images = [
        mask.detach().float().cpu() for batch in masks for mask in (batch if batch.dim() == 3 else batch[None])
    ]
    problems = []
    if len(captions) not in (0, 1, len(images)):
        problems.append(
            f"captions has {len(captions)} lines for {len(images)} pictures: give one a picture, one for all, or none."
        )
    if len(mask_images) not in (0, 1, len(images)):
        problems.append(
            f"masks has {len(mask_images)} for {len(images)} pictures: give one a picture, one for all, or none."
        )
        mask_images = []
    small = [image.shape for image in images if min(image.shape[:2]) < SMALLEST_SIDE]
    if small:
        problems.append(
            f"images holds a picture of {small[0][1]} x {small[0][0]} pixels: "
            f"sides must be at least {SMALLEST_SIDE}. Leave it out, or put a larger one in its place."
        )
    problems += [
        f"image {number} is transparent all over, and with masked_loss what is transparent is not learned: leave it "
        "out, or give it a mask."
        for number, image in enumerate(images, 1)
        if is_masked and not mask_images and image.shape[-1] == 4 and image[..., 3].max() <= 0
    ]
    mask_images = _one_each(mask_images, len(images))
    for number, (image, mask) in enumerate(zip(images, mask_images, strict=False), 1):
        problems += _problems_of_mask(number, (image.shape[1], image.shape[0]), mask)
    raise_if_any("Load Dataset", problems)
    texts = _one_each(captions, len(images)) or [""] * len(images)
    all_masks = mask_images or [_alpha_of(image) for image in images]
    return [
        Picture(
            name=f"image {number}",
            width=image.shape[1],
            height=image.shape[0],
            caption=text.strip(),
            repeats=repeats,
            pixels=_over_white(image),
            mask_pixels=None if mask is None else mask.clone(),
        )
        for number, (image, text, mask) in enumerate(zip(images, texts, all_masks, strict=True), 1)
    ]


def _problems_of_mask(number: int, size: tuple[int, int], mask: torch.Tensor) -> list[str]:
    if mask.max() <= 0:
        return [
            f"the mask of image {number} is black all over, and white is what is learned: take it off, "
            "or put Invert Mask behind Load Image, whose mask is white where a picture is transparent."
        ]
    is_uniform = mask.min() == mask.max()  # its aspect ratio does not matter
    if not is_uniform and not same_aspect(size, (mask.shape[1], mask.shape[0])):
        return [
            f"the mask of image {number} is {mask.shape[1]} x {mask.shape[0]} for a picture of {size[0]} x {size[1]}: "
            "give it the picture's aspect ratio."
        ]
    return []


def _one_each(values: Sequence, count: int) -> list:
    return list(values) * count if len(values) == 1 else list(values)


def _alpha_of(image: torch.Tensor) -> torch.Tensor | None:
    """The alpha channel of an image (H, W, C); None if it has none or is opaque everywhere."""
    return image[..., 3] if image.shape[-1] == 4 and image[..., 3].min() < 1 else None


def _over_white(image: torch.Tensor) -> torch.Tensor:
    image = image.clone()
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        image = image[..., :3] * alpha + (1.0 - alpha)
    return image[..., :3].expand(*image.shape[:2], 3)
