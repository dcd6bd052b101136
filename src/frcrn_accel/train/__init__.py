"""Train FRCRN. Needs the `[train]` extra."""

from frcrn_accel.train.config import TrainingConfig, read_config

__all__ = ["TrainingConfig", "read_config"]
