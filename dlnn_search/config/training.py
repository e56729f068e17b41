"""How a model is trained, and with which seeds: what tests it is no seed that chose it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count, islice
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from dlnn_search.config.data import Frozen

#: `search`: what a space names, 0 by default. `plan`: given cases that select nothing by luck.
Role = Literal["search", "confirm", "plan", "test"]
ROLES: tuple[Role, ...] = get_args(Role)
#: Seeds a role. A space may name others: `fresh_seeds` leaves out what it is told was used.
SPAN = 1_000_000


def seed_of(study: str, role: Role, number: int) -> int:
    """Return the seed of a study's `number`th training in a role, counted from 0.

    Raises:
        ValueError: If the role has not so many.
    """
    if not 0 <= number < SPAN:
        raise ValueError(f"Expected the number of a seed from 0 to {SPAN - 1:,}, got {number:,}.")
    place = int.from_bytes(hashlib.sha256(f"{role} of {study}".encode()).digest()[:8])
    return ROLES.index(role) * SPAN + (place + number) % SPAN


def fresh_seeds(study: str, role: Role, n: int, used: Container[int] = ()) -> list[int]:
    """Return the first `n` seeds of a study's role that were not used for anything else."""
    fresh = (seed for number in count() if (seed := seed_of(study, role, number)) not in used)
    return list(islice(fresh, n))


def is_of(role: Role, seed: int) -> bool:
    """Whether a seed lies in a role's range."""
    return ROLES.index(role) == seed // SPAN


OptimizerName = Literal["rmsprop", "sgd", "adam", "adamw", "adadelta"]
PrecisionName = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
ScheduleName = Literal["constant", "cosine", "plateau"]

#: Keras 3's defaults, but for Adadelta: 1.0 as in its paper and in Keras 2.3; Keras 3's 0.001
#: leaves the report's CNN near 84 %.
DEFAULT_LEARNING_RATES: dict[str, float] = {
    "rmsprop": 1e-3,
    "sgd": 1e-2,
    "adam": 1e-3,
    "adamw": 1e-3,
    "adadelta": 1.0,
}

#: The report's default ("fairly low, only 10", section 2), unless a study names another.
_study_epochs: ContextVar[int] = ContextVar("study_epochs", default=10)


@contextmanager
def default_epochs(epochs: int) -> Iterator[None]:
    """Let every `Training` made inside train for `epochs`, unless it says otherwise."""
    token = _study_epochs.set(epochs)
    try:
        yield
    finally:
        _study_epochs.reset(token)


class CurriculumStage(Frozen):
    """Epochs on rendered clocks with dials turned less than the data's, or on more clocks."""

    azimuth_spread: float = Field(ge=0, le=math.pi)
    """Dials are turned by at most this, radians."""
    epochs: int = Field(ge=1)
    images_per_time: int | None = Field(None, ge=1, le=1000)
    """None: as many as the data has."""


class Augmentation(Frozen):
    """How far training pictures are changed, anew each time that they are seen.

    Each number is the most that is drawn, evenly to both sides; 0 leaves it alone.

    Source: report, sections 4.4 ("slightly distorted and, for example, rotated variations") and
    5, which did not get to try it.
    """

    rotation: float = Field(0.0, ge=0, le=math.pi)
    """About the centre, radians; hands and numerals turn together, so the time stays."""
    shift: float = Field(0.0, ge=0, le=0.5)
    """Share of the edge, across and down each."""
    zoom: float = Field(0.0, ge=0, le=0.5)
    """0.1: from 0.9 to 1.1 times the size."""
    perspective: float = Field(0.0, ge=0, le=0.4)
    """How much nearer or farther the middle of a side is than the centre, as a share."""
    brightness: float = Field(0.0, ge=0, le=1)
    """0.2: gray levels times 0.8 to 1.2."""
    glare: float = Field(0.0, ge=0, le=1)
    """Half of the pictures get a round spot of up to this share of full white, added."""
    mirror: bool = False
    """Half of the pictures get left and right exchanged. Clothes stay what they are; a mirrored
    clock tells another time, and a mirrored digit is none: refused there."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return any(getattr(self, name) for name in type(self).model_fields)


class Training(Frozen):
    """Optimiser, epochs, precision: all that is not the network and not the data."""

    epochs: int = Field(default_factory=lambda: _study_epochs.get(), ge=1, le=100_000)
    """Epochs in all, those of the curriculum included."""
    batch_size: int = Field(128, ge=1, le=65_536)
    optimizer: OptimizerName = "adam"
    learning_rate: float | None = Field(None, gt=0)
    """None: the optimiser's default, filled in, so that a config always names its rate."""
    schedule: ScheduleName = "constant"
    """`cosine`: from the rate down to 0 over all steps of the training; `plateau`: the rate
    halved whenever the monitored metric has not become better for `plateau_patience` epochs.
    Source of the cosine: Loshchilov and Hutter, SGDR, ICLR 2017, without restarts."""
    warmup_epochs: float = Field(0.0, ge=0)
    """The rate rises evenly from 0 over that many epochs, before any schedule."""
    plateau_patience: int = Field(5, ge=1)
    """Epochs; `plateau` only."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """SGD and RMSprop only."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled from the gradient (AdamW's), for every optimiser."""
    average: float | None = Field(None, gt=0, lt=1)
    """Decay, a step, of an exponential moving average of the weights; None: no average. Where
    there is one, it is what is validated, kept and exported."""
    augmentation: Augmentation = Augmentation()
    curriculum: tuple[CurriculumStage, ...] = ()
    """Stages that training begins with. Without one, a clock network whose dials turn the full
    circle stays at chance for dozens of epochs: a hand's angle says nothing without the dial's
    orientation, and the orientation nothing without the hand."""
    seed: int = Field(0, ge=0)
    """Of the weights, the order of the images, the dropout and the augmentation."""
    deterministic: bool = False
    """Bit-equal results for the same seed, threads and machine, at some cost in speed."""
    precision: PrecisionName = "auto"
    steps_per_execution: int | None = Field(None, ge=1, le=4_096)
    """Batches a call into TensorFlow's runtime; None: chosen by the model's size."""
    monitor: str | None = None
    """The validation metric that picks the best epoch; None: the data's own."""

    @model_validator(mode="after")
    def _name_the_rate(self) -> Self:
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", DEFAULT_LEARNING_RATES[self.optimizer])
        if sum(stage.epochs for stage in self.curriculum) >= self.epochs and self.curriculum:
            raise ValueError(
                f"The curriculum's stages take {sum(s.epochs for s in self.curriculum)} epochs "
                f"of {self.epochs}: expected at least one epoch left for the data itself."
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"Expected a warm-up shorter than the training of {self.epochs} epochs, "
                f"got warmup_epochs={self.warmup_epochs:g}."
            )
        return self
