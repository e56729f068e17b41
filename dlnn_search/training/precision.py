"""Which number format a config is trained in."""

from __future__ import annotations

from dlnn_search.config import Config


def with_precision(config: Config, precision: str) -> Config:
    """Return the config with another precision."""
    training = config.training.model_copy(update={"precision": precision})
    return config.model_copy(update={"training": training})


def resolve_precision(config: Config, image_shape: tuple[int, int]) -> Config:
    """Return the config with a concrete precision in place of `auto`."""
    if config.training.precision != "auto":
        return config
    return with_precision(config, "float32")
