"""The types of the wires between our nodes, and of those shared with the host's."""

from comfy_api.latest import io

KilnDataset = io.Custom("KILN_DATASET")
KilnConfig = io.Custom("KILN_CONFIG")
LoraModel = io.Custom("LORA_MODEL")
"""The host's own: a LoRA's state dict."""
LossMap = io.Custom("LOSS_MAP")
"""The host's own: {"loss": [one number a step]}."""

CATEGORY = "LoRA Kiln"
NONE = "none"
