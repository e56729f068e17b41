"""What a study says of its pruner: where trials are judged, and by what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dlnn_search.errors import StudyError


@dataclass(frozen=True, repr=False)
class Halving:
    """Asynchronous successive halving: at each rung the best 1/`factor` of the trials go on.

    A clock network sits at chance for several epochs whatever becomes of it later. Where that is
    so, begin after it (`first_rung`), or judge those alone that have left it (`better_than` with
    `until`), or judge by the training loss, which falls first (`judge`).

    Attributes:
        first_rung: Epoch of the first judgement.
        factor: Each rung's epoch is that many times the one before.
        better_than: Trials that are not better than that in the study's metric are not judged;
            `"chance"`: than guessing, by a tenth of the way to perfection.
        until: Epoch from which on they are judged all the same.
        judge: `"train_loss"`, to rank by it; None: by what the study optimises.

    Raises:
        StudyError: If these do not fit.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020.
    """

    first_rung: int
    factor: int = 3
    better_than: float | Literal["chance"] | None = None
    until: int | None = None
    judge: Literal["train_loss"] | None = None

    def __post_init__(self) -> None:
        try:
            check_halving(self.first_rung, self.factor, self.better_than is not None, self.until)
        except ValueError as error:
            raise StudyError(str(error)) from error
        if self.better_than not in (None, "chance") and not isinstance(
            self.better_than, int | float
        ):
            raise StudyError(
                f"Expected better_than=... to be a number or 'chance', got {self.better_than!r}."
            )
        if self.judge not in (None, "train_loss"):
            raise StudyError(f"Expected judge=None or 'train_loss', got {self.judge!r}.")

    def __repr__(self) -> str:
        """As the definitions of running studies have it: what is default came later."""
        said: dict[str, object] = {"first_rung": self.first_rung, "factor": self.factor}
        later = {"better_than": self.better_than, "until": self.until, "judge": self.judge}
        said |= {name: value for name, value in later.items() if value is not None}
        return f"Halving({', '.join(f'{name}={value!r}' for name, value in said.items())})"


def check_halving(first_rung: int, factor: int, has_threshold: bool, until: int | None) -> None:
    """Check what a pruner and a study's description of one have in common.

    Raises:
        ValueError: If rungs cannot be, or trials at chance would never be judged.
    """
    if first_rung < 1:
        raise ValueError(f"Expected a first rung from 1, got first_rung={first_rung}.")
    if factor < 2:
        raise ValueError(f"Expected a factor of at least 2, got factor={factor}.")
    if has_threshold != (until is not None):
        raise ValueError(
            "Expected better_than=... and until=... together: without `until` a trial at chance "
            "would never be judged, without `better_than` it has no meaning."
        )
    if until is not None and until < first_rung:
        raise ValueError(
            f"Expected `until` at or after the first rung, got until={until} before "
            f"first_rung={first_rung}."
        )
