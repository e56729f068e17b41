"""A study with a helper module and a data file beside it: the folder's own, for every process."""

from pathlib import Path

import numpy as np

from .command_line import Place

STUDY_ERROR = 3
STUDY = '''\
"""Bright or dark."""

from dlnn_search import Config, Dense, Mlp, OwnData, Study, Training


def load(options):
    from pictures import read

    return read("images.npy")


def space(trial):
    import sizes

    rate = trial.suggest_float("rate", 1e-3, 1e-2, log=True)
    return Config(
        model=Mlp(blocks=(Dense(units=sizes.UNITS),)), training=Training(learning_rate=rate)
    )


study = Study(
    space=space, data=OwnData(n_classes=2), load=load, maximize="accuracy", epochs=1, trials=1
)
'''
PICTURES = """\
import numpy as np

from dlnn_search import OwnImages


def read(name):
    return OwnImages(np.load(name), np.arange(200) % 2)
"""


def written(folder: Path, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "shades.py").write_text(STUDY)
    (folder / "pictures.py").write_text(PICTURES)
    (folder / "sizes.py").write_text("UNITS = 4\n")
    dark = np.random.default_rng(seed).integers(0, 99, (200, 6, 6), np.uint8)
    dark[1::2] += 100
    np.save(folder / "images.npy", dark)


def test_workers_and_evaluation_find_helpers_and_the_folder_s_own_pictures(
    place: Place, tmp_path: Path
) -> None:
    written(place.folder, seed=1)
    place.succeed("start", "shades.py", "--workers", "2")
    assert place.slot_states() == ["done"]
    place.succeed("export", "shades", "-o", "best.json")
    place.succeed("evaluate", "best.json", "--study", "shades.py", "--seeds", "1")

    other = Place(tmp_path / "other", {**place.environment, "DLNN_SEARCH_STORAGE": ""})
    other.environment["DLNN_SEARCH_STORAGE"] = f"sqlite:///{place.database}"
    written(other.folder, seed=1)
    other.succeed("start", "shades.py", "--trials", "2")  # the same pictures in another place
    written(other.folder, seed=2)
    done = other.run("start", "shades.py", "--trials", "3")
    assert done.code == STUDY_ERROR, done.both
    assert "other pictures on this machine than its trials learned from" in done.both
    assert place.slot_states()[:2] == ["done"] * 2
    assert place.succeed("data", "list").count("from ") == 2

    (place.folder / "sizes.py").write_text("UNITS = 5\n")
    done = place.run("start", "shades.py", "--trials", "4")
    assert done.code == STUDY_ERROR, done.both
    assert "-helper sizes.py" in done.both and "+UNITS = 5" in done.both
