"""LoRA Kiln: trains LoRAs on the ComfyUI canvas."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI once; imports the nodes only then, and first of all what refuses a host that is too old."""
    from .training import host  # noqa: F401

    # isort: split
    from .nodes import KilnExtension

    return KilnExtension()
