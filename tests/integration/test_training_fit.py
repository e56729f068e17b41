import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from dlnn_search.config import (
    ClockNet,
    Clocks,
    Cnn,
    Config,
    Conv,
    CurriculumStage,
    Dense,
    Dropout,
    Mlp,
    Mnist,
    OwnModel,
    Pool,
    Training,
)
from dlnn_search.data.splits import Split, TrainingData
from dlnn_search.errors import DivergedError, StorageError, TrainingError
from dlnn_search.files import CHECKPOINT
from dlnn_search.study.finding import OwnCode, register
from dlnn_search.training import checkpoint
from dlnn_search.training.checkpoint import Checkpoint, State
from dlnn_search.training.fit import Decision, Epoch, best_model, fit
from dlnn_search.training.optimizer import make_optimizer


def digits(n: int = 210, edge: int = 10, seed: int = 0) -> Split:
    """Return noisy pictures in which one row is bright: that of the label."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, n, dtype=np.uint8)
    images = random.integers(0, 120, (n, edge, edge), dtype=np.uint8)
    images[np.arange(n), labels] += 80
    return Split(images, np.arange(n), labels)


def clocks(n: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, 32, 32), dtype=np.uint8)
    labels = np.stack([random.integers(0, 12, n), random.integers(0, 60, n)], 1).astype(np.uint8)
    return Split(images, np.arange(n), labels)


DATA = TrainingData(digits(seed=1), digits(n=90, seed=2))
CNN = Cnn(blocks=(Conv(filters=4), Pool(), Dropout(rate=0.2)), dense=(Dense(units=8),))
MLP = Mlp(blocks=(Dense(units=32), Dropout(rate=0.1)))


def config_of(model: Mlp | Cnn = MLP, **training: object) -> Config:
    plain = {"epochs": 3, "batch_size": 32, "precision": "float32", **training}
    return Config(data=Mnist(), model=model, training=Training.model_validate(plain))


def stop_after(epochs: int) -> Callable[[Epoch], Decision]:
    return lambda epoch: Decision.STOP if epoch.epoch == epochs else Decision.GO_ON


def curve_of(epochs: tuple[Epoch, ...]) -> list[dict[str, float]]:
    return [epoch.metrics for epoch in epochs]


def test_training_learns_what_can_be_learnt() -> None:
    fitted = fit(config_of(epochs=30, learning_rate=0.01), DATA)
    assert fitted.finished
    assert fitted.best.metrics["accuracy"] > 0.8
    assert fitted.curve[-1].metrics["train_loss"] < fitted.curve[0].metrics["train_loss"]


@pytest.mark.parametrize("optimizer", ["rmsprop", "sgd", "adam", "adamw", "adadelta"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_fused_update_is_keras_s_own(optimizer: str, momentum: float) -> None:
    rate, decay = 0.01, 0.1
    training = Training.model_validate(
        {
            "optimizer": optimizer,
            "learning_rate": rate,
            "momentum": momentum,
            "weight_decay": decay,
        }
    )
    kinds: dict[str, Callable[..., Any]] = {
        "rmsprop": lambda **k: keras.optimizers.RMSprop(momentum=momentum, **k),
        "sgd": lambda **k: keras.optimizers.SGD(momentum=momentum, **k),
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "adadelta": keras.optimizers.Adadelta,
    }
    theirs = kinds[optimizer](learning_rate=rate, weight_decay=decay)
    start = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    found = []
    for updated_by in (make_optimizer(training), theirs):
        weight = keras.Variable(start)
        for step in range(5):
            gradient = keras.ops.convert_to_tensor(np.sin(start + step))
            updated_by.apply([gradient], [weight])
        found.append(np.asarray(weight))
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5, atol=1e-6)


def test_the_best_epoch_s_weights_give_the_best_epoch_s_accuracy(tmp_path: Path) -> None:
    config = config_of(epochs=6, learning_rate=0.02)
    fitted = fit(config, DATA, folder=tmp_path)
    model = best_model(config, tmp_path, (10, 10))
    held_out = DATA.validation
    found = np.argmax(model(held_out.take(slice(None))[..., None]), axis=1)
    assert np.mean(found == held_out.labels) == fitted.best.metrics["accuracy"]
    assert fitted.best.metrics["accuracy"] == max(e.metrics["accuracy"] for e in fitted.curve)


def test_the_same_seed_gives_bit_equal_curves_and_another_seed_others() -> None:
    curves = [
        curve_of(fit(config_of(CNN, deterministic=True, seed=s), DATA).curve) for s in (0, 0, 1)
    ]
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_how_many_batches_a_call_trains_changes_nothing() -> None:
    one, many = (config_of(CNN, deterministic=True, steps_per_execution=n) for n in (1, 5))
    assert curve_of(fit(one, DATA).curve) == curve_of(fit(many, DATA).curve)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = config_of(CNN, epochs=4, deterministic=True, optimizer=optimizer)
    whole = fit(config, DATA)
    stopped = fit(config, DATA, folder=tmp_path, on_epoch=stop_after(2))
    assert not stopped.finished
    seen: list[int] = []

    def on_epoch(epoch: Epoch) -> Decision:
        seen.append(epoch.epoch)
        return Decision.GO_ON

    resumed = fit(config, DATA, folder=tmp_path, on_epoch=on_epoch)
    assert resumed.finished
    assert seen == [3, 4]
    assert curve_of(resumed.curve) == curve_of(whole.curve)


TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_training_fit import CNN, DATA, config_of
from dlnn_search.training.fit import Decision, fit
config = config_of(CNN, epochs=100_000, deterministic=True)
def on_kept(epochs):
    print(epochs, flush=True)
    return Decision.GO_ON
fit(
    config, DATA, folder=Path({folder!r}), generation={generation}, save_seconds={seconds},
    on_kept=on_kept,
)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.3], ids=["each epoch", "some epochs"])
def test_a_training_killed_at_any_moment_goes_on_bit_for_bit(
    tmp_path: Path, seconds: float
) -> None:
    here, reached = str(Path(__file__).parent), 0
    kept, whole_folder = tmp_path / "killed", tmp_path / "whole"
    for generation in (1, 2):
        script = TRAIN.format(here=here, folder=str(kept), generation=generation, seconds=seconds)
        command = [sys.executable, "-c", script]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout is not None
        for _ in range(3):
            reached = int(child.stdout.readline())
        # At once: the next epoch, or its checkpoint, is under way.
        child.send_signal(signal.SIGKILL)
        child.communicate()
    config = config_of(CNN, epochs=100_000, deterministic=True)
    resumed = fit(config, DATA, folder=kept, generation=3, on_epoch=lambda _: Decision.STOP)
    assert len(resumed.curve) > reached >= 6
    stop = stop_after(len(resumed.curve))
    whole = fit(config, DATA, folder=whole_folder, on_epoch=stop)
    assert curve_of(resumed.curve) == curve_of(whole.curve)
    states = [Checkpoint(folder, config.fingerprint()).load() for folder in (kept, whole_folder)]
    assert_equal_states(*states)


def assert_equal_states(first: State | None, second: State | None) -> None:
    """Weights, optimiser, seeds and the best epoch's weights, bit for bit."""
    assert first is not None and second is not None
    for ours, theirs in ((first.last, second.last), (first.best, second.best)):
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def kept_epochs(folder: Path, **how: Any) -> list[int]:
    """Train, and return after which epochs a checkpoint was written."""
    kept: list[int] = []

    def on_kept(epochs: int) -> Decision:
        kept.append(epochs)
        return Decision.GO_ON

    fit(config_of(epochs=20), DATA, folder=folder, on_kept=on_kept, **how)
    return kept


