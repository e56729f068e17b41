"""What all heads of clock networks have in common: their outputs' layers, targets, metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlnn_search.config.model import Branch
from dlnn_search.metrics import MINUTES, clock_metrics
from dlnn_search.models.heads.head import Layers, OutputActivation, Outputs, Tensor


class Spec(Protocol):
    """A head as the config has it."""

    @property
    def branches(self) -> tuple[Branch, ...]: ...


SpecT = TypeVar("SpecT", bound=Spec)


@dataclass(frozen=True)
class ClockHead(ABC, Generic[SpecT]):
    """One output named `time`, or two named `hour` and `minute`.

    Targets are minutes since 12:00, shape (n, 1), or hours and minutes, shape (n, 2).
    """

    spec: SpecT

    @property
    @abstractmethod
    def guessing_loss(self) -> float:
        """See `Head`."""

    @abstractmethod
    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        """See `Head`."""

    @abstractmethod
    def read(self, outputs: Outputs) -> Tensor:
        """See `Head`."""

    def decode(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        return np.asarray(self.read(outputs))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(branch.name for branch in self.spec.branches)

    @property
    def activation(self) -> OutputActivation:
        """Of the outputs."""
        return "softmax"

    def attach(self, layers: Layers, x: Tensor) -> Outputs:
        # All branches before all outputs: the order of the report's Figure 5.
        ends = [layers.dense(branch.blocks, x) for branch in self.spec.branches]
        return {
            branch.name: layers.output(branch.width, self.activation, branch.name, end)
            for branch, end in zip(self.spec.branches, ends, strict=True)
        }

    def targets(self, labels: NDArray[np.uint8]) -> NDArray[np.int32]:
        wide = labels.astype(np.int32)
        return wide if len(self.spec.branches) == 2 else times_of(wide)[:, None]

    def metrics(
        self, labels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, float]:
        return clock_metrics(times_of(labels.astype(np.int32)), self.decode(outputs))


def times_of(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return minutes since 12:00, shape (n,), of hours and minutes, shape (n, 2)."""
    times: NDArray[np.int32] = labels[:, 0] * MINUTES + labels[:, 1]
    return times
