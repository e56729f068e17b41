"""Pages of a study: what is on them, in which order, and how large they are."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from werkzeug.test import Client

from dlnn_search.config import FashionMnist
from dlnn_search.dashboard import _application, _remembering, _with_states
from dlnn_search.report.evaluation import confirmation_figure, draw_confusion
from dlnn_search.report.figures import (
    REGIONS_NOTE,
    narrowing_figure,
    region_figures,
    study_figures,
)
from dlnn_search.report.pages import LIBRARY, Picture, log_marks, page_of, round_marks, write_pages
from dlnn_search.results.comparison import Narrowing, narrowing_of
from dlnn_search.results.confirmation import Candidate, Confirmation, interval_words
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import StoredStudy, register
from dlnn_search.storage.trials import Point, add_points

from .slot_life import DEFINITION, claimed, give_trials, set_slot

MAX_BYTES = 3_000_000
#: The alphabet's last matters most.
SPACE: dict[str, BaseDistribution] = {
    "activation": CategoricalDistribution(["<b>relu</b>", "tanh & co", None, "selu"]),
    "layers": IntDistribution(1, 3),
    "units": IntDistribution(8, 512, log=True),
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    **{f"rest_{number:02d}": FloatDistribution(0.0, 0.5) for number in range(10)},
    "zeal": FloatDistribution(0.0, 1.0),
}


def searched(database: Database, n_trials: int = 24) -> StoredStudy:
    """Store a study whose trials have 15 parameters, in two stages."""
    study = register(database, "some-study", DEFINITION)
    slots = Slots(database, study.id)
    give_trials(slots, 1)
    slot = claimed(slots)
    points = [Point(epoch, {"accuracy": 0.4 * epoch}, 1.0, 1e3) for epoch in (1, 2)]
    assert add_points(database, slot.id, slot.fence, points)
    set_slot(database, slot, trial_number=0, state="done", outcome="complete", value=0.8)
    trials = optuna.create_study(
        study_name=study.name, storage=database.optuna, direction="maximize"
    )
    rng = np.random.default_rng(0)
    for number in range(n_trials):
        params: dict[str, Any] = {
            "activation": SPACE["activation"].choices[number % 4],  # type: ignore[attr-defined]
            "layers": int(rng.integers(1, 4)),
            "units": int(rng.integers(8, 513)),
            "rate": float(10 ** rng.uniform(-4, -1)),
            **{name: float(rng.uniform(0, 0.5)) for name in SPACE if name.startswith("rest")},
            "zeal": float(rng.uniform()),
        }
        trials.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=SPACE, value=0.5 + 0.4 * params["zeal"]
            )
        )
    return study


def narrowed(database: Database) -> Narrowing:
    """Return what there is to draw of `searched`, with a second stage that prefers the last."""
    found = narrowing_of(optuna.load_study(study_name="some-study", storage=database.optuna))
    parameters: dict[str, Any] = {
        "activation": {"odds": [0.1, 0.1, 0.1, 0.7], "choices": ["a", "b", "c", "d"]},
        "layers": {"low": 2, "high": 2},
        "zeal": {"low": 0.5, "high": 1.0},
    }
    region = {"stage": 2, "first_trial": 10, "parameters": parameters}
    return Narrowing([region], found.distributions, found.trials, found.best, found.edges)


def test_the_most_important_parameters_come_first_wherever_there_are_several(
    sqlite_database: Database,
) -> None:
    study = searched(sqlite_database)
    pictures: dict[str, Any] = {
        one.title: one.drawn for one in study_figures(sqlite_database, study)
    }
    slices, contours, bars = pictures["Slices"], pictures["Contours"], pictures["Importance"]
    names = [figure.layout.title.text for figure in slices]
    assert len(names) == len(SPACE) and names[0] == "zeal"
    assert names == list(bars.data[0].y)
    assert [figure.layout.title.text for figure in contours][:2] == [
        f"zeal, {names[1]}",
        f"zeal, {names[2]}",
    ]
    axes = pictures["Parallel coordinates"].layout.xaxis.ticktext
    assert list(axes) == ["accuracy", *names[:10]]
    assert list(narrowed(sqlite_database).distributions) == names


def test_with_too_few_trials_to_tell_the_parameters_are_in_the_spaces_order(
    sqlite_database: Database,
) -> None:
    pictures = study_figures(sqlite_database, searched(sqlite_database, 5))
    slices: Any = next(one.drawn for one in pictures if one.title == "Slices")
    assert [figure.layout.title.text for figure in slices] == list(SPACE)
    words = next(one.drawn for one in pictures if one.title == "Importance")
    assert words == "Needs 10 complete trials; there are 5."


def test_of_a_parameter_that_never_changed_there_is_no_empty_contour(
    sqlite_database: Database,
) -> None:
    study = register(sqlite_database, "some-study", DEFINITION)
    trials = optuna.create_study(
        study_name=study.name, storage=sqlite_database.optuna, direction="maximize"
    )
    space: dict[str, BaseDistribution] = {
        "a": FloatDistribution(0, 1),
        "b": FloatDistribution(0, 1),
    }
    for number in range(4):
        params = {"a": number / 4, "b": 0.5}
        trials.add_trial(
            optuna.trial.create_trial(params=params, distributions=space, value=number / 4)
        )
    pictures = study_figures(sqlite_database, study)
    (drawn,) = (one.drawn for one in pictures if one.title == "Contours")
    assert drawn == "Needs two parameters of which different values were tried."


def test_bands_and_trials_of_a_choice_lie_on_its_name(sqlite_database: Database) -> None:
    searched(sqlite_database)
    narrowing = narrowed(sqlite_database)
    figures = {figure.layout.title.text: figure for figure in region_figures(narrowing)}
    figure = figures["activation"]
    assert list(figure.layout.yaxis.tickvals) == [0, 1, 2, 3]
    assert list(figure.layout.yaxis.ticktext) == [
        "&lt;b&gt;relu&lt;/b&gt;",
        "tanh &amp; co",
        "None",
        "selu",
    ]
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert [(min(band.y), max(band.y)) for band in bands] == [
        (choice - 0.4, choice + 0.4) for _ in range(2) for choice in range(4)
    ]
    (dots,) = (trace for trace in figure.data if trace.name == "complete")
    assert list(dots.y) == [trial.number % 4 for trial in narrowing.trials]
    (star,) = (trace for trace in figure.data if trace.name == "best")
    assert narrowing.best is not None
    assert list(star.y) == [narrowing.best.number % 4]


def test_a_band_of_one_number_can_be_seen(sqlite_database: Database) -> None:
    searched(sqlite_database)
    figures = {
        figure.layout.title.text: figure for figure in region_figures(narrowed(sqlite_database))
    }
    bands = [trace for trace in figures["layers"].data if trace.fill == "toself"]
    assert (min(bands[1].y), max(bands[1].y)) == (1.6, 2.4)


def test_in_the_dashboard_a_menu_reaches_every_parameter(sqlite_database: Database) -> None:
    searched(sqlite_database)
    narrowing = narrowed(sqlite_database)
    figure = narrowing_figure(narrowing, "title")
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == [
        "Parameters 1 to 4 of 15",
        "Parameters 5 to 8 of 15",
        "Parameters 9 to 12 of 15",
        "Parameters 13 to 15 of 15",
    ]
    shown, reached = set(), []
    for button in buttons:
        traces, axes = button.args
        shown |= {place for place, is_shown in enumerate(traces["visible"]) if is_shown}
        ends = [end for end in ("", "2", "3", "4") if axes[f"yaxis{end}.visible"]]
        reached += [axes[f"yaxis{end}.title.text"] for end in ends]
    assert reached == list(narrowing.distributions)
    assert shown == set(range(len(figure.data)))
    first = [figure.layout[axis].title.text for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
    assert first == reached[:4]
    assert figure.layout.yaxis.type == buttons[0].args[1]["yaxis.type"]


def test_a_page_that_is_sent_holds_all_it_needs_in_less_than_3_mb(
    sqlite_database: Database, tmp_path: Path
) -> None:
    study = searched(sqlite_database)
    write_pages(tmp_path / "plots.html", study.name, study_figures(sqlite_database, study))
    narrowing = narrowed(sqlite_database)
    regions = page_of("Regions", [Picture("Regions", region_figures(narrowing), REGIONS_NOTE)])
    (tmp_path / "regions.html").write_text(regions)
    labels = np.arange(10, dtype=np.uint8)
    draw_confusion(labels, labels, FashionMnist(), tmp_path / "confusion.html")
    for page in tmp_path.glob("*.html"):
        text = page.read_text()
        assert len(text.encode()) < MAX_BYTES
        assert 'id="plotly">H4sI' in text, "the library, compressed"
        assert not re.search(r"(?:src|href)=|url\(|@import|fetch\(", text)


def test_a_folder_of_pages_shares_one_library(sqlite_database: Database, tmp_path: Path) -> None:
    study = searched(sqlite_database)
    pictures = study_figures(sqlite_database, study)
    paths = write_pages(tmp_path / "folder", study.name, pictures)
    assert len(paths) == len(pictures) == 6
    large = [path.name for path in (tmp_path / "folder").iterdir() if path.stat().st_size > 300_000]
    assert large == [LIBRARY]
    drawn = [path for path in paths if 'data-picture="' in path.read_text()]
    assert all(f'src="{LIBRARY}"' in path.read_text() for path in drawn)
    assert len(drawn) >= 5


def test_no_name_or_choice_becomes_markup_of_a_page(sqlite_database: Database) -> None:
    study = searched(sqlite_database)
    pictures = study_figures(sqlite_database, study)
    name = "</script><script>alert(1)</script>"
    pictures.append(Picture(name, go.Figure(go.Scatter(x=[1], y=[1], name=name)), name))
    page = page_of(name, pictures, name)
    assert "<script>alert" not in page and "<b>relu" not in page
    shown = json.loads(re.search(r'id="figures">(.*?)</script>', page)[1])  # type: ignore[index]
    assert shown[-1]["data"][0]["name"] == name
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page


def candidate(*values: float) -> Candidate:
    return Candidate("some-study", 3, {}, 0.99, values, tuple(range(len(values))), 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("metric", "values", "interval"),
    [
        ("accuracy", (0.99, 0.97, 1.0), (0.9487, 1.0)),
        ("accuracy", (0.5, 0.51, 0.52), (0.4852, 0.5348)),
        ("common_sense_error", (0.1, 2.0, 0.2), (0.0, 3.4222)),
        ("common_sense_error", (359.0, 300.0, 360.0), (254.2, 360.0)),
        ("gross_errors", (0.0, 0.0, 0.1), (0.0, 0.1768)),
        ("loss", (1.0, 9.0, 2.0), (0.0, 14.8309)),
    ],
)
def test_an_interval_stays_within_what_its_metric_can_be(
    metric: str, values: tuple[float, ...], interval: tuple[float, float]
) -> None:
    found = candidate(*values).interval(metric)
    assert found == pytest.approx(interval, rel=1e-3)


def test_an_interval_needs_three_seeds_in_words_and_in_the_picture() -> None:
    study = StoredStudy(1, "some-study", DEFINITION)
    two, three = candidate(0.98, 0.99), candidate(0.98, 0.99, 1.0)
    assert two.interval("accuracy") is None
    assert interval_words("accuracy", two) == "0.9850"
    assert interval_words("accuracy", three) == "0.9900 (0.9652 to 1.0000)"
    assert interval_words("accuracy", candidate(0.5, 0.51, 0.52)) == "0.5100 ± 0.025"
    assert interval_words("common_sense_error", candidate(0.1, 2.0, 0.2)) == (
        "0.77 min (0.00 to 3.42)"
    )

    def drawn(*candidates: Candidate) -> Any:
        figure = confirmation_figure(study, Confirmation("accuracy", "maximize", candidates))
        return next(trace for trace in figure.data if trace.name.startswith("mean of the seeds"))

    means = drawn(two, three)
    assert means.name == "mean of the seeds, 95% interval"
    assert list(means.error_y.array) == pytest.approx([0.0, 0.01])
    assert list(means.error_y.arrayminus) == pytest.approx([0.0, 0.0248], abs=1e-4)
    assert drawn(two).name == "mean of the seeds"


@pytest.mark.parametrize(
    ("low", "high"), [(1e-5, 1e-1), (2e-3, 7e-3), (8, 16), (64, 256), (1e-8, 1e-4), (3.1, 3.2)]
)
def test_a_logarithmic_axis_has_two_to_seven_ticks_within_it(low: float, high: float) -> None:
    marks = log_marks(low, high)
    assert 2 <= len(marks) <= 7
    assert all(low * 0.99 <= mark <= high * 1.01 for mark in marks)
    assert marks == sorted(set(marks))


@pytest.mark.parametrize(
    ("low", "high", "is_whole", "marks"),
    [
        (0.0, 0.5, False, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (1, 3, True, [1, 2, 3]),
        (8, 512, True, [100, 200, 300, 400, 500]),
        (0.25, 0.25, False, [0.25]),
    ],
)
def test_an_axis_has_round_ticks(
    low: float, high: float, is_whole: bool, marks: list[float]
) -> None:
    assert round_marks(low, high, is_whole) == pytest.approx(marks)


def test_errors_of_every_size_are_drawn_by_their_logarithms(sqlite_database: Database) -> None:
    settings = {"metric": "loss", "direction": "minimize"}
    study = register(sqlite_database, "some-study", {"settings": settings, "code": ""})
    trials = optuna.create_study(study_name=study.name, storage=sqlite_database.optuna)
    for value in (0.01, 0.02, 1.0, 100.0):
        trials.add_trial(
            optuna.trial.create_trial(
                params={"a": value}, distributions={"a": FloatDistribution(0, 200)}, value=value
            )
        )
    history, curves = (one.drawn for one in study_figures(sqlite_database, study)[:2])
    assert curves == "No trial has finished an epoch yet."
    assert isinstance(history, go.Figure)
    assert history.layout.yaxis.type == "log"
    low, high = history.layout.yaxis.range
    assert low < math.log10(0.01) and high > math.log10(100)


def test_the_dashboards_list_tells_metric_budget_state_and_best_of_each_study(
    sqlite_database: Database,
) -> None:
    study = searched(sqlite_database, 1)
    give_trials(Slots(sqlite_database, study.id), 3)
    optuna.create_study(study_name="not ours", storage=sqlite_database.optuna)
    theirs = _application(_remembering(sqlite_database))
    client = Client(_with_states(sqlite_database, theirs))
    number = sqlite_database.optuna.get_study_id_from_name(study.name)
    assert client.get("/studies.json").get_json() == {
        str(number): [
            "Metric: accuracy, higher is better",
            "Best: 0.8000 (trial 0)",
            "Budget: 1 of 3 trials",
            "State: idle",
        ]
    }
    assert "javascript" in client.get("/studies.js").content_type
    assert client.get("/api/studies").status_code == 200
