"""LoRA files: keys, formats and metadata; reading, exporting, merging, comparing, and continuing to train one."""
