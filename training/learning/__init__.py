"""What learns, without ComfyUI: prediction, objective, optimizers, batches, step, engine and loop."""