def test_checkpoints_are_written_now_and_then_where_wanted_and_at_the_end(tmp_path: Path) -> None:
    assert kept_epochs(tmp_path / "seldom", save_seconds=3600) == [1, 20]
    stopped = kept_epochs(tmp_path / "stopped", save_seconds=3600, on_epoch=stop_after(7))
    assert stopped == [1, 7]

    def keep(epoch: Epoch) -> Decision:
        return Decision.KEEP if epoch.epoch in (5, 9) else Decision.GO_ON

    wanted = kept_epochs(tmp_path / "wanted", save_seconds=3600, on_epoch=keep)
    assert wanted == [1, 5, 9, 20]


def test_a_training_may_be_stopped_when_its_checkpoint_is_written(tmp_path: Path) -> None:
    fitted = fit(
        config_of(epochs=20),
        DATA,
        folder=tmp_path,
        on_epoch=lambda _: Decision.KEEP,
        on_kept=lambda epochs: Decision.STOP if epochs == 4 else Decision.GO_ON,
    )
    assert len(fitted.curve) == 4 and not fitted.finished


def test_saving_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = checkpoint.Pace(seconds=2)
    assert pace.is_due()
    pace.saved(took_seconds=0.001)
    now += 1.9
    assert not pace.is_due()
    now += 0.2
    assert pace.is_due()
    pace.saved(took_seconds=1.0)
    now += 19
    assert not pace.is_due(), "a large model's checkpoint may take a twentieth of the time"
    now += 2
    assert pace.is_due()
    pace.saved(took_seconds=100)
    now += 61
    assert pace.is_due(), "a kill costs a minute at most"


