"""From a search to a choice, as a user: range test, confirmation, re-tuning, export, pictures."""

from __future__ import annotations

import json

import pytest

from .command_line import Place

USAGE = 2
RANGE_TEST = """
from dlnn_search import RangeTest, rate_range
"""


def test_the_winner_is_confirmed_and_exported(searched: Place, place: Place) -> None:
    place = searched.copy_to(place.folder / "copy")
    own = place.succeed("export", "tiny", "-o", "own.json")
    assert "Not confirmed" in own and "dlnn-search confirm tiny" in own
    place.succeed("confirm", "tiny", "--top", 2, "--seeds", 2, "--workers", 0)
    told = place.succeed("start", "tiny-confirm", "--workers", 2)
    assert "All 4 trials of tiny-confirm are done: 4 complete" in told
    for misleading in ("More:", "--trials", "Best: trial", "export tiny-confirm"):
        assert misleading not in told
    assert "dlnn-search export tiny -o best.json" in told
    assert "search said" in told and "Export it" in told
    assert "±" not in told.split("rank  trial")[1]  # two seeds are too few for an interval
    again = place.succeed("confirm", "tiny", "--top", 2, "--seeds", 2)
    assert place.slot_states().count("done") == 8
    assert told.split("rank  trial")[1] == again.split("rank  trial")[1]
    assert "Confirmed: trial" in place.succeed("export", "tiny", "-o", "best.json")
    origin = json.loads((place.folder / "best.json").read_text())["origin"]
    assert origin["study"] == "tiny" and origin["confirmed_seeds"] == 2
    assert place.rows("SELECT count(*) FROM dlnn_ledger") == [(0,)]
    # Left to a worker elsewhere, which needs neither the file nor to know what this is.
    queued = place.succeed("retune", "tiny", "--steps", 1, "--workers", 0)
    assert "dlnn-search worker tiny-retune" in queued
    (place.folder / "tiny.py").unlink()
    place.succeed("worker", "tiny-retune")
    assert "the search's own" in place.succeed("retune", "tiny", "--steps", 1)
    refused = place.run("start", "tiny-retune", "--trials", 99)
    assert refused.code == USAGE and "dlnn-search retune tiny" in refused.err


def test_pictures_and_comparisons(searched: Place, place: Place) -> None:
    place = searched.copy_to(place.folder / "copy")
    text = (place.folder / "tiny.py").read_text()
    (place.folder / "other.py").write_text(text)
    place.succeed("start", "other.py", "--trials", 2)
    told = place.succeed("compare", "tiny", "other", "-o", "both.html")
    assert "after 2 trials" in told
    page = (place.folder / "both.html").read_text()
    assert "tiny" in page and "other" in page and 'src="http' not in page
    place.succeed("plots", "tiny", "-o", "plots.html")
    page = (place.folder / "plots.html").read_text()
    for title in ("History", "Learning curves", "Parallel coordinates", "Slices", "Contours"):
        assert f"<h2>{title}</h2>" in page
    place.succeed("plots", "tiny", "-o", "folder")
    assert (place.folder / "folder" / "slices.html").exists()
    for command in (
        ("plots", "tiny", "-o", "plots.pdf"),
        ("plots", "tniy", "-o", "plots.html"),
        ("compare", "tiny", "-o", "one.html"),
        ("importance", "tiny"),
        ("confirm", "tiny", "--seeds", 1),
        ("lr-range", "nothing_such"),
    ):
        refused = place.run(*command)
        assert refused.code == USAGE and refused.err.startswith("Error: "), refused.both


