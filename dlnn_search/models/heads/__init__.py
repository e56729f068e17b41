"""What stands at a network's end: its outputs, their loss, and what they say.

A head is chosen by the config (classes have one, clocks a union of them) and carries everything
that training and evaluation must know of it: they call its methods and never ask which it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlnn_search.config import (
    ClockNet,
    Clocks,
    Config,
    Joint,
    OneRegression,
    OneSoftmax,
    Regression,
    SinCos,
    SoftLabels,
    TwoSoftmax,
)
from dlnn_search.models.heads.dials import (
    JointHead,
    OneRegressionHead,
    OneSoftmaxHead,
    RegressionHead,
    SinCosHead,
    SoftLabelsHead,
    TwoSoftmaxHead,
)
from dlnn_search.models.heads.head import ClassHead, Head, Layers, Outputs, Tensor

__all__ = ["Head", "Layers", "Outputs", "Tensor", "by_name", "head_of"]


def head_of(config: Config) -> Head:
    """Return the head that a config's network ends in."""
    if not isinstance(config.data, Clocks):
        return ClassHead(config.data.n_classes)
    assert isinstance(config.model, ClockNet)
    match config.model.head:
        case TwoSoftmax() as spec:
            return TwoSoftmaxHead(spec)
        case OneSoftmax() as spec:
            return OneSoftmaxHead(spec)
        case SoftLabels() as spec:
            return SoftLabelsHead(spec)
        case Joint() as spec:
            return JointHead(spec)
        case Regression() as spec:
            return RegressionHead(spec)
        case OneRegression() as spec:
            return OneRegressionHead(spec)
        case SinCos() as spec:
            return SinCosHead(spec)


def by_name(head: Head, outputs: Tensor) -> dict[str, Tensor]:
    """Return a network's outputs by name, whichever of Keras's three forms they come in."""
    if isinstance(outputs, Mapping):
        return {name: outputs[name] for name in head.names}
    if not isinstance(outputs, list | tuple):
        outputs = [outputs]
    return dict(zip(head.names, outputs, strict=True))
