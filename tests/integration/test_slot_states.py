"""Any order of what workers do and suffer leaves a study's slots as a simple model has them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from dlnn_search.storage import schema
from dlnn_search.storage.budget import budget_use
from dlnn_search.storage.control import set_control
from dlnn_search.storage.database import open_database
from dlnn_search.storage.schema import now
from dlnn_search.storage.slots import LostLeaseError, Slot, Slots
from dlnn_search.storage.studies import register

from .slot_life import DEFINITION, give_trials, set_slot

WORKERS = ("a", "b", "c")


@dataclass
class Expected:
    """A slot as it must be."""

    state: str = "open"
    worker: str | None = None
    losses: int = 0
    begun: bool = False
    outcome: str | None = None


class SlotLife(RuleBasedStateMachine):
    template: Path

    holds = Bundle("holds")  # claims that may still be in force
    lost = Bundle("lost")  # claims that are over

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        path = shutil.copy(self.template, self.folder / "dlnn.db")
        self.database = open_database(f"sqlite:///{path}", create=False)
        self.study_id = register(self.database, "some-study", DEFINITION).id
        self.slots = Slots(self.database, self.study_id)
        self.expected: list[Expected] = []
        self.runs = True
        self.n_trials = 0

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    @rule(n=st.integers(1, 6))
    def extend(self, n: int) -> None:
        give_trials(self.slots, n)
        self.expected += [Expected() for _ in range(n - len(self.expected))]

    @rule(target=holds, worker=st.sampled_from(WORKERS))
    def claim(self, worker: str) -> object:
        slot = self.slots.claim(worker)
        free = [n for n, one in enumerate(self.expected) if one.state == "open"]
        if not free or not self.runs:
            assert slot is None
            return multiple()
        assert slot is not None
        first = min(free, key=lambda n: (not self.expected[n].begun, n))
        one = self.expected[slot.number]
        assert slot.number == first
        assert (slot.losses, slot.trial_id is not None) == (one.losses, one.begun)
        one.state, one.worker = "held", worker
        return slot

    def is_mine(self, slot: Slot) -> bool:
        row = self.row(slot.number)
        return bool(row.fence == slot.fence and self.expected[slot.number].state == "held")

    def try_to(self, slot: Slot, call: Callable[[], object]) -> bool:
        """Do something with a claim; it must be refused exactly if the slot is lost."""
        if self.is_mine(slot):
            call()
            return True
        before = self.row(slot.number)
        with pytest.raises(LostLeaseError):
            call()
        assert self.row(slot.number) == before
        return False

    @rule(slot=holds)
    def renew(self, slot: Slot) -> None:
        self.try_to(slot, lambda: self.slots.renew(slot))

    @rule(slot=holds)
    def begin(self, slot: Slot) -> None:
        self.n_trials += 1
        if self.try_to(slot, lambda: self.slots.begin(slot, self.n_trials, self.n_trials)):
            self.expected[slot.number].begun = True

    @rule(
        target=lost,
        slot=consumes(holds),
        outcome=st.sampled_from(["complete", "pruned", "failed"]),
    )
    def settle(self, slot: Slot, outcome: str) -> Slot:
        def call() -> None:
            self.slots.settle(slot, outcome)  # type: ignore[arg-type]

        if self.try_to(slot, call):
            one = self.expected[slot.number]
            one.state, one.worker, one.outcome = "done", None, outcome
            call()  # repeated after an answer that was lost
        return slot

    @rule(target=lost, slot=consumes(holds))
    def release(self, slot: Slot) -> Slot:
        if self.try_to(slot, lambda: self.slots.release(slot)):
            one = self.expected[slot.number]
            one.state, one.worker = "open", None
        return slot

    @rule(slot=holds)
    def hang(self, slot: Slot) -> None:
        """A lease ends, and somebody looks; the worker does not know it."""
        if self.is_mine(slot):
            set_slot(self.database, slot, lease_ends_at=now() - 1)
            time.sleep(0.002)
            self.slots.open_expired()
            one = self.expected[slot.number]
            one.state, one.worker, one.losses = "open", None, one.losses + 1

    @rule(worker=st.sampled_from(WORKERS), is_loss=st.booleans())
    def die(self, worker: str, is_loss: bool) -> None:
        self.slots.release_of_dead(worker, is_loss=is_loss)
        for one in self.expected:
            if one.worker == worker:
                one.state, one.worker, one.losses = "open", None, one.losses + is_loss

    @rule(slot=lost)
    def wake(self, slot: Slot) -> None:
        """Who settled or gave back, or was lost, renews: too late in any case."""
        before = self.row(slot.number)
        with pytest.raises(LostLeaseError):
            self.slots.renew(slot)
        assert self.row(slot.number) == before

    @rule(control=st.sampled_from(["run", "pause", "stop", "stop_now"]))
    def ask(self, control: str) -> None:
        set_control(self.database, self.study_id, control)  # type: ignore[arg-type]
        self.runs = control == "run"

    def row(self, number: int) -> sa.Row[tuple[object, ...]]:
        with self.database.transaction() as connection:
            return connection.execute(
                sa.select(schema.slots).where(schema.slots.c.number == number)
            ).one()

    @invariant()
    def the_slots_are_as_expected(self) -> None:
        with self.database.transaction() as connection:
            rows = connection.execute(sa.select(schema.slots).order_by(schema.slots.c.number)).all()
        assert [row.number for row in rows] == list(range(len(self.expected)))
        for row, one in zip(rows, self.expected, strict=True):
            assert (row.state, row.losses, row.outcome) == (one.state, one.losses, one.outcome)
            assert (row.worker == one.worker) or row.state == "open"
            assert (row.trial_id is not None) == one.begun
        use = budget_use(self.database, self.study_id)
        assert use.trials == len(self.expected)
        assert use.settled == sum(one.state == "done" for one in self.expected)
        assert use.held == sum(one.state == "held" for one in self.expected)
        with self.database.transaction() as connection:
            active = connection.scalar(sa.select(schema.studies.c.active_since))
        assert (active is not None) == (use.held > 0), "wall time runs while a slot is held"


def test_any_order_of_events_leaves_the_slots_as_expected(sqlite_template: Path) -> None:
    SlotLife.template = sqlite_template
    run_state_machine_as_test(
        SlotLife,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
