"""Coarse to fine narrows any space, the same way for everyone, and never for good."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dlnn_search import CoarseToFine
from dlnn_search.samplers import surrogate
from dlnn_search.samplers.candidates import N_PARENTS, Activity, Drawer, own_scores
from dlnn_search.samplers.coarse_to_fine import GLOBAL_SHARE, MAX_TRIALS
from dlnn_search.samplers.observations import (
    DUPLICATE_ATTRIBUTE,
    INFEASIBLE_ATTRIBUTE,
    Axis,
    Observations,
    Outcomes,
)
from dlnn_search.samplers.regions import Region, Span, narrowed, read_region, stored_regions
from dlnn_search.samplers.surrogate import scores

Objective = Callable[[optuna.Trial], float]

#: One trial in so many is drawn from the whole space: none, for tests of what lies in a region.
NEVER = 0.0


def mixed(trial: optuna.Trial) -> float:
    """Log scale, integers, steps, choices, and parameters that only some trials have."""
    rate = trial.suggest_float("rate", 1e-5, 1.0, log=True)
    loss = (math.log10(rate) + 3) ** 2
    loss += 0.1 * abs(trial.suggest_int("batch", 3, 11) - 6)
    loss += (trial.suggest_float("dropout", 0.0, 0.8, step=0.1) - 0.3) ** 2
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam", None])
    if optimizer == "sgd":
        loss += 0.5 + (trial.suggest_float("momentum", 0.0, 1.0) - 0.9) ** 2
    for layer in range(trial.suggest_int("layers", 1, 3)):
        units = trial.suggest_int(f"units_{layer}", 16, 512, log=True)
        loss += 0.05 * (math.log2(units) - 7) ** 2
    return loss


def searched(
    objective: Objective = mixed,
    n: int = 40,
    sampler: CoarseToFine | None = None,
    direction: Literal["minimize", "maximize"] = "minimize",
) -> optuna.Study:
    sampler = sampler or CoarseToFine((10, 10), global_share=NEVER, seed=1)
    study = optuna.create_study(sampler=sampler, direction=direction)
    study.optimize(objective, n_trials=n, catch=(ArithmeticError,))
    return study


def inside(trial: optuna.trial.FrozenTrial, region: dict[str, Any]) -> bool:
    parts = region["parameters"]
    return all(
        part["low"] <= trial.params[name] <= part["high"]
        for name, part in parts.items()
        if name in trial.params and "low" in part
    )


def test_each_stage_draws_from_its_stored_region() -> None:
    study = searched(n=60)
    regions = stored_regions(study)
    assert [(r["stage"], r["first_trial"]) for r in regions] == [
        (2, 10),
        (3, 20),
        (4, 30),
        (5, 40),
        (6, 50),
    ]
    for region in regions:
        first = region["first_trial"]
        assert region["finished_trials"] == first
        assert all(inside(trial, region) for trial in study.trials[first : first + 10])


def test_regions_get_finer_where_it_matters() -> None:
    rates = [r["parameters"]["rate"] for r in stored_regions(searched(n=61))]
    decades = [math.log10(part["high"] / part["low"]) for part in rates]
    assert decades[0] < 5 and decades[-1] < 0.6 * decades[0]
    assert all(part["low"] < 1e-3 < part["high"] for part in rates)


def test_an_irrelevant_parameter_stays_wide() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("idle", 0, 1)
        return (trial.suggest_float("x", 0, 1) - 0.3) ** 2

    study = searched(objective, 60, CoarseToFine((20, 20), seed=3))
    idle, x = (stored_regions(study)[-1]["parameters"][name] for name in ("idle", "x"))
    assert idle["high"] - idle["low"] > 0.6 > x["high"] - x["low"]


def test_a_choice_is_narrowed_by_odds_and_never_to_nothing() -> None:
    def objective(trial: optuna.Trial) -> float:
        choice = trial.suggest_categorical("choice", ["good", "bad", "worse"])
        return ["good", "bad", "worse"].index(choice) + trial.suggest_float("x", 0, 0.1)

    odds = stored_regions(searched(objective, 91))[-1]["parameters"]["choice"]
    assert odds["choices"] == ["good", "bad", "worse"]
    assert odds["odds"][0] > 0.8 and min(odds["odds"]) > 0.01
    assert sum(odds["odds"]) == pytest.approx(1)


def test_the_first_stage_is_spread_evenly_over_each_parameters_scale() -> None:
    study = searched(n=10)
    places = sorted(
        Axis("rate", FloatDistribution(1e-5, 1, log=True)).place(t.params["rate"])
        for t in study.trials
    )
    assert [int(place * 10) for place in places] == list(range(10))
    assert sorted(t.params["layers"] for t in study.trials).count(2) in (3, 4)


def test_the_same_seed_draws_the_same_trials_and_another_others() -> None:
    def drawn(seed: int) -> list[dict[str, Any]]:
        study = searched(n=30, sampler=CoarseToFine((10, 10), seed=seed))
        return [trial.params for trial in study.trials]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_worker_that_starts_anew_draws_what_the_old_one_would_have() -> None:
    storage = optuna.storages.InMemoryStorage()
    for _ in range(35):  # a new process for each trial
        sampler = pickle.loads(pickle.dumps(CoarseToFine((10, 10), seed=1)))
        study = optuna.create_study(
            study_name="s", storage=storage, sampler=sampler, load_if_exists=True
        )
        study.optimize(mixed, n_trials=1)
    one = searched(n=35, sampler=CoarseToFine((10, 10), seed=1))
    assert [t.params for t in study.trials] == [t.params for t in one.trials]


def test_workers_without_a_seed_share_one_that_is_stored() -> None:
    storage = optuna.storages.InMemoryStorage()
    studies = [
        optuna.create_study(
            study_name="s", storage=storage, sampler=CoarseToFine((10,)), load_if_exists=True
        )
        for _ in range(2)
    ]
    for i in range(10):
        studies[i % 2].optimize(mixed, n_trials=1)
    axis = Axis("rate", FloatDistribution(1e-5, 1, log=True))
    strata = {int(axis.place(t.params["rate"]) * 10) for t in studies[0].trials}
    assert strata == set(range(10))  # one Latin hypercube, not two


def test_asynchronous_workers_draw_different_trials_from_the_same_region() -> None:
    storage = optuna.storages.InMemoryStorage()
    workers = [
        optuna.create_study(
            study_name="s",
            storage=storage,
            sampler=CoarseToFine((8, 8), global_share=NEVER, seed=5),
            load_if_exists=True,
        )
        for _ in range(6)
    ]
    rng = np.random.default_rng(0)
    running: list[tuple[optuna.Study, optuna.Trial, float]] = []
    for i in range(48):
        trial = workers[i % 6].ask()
        running.append((workers[i % 6], trial, mixed(trial)))
        if len(running) == 6:
            study, trial, value = running.pop(int(rng.integers(6)))
            study.tell(trial, value)
    trials = workers[0].trials
    assert len({repr(sorted(t.params.items())) for t in trials}) == 48
    regions = stored_regions(workers[0])
    assert [r["first_trial"] for r in regions] == [8, 16, 24, 32, 40]
    for region in regions:
        first = region["first_trial"]
        assert all(inside(t, region) for t in trials[first : first + 8])


def test_a_region_is_what_had_finished_when_its_first_trial_began_whoever_computes_it() -> None:
    study = optuna.create_study(sampler=CoarseToFine((6, 6), seed=2))
    for _ in range(5):
        study.tell(trial := study.ask(), mixed(trial))
    last, first_of_stage = study.ask(), study.ask()
    value = mixed(last)
    study.tell(last, value)  # finished before anyone asked for the region, but after it began
    mixed(first_of_stage)
    (region,) = stored_regions(study)
    assert region["finished_trials"] == 5


def test_a_region_is_computed_once() -> None:
    study = searched(n=15)
    before = stored_regions(study)
    study.sampler = CoarseToFine((10, 10), global_share=NEVER, seed=99)
    study.optimize(mixed, n_trials=3)
    assert stored_regions(study) == before


def test_workers_far_ahead_of_their_results_draw_from_the_whole_space() -> None:
    study = optuna.create_study(sampler=CoarseToFine((4, 4), seed=0))
    trials = [study.ask() for _ in range(30)]
    rates = [trial.suggest_float("rate", 1e-5, 1, log=True) for trial in trials]
    assert len(set(rates)) == 30 and min(rates) < 1e-4 and max(rates) > 1e-1
    assert all(not region["parameters"] for region in stored_regions(study))


def test_a_share_of_the_trials_is_drawn_from_the_whole_space() -> None:
    sampler = CoarseToFine((10, 10), seed=4)
    free = [n for n in range(10, 1010) if sampler.is_global(n)]
    assert len(free) == pytest.approx(1000 * GLOBAL_SHARE, abs=10)
    assert max(np.diff(free)) <= math.ceil(1 / GLOBAL_SHARE) + 6


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_region_is_left_again(seed: int) -> None:
    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        return min((x - 0.1) ** 2, 10 * (x - 0.9) ** 2 - 0.5) + y

    study = optuna.create_study(sampler=CoarseToFine((10, 10), seed=seed))
    for i in range(10):  # nobody has looked beyond x = 0.3
        study.enqueue_trial({"x": 0.03 * i, "y": 0.1 * i})
    study.optimize(objective, n_trials=11)
    assert stored_regions(study)[0]["parameters"]["x"]["high"] < 0.6
    study.optimize(objective, n_trials=50)
    assert study.best_params["x"] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("seed", range(2))
def test_a_choice_that_is_poor_until_it_is_tuned_gets_its_due(seed: int) -> None:
    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["easy", "hard"])
        x = trial.suggest_float(f"{kind}_x", 0, 1)
        y = trial.suggest_float(f"{kind}_y", 0, 1)
        if kind == "easy":
            return 0.3 + 0.2 * ((x - 0.6) ** 2 + (y - 0.6) ** 2)
        return 1 - math.exp(-8 * ((x - 0.15) ** 2 + (y - 0.8) ** 2))

    study = optuna.create_study(sampler=CoarseToFine(seed=seed))
    for i in range(10):
        study.enqueue_trial({"kind": "easy", "easy_x": 0.1 * i, "easy_y": 0.1 * i})
    for i in range(3):  # nobody has looked where it is good
        study.enqueue_trial({"kind": "hard", "hard_x": 0.7 + 0.1 * i, "hard_y": 0.2 * i})
    study.optimize(objective, n_trials=100)
    assert study.best_params["kind"] == "hard" and study.best_value < 0.05


def test_each_choice_is_judged_by_its_own_standard() -> None:
    losses = np.array([1.0, 2.0, 3.0, 101.0, 102.0, 103.0, math.inf, math.inf])
    choices = np.array([0.0, 0, 0, 1, 1, 1, 1, 2])
    found = own_scores(losses, choices)
    assert found[:3] == pytest.approx(scores(losses[:3]))
    assert found[3:7] == pytest.approx(scores(losses[3:7])) and found[3] > found[6]
    assert found[7] < found[1]  # nothing but a failure


def test_the_highest_value_is_the_best_where_that_is_asked_for() -> None:
    lowest = searched(mixed, 30, CoarseToFine(seed=3))
    highest = searched(lambda t: -mixed(t), 30, CoarseToFine(seed=3), direction="maximize")
    assert [t.params for t in lowest.trials] == [t.params for t in highest.trials]


def test_failed_trials_are_avoided() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if x > 0.6:
            raise ArithmeticError("diverged")
        return 1 - x

    study = searched(objective, 60, CoarseToFine(seed=0))
    failed = [t.state == TrialState.FAIL for t in study.trials]
    assert sum(failed[:10]) == 4 and sum(failed[30:]) <= 12
    assert study.best_value < 0.42


def test_failures_before_the_rest_was_asked_for_are_avoided_all_the_same() -> None:
    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 0, 1)
        if rate > 0.6:
            raise ArithmeticError("diverged at once")
        rest = [trial.suggest_float(f"x{i}", 0, 1) for i in range(3)]
        return 1 - rate + sum((x - 0.2) ** 2 for x in rest)

    study = searched(objective, 80, CoarseToFine(seed=0))
    assert sum(t.state == TrialState.FAIL for t in study.trials[30:]) < 25
    assert study.best_value < 0.43


def test_a_pruned_trial_ranks_below_the_better_half_of_the_complete_ones() -> None:
    study = optuna.create_study()
    for value in (1.0, 2.0, 3.0):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, value)
    for reported in (0.5, 2.5, math.nan):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(9.0, step=1)
        trial.report(reported, step=2)
        study.tell(trial, state=TrialState.PRUNED)
    observed = Observations(maximize=False)
    observed.read(study.get_trials())
    assert observed.outcomes().losses.tolist() == [1, 2, 3, 2, 2.5, 9]


def test_trials_that_were_lost_say_nothing_and_those_that_diverged_are_bad() -> None:
    study = optuna.create_study()
    for failure in ("lost", "bug", "diverged", "out_of_memory"):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("failure", failure)
        study.tell(trial, state=TrialState.FAIL)
    observed = Observations(maximize=False)
    observed.read(study.get_trials())
    assert observed.outcomes().losses.tolist() == [math.inf, math.inf]


def test_a_duplicate_is_no_observation() -> None:
    study = optuna.create_study()
    for number in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        if number == 1:
            trial.set_user_attr(DUPLICATE_ATTRIBUTE, 0)
        study.tell(trial, float(number))
    observed = Observations(maximize=False)
    observed.read(study.get_trials())
    assert observed.outcomes().losses.tolist() == [0, 2]


def test_what_a_space_refused_is_bad_from_the_moment_that_it_is_stored() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 1.0)
    running = study.ask()
    store = study._storage.set_trial_system_attr
    store(running._trial_id, INFEASIBLE_ATTRIBUTE, [{"x": 0.25}])
    observed = Observations(maximize=False)
    observed.read(study.get_trials())
    store(running._trial_id, INFEASIBLE_ATTRIBUTE, [{"x": 0.25}, {"x": 0.5, "unknown": 1}])
    observed.read(study.get_trials())
    running.suggest_float("x", 0, 1)
    study.tell(running, 2.0)
    for _ in range(2):
        observed.read(study.get_trials())
    outcomes = observed.outcomes()
    assert sorted(outcomes.losses.tolist()) == [1.0, 2.0, math.inf, math.inf]
    assert sorted(outcomes.places[np.isinf(outcomes.losses), 0].tolist()) == [0.25, 0.5]


def test_only_failures_leave_the_whole_space_open() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        raise ArithmeticError("always")

    study = searched(objective, 25)
    xs = [t.params["x"] for t in study.trials[10:]]
    assert min(xs) < 0.3 and max(xs) > 0.7


def test_scores_keep_a_valleys_shape_and_bend_what_is_bad() -> None:
    told = scores(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 1e9, math.inf]))
    steps = np.diff(told)
    assert np.all(steps <= 0)
    assert steps[0] == pytest.approx(steps[1]) == pytest.approx(steps[2])
    # A diverged trial is 9 decades worse, and but some fifty steps below the median.
    assert told[3] - told[5] < 60 * (told[2] - told[3])
    assert told[5] == told[6]


def test_a_model_can_be_fitted_to_failures_alone() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number < 55:
            raise ArithmeticError("no data yet")
        return x

    assert searched(objective, 62).best_value < 0.3


def test_bounds_and_choices_that_change_from_trial_to_trial_are_kept_to() -> None:
    def objective(trial: optuna.Trial) -> float:
        widest = trial.suggest_int("first", 8, 64)
        second = trial.suggest_int("second", 4, widest)
        assert 4 <= second <= widest
        return abs(widest - 20) + abs(second - 10)

    study = searched(objective, 60)
    assert study.best_value <= 3
    assert len({repr(t.distributions["second"]) for t in study.trials}) > 5


def test_distributions_stay_as_declared() -> None:
    study = searched(n=50)
    assert len({repr(t.distributions["rate"]) for t in study.trials}) == 1
    assert len({repr(t.distributions["optimizer"]) for t in study.trials}) == 1


def test_enqueued_trials_and_those_of_another_sampler_count() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(mixed, n_trials=10)
    study.sampler = CoarseToFine((10, 10), global_share=NEVER, seed=0)
    study.enqueue_trial({"rate": 1e-3})
    study.optimize(mixed, n_trials=10)
    (region,) = stored_regions(study)
    assert study.trials[10].params["rate"] == 1e-3
    assert region["finished_trials"] == 10 and "rate" in region["parameters"]


def test_a_study_in_the_place_of_a_deleted_one_begins_anew(tmp_path: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
    sampler = CoarseToFine((4, 4), seed=1)
    drawn = []
    for _ in range(2):
        study = optuna.create_study(study_name="s", storage=storage, sampler=sampler)
        study.optimize(mixed, n_trials=9)
        drawn.append([trial.params for trial in study.trials])
        optuna.delete_study(study_name="s", storage=storage)
    assert drawn[0] == drawn[1]


def test_a_journal_serves_as_well(tmp_path: Path) -> None:
    backend = JournalFileBackend(str(tmp_path / "journal"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(storage=storage, sampler=CoarseToFine((5, 5), seed=1))
    study.optimize(mixed, n_trials=12)
    one = searched(n=12, sampler=CoarseToFine((5, 5), seed=1))
    assert [t.params for t in study.trials] == [t.params for t in one.trials]


def test_threads_may_share_a_sampler() -> None:
    study = optuna.create_study(sampler=CoarseToFine((6, 6), seed=1))
    study.optimize(mixed, n_trials=30, n_jobs=4)
    assert len({repr(sorted(t.params.items())) for t in study.trials}) == 30


def test_trials_that_never_end_do_no_harm() -> None:
    study = optuna.create_study(sampler=CoarseToFine((5, 5), seed=1))
    for _ in range(100):
        study.ask().suggest_float("x", 0, 1)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=30)
    assert study.best_params["x"] < 0.01


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=CoarseToFine())
    with pytest.raises(ValueError, match="multi-objective"):
        study.ask().suggest_float("x", 0, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stages": ()}, "at least 1 trial each"),
        ({"stages": (10, 0)}, "at least 1 trial each"),
        ({"global_share": 1.5}, "from 0 to 1"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CoarseToFine(**arguments)


def test_a_suggestion_costs_the_same_after_thousands_of_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: dict[str, list[int]] = {"fitted": [], "asked": []}

    def fit_counted(encoding: Any, places: Any, targets: Any) -> Any:
        sizes["fitted"].append(len(places))
        return fit_kernel(encoding, places, targets)

    class Counted(surrogate.Surrogate):
        def __init__(self, encoding: Any, kernel: Any, places: Any, *rest: Any) -> None:
            sizes["asked"].append(len(places))
            super().__init__(encoding, kernel, places, *rest)

    fit_kernel = surrogate.fit_kernel
    monkeypatch.setattr(surrogate, "fit_kernel", fit_counted)
    monkeypatch.setattr(surrogate, "Surrogate", Counted)
    rng = np.random.default_rng(0)
    distributions: dict[str, BaseDistribution] = {
        f"x{i}": FloatDistribution(0, 1) for i in range(8)
    }
    study = optuna.create_study(sampler=CoarseToFine(seed=0))
    for x in rng.random((3000, 8)):
        params = dict(zip(distributions, x.tolist(), strict=True))
        value = float(np.sum((x - 0.3) ** 2))
        study.add_trial(
            optuna.trial.create_trial(value=value, params=params, distributions=distributions)
        )
    for _ in range(12):
        trial = study.ask()
        for name in distributions:
            trial.suggest_float(name, 0, 1)
        study.tell(trial, 1.0)
    # All that grows with a trial's cost: a model of so many rows, fitted once for many draws.
    assert len(sizes["fitted"]) == 1 and sizes["fitted"][0] == MAX_TRIALS
    assert len(sizes["asked"]) > 6
    assert all(MAX_TRIALS <= size <= MAX_TRIALS + N_PARENTS for size in sizes["asked"])


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, BaseDistribution]:
    def numbers(i: int) -> BaseDistribution:
        low = draw(st.integers(-20, 20))
        width = draw(st.integers(0, 40))
        match draw(st.sampled_from(["float", "log", "step", "int", "int log", "choice"])):
            case "float":
                return FloatDistribution(low / 7, low / 7 + width / 3)
            case "log":
                return FloatDistribution(1e-6, 1e-6 * 10 ** (1 + width / 8), log=True)
            case "step":
                return FloatDistribution(low, low + 0.5 * width, step=0.5)
            case "int":
                return IntDistribution(low, low + 3 * width, step=3)
            case "int log":
                return IntDistribution(1 + abs(low), 1 + abs(low) + width, log=True)
        return CategoricalDistribution([None, 1, 2.5, "x", True][: 1 + width % 5])

    return {f"p{i}": numbers(i) for i in range(draw(st.integers(1, 4)))}


@settings(deadline=None, max_examples=12)
@given(spaces(), st.integers(0, 2**40), st.sampled_from(["first", "none", "all"]))
def test_any_space_is_searched_within_its_bounds(
    space: dict[str, BaseDistribution], seed: int, conditional: str
) -> None:
    def objective(trial: optuna.Trial) -> float:
        total = 0.0
        for i, (name, distribution) in enumerate(space.items()):
            if conditional == "first" and i and total < 0.3:
                continue
            value = trial._suggest(name, distribution)
            assert distribution._contains(distribution.to_internal_repr(value))
            place = Axis(name, distribution).place(value)
            total += place if conditional != "all" else 1.0
        return total

    study = optuna.create_study(sampler=CoarseToFine((5, 4), seed=seed))
    study.optimize(objective, n_trials=16)
    observed = Observations(maximize=False)
    observed.read(study.get_trials())
    region = narrowed(2, 5, observed.outcomes())
    again = read_region(region.as_json(observed.axes), observed.axes)
    for axis in observed.axes:
        for span in (region.span(axis), again.span(axis)):
            if axis.n_choices:
                assert min(span.odds) > 0 and sum(span.odds) == pytest.approx(1)
            else:
                assert 0 <= span.low < span.high <= 1 + 1e-9


def test_the_first_trial_has_the_middle_of_all_ranges_and_each_first_choice() -> None:
    drawn = [searched(n=1, sampler=CoarseToFine((n,), seed=n)).trials[0].params for n in (1, 7, 10)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0]["rate"] == pytest.approx(10**-2.5)
    assert {name: drawn[0][name] for name in ("batch", "dropout", "optimizer", "layers")} == {
        "batch": 7,
        "dropout": pytest.approx(0.4),
        "optimizer": "sgd",
        "layers": 2,
    }


@given(n=st.integers(1, 30), seed=st.integers(0, 1_000))
@settings(max_examples=30, deadline=None)
def test_stage_1_with_its_first_trial_in_the_middle_has_one_trial_in_each_stratum(
    n: int, seed: int
) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("choice", list(range(n)))
        return trial.suggest_float("x", 0.0, 1.0)

    trials = searched(objective, n=n, sampler=CoarseToFine((n,), seed=seed)).trials
    assert {int(t.params["x"] * n) for t in trials} == set(range(n))
    assert {t.params["choice"] for t in trials} == set(range(n))


def test_a_step_that_ends_at_the_edge_of_a_region_stays_in_it() -> None:
    axis = Axis("dropout", FloatDistribution(0.0, 0.8, step=0.1))
    region = Region(2, 0, 8, {"dropout": Span(*axis.between(0.2, 0.5))})
    observed = Outcomes((axis,), np.array([[axis.place(0.4)]]), np.array([1.0]))
    drawer = Drawer((axis,), region, Activity(observed), np.random.default_rng(0))
    places = drawer.beside(np.array([[axis.place(0.4)]]), 5_000, (0.5, 3.0))
    values = {round(axis.value(place), 6) for place in places[:, 0]}
    assert values == {0.2, 0.3, 0.4, 0.5}
