"""The craft: everything a run does, free of node schemas. Only `host` knows ComfyUI."""
