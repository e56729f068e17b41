"""Which pictures a config learns from and how they are split; what all parts share."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

#: Fields that say which of several classes a value is: never left out.
_DISCRIMINATORS = ("name", "kind")


class Frozen(BaseModel):
    """A value: compared by content, never changed, refusing what it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def meaning(self) -> dict[str, Any]:
        """Return what is not default, as plain data.

        It stays the same when a later version adds a field whose default changes nothing.
        """
        return {
            name: _plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if name in _DISCRIMINATORS or getattr(self, name) != field.default
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Frozen):
        return value.meaning()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


#: Options are a handful of numbers and words; data belong into the loader.
MAX_OPTIONS_CHARACTERS = 10_000


def _bounded(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    text = json.dumps(options, allow_nan=False)
    if len(text) > MAX_OPTIONS_CHARACTERS:
        raise ValueError(
            f"Expected options of at most {MAX_OPTIONS_CHARACTERS:,} characters in JSON, "
            f"got {len(text):,}. Pass names, and let the code read or compute the rest."
        )
    if _holds_null(options):
        # An exported config leaves out what is None.
        raise ValueError("Expected options without None: leave such an option out.")
    return options


def _holds_null(value: JsonValue) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    if isinstance(value, list):
        return any(map(_holds_null, value))
    return value is None


class OwnPart(Frozen):
    """A part of a config that a study's own code makes real.

    A config names the study, never a file: whoever reads an untrusted config brings the code.
    """

    options: Annotated[dict[str, JsonValue], AfterValidator(_bounded)] = Field(default_factory=dict)
    """What the code is called with: plain JSON values."""
    study: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")
    """Whose code; filled in by the study."""
    code: str | None = Field(None, pattern=r"^[0-9a-f]{12}$")
    """A hash of that code: edited code is another config. Filled in by the study."""

    def __hash__(self) -> int:
        # Options are a dictionary, which has no hash of its own.
        return hash(self.model_dump_json())


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
