"""The training loop, DeepSpeed, checkpoints, metrics."""
