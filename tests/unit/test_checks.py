"""What `validate` found is told in groups, and fits the terminal."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import cast

import optuna
import pytest
from rich.console import Console

from dlnn_search.commands import trying
from dlnn_search.commands.trying import Draw, draws_of, validate
from dlnn_search.config import Config, Dense, Mlp, Mnist, Training
from dlnn_search.errors import StudyError
from dlnn_search.report.tables import Checked, print_checks
from dlnn_search.study import Study

GOOD = Checked({"units": 8, "rate": 0.001}, None, 1_000, 2_000_000, 12.0)
SHRUNK = "blocks[{n}] (conv) needs a feature map of at least 3x3 pixels, got 2x2. Take larger ones."


def space(trial: optuna.Trial) -> Config:
    units = trial.suggest_int("units", 4, 64)
    if units == 64:
        raise optuna.TrialPruned
    if units == 4:
        raise ZeroDivisionError("no units")
    return Config(model=Mlp(blocks=(Dense(units=units),)), training=Training(batch_size=8))


STUDY = Study(space=space, data=Mnist(), minimize="loss", epochs=1, trials=7, name="mine")


def printed(checks: list[Checked], width: int = 80) -> tuple[int, list[str]]:
    written = io.StringIO()
    n_bad = print_checks(Console(file=written, width=width), STUDY, checks)
    return n_bad, written.getvalue().splitlines()


def test_each_failure_is_told_once_with_how_many_configs_and_one_example() -> None:
    bad = [Checked({"levels": n, "rate": 0.1}, SHRUNK.format(n=n)) for n in range(20)]
    other = Checked({"levels": 99}, "ValueError: no such layer")
    n_bad, lines = printed([other, GOOD, *bad, GOOD])
    assert n_bad == 21
    text = " ".join(" ".join(lines).split())
    assert [line for line in lines if line.startswith("FAILS")] == [
        "FAILS 20 configs",
        "FAILS 1 config",
    ]
    assert text.count("needs a feature map") == 1 and "for example levels=0 rate=0.1" in text
    assert text.count("no such layer") == 1 and "levels=99" in text
    assert "built 23 configs" in text and "2 configs work: 1,000 to 1,000 parameters" in text
    assert "21 of 23 configs cannot work" in text


def test_warnings_are_grouped_like_failures_and_are_no_failure() -> None:
    warned = replace(GOOD, warnings=("Dropping 3 pictures (mine.py, line 3)",))
    n_bad, lines = printed([warned, GOOD, warned])
    assert n_bad == 0
    assert "WARNS 2 configs" in lines and sum("Dropping" in line for line in lines) == 1
    assert not any("FAILS" in line or "cannot work" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    refused = Checked({"units": 64}, None, is_refused=True)
    many = Checked({f"parameter_{n}": 0.123456 for n in range(30)}, SHRUNK.format(n=1) * 3)
    _, lines = printed([GOOD, refused, many], width)
    assert max(map(len, lines)) <= width
    assert any("1 draw is infeasible" in line for line in lines)


def test_a_space_is_drawn_without_building_and_each_draw_is_good_bad_or_refused() -> None:
    draws = draws_of(STUDY)
    by_units = {draw.params["units"]: draw for draw in draws}
    assert by_units[4].config is None and "no units" in cast(str, by_units[4].error)
    assert by_units[64].config is None and by_units[64].error is None
    assert all(draw.config for units, draw in by_units.items() if 4 < units < 64)


def test_a_space_that_refuses_all_is_told_before_anything_is_built() -> None:
    def refuses(trial: optuna.Trial) -> Config:
        trial.suggest_int("units", 4, 64)
        raise optuna.TrialPruned

    with pytest.raises(StudyError, match="Nothing is feasible"):
        draws_of(replace(STUDY, space=refuses))


def test_warnings_of_the_users_code_while_a_config_is_built_are_kept_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build_and_warn(params: dict[str, object], config: Config) -> Checked:
        warnings.warn("few\npictures", stacklevel=1)
        warnings.warn("few\npictures", stacklevel=1)
        warnings.warn_explicit("retracing", UserWarning, io.__file__, 1)
        return replace(GOOD, params=params)

    monkeypatch.setattr(trying, "check", build_and_warn)
    draw = next(draw for draw in draws_of(STUDY) if draw.config is not None)
    first, second = validate([draw, Draw({}, None)])
    assert len(first.warnings) == 2 and all("few pictures" in told for told in first.warnings)
    assert all(f"({__file__}, line " in told for told in first.warnings)
    assert second.is_refused and not second.warnings
