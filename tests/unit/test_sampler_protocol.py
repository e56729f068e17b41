"""Coarse to fine is a sampler as Optuna means it: it passes Optuna's own tests for samplers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from dlnn_search import CoarseToFine


class TestCoarseToFine(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Stages are short, so that a few trials see both the first draws and those of regions."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CoarseToFine((1, 10), seed=1)
