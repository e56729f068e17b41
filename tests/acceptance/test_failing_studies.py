"""Studies that fail by their own fault: what is said, what it costs, and how to go on."""

from __future__ import annotations

from .command_line import Place

STUDY_ERROR = 3


def edit(place: Place, old: str, new: str) -> None:
    path = place.folder / "tiny.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_bug_in_the_first_trial_is_told_with_its_line_and_mended_at_no_cost(
    place: Place,
) -> None:
    study = place.write_study()
    bug = "    rate = trial.suggest_float"
    # Not where `start` looks at the space, beside the database; in a trial alone.
    edit(place, bug, f"    if trial.study.study_name == 'tiny': [][trial.number]\n{bug}")
    done = place.run("start", study, "--workers", 2, "--trials", 3)
    assert done.code == STUDY_ERROR, done.both
    assert "The first trial of 'tiny' failed, which cost no part of the budget" in done.err
    assert "IndexError" in done.err and "tiny.py, line " in done.err
    assert "Traceback" not in done.both
    assert place.slot_states() == ["open"] * 3
    assert "RUNNING" not in place.trial_states() and "FAIL" not in place.trial_states()
    edit(place, "[][trial.number]", "pass")
    said = place.succeed("start", study, "--workers", 2, "--trials", 3)
    assert "'tiny' starts again. Its trials so far are kept: dlnn-search trials tiny-old-1" in said
    assert "All 3 trials of tiny are done: 3 complete" in said
    assert place.rows(
        "SELECT count(*) FROM trials JOIN studies USING (study_id) WHERE study_name = 'tiny'"
    ) == [(3,)]


def test_a_search_of_which_every_trial_failed_does_not_end_well(place: Place) -> None:
    study = place.write_study()
    edit(place, "1e-4, 1e-2", "1e8, 1e9")
    done = place.run("start", study, "--trials", 2)
    assert done.code == STUDY_ERROR, done.both
    assert "All 2 trials of tiny are done: 0 complete, 0 pruned, 2 failed." in done.out
    assert "More:" not in done.out
    assert "Fix the study" in done.out and f"dlnn-search start {study} --fresh" in done.out
    assert "Every trial failed." in place.succeed("status", "tiny")
    edit(place, "1e8, 1e9", "1e-4, 1e-2")
    said = place.succeed("start", study, "--trials", 1)
    assert "All 1 trials of tiny are done: 1 complete" in said
    edit(place, "1e-4, 1e-2", "1e-3, 1e-2")
    assert "--fresh" in place.run("start", study).err, "a result is not put aside unasked"
    place.succeed("start", study, "--trials", 1, "--fresh")
    names = [name for (name,) in place.rows("SELECT name FROM dlnn_studies ORDER BY id")]
    assert names == ["tiny-old-1", "tiny-old-2", "tiny"]
    assert sorted(names) == sorted(name for (name,) in place.rows("SELECT study_name FROM studies"))
    assert (place.data / "checkpoints" / "tiny-old-2" / "0" / "last.npz").is_file()
    place.succeed("export", "tiny-old-2", "-o", "old.json", "--model", "old.keras")
