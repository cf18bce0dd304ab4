"""Caption Images: captions by an image-to-text model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..training import host
from ..training.basics.errors import InputError, raise_if_any
from ..training.data.caption_files import write_sidecar
from ..training.data.captioner import FOLDER, KNOWN_IDS, CaptionSettings, caption_images, find_model, local_models
from ..training.data.dataset import Dataset, caption_lines
from ..training.data.pictures import to_image
from .load_dataset import dataset_sheet
from .types import CATEGORY, KilnDataset

KEEP, NEW_FILES, OVERWRITE = "no", "new", "overwrite"
UNCAPTIONED, ALL = "uncaptioned", "all"


class CaptionImages(io.ComfyNode):
    """Writes captions for the pictures of a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = [*local_models(), *KNOWN_IDS]
        return io.Schema(
            node_id="KilnCaptionImages",
            display_name="Caption Images",
            category=CATEGORY,
            description="Describes the pictures of a dataset with an image-to-text model.",
            search_aliases=["blip", "florence", "git", "auto caption", "interrogate"],
            inputs=[
                KilnDataset.Input("dataset", tooltip="From Load Dataset."),
                io.Combo.Input(
                    "captioner", options=models, default=models[0],
                    tooltip=f"A folder in models/{FOLDER}, or a model of the Hugging Face hub, which is downloaded "
                    "once. BLIP, BLIP-2, GIT and Florence-2 work; weights must be safetensors.",
                ),
                io.Combo.Input(
                    "pictures", options=[UNCAPTIONED, ALL], default=UNCAPTIONED,
                    tooltip="Which pictures get a new caption: those without one, or all.",
                ),
                io.String.Input("prefix", default="", tooltip='Put before each new caption, such as "photo of".'),
                io.String.Input("suffix", default="", tooltip='Put after each new caption, such as ", film photo".'),
                io.String.Input(
                    "trigger_word", default="", tooltip="Put in front of new captions that lack it: the same "
                    "word as in Load Dataset.",
                ),
                io.Combo.Input(
                    "write_files", options=[KEEP, NEW_FILES, OVERWRITE], default=KEEP,
                    tooltip="Also write the captions as .txt files beside the pictures: new = where a picture has "
                    "no caption yet, overwrite = over your own text too; inside ComfyUI's input folder only. "
                    "New files make Load Dataset, and so the training, run again.",
                ),
                io.String.Input(
                    "prompt", default="", advanced=True,
                    tooltip="What the model is asked, where it takes a prompt. Florence-2: <CAPTION>, "
                    "<DETAILED_CAPTION> or <MORE_DETAILED_CAPTION>.",
                ),
                io.Int.Input(
                    "max_new_tokens", default=60, min=4, max=1024, advanced=True,
                    tooltip="Longest caption, in the model's tokens: 30 for a sentence, 100 and more for "
                    "Florence-2's long ones.",
                ),
                io.Int.Input(
                    "num_beams", default=3, min=1, max=16, advanced=True,
                    tooltip="Beam search width: more is slower and a little better; 1 takes the likeliest word.",
                ),
            ],
            outputs=[
                KilnDataset.Output(display_name="dataset", tooltip="The dataset with captions."),
                io.String.Output(display_name="captions", tooltip="A line a picture, as it will be trained."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, captioner: Any = None) -> bool | str:
        try:
            if captioner is not None:
                find_model(captioner)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        captioner: str,
        pictures: str,
        write_files: str,
        **settings: Any,
    ) -> io.NodeOutput:
        wanted = [index for index, picture in enumerate(dataset.pictures) if pictures == ALL or not picture.caption]
        if write_files != KEEP:
            _refuse_to_write_outside([dataset.pictures[index].path for index in wanted])
        fits = dataset.fits()
        progress = host.progress_bar(max(1, len(wanted)))

        def on_caption(done: int, caption: str) -> None:
            picture = dataset.pictures[wanted[done]]
            may_write = write_files == OVERWRITE or (write_files == NEW_FILES and not picture.caption)
            if picture.path is not None and may_write:
                write_sidecar(picture.path, caption, overwrite=write_files == OVERWRITE)
            host.show_text(f"{done + 1} of {len(wanted)}: {caption}")
            progress(done + 1)

        new: list[str] = []
        if wanted:
            images = [lambda index=index: to_image(dataset.pictures[index].load(fits[index])) for index in wanted]
            prior = [dataset.pictures[index].is_regularisation for index in wanted]
            new = caption_images(captioner, images, prior, CaptionSettings(**settings), on_caption)
        captioned = dataset.with_captions(dict(zip(wanted, new, strict=True)))
        host.show_text(f"{len(new)} of {len(dataset.pictures)} pictures captioned")
        return io.NodeOutput(captioned, caption_lines(captioned), ui=ui.PreviewImage(dataset_sheet(captioned), cls=cls))


def _refuse_to_write_outside(pictures: Iterable[Path | None]) -> None:
    outside = sorted({str(path.parent) for path in pictures if path is not None and not host.may_write(path)})
    if outside:
        problem = (
            f"write_files is on, but {outside[0]} lies outside ComfyUI's input folder: set write_files to {KEEP}, "
            f"move the pictures there, or let the person who runs the server set {host.WRITE_VARIABLE}=1."
        )
        raise_if_any("Caption Images", [problem])
