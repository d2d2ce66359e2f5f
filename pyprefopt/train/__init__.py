"""Training: settings, the loop, DeepSpeed, checkpoints, metrics."""
