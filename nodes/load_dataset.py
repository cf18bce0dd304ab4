"""Load Dataset: pictures and captions from a folder or from the graph."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..training import host
from ..training.basics.errors import InputError, raise_if_any
from ..training.basics.folders import folders_with
from ..training.data.cache import open_cache
from ..training.data.dataset import Dataset, Picture, bucket_table, caption_lines
from ..training.data.dataset_settings import DatasetSettings
from ..training.data.graph_pictures import pictures_from_images
from ..training.data.picture_folder import FolderContents, folder_fingerprint, read_folder
from ..training.data.pictures import ENDINGS, picture_facts
from ..training.data.sheets import contact_sheet, dimmed
from .types import CATEGORY, NONE, KilnDataset

SHEET_PICTURES = 24
DEEPEST = 3
"""levels of folders offered in the list"""


class LoadDataset(io.ComfyNode):
    """Pictures, captions and how to draw from them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        folders = [NONE, *_folders()]
        return io.Schema(
            node_id="KilnLoadDataset",
            display_name="Load Dataset",
            category=CATEGORY,
            description="Reads pictures and captions to train on, and shows them as the trainer will see them.",
            search_aliases=[
                *("training images", "image folder", "lora dataset", "train_data_dir", "reg_data_dir", "buckets"),
                *("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "flip_aug", "shuffle_caption"),
                *("caption_tag_dropout_rate", "caption_dropout_rate", "keep_tokens", "num_repeats", "masked training"),
            ],
            is_input_list=True,
            inputs=[
                io.Combo.Input(
                    "folder", options=folders, default=folders[1] if len(folders) > 1 else NONE,
                    tooltip="A folder of pictures inside ComfyUI's input folder. Captions lie beside the pictures as "
                    ".txt or .caption, or in metadata.jsonl. A folder named 10_cat repeats its pictures 10 times; "
                    "a dataset.toml in a folder has settings for that folder alone. "
                    "Choose none to use pictures from the graph.",
                ),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="Pictures from the graph, instead of a folder or in addition to it.",
                ),
                io.String.Input(
                    "captions", optional=True, force_input=True,
                    tooltip="Captions for the pictures from the graph: a line a picture, or one line for all.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=4096, step=64,
                    tooltip="Side of a square training picture, in pixels: 512 for SD1.5, 1024 for SDXL. "
                    "Other shapes get about the same area.",
                ),
                io.String.Input(
                    "trigger_word", default="",
                    tooltip="The word that calls up what is trained, one the model does not know: ohwx. Put in "
                    "front of captions that lack it.",
                ),
                io.Boolean.Input(
                    "flip", default=False,
                    tooltip="Shows each picture mirrored half of the time (kohya: flip_aug). Not for faces, text or "
                    "anything one-sided.",
                ),
                io.Boolean.Input(
                    "shuffle_tags", default=False,
                    tooltip="Shows comma-separated tags in changing order (kohya: shuffle_caption), so that none is "
                    "learned by its place.",
                ),
                io.Int.Input(
                    "keep_tokens", default=1, min=0, max=64,
                    tooltip="With shuffle_tags: this many tags at the front stay where they are.",
                ),
                io.Float.Input(
                    "caption_dropout", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Share of samples trained without caption (kohya: caption_dropout_rate). 0.05 to 0.1 "
                    "helps styles.",
                ),
                io.Int.Input(
                    "repeats", default=1, min=1, max=1000, advanced=True,
                    tooltip="Times each picture counts in one epoch (kohya: num_repeats), multiplied with the "
                    "folder's own number.",
                ),
                io.Int.Input(
                    "bucket_step", default=64, min=8, max=256, step=8, advanced=True,
                    tooltip="Sides of training pictures are multiples of this, in pixels (kohya: bucket_reso_steps). "
                    "64 is usual; 32 cuts off less.",
                ),
                io.Int.Input(
                    "shortest_side", default=256, min=64, max=4096, step=64, advanced=True,
                    tooltip="No training picture has a side below this, in pixels (kohya: min_bucket_reso).",
                ),
                io.Int.Input(
                    "longest_side", default=2048, min=64, max=8192, step=64, advanced=True,
                    tooltip="No training picture has a side above this, in pixels (kohya: max_bucket_reso).",
                ),
                io.Combo.Input(
                    "regularisation_folder", options=folders, default=NONE, advanced=True,
                    tooltip="Pictures of the same kind but not of the subject (kohya: reg_data_dir): they keep the "
                    "model from forgetting what it knows. As many of them are shown as of your own.",
                ),
                io.Float.Input(
                    "prior_loss_weight", default=1.0, min=0.0, max=10.0, step=0.05, advanced=True,
                    tooltip="Weight of the regularisation pictures' loss: 1 keeps the model as it is most, 0.5 "
                    "learns faster.",
                ),
                io.Combo.Input(
                    "bad_pictures", options=["skip", "stop"], default="skip", advanced=True,
                    tooltip="What to do about files that cannot be used: skip them and say so, or stop.",
                ),
                # Saved workflows hold values by position: new inputs come last, and are optional.
                io.Boolean.Input(
                    "masked_loss", default=False, optional=True,
                    tooltip="Learns only what a mask shows in white. A picture's mask is <name>_mask.png or "
                    "<name>-masklabel.png beside it, else its own transparency. Pictures without one count everywhere.",
                ),
                io.Float.Input(
                    "unmasked_weight", default=0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="With masked_loss: weight of what the mask leaves out. A little, 0.1, keeps it in shape.",
                ),
                io.String.Input(
                    "extra_resolutions", default="", optional=True, advanced=True,
                    tooltip="More resolutions, such as 768, 1024: an epoch shows every picture once at each.",
                ),
                io.Boolean.Input(
                    "random_crop", default=False, optional=True, advanced=True,
                    tooltip="Cuts what does not fit a picture's bucket at changing places, in place of its "
                    "edges: for textures "
                    "and styles, not where a face must stay whole.",
                ),
                io.Float.Input(
                    "tag_dropout", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Chance of each comma-separated tag behind the first keep_tokens to be left out "
                    "(kohya: caption_tag_dropout_rate): 0.1 is usual.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="With masked_loss: masks for the pictures from the graph, one a picture or one for all. "
                    "White = learn. Load Image's mask is white where a picture is transparent: put Invert Mask behind.",
                ),
            ],
            outputs=[
                KilnDataset.Output(display_name="dataset", tooltip="For Caption Images and Train LoRA."),
                io.Image.Output(display_name="preview", tooltip="Contact sheet of what the trainer will see."),
                io.String.Output(display_name="captions", tooltip="A line a picture, as it will be trained."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder: Any = None, regularisation_folder: Any = None) -> bool | str:
        try:
            for field, name in (("folder", _one(folder)), ("regularisation_folder", _one(regularisation_folder))):
                if name not in (None, "", NONE):
                    host.resolve_folder(name, field)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        prints = []
        for field in ("folder", "regularisation_folder"):
            name = _one(inputs.get(field))
            if name not in (None, "", NONE):
                prints.append(folder_fingerprint(host.resolve_folder(name, field), host.data_roots()))
        return "|".join(prints)

    @classmethod
    def execute(
        cls,
        folder: list[str],
        images: list[torch.Tensor] | None = None,
        captions: list[str] | None = None,
        masks: list[torch.Tensor] | None = None,
        **settings: list[Any],
    ) -> io.NodeOutput:
        values = {name: value[0] for name, value in settings.items()}
        regularisation = values.pop("regularisation_folder", NONE)
        repeats = values.pop("repeats", 1)
        stop_at_problems = values.pop("bad_pictures", "skip") == "stop"
        is_masked = values.get("masked_loss", False) and not values.get("unmasked_weight", 0.0)
        from_graph = pictures_from_images(images or [], _lines(captions or []), repeats, masks or [], is_masked)
        dataset = _read(
            _one(folder), regularisation, from_graph, repeats, stop_at_problems, DatasetSettings(**values)
        )  # fmt: skip
        host.show_text(_summary(dataset))
        sheet = dataset_sheet(dataset)
        return io.NodeOutput(dataset, sheet, caption_lines(dataset), ui=ui.PreviewImage(sheet, cls=cls))


def dataset_sheet(dataset: Dataset) -> torch.Tensor:
    """Contact sheet of the pictures as cut for training, each with its name, bucket and caption: (1, H, W, 3).

    What a mask leaves out is dimmed.
    """
    fits = dataset.fits()
    chosen = range(len(dataset.pictures))[:SHEET_PICTURES]
    cells = []
    for index in chosen:
        picture, fit = dataset.pictures[index], fits[index]
        heading = f"{fit.width} x {fit.height}" + (f"  x{picture.repeats}" if picture.repeats > 1 else "")
        heading += "  regularisation" if picture.is_regularisation else ""
        pixels = picture.load(fit)
        mask = picture.load_mask(fit) if dataset.is_masked(index) else None
        shown = pixels if mask is None else dimmed(pixels, mask)
        cells.append((shown, heading, dataset.caption(index) or "(no caption)"))
    return contact_sheet(cells, columns=min(6, max(3, len(cells))), side=176)


def _read(
    folder: str,
    regularisation: str,
    from_graph: list[Picture],
    repeats: int,
    stop_at_problems: bool,
    settings: DatasetSettings,
) -> Dataset:
    found: list[FolderContents] = []
    name = "images"
    if folder not in ("", NONE):
        path = host.resolve_folder(folder, "folder")
        name = path.name
        found.append(_read_folder(path, settings, False, repeats))
        if not found[0].pictures and not found[0].problems:
            endings = " ".join(ENDINGS)
            raise_if_any("Load Dataset", [f"folder {folder!r} holds no picture ({endings}): put some there."])
        if not found[0].pictures:
            raise_if_any(
                "Load Dataset",
                [f"folder {folder!r} holds no usable picture: mend or replace these.", *found[0].problems],
            )
    own = [picture for each in found for picture in each.pictures] + from_graph
    if not own:
        raise_if_any(
            "Load Dataset", ["folder is 'none' and no images are connected: choose a folder, or connect Load Image."]
        )
    if regularisation not in ("", NONE):
        path = host.resolve_folder(regularisation, "regularisation_folder")
        found.append(_read_folder(path, settings, True, 1))
        if not found[-1].pictures:
            problem = (
                f"regularisation_folder {regularisation!r} holds no usable picture: put some there, or choose none."
            )
            raise_if_any("Load Dataset", [*(problem for each in found for problem in each.problems), problem])
        own += found[-1].pictures
    problems = tuple(problem for each in found for problem in each.problems)
    notes = tuple(note for each in found for note in each.notes)
    if stop_at_problems:
        raise_if_any("Load Dataset", problems)
    settings_files = tuple(name for each in found for name in each.settings_files)
    return Dataset(tuple(own), settings, name, problems, settings_files, notes)


def _read_folder(path: Path, settings: DatasetSettings, is_regularisation: bool, repeats: int) -> FolderContents:
    """`read_folder` with the cache's memory of files, progress and interrupt."""

    def on_picture(done: int, total: int) -> None:
        host.raise_if_interrupted()
        if done % 100 == 99:
            host.show_text(f"looking at picture {done + 1} of {total}")

    with open_cache() or nullcontext() as cache:
        examine = cache.picture_facts if cache else picture_facts
        return read_folder(path, settings, is_regularisation, repeats, examine, on_picture, host.data_roots())


def _summary(dataset: Dataset) -> str:
    count, settings = len(dataset.pictures), dataset.settings
    prior = sum(picture.is_regularisation for picture in dataset.pictures)
    uncaptioned = sum(not picture.caption for picture in dataset.pictures)
    masked = sum(dataset.is_masked(index) for index in range(count))
    buckets = ", ".join(f"{w}x{h} ({count})" for (w, h), count in bucket_table(dataset).items())
    lines = [f"{count - prior} pictures" + (f" + {prior} regularisation" if prior else "")]
    if len(settings.resolutions()) > 1:
        lines.append(f"resolutions: {', '.join(map(str, settings.resolutions()))}")
    lines.append(f"buckets: {buckets}")
    if any(dataset.settings_of(index).masked_loss for index in range(count)):
        lines.append(f"{masked} of {count} with a mask")
    elif any(picture.mask_pixels is not None for picture in dataset.pictures):
        lines.append("masks are not used: masked_loss is off")
    if dataset.settings_files:
        lines.append(f"settings from {', '.join(dataset.settings_files)}")
    if uncaptioned:
        lines.append(f"{uncaptioned} without caption")
    if dataset.problems:
        lines += [f"{len(dataset.problems)} left out:", *dataset.problems[:10]]
    return "\n".join([*lines, *dataset.notes])


def _folders() -> list[str]:
    """Folders with pictures in or below them: relative to the input folder, absolute for other allowed roots."""
    inputs, *others = roots = host.data_roots()
    found = folders_with(inputs, ENDINGS, DEEPEST, roots)
    offered = {folder.relative_to(inputs).as_posix() for folder in found} - {"."}
    for root in others:
        offered.update(map(str, folders_with(root, ENDINGS, DEEPEST, roots)))
    return sorted(offered)


def _lines(captions: list[str]) -> list[str]:
    return captions[0].strip("\n").splitlines() if len(captions) == 1 else list(captions)


def _one(value: Any) -> Any:
    """A node with is_input_list gets every value in a list, except where the host does not know yet."""
    return value[0] if isinstance(value, list) and value else value
