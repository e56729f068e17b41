"""Many processes at one budget, on every storage: exactly N, whoever comes first."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
import sqlalchemy as sa

from dlnn_search.storage import schema
from dlnn_search.storage.budget import budget_use
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.duplicates import find_duplicate, settle_like
from dlnn_search.storage.slots import LostLeaseError, Slots
from dlnn_search.storage.studies import register

from .slot_life import DEFINITION, give_trials, set_study

#: Imported once for all processes, which takes most of a process's start.
WARM = ["dlnn_search.worker.optuna_study", "alembic.command", "psycopg", "pytest"]


@pytest.fixture
def study_id(database: Database) -> int:
    return register(database, "some-study", DEFINITION).id


@pytest.fixture
def slots(database: Database, study_id: int) -> Slots:
    return Slots(database, study_id)


def in_processes(run: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run a function once for each arguments, each in a process of its own, all at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WARM)
    barrier = context.Barrier(len(arguments))
    with ProcessPoolExecutor(
        len(arguments), context, initializer=_keep_barrier, initargs=(barrier,)
    ) as pool:
        return list(pool.map(run, *zip(*arguments, strict=True)))


def _keep_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


_barrier: Barrier


def claim_and_settle_all(url: str, study_id: int, worker: str) -> list[int]:
    database = open_database(url, create=False)
    slots = Slots(database, study_id)
    numbers = []
    _barrier.wait()
    while (slot := slots.claim(worker)) is not None:
        numbers.append(slot.number)
        slots.settle(slot, "complete", value=float(slot.number))
    database.close()
    return numbers


def extend(url: str, study_id: int, n_slots: int) -> None:
    database = open_database(url, create=False)
    _barrier.wait()
    give_trials(Slots(database, study_id), n_slots)
    database.close()


def test_sixteen_processes_claim_each_of_eighty_slots_exactly_once(
    database: Database, slots: Slots, study_id: int
) -> None:
    give_trials(slots, 80)
    shares = in_processes(
        claim_and_settle_all, [(database.url, study_id, f"w{n}") for n in range(16)]
    )
    assert Counter(number for share in shares for number in share) == Counter(range(80))
    assert slots.all_done()
    assert budget_use(database, study_id).settled == 80


def lose_every_third(url: str, study_id: int, worker: str) -> list[int]:
    """Settle slots, but every third time hang past the lease, and wake later."""
    database = open_database(url, create=False)
    slots = Slots(database, study_id)
    dice, settled, hung = random.Random(worker), [], []
    _barrier.wait()
    while not slots.all_done():
        slot = slots.claim(worker)
        if slot is None:
            time.sleep(0.02)
            continue
        if slot.losses < 2 and dice.random() < 1 / 3:
            hung.append(slot)
            continue
        try:
            slots.settle(slot, "complete", value=1.0)
        except LostLeaseError:
            continue
        settled.append(slot.number)
    woken = []
    for slot in hung:
        try:
            slots.settle(slot, "failed", reason="woken")
        except LostLeaseError:
            woken.append(slot.number)
    assert len(woken) == len(hung), "who lost its slot changed it"
    database.close()
    return settled


def test_slots_that_eight_processes_lose_are_each_settled_once_all_the_same(
    database: Database, slots: Slots, study_id: int
) -> None:
    give_trials(slots, 40)
    set_study(database, study_id, lease_seconds=0.3)
    shares = in_processes(lose_every_third, [(database.url, study_id, f"w{n}") for n in range(8)])
    assert Counter(number for share in shares for number in share) == Counter(range(40))
    with database.transaction() as connection:
        outcomes = connection.scalars(sa.select(schema.slots.c.outcome)).all()
        losses = connection.scalar(sa.select(sa.func.sum(schema.slots.c.losses)))
        events = connection.scalar(sa.select(sa.func.count()).where(schema.events.c.kind == "lost"))
    assert list(outcomes) == ["complete"] * 40
    assert events == losses and losses and losses > 5, "each loss is told, and told once"


def train_choices(url: str, study_id: int, worker: str) -> list[str]:
    """Draw one of three configs a slot; return those that were trained here."""
    database = open_database(url, create=False)
    slots = Slots(database, study_id)
    trained = []
    _barrier.wait()
    while not slots.all_done():
        slot = slots.claim(worker)
        if slot is None:
            time.sleep(0.02)
            continue
        config = f"config {slot.number % 3}"
        duplicate = find_duplicate(database, study_id, slot, config)
        if duplicate is None:
            time.sleep(0.1)
            trained.append(config)
            slots.settle(slot, "complete", value=float(os.getpid()))
        elif duplicate.outcome is not None:
            settle_like(database, study_id, slot, duplicate)
    database.close()
    return trained


def test_of_three_configs_in_ten_slots_each_is_trained_once_by_five_processes(
    database: Database, slots: Slots, study_id: int
) -> None:
    give_trials(slots, 10)
    shares = in_processes(train_choices, [(database.url, study_id, f"w{n}") for n in range(5)])
    assert sorted(config for share in shares for config in share) == [
        f"config {n}" for n in range(3)
    ]
    with database.transaction() as connection:
        rows = connection.execute(sa.select(schema.slots)).all()
    by_id = {row.id: row for row in rows}
    assert [row.outcome for row in rows] == ["complete"] * 10
    reused = [row for row in rows if row.reused_from is not None]
    assert len(reused) == 7
    assert all(
        by_id[row.reused_from].value == row.value
        and by_id[row.reused_from].fingerprint == row.fingerprint
        for row in reused
    )


def test_processes_that_extend_a_budget_at_once_do_not_add_up(
    database: Database, slots: Slots, study_id: int
) -> None:
    in_processes(extend, [(database.url, study_id, n) for n in (20, 20, 15, 20)])
    numbers = []
    while (slot := slots.claim("w")) is not None:
        numbers.append(slot.number)
    assert numbers == list(range(20))
