"""Heads: what they are trained on and what they read agree for every time of the dial."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import ValidationError

from dlnn_search.config import (
    ClockNet,
    Clocks,
    Config,
    Conv,
    Dense,
    Joint,
    OneRegression,
    OneSoftmax,
    Pool,
    Regression,
    SinCos,
    SoftLabels,
    TwoSoftmax,
)
from dlnn_search.config.model import ClockHead
from dlnn_search.metrics import clock_metrics, common_sense_error, minute_error
from dlnn_search.models.build import build
from dlnn_search.models.heads import Head, angle_between, bumps, by_name, head_of, way_round
from dlnn_search.models.heads.dials import JointHead, SoftLabelsHead
from dlnn_search.models.shapes import n_parameters

Floats = NDArray[np.float32]

TIMES = np.arange(720)
LABELS = np.stack(np.divmod(TIMES, 60), axis=1).astype(np.uint8)

SPECS: dict[str, ClockHead] = {
    "two softmax": TwoSoftmax(),
    "two softmax, common sense": TwoSoftmax(loss="common_sense"),
    "one softmax": OneSoftmax(),
    "one softmax, common sense": OneSoftmax(loss="common_sense"),
    "soft labels": SoftLabels(),
    "soft labels, widest": SoftLabels(hour_width=3, minute_width=15),
    "soft labels, sharpest": SoftLabels(hour_width=0.05, minute_width=0.25),
    "joint": Joint(),
    "joint, common sense": Joint(loss="common_sense"),
    "joint, odd bins": Joint(hour_bins=77),
    "joint, coarsest": Joint(hour_bins=12, hour_width=60, minute_width=15),
    "joint, finest": Joint(hour_bins=720, hour_width=2, minute_width=0.25),
    "regression": Regression(),
    "regression, common sense": Regression(loss="common_sense"),
    "linear regression": Regression(output="linear"),
    "one regression": OneRegression(),
    "one regression, common sense": OneRegression(loss="common_sense"),
    "sin cos": SinCos(),
    "sin cos, common sense": SinCos(loss="common_sense"),
}
each_head = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
each_kind = pytest.mark.parametrize(
    "spec",
    [TwoSoftmax, OneSoftmax, SoftLabels, Joint, Regression, OneRegression, SinCos],
)


def config_of(spec: ClockHead) -> Config:
    model = ClockNet(blocks=(Conv(filters=2), Pool(size=8)), dense=(Dense(units=3),), head=spec)
    return Config(data=Clocks(image_size=32), model=model)


def perfect(spec: ClockHead) -> dict[str, Floats]:
    """Return what a network that has learnt all puts out for each of the 720 times."""
    hour, minute = LABELS.T.astype(np.int64)
    head = head_of(config_of(spec))
    if isinstance(head, SoftLabelsHead):
        return {"hour": head.hour_labels[hour], "minute": head.minute_labels[minute]}
    if isinstance(head, JointHead):
        return {"hour": head.hour_labels, "minute": head.minute_labels[minute]}
    match spec:
        case TwoSoftmax():
            found = {"hour": np.eye(12)[hour], "minute": np.eye(60)[minute]}
        case OneSoftmax():
            found = {"time": np.eye(720)}
        case Regression():
            found = {"hour": hour[:, None] / 12, "minute": minute[:, None] / 60}
        case OneRegression():
            found = {"time": TIMES[:, None] / 720}
        case _:
            found = {"hour": direction(TIMES / 720), "minute": direction(minute / 60)}
    return {name: array.astype(np.float32) for name, array in found.items()}


def direction(turns: NDArray[np.floating[Any]]) -> Floats:
    angles = 2 * np.pi * turns
    return np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def losses(head: Head, outputs: Mapping[str, Any]) -> Floats:
    found: Floats = np.asarray(head.losses(tf.constant(head.targets(LABELS)), outputs))
    return found


@each_head
def test_a_perfect_network_s_outputs_are_read_as_every_one_of_the_720_times(
    spec: ClockHead,
) -> None:
    head = head_of(config_of(spec))
    read = head.decode(perfect(spec))
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, TIMES)
    assert head.metrics(LABELS, perfect(spec)) == clock_metrics(TIMES, TIMES)


@each_head
def test_the_truth_has_the_lowest_loss_of_all_times(spec: ClockHead) -> None:
    head, outputs = head_of(config_of(spec)), perfect(spec)
    at_truth = losses(head, outputs)
    assert at_truth.shape == (720,)
    for shift in (1, -1, 29, 60, -60, 300, 360):
        wrong = losses(head, {name: np.roll(out, shift, axis=0) for name, out in outputs.items()})
        assert np.all(wrong > at_truth)


@each_head
def test_targets_are_whole_numbers_one_column_an_output(spec: ClockHead) -> None:
    head = head_of(config_of(spec))
    targets = head.targets(LABELS)
    assert targets.dtype == np.int32
    assert targets.shape == (720, len(head.names))


@each_head
def test_every_head_builds_with_the_parameters_foreseen_and_float32_outputs(
    spec: ClockHead,
) -> None:
    config = config_of(spec)
    training = config.training.model_copy(update={"precision": "mixed_bfloat16"})
    model = build(config.model_copy(update={"training": training}), (32, 32))
    assert model.count_params() == n_parameters(config.model, (32, 32))
    head = head_of(config)
    outputs = by_name(head, model(np.zeros((3, 32, 32, 1), np.uint8)))
    assert {name: tuple(out.shape) for name, out in outputs.items()} == {
        branch.name: (3, branch.width) for branch in spec.branches
    }
    assert {out.dtype for out in outputs.values()} == {tf.float32}
    assert Config.model_validate_json(config.to_json()) == config


@each_kind
def test_each_output_has_dense_blocks_of_its_own(spec: type[TwoSoftmax]) -> None:
    names = [branch.name for branch in spec().branches]
    blocks = {name: (Dense(units=5 + place),) for place, name in enumerate(names)}
    model = build(config_of(spec.model_validate(blocks)), (32, 32))
    for place, name in enumerate(names):
        assert model.get_layer(name).input.shape == (None, 5 + place)


@each_kind
def test_hour_and_minute_weigh_6_and_4_as_in_the_report(spec: type[TwoSoftmax]) -> None:
    if len(spec().branches) == 2:
        assert (spec().hour_weight, spec().minute_weight) == (6, 4)
        usual, heavy = (
            losses(head_of(config_of(made)), perfect(made))
            for made in (spec(), spec(hour_weight=12, minute_weight=8))
        )
        np.testing.assert_allclose(heavy, 2 * usual, rtol=1e-5, atol=1e-5)


GUESSES: dict[str, dict[str, float]] = {
    "regression": {"hour": 5.5 / 12, "minute": 29.5 / 60},
    "regression, common sense": {"hour": 0.3, "minute": 0.9},
    "linear regression": {"hour": 5.5 / 12, "minute": 29.5 / 60},
    "one regression": {"time": 359.5 / 720},
    "one regression, common sense": {"time": 0.7},
    "sin cos": {"hour": 0.0, "minute": 0.0},
    "sin cos, common sense": {"hour": 0.0, "minute": 0.0},
}


@pytest.mark.parametrize("name", SPECS)
def test_the_guessing_loss_is_that_of_outputs_which_know_nothing(name: str) -> None:
    head = head_of(config_of(SPECS[name]))
    outputs = {}
    for branch in SPECS[name].branches:
        guess = GUESSES[name][branch.name] if name in GUESSES else 1 / branch.width
        outputs[branch.name] = tf.fill((720, branch.width), tf.constant(guess, tf.float32))
    assert np.mean(losses(head, outputs)) == pytest.approx(head.guessing_loss, rel=1e-3)


@pytest.mark.parametrize("shift", [1, 59, 61, 200, 360, 719])
def test_the_common_sense_loss_of_a_sure_network_is_its_common_sense_error(shift: int) -> None:
    pred = (TIMES + shift) % 720
    error, minutes = common_sense_error(TIMES, pred), minute_error(TIMES, pred)
    for spec in (OneSoftmax(loss="common_sense"), OneRegression(loss="common_sense")):
        sure = {name: out[pred] for name, out in perfect(spec).items()}
        np.testing.assert_allclose(losses(head_of(config_of(spec)), sure), error, atol=1e-3)
    for two in (TwoSoftmax(loss="common_sense"), SinCos(loss="common_sense")):
        sure = {name: out[pred] for name, out in perfect(two).items()}
        expected = 6 * error + 4 * minutes
        np.testing.assert_allclose(losses(head_of(config_of(two)), sure), expected, atol=0.02)


@each_head
@pytest.mark.parametrize("where", ["perfect", "opposite", "undecided", "nothing"])
def test_gradients_are_finite_even_at_exact_ties(spec: ClockHead, where: str) -> None:
    head = head_of(config_of(spec))
    softmax = isinstance(spec, TwoSoftmax | OneSoftmax | SoftLabels | Joint)
    raw = {}
    for name, out in perfect(spec).items():
        if softmax:
            out = 100 * out  # logits: 100 above all others is a probability of exactly 1
        if where == "opposite":
            out = np.roll(out, 360, axis=0)
        elif where == "undecided":
            out = out + np.roll(out, 360, axis=0)  # two opposite times alike; sin and cos cancel
        elif where == "nothing":
            out = np.zeros_like(out)
        raw[name] = tf.Variable(out)
    with tf.GradientTape() as tape:
        outputs = {n: tf.nn.softmax(r) if softmax else tf.identity(r) for n, r in raw.items()}
        loss = head.losses(tf.constant(head.targets(LABELS)), outputs)
    assert np.all(np.isfinite(loss))
    for gradient in tape.gradient(loss, list(raw.values())):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("off", [-29, -15, 0, 15, 29])
@pytest.mark.parametrize("spec", [Joint(), Joint(hour_bins=72), SinCos()], ids=str)
def test_with_the_minute_known_the_hour_hand_needs_to_be_right_to_half_an_hour(
    spec: Joint | SinCos, off: int
) -> None:
    outputs = perfect(spec)
    outputs["hour"] = np.roll(outputs["hour"], off, axis=0)
    np.testing.assert_array_equal(head_of(config_of(spec)).decode(outputs), TIMES)


def test_a_sure_hour_hand_decides_between_two_minutes_far_apart() -> None:
    # 3:58 or 3:08, says the minute, and rather 58; the hour hand stands at 3:08.
    outputs = {name: out[[188]].copy() for name, out in perfect(Joint()).items()}
    at_58 = perfect(Joint())["minute"][[238]]
    outputs["minute"] = 0.45 * outputs["minute"] + 0.55 * at_58
    narrow = Joint(hour_width=10)
    outputs["hour"] = perfect(narrow)["hour"][[188]]
    assert head_of(config_of(narrow)).decode(outputs).tolist() == [188]


@pytest.mark.parametrize("off", [-0.49, 0.49])
def test_numbers_are_rounded_to_the_nearest_step_never_cut_off(off: float) -> None:
    two, one = head_of(config_of(Regression())), head_of(config_of(OneRegression()))
    hour, minute = LABELS.T.astype(np.float32)
    outputs = {"hour": (hour + off)[:, None] / 12, "minute": (minute + off)[:, None] / 60}
    # Below 0 there is nothing to round down to: outputs are clipped to [0, 1] first.
    np.testing.assert_array_equal(two.decode(outputs), TIMES)
    time = ((TIMES + off) / 720)[:, None].astype(np.float32)
    np.testing.assert_array_equal(one.decode({"time": time}), TIMES)


@pytest.mark.parametrize(("share", "step"), [(-7.0, 0), (0.0, 0), (1.0, 0), (7.0, 0)])
def test_a_number_outside_its_range_is_clipped_and_a_whole_turn_is_none(
    share: float, step: int
) -> None:
    outputs = {name: np.full((1, 1), share, np.float32) for name in ("hour", "minute", "time")}
    assert head_of(config_of(Regression(output="linear"))).decode(outputs).tolist() == [step]
    assert head_of(config_of(OneRegression(output="linear"))).decode(outputs).tolist() == [step]


def test_soft_labels_are_distributions_of_their_width_that_go_round_the_circle() -> None:
    for n_bins, width in ((12, 0.5), (60, 1.0), (60, 3.0), (144, 4.0)):
        labels = bumps(np.arange(n_bins) / n_bins, n_bins, width / n_bins).astype(np.float64)
        np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
        for row in range(n_bins):
            np.testing.assert_allclose(labels[row], np.roll(labels[0], row), atol=1e-7)
        np.testing.assert_allclose(labels[0, 1:], labels[0, :0:-1], atol=1e-7)
        away = np.minimum(np.arange(n_bins), n_bins - np.arange(n_bins))
        deviation = np.sqrt(np.sum(labels[0] * away**2))
        assert deviation == pytest.approx(width, rel=0.08)


def test_the_hour_hand_s_label_moves_with_the_minute() -> None:
    labels = JointHead(Joint()).hour_labels.astype(np.float64)
    at_bin = 2 * np.pi * np.arange(144) / 144
    mean = np.arctan2(labels @ np.sin(at_bin), labels @ np.cos(at_bin)) / (2 * np.pi) * 720
    np.testing.assert_allclose(common_sense_error(TIMES, mean), 0, atol=0.01)


def test_the_way_round_is_the_shorter_one() -> None:
    apart = np.array([0, 1, -1, 359, 360, -360, 361, 719, -719], np.float32)
    assert np.asarray(way_round(apart, 720)).tolist() == [0, 1, 1, 359, 360, 360, 359, 1, 1]


def test_an_angle_is_the_vector_s_whatever_its_length_and_nothing_is_a_right_angle() -> None:
    turns = np.linspace(0, 1, 49)
    true = direction(np.zeros(49))
    expected = 2 * np.pi * np.minimum(turns, 1 - turns)
    for length in (0.5, 1.0, 30.0):
        found = np.asarray(angle_between(true, length * direction(turns)))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(angle_between(true, np.zeros((49, 2), np.float32)), np.pi / 2)


def test_the_angle_s_gradient_stays_small_however_short_the_vector() -> None:
    lengths = np.repeat(np.logspace(-9, 1, 200), 24)
    vectors = lengths[:, None] * direction(np.tile(np.arange(24) / 24, 200))
    found = tf.Variable(vectors.astype(np.float32))
    true = direction(np.zeros(len(lengths)))
    with tf.GradientTape() as tape:
        angle = angle_between(true, found)
    steepness = np.linalg.norm(tape.gradient(angle, found), axis=1)
    assert np.all(np.isfinite(steepness)) and steepness.max() < 25


def test_a_head_of_no_known_kind_or_a_width_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        ClockNet.model_validate({"blocks": [], "head": {"kind": "oracle"}})
    with pytest.raises(ValidationError, match="hour_bins"):
        Joint(hour_bins=11)
    with pytest.raises(ValidationError, match="loss"):
        SinCos.model_validate({"loss": "cross_entropy"})
