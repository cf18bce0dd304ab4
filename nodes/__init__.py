"""The nodes: schema in, one call, outputs out."""

from comfy_api.latest import ComfyExtension, io

from ..training import host
from ..training.data import dataset_page, uploads
from ..training.data.captioner import FOLDER
from ..training.lora import comparison_cache
from ..training.run import page as run_page
from .adapter_options import AdapterOptions
from .apply_lora_preview import ApplyLoRAPreview
from .caption_images import CaptionImages
from .import_recipe import ImportRecipe
from .load_dataset import LoadDataset
from .load_lora import LoadLoRA
from .lora_config import LoRAConfigNode, filled_in
from .loss_options import LossOptions
from .merge_loras import MergeLoRAs
from .optimizer_options import OptimizerOptions
from .run_options import RunOptions
from .save_lora import SaveLoRA
from .train_lora import TrainLoRA

NODES: list[type[io.ComfyNode]] = [
    LoadDataset,
    CaptionImages,
    LoRAConfigNode,
    AdapterOptions,
    LossOptions,
    OptimizerOptions,
    RunOptions,
    ImportRecipe,
    TrainLoRA,
    LoadLoRA,
    MergeLoRAs,
    SaveLoRA,
    ApplyLoRAPreview,
]


class KilnExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def on_load(self) -> None:
        host.register_model_folder(FOLDER)
        if wrong := host.wrong_roots():
            host.log("%s", wrong)
        host.serve_get("/kiln/runs", run_page.runs, at_once=1)
        host.serve_get("/kiln/run", run_page.run)
        host.serve_get("/kiln/run/pictures", run_page.pictures)
        host.serve_post("/kiln/run/control", run_page.control)
        host.serve_json("/kiln/presets", filled_in)
        host.serve_get("/kiln/preview", comparison_cache.last_shown)
        host.serve_get("/kiln/dataset", dataset_page.describe, at_once=2)
        host.serve_get("/kiln/thumbnail", dataset_page.thumbnail, at_once=2)
        host.serve_post("/kiln/dataset/captions", dataset_page.save_captions)
        host.serve_upload("/kiln/dataset/upload", uploads.RULES, uploads.add)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
