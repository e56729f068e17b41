"""A model of a study's own builder is exported, and told where plain Keras cannot open it."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import optuna
import pytest

from dlnn_search import data
from dlnn_search.commands.export import export_model, kept_model
from dlnn_search.config import Config, OwnData, OwnModel, Training
from dlnn_search.errors import UsageError
from dlnn_search.files import slot_path
from dlnn_search.storage.checkpoints import settle_checkpoint
from dlnn_search.storage.database import Database
from dlnn_search.storage.slots import Slots
from dlnn_search.storage.studies import StoredStudy, register
from dlnn_search.study.finding import load_study
from dlnn_search.training.fit import fit

from .slot_life import give_trials, note_config

FILE = '''\
"""Tell bright pictures from dark ones."""

import keras
import numpy as np

from dlnn_search import Config, OwnData, OwnImages, OwnModel, Study, Training


class Halved(keras.layers.Layer):
    def call(self, images):
        return keras.ops.cast(images, "float32") / 2


def load(options):
    labels = np.arange(60) % 2
    pixels = np.random.default_rng(0).integers(0, 120, (60, 6, 6))
    return OwnImages((pixels + 120 * labels[:, None, None]).astype("uint8"), labels)


def build(options, input_shape, n_classes):
    image = keras.Input(input_shape, dtype="uint8")
    scaled = Halved()(image) if options["halved"] else keras.layers.Rescaling(0.5)(image)
    x = keras.layers.Flatten()(scaled)
    return keras.Model(image, keras.layers.Dense(n_classes, activation="softmax")(x))


def space(trial):
    return Config(model=OwnModel(options={"halved": True}), training=Training())


study = Study(
    space=space, data=OwnData(n_classes=2), load=load, build=build, maximize="accuracy", epochs=2
)
'''


def searched(database: Database, file: Path, halved: bool) -> tuple[StoredStudy, Config]:
    """Train one trial of the study, as a worker leaves it."""
    file.write_text(FILE, encoding="utf-8")
    study = load_study(str(file))
    config = study.with_own_code(
        Config(
            data=OwnData(n_classes=2, study=study.name),
            model=OwnModel(options={"halved": halved}, study=study.name),
            training=Training(epochs=2, batch_size=8, learning_rate=1e-3, precision="float32"),
        )
    )
    optuna_study = optuna.create_study(
        study_name=study.name, storage=database.optuna, direction="maximize"
    )
    stored = register(database, study.name, study.definition())
    slots = Slots(database, stored.id)
    give_trials(slots, 1)
    slot = slots.claim("w")
    assert slot is not None
    trial = optuna_study.ask()
    slots.begin(slot, trial._trial_id, trial.number)
    note_config(database, slot, config.model_dump(mode="json"))
    folder = (database.files / slot_path(study.name, slot.number)).parent
    fitted = fit(config, data.load(config.data), folder=folder, generation=slot.fence)
    value = fitted.best.metrics["accuracy"]
    slots.settle(slot, "complete", value=value, best_epoch=fitted.best.epoch)
    settle_checkpoint(database, slot.id, keep=1)
    return stored, config


@pytest.mark.parametrize("halved", [False, True])
def test_an_own_model_is_written_with_a_word_on_who_opens_it(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halved: bool
) -> None:
    monkeypatch.setenv("DLNN_SEARCH_CACHE", str(tmp_path / "cache"))
    file, path = tmp_path / "bright.py", tmp_path / "best.keras"
    stored, config = searched(sqlite_database, file, halved)
    with pytest.raises(UsageError, match=r"needs the own code .* --study bright\.py"):
        kept_model(sqlite_database, stored, None)
    assert not path.exists()
    exported = export_model(kept_model(sqlite_database, stored, str(file)), path)
    if halved:
        assert "Warning: plain Keras cannot open it" in exported.words
        assert "Halved" in exported.words, exported.words
        return
    assert f"keras.models.load_model('{path}') opens it." in exported.words
    loaded = keras.saving.load_model(path)
    validation = data.load(config.data).validation
    found = np.asarray(loaded(validation.batch(slice(None)), training=False)).argmax(axis=1)
    with sqlite_database.transaction() as connection:
        value = connection.exec_driver_sql("SELECT value FROM dlnn_slots").scalar()
    assert np.mean(found == validation.labels) == pytest.approx(value)
