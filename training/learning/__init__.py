"""Training without ComfyUI: predictions, objective, optimizers, batches, step, engine and loop."""
