"""One run, from the graph's inputs to a LoRA: trainer, recorder, progress, folder, checkpoints and live view."""
