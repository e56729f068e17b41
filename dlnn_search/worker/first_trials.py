"""How a search begins: with the networks that are expected to learn soon.

Until a trial has learnt something, a search has nothing: no model, no curve that a pruner could
compare with. The middle of a space is a sound network, but a slow one: half of the dropout, half
of the filters, half of all that was declared to be tried. So the first trial stands half way from
the middle to where learning is easy, and the other trials of stage 1 come in the order of the
effort that they will take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from dlnn_search.config import Cnn, Config, Dropout, Mlp
from dlnn_search.data import image_shape
from dlnn_search.errors import DlnnSearchError
from dlnn_search.models.shapes import Shape
from dlnn_search.models.work import seconds_an_image
from dlnn_search.samplers.coarse_to_fine import CoarseToFine
from dlnn_search.study import Study
from dlnn_search.worker.corners import Chooser, at_share, middle, middle_config

#: Kinds of network.
KNOWN = Mlp | Cnn
#: Shares of a range that are looked at.
SHARES = (0.25, 0.5, 0.75)
#: A parameter leaves its middle, or its first choice, for no less.
LEAST_GAIN = 0.1
#: What a parameter is best at depends on others, such as a rate on its optimiser.
N_ROUNDS = 2

#: Half of the logarithm of the work: a wider network needs fewer pictures, a deeper one does not.
WORK_WEIGHT = 0.5
#: Half of that of the batch: twice the batch is worth less than twice the steps.
BATCH_WEIGHT = 0.5
#: A layer that drops a quarter (0.29) learns from 1.4 times as many pictures.
DROPOUT_WEIGHT = 1.25
#: A tenth of the best rate takes three times as many; half or twice of it makes no difference.
RATE_WEIGHT = 0.75
RATE_TOLERANCE = math.log(2)
#: Of a batch of 64, a little above Keras's defaults: soon, not in the end, the best.
SOON_RATES = {"adam": 1.5e-3, "adamw": 1.5e-3, "rmsprop": 1e-3, "sgd": 0.1, "adadelta": 1.0}
USUAL_BATCH = 64
#: "SGD did not converge as quickly and stably", nor did Adadelta (report, section 2.2): twice.
SLOW = {"sgd": 0.7, "adadelta": 0.7}


def first_trials(study: Study, sampler: CoarseToFine) -> list[dict[str, Any]]:
    """Return what the trials of stage 1 take, those first that are expected to learn soon.

    The first one is half way to where learning is easy. Then come the sampler's own draws, the
    middle of the space among them, but for the one that would take the longest.

    Args:
        study: Its space is asked, beside the database.
        sampler: With a seed, and no first trials of its own.

    Returns:
        Parameters by name, trial by trial; none where nothing is known of the kind of network:
        own models, clocks.
    """
    space = _Space(study)
    try:
        example = middle_config(study)
        if not isinstance(example.model, KNOWN):
            return []
        space.shape = image_shape(example.data)
        first = _half_way_to_easy(space)
    except (DlnnSearchError, optuna.TrialPruned):
        return []
    search = optuna.create_study(sampler=sampler, direction=study.direction)
    draws = [space.ask(search) for _ in range(sampler.stages[0])]
    draws.sort(key=lambda asked: asked.effort)
    others = [asked.params for asked in draws if asked.params != first.params]
    return [first.params, *others][: sampler.stages[0]]


def _half_way_to_easy(space: _Space) -> _Asked:
    """Go from the middle of a space half way to where learning is easy.

    From the middle of all ranges, and each first choice, each parameter in turn goes to the
    quarter of its range, or the choice, with which learning is expected to be easiest, if that
    matters at all. Numbers come first, so that a choice is not left for another one whose own
    numbers happen to begin better; what a choice brings up takes part in the next round.
    """
    moved: dict[str, Any] = {}
    best = space.ask(_middle_but(moved))
    for _ in range(N_ROUNDS):
        asked = sorted(
            best.distributions.items(),
            key=lambda item: isinstance(item[1], CategoricalDistribution),
        )
        for name, distribution in asked:
            for value in _values(distribution):
                found = space.ask(_middle_but({**moved, name: value}))
                least = LEAST_GAIN if name not in moved else 0.0
                if found.effort < best.effort - least:
                    best, moved[name] = found, value
    return best


@dataclass(frozen=True)
class _Asked:
    """What a space made of a sampler's values.

    Attributes:
        effort: Infinite where it made no network.
    """

    effort: float
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


@dataclass
class _Space:
    """A study's space, asked without the database."""

    study: Study
    shape: Shape = ()

    def ask(self, search: optuna.Study) -> _Asked:
        """Ask for the next trial of a search of its own."""
        trial = search.ask()
        try:
            needed = effort(self.study.config(trial), self.shape)
        except (DlnnSearchError, optuna.TrialPruned):
            needed = math.inf
        return _Asked(needed, trial.params, trial.distributions)


def _middle_but(moved: dict[str, Any]) -> optuna.Study:
    """Return a search whose trials have the middle of all, but for what was moved from it."""

    def choose(name: str, distribution: BaseDistribution) -> Any:
        return moved.get(name, middle(distribution))

    return optuna.create_study(sampler=Chooser(choose))


def _values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return list(dict.fromkeys(at_share(distribution, share) for share in SHARES))


def effort(config: Config, shape: Shape) -> float:
    """Return the logarithm of the time until a network has learnt something, up to a constant.

    It knows of a network's work, its dropout, its batch and its rate, each by one weight, and of
    nothing else. Infinite for networks of other kinds than perceptrons and convolutional ones: a
    clock's first difficulty is to leave chance, which is another matter.

    Raises:
        ModelError: If there is no such network.
    """
    model, training = config.model, config.training
    if not isinstance(model, KNOWN):
        return math.inf
    blocks = (*model.blocks, *(model.dense if isinstance(model, Cnn) else ()))
    dropped = sum(-math.log1p(-block.rate) for block in blocks if isinstance(block, Dropout))
    assert training.learning_rate is not None  # a config always names it
    rate = training.learning_rate
    if training.optimizer == "sgd":
        rate /= 1 - training.momentum
    soon = SOON_RATES[training.optimizer] * math.sqrt(training.batch_size / USUAL_BATCH)
    return (
        WORK_WEIGHT * math.log(seconds_an_image(config, shape))
        + BATCH_WEIGHT * math.log(training.batch_size)
        + DROPOUT_WEIGHT * dropped
        + RATE_WEIGHT * max(0.0, abs(math.log(rate / soon)) - RATE_TOLERANCE)
        + SLOW.get(training.optimizer, 0.0)
    )
