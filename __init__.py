"""LoRA Kiln: trains LoRAs on the ComfyUI canvas."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI once; imports the nodes only then."""
    from .nodes import KilnExtension

    return KilnExtension()
