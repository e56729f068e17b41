"""Seeds by role: what tests a model is never a seed that chose it.

A role has a range of seeds of its own, and the ranges never meet. Within its range a study's seeds
begin at a place that its name decides, and follow each other. What an earlier version stored lies
in the search's range, since `confirm` counted on from the search's own seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from itertools import count, islice
from typing import Literal, get_args

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
