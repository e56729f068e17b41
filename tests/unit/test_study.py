"""A study says what it is, or what is wrong with it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlnn_search import CoarseToFine
from dlnn_search.config import Config, FashionMnist, Mlp, Mnist, Training
from dlnn_search.errors import StorageError, StudyError
from dlnn_search.metrics import DIRECTIONS, is_better
from dlnn_search.study import CmaEs, Halving, Qmc, Quick, RandomSearch, Sampler, Space, Study, Tpe
from dlnn_search.worker.first_trials import example_config, middle_config
from dlnn_search.worker.optuna_study import make_sampler


def space(trial: optuna.Trial) -> Config:
    return Config(model=Mlp(), training=Training(learning_rate=trial.suggest_float("rate", 0.1, 1)))


def other_space(trial: optuna.Trial) -> Config:
    return Config(model=Mlp())


def a_study(**changes: Any) -> Study:
    return Study(
        **{"space": space, "data": Mnist(), "maximize": "accuracy", "name": "mine", **changes}
    )


def metric_study(direction: str, metric: str) -> Study:
    return a_study(**{"maximize": None, direction: metric})


@pytest.mark.parametrize("metric", DIRECTIONS)
def test_a_study_optimises_any_metric_in_its_direction_and_in_no_other(metric: str) -> None:
    right = DIRECTIONS[metric]
    wrong = "maximize" if right == "minimize" else "minimize"
    study = metric_study(right, metric)
    assert (study.metric, study.direction) == (metric, right)
    with pytest.raises(StudyError, match=f"'{metric}' to be {right}d, got {wrong}='{metric}'"):
        metric_study(wrong, metric)


@pytest.mark.parametrize("both", [{}, {"minimize": "loss", "maximize": "accuracy"}])
def test_a_study_optimises_exactly_one_metric(both: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"exactly one of minimize='\.\.\.' and maximize="):
        Study(space=space, **both)


def test_an_unknown_metric_is_answered_with_the_known_ones() -> None:
    with pytest.raises(StudyError, match=r"Unknown metric 'acc'\. Expected one of: loss, accuracy"):
        Study(space=space, maximize="acc")


@pytest.mark.parametrize("trials", [0, -1])
def test_a_budget_has_at_least_one_trial(trials: int) -> None:
    with pytest.raises(StudyError, match=f"at least 1 trial, got trials={trials}"):
        a_study(trials=trials)


def test_a_quick_version_is_a_study_of_its_own_that_changes_what_it_names() -> None:
    full = a_study(
        epochs=20,
        trials=60,
        pruner=Halving(first_rung=5),
        quick=Quick(trials=2, epochs=1, data=Mnist(n_training=100), space=other_space),
    )
    quick = full.quick_version()
    assert quick.name == "mine-quick"
    assert (quick.trials, quick.epochs, quick.data) == (2, 1, Mnist(n_training=100))
    assert (quick.space, quick.pruner, quick.quick) == (other_space, None, None)
    assert (quick.metric, quick.sampler) == (full.metric, full.sampler)


def test_a_quick_version_keeps_what_it_does_not_name() -> None:
    quick = a_study(epochs=20, quick=Quick(trials=2)).quick_version()
    assert (quick.space, quick.data, quick.epochs) == (space, Mnist(), 20)


def test_a_study_without_a_quick_version_says_so() -> None:
    for study in (a_study(), a_study(quick=Quick(trials=2)).quick_version()):
        with pytest.raises(StudyError, match=f"'{study.name}' has no quick version"):
            study.quick_version()


def test_a_config_of_a_study_is_judged_by_its_metric() -> None:
    study = Study(space=space, data=FashionMnist(), minimize="loss", epochs=4)
    config = example_config(study)
    assert (config.training.monitor, config.training.epochs) == ("loss", 4)
    assert config.data == FashionMnist()


def test_a_config_that_names_its_metric_itself_keeps_it() -> None:
    study = a_study(
        space=lambda trial: Config(model=Mlp(), training=Training(monitor="loss")),
    )
    assert example_config(study).training.monitor == "loss"


def test_a_space_that_fails_is_named_with_the_error() -> None:
    def failing(trial: optuna.Trial) -> Config:
        raise ZeroDivisionError("by nothing")

    with pytest.raises(
        StudyError, match=r"space of 'mine' failed: .*ZeroDivisionError: by nothing"
    ) as caught:
        example_config(a_study(space=failing))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_space_that_makes_an_invalid_config_is_told_which_value_is_wrong() -> None:
    def invalid(trial: optuna.Trial) -> Config:
        return Config(model=Mlp(), training=Training(epochs=0))

    with pytest.raises(StudyError, match=r"space of 'mine' made an invalid config: .*epochs:"):
        example_config(a_study(space=invalid))


@pytest.mark.parametrize("returned", [None, 3, Mlp()])
def test_a_space_that_returns_something_else_is_told_what(returned: object) -> None:
    with pytest.raises(StudyError, match=f"return a Config, got {type(returned).__name__}"):
        example_config(a_study(space=lambda trial: returned))


@pytest.mark.parametrize("error", [StorageError("The disk is full."), optuna.TrialPruned()])
def test_what_is_not_the_spaces_fault_passes_through_it(error: Exception) -> None:
    def failing(trial: optuna.Trial) -> Config:
        raise error

    with pytest.raises(type(error)) as caught:
        a_study(space=failing).config(optuna.create_study().ask())
    assert caught.value is error


def test_an_example_is_what_the_space_allows_and_its_lack_is_told() -> None:
    def allowing(least: float) -> Space:
        def space(trial: optuna.Trial) -> Config:
            if trial.suggest_float("rate", 0.0, 1.0) < least:
                raise optuna.TrialPruned
            return Config(model=Mlp())

        return space

    assert example_config(a_study(space=allowing(0.9))).model == Mlp()
    assert middle_config(a_study(space=allowing(0.9))).model == Mlp()
    with pytest.raises(StudyError, match="Nothing is feasible: the space refused 100 draws"):
        example_config(a_study(space=allowing(2.0)))


def test_a_space_that_changes_its_choices_is_told_so() -> None:
    def changing(trial: optuna.Trial) -> Config:
        for choices in (["a"], ["a", "b"]):
            trial.suggest_categorical("choice", choices)
        return Config(model=Mlp())

    with pytest.raises(StudyError, match=r"space of 'mine' failed: .*ValueError.*use two names"):
        example_config(a_study(space=changing))


def test_slots_have_seeds_of_their_own_and_workers_have_not() -> None:
    def drawn(study: str, slot: int) -> float:
        sampler = make_sampler(RandomSearch(), a_study(name=study), slot)
        return optuna.create_study(sampler=sampler).ask().suggest_float("x", 0, 1)

    places = [(name, slot) for name in ("a", "b") for slot in range(20)]
    first = [drawn(*place) for place in places]
    assert first == [drawn(*place) for place in places]
    assert len(set(first)) == len(places)


@pytest.mark.parametrize("sampler", [RandomSearch(), Tpe(), Qmc(), CoarseToFine()])
def test_a_draw_that_was_refused_is_followed_by_another_the_same_for_whoever_draws(
    sampler: Sampler,
) -> None:
    def drawn(n_draws: int) -> float:
        search = optuna.create_study(sampler=make_sampler(sampler, a_study(), 3, n_draws))
        return search.ask().suggest_float("x", 0, 1)

    several = [drawn(n) for n in range(15)]
    assert several == [drawn(n) for n in range(15)]
    assert len(set(several)) == 15


def test_samplers_are_those_that_the_study_describes() -> None:
    assert isinstance(make_sampler(RandomSearch(), a_study(), 0), optuna.samplers.RandomSampler)
    assert isinstance(make_sampler(Tpe(), a_study(), 0), optuna.samplers.TPESampler)
    assert isinstance(make_sampler(CmaEs(), a_study(), 0), optuna.samplers.CmaEsSampler)
    assert isinstance(make_sampler(Qmc(), a_study(), 0), optuna.samplers.QMCSampler)


def test_coarse_to_fine_draws_by_study_and_trial_number_unless_it_has_a_seed() -> None:
    first, second = (make_sampler(CoarseToFine((5,)), a_study(name=name), 3) for name in "st")
    assert isinstance(first, CoarseToFine) and isinstance(second, CoarseToFine)
    assert first.stages == (5,) and first.seed != second.seed
    seeded = make_sampler(CoarseToFine(seed=7), a_study(), 3)
    assert isinstance(seeded, CoarseToFine) and seeded.seed == 7


def test_a_sampler_of_optunas_is_no_description_of_one() -> None:
    with pytest.raises(StudyError, match=r"one of CoarseToFine\(\), Tpe\(\), .* got <optuna"):
        a_study(sampler=optuna.samplers.RandomSampler())


numbers = st.floats(allow_nan=False)


@given(a=numbers, b=numbers)
def test_of_two_values_one_is_better_unless_they_are_equal(a: float, b: float) -> None:
    for direction in ("minimize", "maximize"):
        assert is_better(a, b, direction) + is_better(b, a, direction) == (a != b)
    assert is_better(a, b, "minimize") == is_better(-a, -b, "maximize")


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_nan_is_never_better_and_anything_else_is_better_than_nothing(direction: str) -> None:
    for than in (None, 1.0, math.inf):
        assert not is_better(math.nan, than, direction)
    for value in (0.0, -math.inf, math.inf):
        assert is_better(value, None, direction)


def test_the_same_search_on_other_data_has_other_data_in_its_quick_version_too() -> None:
    study = a_study(quick=Quick(trials=1, epochs=1, data=Mnist(n_training=500)))
    other = study.on(name="fashion-mnist", permutation_seed=3)
    assert other.data == FashionMnist(permutation_seed=3)
    quick = other.quick_version()
    assert quick.data == FashionMnist(permutation_seed=3, n_training=500)
    assert example_config(quick).data == quick.data
    assert study.data == Mnist()


@pytest.mark.parametrize("options", [{"name": "nothing"}, {"pixels": 3}, {"name": "clocks"}])
def test_data_that_cannot_be_had_is_refused_with_what_was_given(options: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="Invalid data options") as caught:
        a_study().on(**options)
    assert str(next(iter(options.values()))) in str(caught.value)


def choosing(*choices: Any) -> Study:
    def choice(trial: optuna.Trial) -> Config:
        trial.suggest_categorical("kernel", choices)
        return Config(model=Mlp())

    return a_study(space=choice)


@pytest.mark.parametrize("choice", [(3, 3), [8], {"a": 1}, np.zeros(2), object(), 1j])
def test_a_choice_that_json_changes_is_refused_with_the_way_out(choice: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's own words for it
        with pytest.raises(StudyError) as caught:
            example_config(choosing("a", choice))
    said = str(caught.value)
    assert said.startswith("The space of 'mine' lets 'kernel' choose ")
    assert "OPTIONS[trial.suggest_categorical('kernel', list(OPTIONS))]" in said


@pytest.mark.filterwarnings("error")
def test_choices_and_attributes_come_back_from_a_database_as_they_were() -> None:
    choices = [np.float32(0.5), np.int64(3), np.bool_(True), np.str_("x"), None, False, 2.5, "a"]
    attributes = {"n": np.int16(4), "list": [np.float64(1.5), {"deep": (None)}], "word": "a"}
    search = optuna.create_study(storage="sqlite://", sampler=optuna.samplers.RandomSampler(0))
    study_file = a_study(space=lambda trial: attributed(trial, choices, attributes))
    for _ in choices:
        trial = search.ask()
        study_file.config(trial)
        search.tell(trial, 0.0)
    read = search._storage._backend.get_all_trials(search._study_id)  # type: ignore[attr-defined]
    plain = [0.5, 3, True, "x", None, False, 2.5, "a"]
    for trial_read, trial_made in zip(read, search.trials, strict=True):
        assert trial_read.distributions["kernel"].choices == tuple(plain)
        assert [type(choice) for choice in trial_read.distributions["kernel"].choices] == [
            type(choice) for choice in plain
        ]
        assert trial_read.params == trial_made.params
        assert trial_read.user_attrs == {"n": 4, "list": [1.5, {"deep": None}], "word": "a"}


def attributed(trial: optuna.Trial, choices: Any, attributes: dict[str, Any]) -> Config:
    assert isinstance(trial, optuna.Trial)
    trial.suggest_categorical("kernel", choices)
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    return Config(model=Mlp())


@pytest.mark.parametrize("value", [(1, 2), [(1,)], {1: 2}, {"a": {1}}, np.zeros(2)])
def test_an_attribute_that_json_changes_is_refused(value: Any) -> None:
    study = a_study(space=lambda trial: attributed(trial, ["a"], {"shape": value}))
    with pytest.raises(StudyError, match=r"'mine' sets the user attribute 'shape' to .*list"):
        example_config(study)
