"""The pruner, in Optuna studies without a database."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import optuna
import pytest

from dlnn_search import Clocks, Config, FashionMnist, HalvingPruner, Mlp, Study
from dlnn_search.errors import StudyError
from dlnn_search.pruners import Halving, reported_values
from dlnn_search.samplers.observations import DUPLICATE_ATTRIBUTE
from dlnn_search.worker.optuna_study import make_pruner, threshold

Direction = Literal["minimize", "maximize"]


def stops(
    pruner: HalvingPruner, curves: Sequence[Sequence[float]], direction: Direction = "minimize"
) -> list[int | None]:
    """Run trials with these curves one after the other; return the epoch each is pruned at."""
    study = optuna.create_study(pruner=pruner, direction=direction)
    stopped: list[int | None] = []
    for curve in curves:
        trial = study.ask()
        stopped.append(None)
        for epoch, value in enumerate(curve, start=1):
            trial.report(value, epoch)
            if trial.should_prune():
                stopped[-1] = epoch
                break
        if math.isnan(curve[-1]):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, curve[-1])
    return stopped


def test_the_best_share_passes_each_rung_and_nobody_is_judged_between() -> None:
    levels = [3.0, 1.0, 2.0, 4.0, 0.5, 5.0]
    curves = [[level] * 4 for level in levels]
    # The first passes for want of rivals; then one of two, of three; two of four, of five.
    assert stops(HalvingPruner(2, factor=2), curves) == [None, None, 2, 2, None, 2]


def test_who_passed_for_want_of_rivals_is_judged_there_again_at_the_next_rung() -> None:
    pruner = HalvingPruner(1, factor=3)
    study = optuna.create_study(pruner=pruner)
    first = study.ask()
    first.report(9.0, 1)
    assert not first.should_prune()
    for value in (1.0, 2.0, 3.0):
        trial = study.ask()
        trial.report(value, 1)
        trial.should_prune()
    first.report(8.0, 2)
    assert not first.should_prune()  # no rung
    first.report(0.1, 3)
    assert first.should_prune()


def test_of_fewer_rivals_than_the_factor_the_best_alone_passes_a_later_rung() -> None:
    # All pass the first rung: two are no rivals by three. The second is behind at the next one.
    assert stops(HalvingPruner(1, factor=3), [[1.0] * 9, [2.0] * 9]) == [None, 3]
    assert stops(HalvingPruner(1, factor=3), [[2.0] * 9, [1.0] * 9]) == [None, None]


def test_a_resumed_trial_gets_the_answer_of_before() -> None:
    study = optuna.create_study(pruner=HalvingPruner(2, factor=2))
    for value in (1.0, 2.0, 3.0):
        trial = study.ask()
        for epoch in (1, 2):
            trial.report(value, epoch)
        assert [trial.should_prune() for _ in range(3)] == [value != 1.0] * 3


def test_a_trial_at_chance_is_not_judged_before_until_and_is_beaten_by_those_that_left() -> None:
    curves = [
        [180, 179, 178, 177, 176, 175],  # at chance for good
        [180, 180, 60, 40, 20, 10],  # jumps at 3
        [180, 150, 140, 130, 120, 110],  # the first to leave, but slowly
        [180, 181, 182, 180, 179, 180],
        [180, 179, 179, 179, 90, 30],
    ]
    plain = stops(HalvingPruner(2, factor=2), curves)
    aware = stops(HalvingPruner(2, factor=2, better_than=162.0, until=5), curves)
    assert plain[1] == 2  # judged by noise
    assert aware[1] is None
    assert aware[3] == 5  # not forever
    assert aware[4] is None


def test_a_duplicate_is_nobody_s_rival() -> None:
    study = optuna.create_study(pruner=HalvingPruner(1, 2))
    for duplicate_of in (None, 0, 0):
        trial = study.ask()
        trial.report(0.1, 1)
        if duplicate_of is not None:
            trial.set_user_attr(DUPLICATE_ATTRIBUTE, duplicate_of)
        study.tell(trial, 0.1)
    assert list(reported_values(study, 1)) == [0]


def test_until_is_a_rung_for_those_at_chance_alone() -> None:
    curves = [[10.0] * 6, [20.0] * 6, [180.0] * 6, [15.0, 15.0, 15.0, 15.0, 160.0, 160.0]]
    found = stops(HalvingPruner(4, factor=2, better_than=170.0, until=5), curves)
    assert found == [None, 4, 5, None]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_both_directions_and_nan(direction: Direction) -> None:
    sign = 1 if direction == "minimize" else -1
    curves = [[sign * 1.0] * 2, [sign * 2.0] * 2, [sign * 0.5] * 2, [float("nan")] * 2]
    assert stops(HalvingPruner(2, factor=2), curves, direction) == [None, 2, None, 2]


def test_reports_that_skip_a_rung_are_judged_at_the_first_after_it() -> None:
    study = optuna.create_study(pruner=HalvingPruner(4, factor=2))
    pruned = []
    for value in (1.0, 2.0):
        trial = study.ask()
        for step in (3, 6):
            trial.report(value, step)
            pruned.append(trial.should_prune())
    assert pruned == [False, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"first_rung": 0}, "first_rung=0"),
        ({"first_rung": 2, "factor": 1}, "factor=1"),
        ({"first_rung": 2, "better_than": 1.0}, "together"),
        ({"first_rung": 2, "until": 9}, "together"),
        ({"first_rung": 9, "better_than": 1.0, "until": 2}, "until=2"),
        ({"first_rung": 2, "better_than": "luck", "until": 9}, "'luck'"),
        ({"first_rung": 2, "judge": "accuracy"}, "'accuracy'"),
    ],
)
def test_what_does_not_fit_is_said(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        Halving(**arguments)  # type: ignore[arg-type]


def space(trial: optuna.Trial) -> Config:
    return Config(model=Mlp(blocks=()))


def test_chance_is_known_by_metric_and_classes() -> None:
    chance = Halving(first_rung=2, better_than="chance", until=8)
    garments = Study(space=space, data=FashionMnist(), maximize="accuracy", pruner=chance)
    assert threshold(garments) == pytest.approx(0.19)
    clocks = Study(space=space, data=Clocks(), minimize="common_sense_error", pruner=chance)
    assert threshold(clocks) == pytest.approx(162)
    losses = Study(space=space, data=Clocks(), minimize="loss", pruner=chance)
    with pytest.raises(StudyError, match="'loss'"):
        make_pruner(losses)
    assert isinstance(make_pruner(Study(space=space, minimize="loss")), optuna.pruners.NopPruner)


def test_a_description_that_was_stored_before_there_were_more_settings_stays_the_same() -> None:
    assert repr(Halving(first_rung=4)) == "Halving(first_rung=4, factor=3)"
    assert "until=9" in repr(Halving(4, better_than=0.2, until=9))
