"""`validate` finds the config that cannot work before a search does."""

import re

from .command_line import Place

STUDY_ERROR = 3
SHRINKS = '''\
"""A space with one corner whose feature map shrinks away."""

import optuna

from dlnn_search import Clocks, ClockNet, Config, Conv, Pool, Study, Training


def space(trial: optuna.Trial) -> Config:
    blocks = tuple(
        block
        for _ in range(trial.suggest_int("levels", 1, LEVELS))
        for block in (Conv(filters=2), Pool())
    )
    return Config(model=ClockNet(blocks=blocks), training=Training(batch_size=8))


study = Study(
    space=space,
    data=Clocks(source="rendered", image_size=32, images_per_time=1),
    minimize="common_sense_error",
    epochs=2,
)
'''


def test_a_corner_that_cannot_be_built_is_found_and_named(place: Place) -> None:
    (place.folder / "shrinks.py").write_text(SHRINKS.replace("LEVELS", "4"))
    done = place.run("validate", "shrinks.py")
    assert done.code == STUDY_ERROR, done.both
    (n_failing,) = re.findall(r"^FAILS (\d+) configs?$", done.out, re.MULTILINE)  # told once
    assert done.out.count("blocks[6] (conv)") == 1  # 32, 15, 6, 2 px
    assert done.out.count("levels=") == 1 and "for example levels=4" in done.out
    (n,) = re.findall(r"built (\d+) configs", done.out)
    (n_good,) = re.findall(r"(\d+) configs? works?: ", done.out)
    assert int(n) == int(n_good) + int(n_failing)
    assert f"{n_failing} of {n} configs cannot work" in done.out
    # Nothing was searched, drawn or stored.
    assert [path.name for path in place.folder.iterdir()] == ["shrinks.py"]


def test_a_space_that_works_is_told_so_with_what_it_will_take(place: Place) -> None:
    (place.folder / "works.py").write_text(SHRINKS.replace("LEVELS", "2"))
    # As in the environment of somebody who uses Keras with JAX elsewhere.
    told = place.run("validate", "works.py", KERAS_BACKEND="jax").both
    assert "FAILS" not in told
    assert "configs work" in told and "parameters" in told and "a trial" in told


def test_choices_that_a_database_changes_are_refused_before_anything_is_stored(
    place: Place,
) -> None:
    tuples = SHRINKS.replace(
        'trial.suggest_int("levels", 1, LEVELS)',
        'len(trial.suggest_categorical("levels", [(1,), (1, 1)]))',
    )
    (place.folder / "tuples.py").write_text(tuples)
    for command in ("validate", "start"):
        done = place.run(command, "tuples.py")
        assert done.code == STUDY_ERROR, done.both
        assert done.both.count("lets 'levels' choose (1,): expected text, numbers") == 1
        assert "Warning" not in done.both and "FAILS" not in done.both
    assert [path.name for path in place.folder.iterdir()] == ["tuples.py"]


REFUSES = """
    if len(blocks) == 4:
        raise optuna.TrialPruned
"""


def test_what_a_space_refuses_is_counted_and_no_failure(place: Place) -> None:
    code = SHRINKS.replace("LEVELS", "2").replace(
        "    return Config(", f"{REFUSES}    return Config("
    )
    (place.folder / "refuses.py").write_text(code)
    told = place.succeed("validate", "refuses.py")
    assert "FAILS" not in told and "configs work" in told
    assert re.search(r"[1-9]\d* draws are infeasible: the space refuses them", told)
