"""Samplers in the product's own loop of slots and workers, on every database."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner, Result

from dlnn_search import CoarseToFine
from dlnn_search.cli import app
from dlnn_search.config import Config, Mlp, Mnist, Training
from dlnn_search.dashboard import _put_figures
from dlnn_search.errors import UsageError
from dlnn_search.report.figures import narrowing_figure, region_figures
from dlnn_search.results.advice import advice, facts_of
from dlnn_search.results.comparison import narrowing_of
from dlnn_search.results.status import study_status
from dlnn_search.samplers.regions import stored_regions
from dlnn_search.storage.database import Database, open_database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import find, register
from dlnn_search.study import SAMPLERS, Gp, Study, Tpe
from dlnn_search.worker import optuna_study as module
from dlnn_search.worker.optuna_study import (
    begin_trial,
    check_libraries,
    choose_sampler,
    chosen_sampler,
    open_optuna_study,
)
from dlnn_search.worker.reports import tell
from dlnn_search.worker.verdict import Verdict

from .slot_life import give_trials


def space(trial: optuna.Trial) -> Config:
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    trial.suggest_categorical("activation", ["relu", "tanh"])
    if trial.suggest_int("layers", 1, 3) > 1:
        trial.suggest_float("dropout", 0.0, 0.5)
    return Config(model=Mlp(), training=Training(learning_rate=rate))


STUDY = Study(
    space=space,
    data=Mnist(),
    minimize="loss",
    name="some-study",
    sampler=CoarseToFine((8, 8), global_share=0.0),
)


def made(database: Database, n_slots: int) -> None:
    slots = Slots(database, register(database, STUDY.name, STUDY.definition()).id)
    give_trials(slots, n_slots)
    open_optuna_study(STUDY, database)


def work(url: str, n_trials: int, worker: str = "w") -> None:
    """Fill slots until none is left, or so many were filled."""
    database = open_database(url, create=False)
    try:
        slots = Slots(database, register(database, STUDY.name, STUDY.definition()).id)
        trials = open_optuna_study(STUDY, database)
        for _ in range(n_trials):
            slot = slots.claim(worker)
            if slot is None:
                return
            trial = begin_trial(trials, STUDY, slot)
            slots.begin(slot, trial._trial_id, trial.number)
            rate = STUDY.config(trial).training.learning_rate
            assert rate is not None
            loss = abs(math.log10(rate) + 3) + 0.5 * trial.params["layers"]
            slots.settle(slot, "complete", value=loss)
            tell(trials, trial._trial_id, Verdict("complete", value=loss))
            slots.mark_told(slot.id)
    finally:
        database.close()


def _overlap(one: optuna.trial.FrozenTrial, other: optuna.trial.FrozenTrial) -> bool:
    assert one.datetime_start and one.datetime_complete
    assert other.datetime_start and other.datetime_complete
    return (
        one.datetime_start < other.datetime_complete > other.datetime_start < one.datetime_complete
    )


def test_a_study_narrows_and_its_regions_hold_for_every_worker(database: Database) -> None:
    made(database, 40)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dlnn_search.worker.optuna_study", "psycopg", "pytest"])
    with ProcessPoolExecutor(4, context) as pool:
        list(pool.map(work, [database.url] * 4, [40] * 4, "abcd"))
    study = open_optuna_study(STUDY, database)
    trials = study.get_trials()
    assert len(trials) == 40
    drawn: dict[str, optuna.trial.FrozenTrial] = {}
    for trial in trials:
        first = drawn.setdefault(repr(sorted(trial.params.items())), trial)
        # Two that are drawn at once may change the same good trial in the same way, such as trial
        # 0's activation alone; a worker of the product draws the second one again.
        assert first is trial or _overlap(first, trial)
    assert len(drawn) >= 36
    regions = stored_regions(study)
    assert [region["first_trial"] for region in regions] == [8, 16, 24, 32]
    for region in regions:
        first, part = region["first_trial"], region["parameters"].get("rate", {})
        for trial in trials[first : first + 8]:
            assert part.get("low", 0) <= trial.params["rate"] <= part.get("high", 1)


def test_one_worker_or_one_a_trial_draw_the_same(
    sqlite_database: Database, postgresql_database: Database
) -> None:
    drawn = []
    for database, at_once in ((sqlite_database, 20), (postgresql_database, 1)):
        made(database, 20)
        for _ in range(20 // at_once):
            module._coarse_to_fine.cache_clear()  # as a new process would find it
            work(database.url, at_once)
        drawn.append([trial.params for trial in open_optuna_study(STUDY, database).trials])
    assert drawn[0] == drawn[1]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "gp"])
def test_a_start_chooses_the_sampler_of_all_workers(sqlite_database: Database, name: str) -> None:
    made(sqlite_database, 14)
    study = open_optuna_study(STUDY, sqlite_database)
    assert chosen_sampler(study, STUDY) is STUDY.sampler
    choose_sampler(study, name)
    work(sqlite_database.url, 14)
    chosen = chosen_sampler(open_optuna_study(STUDY, sqlite_database), STUDY)
    assert isinstance(chosen, type(SAMPLERS[name]()))
    trials = study.get_trials()
    assert len({repr(sorted(trial.params.items())) for trial in trials}) == 14


def test_quasi_random_slots_share_one_sequence(sqlite_database: Database) -> None:
    made(sqlite_database, 17)
    choose_sampler(open_optuna_study(STUDY, sqlite_database), "qmc")
    work(sqlite_database.url, 17)
    trials = open_optuna_study(STUDY, sqlite_database).get_trials()[1:]  # the first is random
    strata = {int(16 * axis_place(trial.params["rate"])) for trial in trials}
    assert len(strata) == 16


def axis_place(rate: float) -> float:
    from dlnn_search.samplers.observations import Axis

    return Axis("rate", optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)).place(rate)


def test_an_unknown_sampler_is_answered_with_the_nearest(sqlite_database: Database) -> None:
    made(sqlite_database, 1)
    with pytest.raises(UsageError, match=r"Unknown sampler 'tpee'\. Did you mean 'tpe'\?"):
        choose_sampler(open_optuna_study(STUDY, sqlite_database), "tpee")


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs PyTorch.*pip install '\.\[gp\]'"):
        check_libraries(Gp())
    check_libraries(Tpe())


def regions_printed(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["regions", *map(str, arguments)])


def test_regions_are_shown_as_a_table_and_a_page(sqlite_database: Database, tmp_path: Path) -> None:
    made(sqlite_database, 20)
    page = tmp_path / "regions.html"
    storage = ("--storage", sqlite_database.url)
    assert "no finished trial yet" in regions_printed("some-study", *storage).output
    work(sqlite_database.url, 20)
    shown = regions_printed("some-study", "-o", page, *storage)
    assert shown.exit_code == 0, shown.output
    for words in ("declared", "stage 2", "from trial 8", "stage 3", "1e-05 to 0.1, log", "relu"):
        assert words in shown.output
    assert "edge of layers" not in shown.output  # the fewest are the best, but none is no network
    assert "How the space of some-study narrowed" in page.read_text()


def test_regions_and_status_say_the_same_of_a_best_trial_on_the_edge(database: Database) -> None:
    made(database, 12)
    trials = open_optuna_study(STUDY, database)
    slots = Slots(database, find(database, "some-study").id)
    for number in range(9):
        layers = 2 if number == 1 else 3
        trials.enqueue_trial({"rate": 0.1, "layers": layers, "dropout": 0.2})
        slot = slots.claim("w")
        assert slot is not None
        trial = begin_trial(trials, STUDY, slot)
        slots.begin(slot, trial._trial_id, trial.number)
        STUDY.config(trial)
        slots.settle(slot, "complete", value=float(number))
        tell(trials, trial._trial_id, Verdict("complete", value=float(number)))
    stored = find(database, "some-study")
    told = advice(facts_of(database, stored, study_status(database, stored), []))
    on_the_edge = [
        "The best trial lies on the edge of rate (0.1, upper end of 1e-05 to 0.1), as 2 of the "
        "next 2 do: widen it to 1e-05 to 0.55, in a copy of the study.",
        "The best trial lies on the edge of layers (3, upper end of 1 to 3), as 1 of the next 2 "
        "do: widen it to 1 to 4, in a copy of the study.",
    ]
    assert [sentence for sentence in told if "edge" in sentence] == on_the_edge
    shown = regions_printed("some-study", "--storage", database.url).output
    assert all(f"Warning: {sentence}" in shown for sentence in on_the_edge)


def test_regions_of_a_study_that_another_sampler_searched_are_the_whole_space(
    sqlite_database: Database,
) -> None:
    made(sqlite_database, 12)
    choose_sampler(open_optuna_study(STUDY, sqlite_database), "random")
    work(sqlite_database.url, 12)
    shown = regions_printed("some-study", "--storage", sqlite_database.url)
    assert "still draws from the whole space" in shown.output and "stage 2" not in shown.output


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("some-stdy",), "Did you mean 'some-study'", 2),
        (("some-study", "-o", "regions.txt"), "name of an HTML page", 2),
        (("some-study", "-o", "/no/such/folder/regions.html"), "There is no folder", 2),
    ],
)
def test_regions_that_cannot_be_shown_say_why(
    sqlite_database: Database, arguments: tuple[str, ...], words: str, code: int
) -> None:
    made(sqlite_database, 1)
    work(sqlite_database.url, 1)
    shown = regions_printed(*arguments, "--storage", sqlite_database.url)
    assert (shown.exit_code, words in shown.output) == (code, True), shown.output


def test_the_dashboard_gets_the_picture_as_soon_as_a_region_is_stored(
    sqlite_database: Database,
) -> None:
    made(sqlite_database, 12)

    def pictures() -> list[str]:
        _put_figures(sqlite_database, find(sqlite_database, "some-study"))
        kept = open_optuna_study(STUDY, sqlite_database)
        attributes = kept._storage.get_study_system_attrs(kept._study_id)
        return [key for key in attributes if key.startswith("dashboard:") and "regions" in key]

    work(sqlite_database.url, 8)
    assert pictures() == []
    work(sqlite_database.url, 4)
    assert len(pictures()) >= 1


def test_the_picture_shows_every_parameter_with_its_stages(sqlite_database: Database) -> None:
    made(sqlite_database, 20)
    work(sqlite_database.url, 20)
    narrowing = narrowing_of(open_optuna_study(STUDY, sqlite_database))
    figures = region_figures(narrowing)
    titles = [figure.layout.title.text for figure in figures]
    assert sorted(titles) == ["activation", "dropout", "layers", "rate"]
    assert titles == list(narrowing.distributions)
    figure = narrowing_figure(narrowing, "title")
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 3 * (3 + 2)  # three stages; a band a number, one a choice
