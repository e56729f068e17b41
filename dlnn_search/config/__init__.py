"""`Config`: the one value that the search makes, training consumes and export writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from dlnn_search.config.data import (
    ClassData,
    Clocks,
    Data,
    FashionMnist,
    Frozen,
    Mnist,
    OwnData,
    OwnPart,
    title_of,
)
from dlnn_search.config.model import (
    Activation,
    BatchNorm,
    ClockNet,
    Cnn,
    Contrast,
    Conv,
    Dense,
    Dropout,
    Joint,
    Mlp,
    Model,
    OneRegression,
    OneSoftmax,
    OwnModel,
    Pool,
    Regression,
    SinCos,
    SoftLabels,
    TwoSoftmax,
)
from dlnn_search.config.training import Augmentation, CurriculumStage, Training, default_epochs
from dlnn_search.errors import UsageError
from dlnn_search.metrics import DIRECTIONS

__all__ = [
    "Activation",
    "Augmentation",
    "BatchNorm",
    "ClassData",
    "ClockNet",
    "Clocks",
    "Cnn",
    "Config",
    "Contrast",
    "Conv",
    "CurriculumStage",
    "Data",
    "Dense",
    "Dropout",
    "FashionMnist",
    "Frozen",
    "Joint",
    "Mlp",
    "Mnist",
    "Model",
    "OneRegression",
    "OneSoftmax",
    "Origin",
    "OwnData",
    "OwnModel",
    "OwnPart",
    "Pool",
    "Regression",
    "SinCos",
    "SoftLabels",
    "Training",
    "TwoSoftmax",
    "read_config",
    "study_defaults",
    "title_of",
]

#: Of a wrong value, in a message.
MAX_SHOWN = 80
#: A config is a few KB; anything far larger is not one.
MAX_CONFIG_BYTES = 1_000_000

_study_data: ContextVar[Data] = ContextVar("study_data")


@contextmanager
def study_defaults(data: Data | None, epochs: int | None) -> Iterator[None]:
    """Let configs made inside take `data` and `epochs` where they name none themselves."""
    token = None if data is None else _study_data.set(data)
    try:
        if epochs is None:
            yield
        else:
            with default_epochs(epochs):
                yield
    finally:
        if token is not None:
            _study_data.reset(token)


class Origin(Frozen):
    """Where an exported config comes from; no part of what it means."""

    study: str
    trial: int
    metric: str
    value: float
    """The best epoch's metric on the validation split."""
    epoch: int | None = None
    """The best epoch, counted from 1."""
    dlnn_search_version: str
    confirmed_mean: float | None = None
    """Of the same metric over fresh seeds on the validation split; None: not confirmed."""
    confirmed_seeds: int | None = None


class Config(Frozen):
    """Everything needed to build and train one model again, as plain data."""

    schema_version: Literal[1] = 1
    data: Data = Field(default_factory=lambda: _study_data.get())
    model: Model
    training: Training = Field(default_factory=Training)
    origin: Origin | None = None

    @model_validator(mode="before")
    @classmethod
    def _data_is_known(cls, values: Any) -> Any:
        if isinstance(values, dict) and "data" not in values and _study_data.get(None) is None:
            raise ValueError("A config needs `data=...` unless a study's `data=` gives it.")
        return values

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        clocks = isinstance(self.data, Clocks)
        if clocks != isinstance(self.model, ClockNet):
            wanted = "a ClockNet" if clocks else "an Mlp, a Cnn or an OwnModel"
            raise ValueError(
                f"The data '{self.data.name}' needs {wanted}, got '{self.model.kind}'."
            )
        if self.training.curriculum and not clocks:
            raise ValueError(f"A curriculum needs clocks, got the data '{self.data.name}'.")
        digits = self.data if isinstance(self.data, Mnist | FashionMnist) else None
        permuted = None if digits is None else digits.permutation_seed
        if self.training.augmentation.changes and permuted is not None:
            raise ValueError(
                "Augmentation needs pixels in their places, got a permutation "
                f"(permutation_seed={permuted}). Leave one of the two out."
            )
        if self.training.augmentation.mirror and isinstance(self.data, Clocks | Mnist):
            raise ValueError(
                f"Mirrored pictures of '{self.data.name}' show something else: expected "
                "mirror=False."
            )
        if self.training.monitor not in (None, *DIRECTIONS):
            raise ValueError(
                f"Unknown metric '{self.training.monitor}'. Known: {', '.join(DIRECTIONS)}."
            )
        return self

    @property
    def own_parts(self) -> tuple[OwnPart, ...]:
        """The parts that need the study's own code."""
        return tuple(part for part in (self.data, self.model) if isinstance(part, OwnPart))

    @property
    def metric(self) -> str:
        """The validation metric that picks the best epoch."""
        if self.training.monitor is not None:
            return self.training.monitor
        return "common_sense_error" if isinstance(self.data, Clocks) else "accuracy"

    def to_json(self) -> str:
        """Return the config as indented JSON; the same config gives the same text."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"

    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits that are equal for configs that mean the same."""
        meaning = {key: value for key, value in self.meaning().items() if key != "origin"}
        text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_config(path: Path) -> Config:
    """Read a config that `export` wrote, or that somebody typed.

    Raises:
        UsageError: If there is no such file, or it holds no valid config.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise UsageError(
                f"'{path}' has more than {MAX_CONFIG_BYTES:,} bytes: expected a config in JSON."
            )
        text = raw.decode()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name with a null byte
        raise UsageError(
            f"Cannot read the config '{path}': {getattr(error, 'strerror', None) or error}. "
            f"Write one with 'dlnn-search export STUDY -o {path.name}'."
        ) from error
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(f"'{path}' is no valid config: {explain(error)}.") from error
    except ValueError as error:  # a default's, which pydantic does not explain
        raise UsageError(f"'{path}' is no valid config: data: {error}") from error


def explain(error: ValidationError) -> str:
    """Return each thing that is wrong in one line: where, what was expected, what came."""
    parts = []
    for detail in error.errors(include_url=False):
        where = ".".join(str(part) for part in detail["loc"]) or "config"
        came = detail["input"]
        shown = f" (got {_short(came)})" if isinstance(came, str | int | float | None) else ""
        parts.append(f"{where}: {detail['msg'].removeprefix('Value error, ').rstrip('.')}{shown}")
    return "; ".join(parts)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
