"""LoRA files: their keys, formats and metadata; export, merge, and going on from one."""
