"""What `evaluate` says of the search's own figure."""

from __future__ import annotations

import pytest

from dlnn_search.config import Origin
from dlnn_search.report.evaluation import search_words


def origin(**confirmed: object) -> Origin:
    return Origin.model_validate(
        {
            "study": "tiny",
            "trial": 3,
            "metric": "accuracy",
            "value": 0.9,
            "epoch": 2,
            "dlnn_search_version": "0.1.0",
            **confirmed,
        }
    )


def test_a_figure_chosen_on_validation_is_told_with_reserve() -> None:
    words = search_words(origin())
    assert "0.9000" in words and "a little too good" in words


@pytest.mark.parametrize(("n", "counted"), [(1, "1 seed trained"), (5, "5 seeds trained")])
def test_a_confirmed_one_is_told_with_its_fresh_seeds(n: int, counted: str) -> None:
    words = search_words(origin(confirmed_mean=0.8765, confirmed_seeds=n))
    assert "0.9000" in words and "0.8765" in words and counted in words
    assert "too good" not in words