@pytest.mark.parametrize("subject", ["config", "study"])
def test_a_range_test_writes_table_picture_and_numbers(place: Place, subject: str) -> None:
    place.write_study()
    if subject == "study":
        arguments = ["lr-range", "tiny.py", "--batches", 60, "-o", "rates.html"]
    else:
        place.succeed("start", "tiny.py", "--trials", 1)
        place.succeed("export", "tiny", "-o", "mine.json")
        arguments = ["lr-range", "mine.json", "--batches", 60, "-o", "rates.html"]
    told = place.succeed(*arguments)
    assert "60 batches of" in told and "rate" in told
    if subject == "config":  # its study is in the database, by now
        assert "best trial" in place.succeed("lr-range", "tiny", "--batches", 60)
    numbers = json.loads((place.folder / "rates.json").read_text())
    assert numbers["rates"][0] == pytest.approx(1e-5)
    assert len(numbers["losses"]) == len(numbers["smoothed"]) == len(numbers["rates"])
    assert (place.folder / "rates.html").stat().st_size > 100_000
    assert place.rows("SELECT count(*) FROM dlnn_ledger") in ([], [(0,)])


def test_a_study_s_range_is_centred_once_for_all_workers(place: Place) -> None:
    place.write_study()
    text = (place.folder / "tiny.py").read_text()
    text = text.replace('"learning_rate", 1e-4, 1e-2', '"learning_rate", *rate_range(1e-4, 1e-2)')
    text = text.replace("import optuna\n", f"import optuna\n{RANGE_TEST}")
    text = text.replace("    trials=4,", "    trials=4,\n    range_test=RangeTest(batches=60),")
    (place.folder / "tiny.py").write_text(text)
    first = place.succeed("start", "tiny.py", "--trials", 1)
    assert "range test" in first
    again = place.succeed("start", "tiny.py", "--trials", 3, "--workers", 2)
    assert "Testing" not in again
    ranges = place.rows(
        "SELECT DISTINCT distribution_json FROM trial_params WHERE param_name = 'learning_rate'"
    )
    assert len(ranges) == 1
    assert place.slot_states() == ["done"] * 3


def test_a_search_begins_with_what_is_known(searched: Place, place: Place) -> None:
    place = searched.copy_to(place.folder / "copy")
    (place.folder / "other.py").write_text((place.folder / "tiny.py").read_text())
    place.succeed("export", "tiny", "-o", "mine.json")
    best = place.rows(
        "SELECT p.param_value FROM trial_params p JOIN trial_values v USING (trial_id) "
        "WHERE p.param_name = 'learning_rate' ORDER BY v.value LIMIT 2"
    )
    told = place.succeed(
        *("start", "other.py", "--trials", 3, "--from", "tiny", "--top", 2),
        *("--enqueue", "mine.json", "--stop-when-converged"),
    )
    assert "1 of 1 configs are tried first: mine.json" in told
    assert told.count("of tiny is enqueued with 2 of its 2 parameters.") == 2
    begun = place.rows(
        "SELECT p.param_value FROM trial_params p JOIN trials t USING (trial_id) "
        "JOIN studies s USING (study_id) WHERE s.study_name = 'other' "
        "AND p.param_name = 'learning_rate' ORDER BY t.number"
    )
    assert begun == best
    refused = place.run("start", "other.py", "--from", "tiny")
    assert refused.code == USAGE and "--trials" in refused.err


def test_a_search_that_has_converged_stops_and_says_what_was_not_needed(place: Place) -> None:
    place.write_study(epochs=4)
    text = (place.folder / "tiny.py").read_text()
    rule = "stop_when_converged=Converged(min_trials=10, noises=1000.0)"
    text = text.replace("    trials=4,", f"    trials=40,\n    {rule},")
    text = text.replace("Config, Conv,", "Config, Conv, Converged,")
    (place.folder / "tiny.py").write_text(text)
    told = place.succeed("start", "tiny.py", "--workers", 2)
    states = place.slot_states()
    n_done = states.count("done")
    # Fifteen values are the least that anything is told by; another trial was under way.
    assert n_done in (15, 16) and states.count("open") == 40 - n_done
    assert "Converged: " in told and f"{n_done} of 40 trials are done" in told
    assert f"{40 - n_done} were not needed" in told
    assert "Converged: " in place.succeed("status", "tiny")
    assert "Converged: " in place.succeed("start", "tiny.py")
    assert place.slot_states() == states
