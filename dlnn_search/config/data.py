"""Which pictures a config learns from, and how they are split."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from dlnn_search.config.base import Frozen
from dlnn_search.config.own import OwnPart

#: The course's data set: 25 pictures for each of the 720 times.
CLOCK_SIZE_PX = 150
CLOCKS_PER_TIME = 25


#: MNIST's and Fashion-MNIST's.
N_DIGIT_CLASSES = 10
#: Labels are kept as uint8.
MAX_CLASSES = 256


class _Digits(Frozen):
    """28x28 gray pictures of ten classes: 60,000 to train on, 10,000 to test on."""

    validation: float = Field(0.15, gt=0, lt=1)
    """Share of the training images held out to choose by. Source: report, section 2."""
    n_training: int | None = Field(None, ge=10)
    """Train on that many images only (stratified); None: on all that validation leaves."""
    split_seed: int = Field(0, ge=0)
    permutation_seed: int | None = Field(None, ge=0)
    """Shuffle the pixels, all images' alike, by the permutation of that seed; None: leave them.
    It happens inside the model. Source: report, section 3."""

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return N_DIGIT_CLASSES


class Mnist(_Digits):
    """Handwritten digits."""

    name: Literal["mnist"] = "mnist"


class FashionMnist(_Digits):
    """Zalando's articles of clothing."""

    name: Literal["fashion-mnist"] = "fashion-mnist"


class Clocks(Frozen):
    """Gray pictures of an analog clock, the same number for each of the 720 times."""

    name: Literal["clocks"] = "clocks"
    source: Literal["auto", "course", "rendered"] = "auto"
    """`course`: the imported pictures; `rendered`: our own; `auto`: the first where imported."""
    image_size: int = Field(CLOCK_SIZE_PX, ge=32, le=300)
    """Edge in pixels; the course's pictures are scaled to it."""
    images_per_time: int = Field(CLOCKS_PER_TIME, ge=1, le=1000)
    """Rendered clocks only: 25 make 18,000 pictures. Source: report, section 4."""
    azimuth_spread: float = Field(math.pi, ge=0, le=math.pi)
    """Rendered clocks only: dials are turned by at most this, radians."""
    difficulty: float = Field(1.0, ge=0, le=1)
    """Rendered clocks only: 0 is a frontal dial on a plain ground, 1 all the real set's variety."""
    render_seed: int = Field(0, ge=0)
    test: float = Field(0.20, gt=0, lt=1)
    """Share of all pictures. Source: report, section 4."""
    validation: float = Field(0.10, gt=0, lt=1)
    """Share of what the test split leaves. Source: report, section 4 (0.05 in section 4.5)."""
    n_training: int | None = Field(None, ge=10)
    split_seed: int = Field(0, ge=0)


class OwnData(OwnPart):
    """Pictures of classes, gray or in colour, from the study's own loader."""

    name: Literal["own"] = "own"
    n_classes: int = Field(ge=2, le=MAX_CLASSES)
    test: float = Field(0.20, gt=0, lt=1)
    """Share of all pictures, stratified, where the loader returns no test split."""
    validation: float = Field(0.15, gt=0, lt=1)
    """Share of what the test split leaves."""
    n_training: int | None = Field(None, ge=1)
    """Train on that many images only (stratified); None: on all that validation leaves."""
    split_seed: int = Field(0, ge=0)


ClassData = Mnist | FashionMnist | OwnData
"""Data whose labels are classes."""
Data = Annotated[Mnist | FashionMnist | Clocks | OwnData, Field(discriminator="name")]


def title_of(data: Data) -> str:
    """Return what tells a data set from others in a table: its name, or its study's."""
    return data.study or data.name if isinstance(data, OwnData) else data.name
