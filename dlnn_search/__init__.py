"""Hyperparameter search for Keras models: name a study, start workers, export, test once.

What a study file needs is here, loaded when it is first used: importing the package alone costs
nothing, and never TensorFlow.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from dlnn_search._version import __version__ as __version__

# Before anything can import Keras: what the environment or ~/.keras/keras.json wants for other
# programs cannot train here.
os.environ["KERAS_BACKEND"] = "tensorflow"

if TYPE_CHECKING:
    from dlnn_search.config import (
        Activation,
        Augmentation,
        BatchNorm,
        ClockNet,
        Clocks,
        Cnn,
        Config,
        Contrast,
        Conv,
        CurriculumStage,
        Dense,
        Dropout,
        FashionMnist,
        Joint,
        Mlp,
        Mnist,
        OneRegression,
        OneSoftmax,
        OwnData,
        OwnModel,
        Pool,
        Regression,
        SinCos,
        SoftLabels,
        Training,
        TwoSoftmax,
        read_config,
    )
    from dlnn_search.pruners import Converged, HalvingPruner
    from dlnn_search.samplers.coarse_to_fine import CoarseToFine
    from dlnn_search.study import (
        CmaEs,
        Gp,
        Halving,
        Qmc,
        Quick,
        RandomSearch,
        RangeTest,
        Study,
        Tpe,
        rate_range,
    )
    from dlnn_search.study.finding import OwnImages, load_study

__all__ = [
    "Activation",
    "Augmentation",
    "BatchNorm",
    "ClockNet",
    "Clocks",
    "CmaEs",
    "Cnn",
    "CoarseToFine",
    "Config",
    "Contrast",
    "Conv",
    "Converged",
    "CurriculumStage",
    "Dense",
    "Dropout",
    "FashionMnist",
    "Gp",
    "Halving",
    "HalvingPruner",
    "Joint",
    "Mlp",
    "Mnist",
    "OneRegression",
    "OneSoftmax",
    "OwnData",
    "OwnImages",
    "OwnModel",
    "Pool",
    "Qmc",
    "Quick",
    "RandomSearch",
    "RangeTest",
    "Regression",
    "SinCos",
    "SoftLabels",
    "Study",
    "Tpe",
    "Training",
    "TwoSoftmax",
    "load_study",
    "rate_range",
    "read_config",
]

_OF_STUDY = "CmaEs Gp Halving Qmc Quick RandomSearch RangeTest Study Tpe rate_range"
#: Where a name is; any other is in `config`.
_PLACES = {
    **dict.fromkeys(_OF_STUDY.split(), "study"),
    **dict.fromkeys(("OwnImages", "load_study"), "study.finding"),
    **dict.fromkeys(("Converged", "HalvingPruner"), "pruners"),
    "CoarseToFine": "samplers.coarse_to_fine",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'dlnn_search' has no attribute '{name}'")
    place = f"dlnn_search.{_PLACES.get(name, 'config')}"
    return getattr(importlib.import_module(place), name)