def test_a_holder_that_lost_its_training_overwrites_nothing(tmp_path: Path) -> None:
    config = config_of(epochs=6, deterministic=True)
    woken: list[int] = []

    def freeze(epoch: Epoch) -> Decision:
        if epoch.epoch == 3:  # frozen here; meanwhile the second holder trains to its end
            fit(config, DATA, folder=tmp_path, generation=2, save_seconds=0)
            woken.append(epoch.epoch)
        return Decision.GO_ON

    fit(config, DATA, folder=tmp_path, generation=1, save_seconds=0, on_epoch=freeze)
    assert woken == [3]
    found: list[int] = []

    def begin(curve: tuple[Epoch, ...]) -> Decision:
        found.append(len(curve))
        return Decision.GO_ON

    again = fit(config, DATA, folder=tmp_path, generation=3, on_begin=begin)
    assert again.finished and found == [6]
    whole = fit(config, DATA, folder=tmp_path / "whole")
    assert curve_of(again.curve) == curve_of(whole.curve)


def test_a_training_that_shall_not_begin_returns_what_was_kept(tmp_path: Path) -> None:
    fit(config_of(), DATA, folder=tmp_path, on_epoch=stop_after(2))
    fitted = fit(config_of(), DATA, folder=tmp_path, on_begin=lambda _: Decision.STOP)
    assert [epoch.epoch for epoch in fitted.curve] == [1, 2]
    assert not fitted.finished


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    fit(config_of(), DATA, folder=tmp_path, on_epoch=stop_after(1))
    with pytest.raises(TrainingError, match="belongs to the config"):
        fit(config_of(seed=1), DATA, folder=tmp_path)
    assert fit(config_of(seed=1), DATA, folder=tmp_path, resume=False).finished


def test_a_damaged_checkpoint_is_a_storage_error(tmp_path: Path) -> None:
    fit(config_of(epochs=1), DATA, folder=tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match="Cannot read the checkpoint"):
        fit(config_of(epochs=1), DATA, folder=tmp_path)


def test_a_full_disk_is_a_storage_error_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(epochs=3)
    fit(config, DATA, folder=tmp_path, on_epoch=stop_after(1))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"No space left.*Make room"):
            fit(config, DATA, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert fit(config, DATA, folder=tmp_path).finished


def test_divergence_is_named_with_epoch_batches_loss_and_rate() -> None:
    config = config_of(optimizer="sgd", learning_rate=1e20)
    expected = r"epoch 1: the training loss became .* in batches .*learning_rate=1e\+20.*lower"
    with pytest.raises(DivergedError, match=expected):
        fit(config, DATA)


def test_large_weights_at_the_start_are_no_divergence() -> None:
    block = Dense(units=64, initializer="standard_normal")
    model = Mlp(blocks=(block, block, block))
    assert fit(config_of(model, epochs=1, learning_rate=1e-5), DATA).finished


def test_what_progress_raises_passes_through_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    class LeaseLostError(Exception):
        pass

    def progress(epoch: int, share: float) -> None:
        assert 0 <= share <= 1
        if epoch == 2:
            raise LeaseLostError

    config = config_of()
    with pytest.raises(LeaseLostError):
        fit(config, DATA, folder=tmp_path, on_progress=progress)
    assert len(fit(config, DATA, folder=tmp_path, on_epoch=stop_after(2)).curve) == 2


def test_a_curriculum_trains_on_its_stages_first_and_validates_on_the_data_s_own() -> None:
    config = Config(
        data=Clocks(),
        model=ClockNet(blocks=(Conv(filters=2), Pool(size=8), Dropout(rate=0.1))),
        training=Training(
            epochs=3,
            precision="float32",
            curriculum=(CurriculumStage(azimuth_spread=0.3, epochs=2),),
        ),
    )
    data = TrainingData(clocks(40, 1), clocks(20, 2), (clocks(300, 3),))
    shares: dict[int, list[float]] = {}
    fitted = fit(
        config, data, on_progress=lambda epoch, share: shares.setdefault(epoch, []).append(share)
    )
    assert set(fitted.best.metrics) >= {"loss", "common_sense_error", "hour_accuracy"}
    # 300 pictures take three batches of 128, the data's own 40 a part of one.
    assert shares[3][0] == 1.0
    assert shares[1][0] == pytest.approx(128 / 300)
    with pytest.raises(TrainingError, match="1 stages"):
        fit(config, TrainingData(data.train, data.validation))


def test_a_model_of_the_user_s_own_is_trained_and_kept(tmp_path: Path) -> None:
    def build(options: Any, input_shape: tuple[int, int, int], n_classes: int) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input(input_shape, dtype="uint8"),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Flatten(),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(n_classes, activation="softmax"),
            ]
        )

    register(OwnCode("mine", "0" * 12, build=build))
    config = config_of(epochs=2).model_copy(update={"model": OwnModel(study="mine")})
    assert fit(config, DATA, folder=tmp_path / "whole").finished
    assert best_model(config, tmp_path / "whole", (10, 10)).count_params() > 0
    stopped = fit(config, DATA, folder=tmp_path / "parts", on_epoch=lambda _: Decision.STOP)
    assert not stopped.finished
    whole, parts = (fit(config, DATA, folder=tmp_path / name) for name in ("whole", "parts"))
    assert [epoch.metrics for epoch in whole.curve] == [epoch.metrics for epoch in parts.curve]
