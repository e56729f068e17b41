"""A study: data, search space, what to optimise, how to search, and the budget."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from math import sqrt
from types import FunctionType
from typing import Any, Literal

import numpy as np
import optuna
from pydantic import TypeAdapter, ValidationError

from dlnn_search.config import Config, Data, OwnData, OwnModel, explain, study_defaults
from dlnn_search.errors import DlnnSearchError, StudyError
from dlnn_search.metrics import DIRECTIONS
from dlnn_search.pruners import Converged
from dlnn_search.pruners import Halving as Halving
from dlnn_search.samplers.coarse_to_fine import CoarseToFine
from dlnn_search.study.finding import Builder, Loader, OwnCode, line_of

#: No rate is suggested above it: the range test of the report (section 2.5) ends there.
MAX_RATE = 1.0

_centre: ContextVar[float | None] = ContextVar("rate_centre", default=None)


@dataclass(frozen=True)
class RangeTest:
    """Lets a range test set where a study looks for its learning rate: `Study(range_test=...)`.

    It is made once, by the first `start`, of the config in the middle of the space, and kept with
    the study, so that all workers search the same range. See `rate_range`.

    Attributes:
        batches: That the test trains.

    Source: report, section 2.5.
    """

    batches: int = 300

    def __post_init__(self) -> None:
        if self.batches < 50:
            raise StudyError(f"Expected a range test of at least 50 batches, got {self.batches}.")


def rate_range(low: float, high: float) -> tuple[float, float]:
    """Return the range of learning rates to suggest from: for a study's `space`.

    ```python
    rate = trial.suggest_float("learning_rate", *rate_range(1e-4, 1e-2), log=True)
    ```

    Args:
        low: Lower end, where the study was not measured.
        high: Upper end, likewise.

    Returns:
        A range as wide as the given one by its ratio, with the measured rate in its (geometric)
        middle, and not above 1; the given one in a study without `range_test=RangeTest()`, or
        where the test could not tell.

    Raises:
        StudyError: If the range is none.
    """
    if not 0 < low < high:
        raise StudyError(f"Expected rate_range(low, high) with 0 < low < high, got {low}, {high}.")
    centre = _centre.get()
    if centre is None:
        return low, high
    half_width = sqrt(high / low)
    # Four digits, so that the same range comes out of any machine's arithmetic.
    return (
        float(f"{centre / half_width:.4g}"),
        float(f"{min(max(MAX_RATE, high), centre * half_width):.4g}"),
    )


@contextmanager
def centred_at(rate: float | None) -> Iterator[None]:
    """Let `rate_range` be centred at a measured rate inside; None: not at all."""
    token = _centre.set(rate)
    try:
        yield
    finally:
        _centre.reset(token)


Space = Callable[[optuna.Trial], Config]

#: A name is a folder's name and a part of a URL, too.
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
#: How Optuna's errors begin of a parameter whose choices or kind changed.
_CHANGING = (
    "CategoricalDistribution does not support dynamic value space",
    "Cannot set different distribution kind",
)
_ANY_DATA: TypeAdapter[Data] = TypeAdapter(Data)


@dataclass(frozen=True)
class Tpe:
    """Tree-structured Parzen estimator, Optuna's own default.

    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.
    """

    n_startup_trials: int = 10


@dataclass(frozen=True)
class RandomSearch:
    """Each parameter drawn at random on its own scale."""


@dataclass(frozen=True)
class Qmc:
    """Quasi-random: scrambled Sobol points, which leave smaller gaps than random ones.

    Parameters that not every trial has are drawn at random.

    Source: Bergstra and Bengio, Random Search for Hyper-Parameter Optimization, JMLR 2012.
    """


@dataclass(frozen=True)
class CmaEs:
    """Covariance matrix adaptation: a normal distribution that moves and learns its shape.

    Choices, and parameters that not every trial has, are drawn at random.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, 2016.
    """


@dataclass(frozen=True)
class Gp:
    """Optuna's Gaussian process with expected improvement; needs PyTorch: `dlnn-search[gp]`."""


Sampler = CoarseToFine | Tpe | RandomSearch | Qmc | CmaEs | Gp

#: What `--sampler` calls them.
SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "coarse-to-fine": CoarseToFine,
    "tpe": Tpe,
    "random": RandomSearch,
    "qmc": Qmc,
    "cmaes": CmaEs,
    "gp": Gp,
}


@dataclass(frozen=True)
class Quick:
    """What a study changes for `--quick`: the same job within minutes on two cores."""

    trials: int
    epochs: int | None = None
    data: Data | None = None
    space: Space | None = None
    pruner: Halving | None = None


@dataclass(frozen=True)
class Study:
    """One search.

    Attributes:
        space: Makes a config from a trial's suggestions; never builds a layer.
        data: What the space's configs use that name no data themselves.
        epochs: What the space's configs train for that name no epochs themselves.
        minimize: A metric of the validation split; or `maximize`, exactly one of both.
        sampler: What suggests trials, unless `--sampler` says otherwise.
        trials: The budget, unless `--trials` says otherwise.
        keep_checkpoints: So many of the best trials keep their weights on disk.
        quick: The small version, which is a study of its own in the database.
        reuse: Whether a config that was trained already, in another trial, has that result; False
            trains it again.
        load: Makes the pictures of an `OwnData` from its options.
        build: Makes the Keras model of an `OwnModel` from its options, the pictures' (height,
            width, channels) and the number of classes: from uint8 to probabilities.
        range_test: Lets a learning-rate range test centre the space's `rate_range`.
        stop_when_converged: Lets the search stop before its budget is used up, when more trials
            can be expected to gain less than the noise of one.
        trial_timeout_seconds: How long each trial may train, unless `--trial-timeout` says
            otherwise. None, the default, sets no limit.
        measured_rate: What that test found, given by who opens the study in a database.
        name: The file's name, given by `dlnn_search.study.finding.load_study`.
        first_name: What it was called in the database before it was renamed there; empty: it was
            not.
        file: Where it was loaded from.
        code_name: What the configs of both versions, quick or not, call `load` and `build` by.
        sources: The text of its file, behind that of a study that it was made from.
        helpers: What its file imports from its folder: names below that, and texts.
        file: The full path of its file.

    Raises:
        StudyError: If the parts do not fit.
    """

    space: Space
    data: Data | None = None
    epochs: int | None = None
    minimize: str | None = None
    maximize: str | None = None
    sampler: Sampler = field(default_factory=CoarseToFine)
    pruner: Halving | None = None
    trials: int = 50
    keep_checkpoints: int = 3
    quick: Quick | None = None
    reuse: bool = True
    load: Loader | None = None
    build: Builder | None = None
    range_test: RangeTest | None = None
    stop_when_converged: Converged | None = None
    trial_timeout_seconds: float | None = None
    measured_rate: float | None = None
    name: str = ""
    first_name: str = ""
    file: str = ""
    code_name: str = ""
    summary: str = ""
    sources: tuple[str, ...] = ()
    helpers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.minimize is None) == (self.maximize is None):
            raise StudyError("A study needs exactly one of minimize='...' and maximize='...'.")
        if self.metric not in DIRECTIONS:
            raise StudyError(
                f"Unknown metric '{self.metric}'. Expected one of: {', '.join(DIRECTIONS)}."
            )
        if DIRECTIONS[self.metric] != self.direction:
            raise StudyError(
                f"Expected '{self.metric}' to be {DIRECTIONS[self.metric]}d, "
                f"got {self.direction}='{self.metric}'."
            )
        if not isinstance(self.sampler, Sampler):
            raise StudyError(
                "Expected sampler=... to be one of CoarseToFine(), Tpe(), RandomSearch(), Qmc(), "
                f"CmaEs(), Gp(), got {self.sampler!r}."
            )
        if self.trials < 1:
            raise StudyError(f"Expected a budget of at least 1 trial, got trials={self.trials}.")
        if self.trial_timeout_seconds is not None and not self.trial_timeout_seconds >= 1:
            raise StudyError(
                "Expected at least 1 second for each trial, got "
                f"trial_timeout_seconds={self.trial_timeout_seconds}."
            )
        if self.keep_checkpoints < 0:
            raise StudyError(
                f"Expected 0 checkpoints or more, got keep_checkpoints={self.keep_checkpoints}."
            )
        for name, function in (("load", self.load), ("build", self.build)):
            # A lambda's code would stand in the `study = ...` statement, which no hash covers.
            lacks_name = not isinstance(function, FunctionType) or function.__name__ == "<lambda>"
            if function is not None and lacks_name:
                raise StudyError(
                    f"Expected {name}=... to be a function made with `def` in the study's file, "
                    f"got {getattr(function, '__name__', type(function).__name__)}."
                )
        if isinstance(self.data, OwnData) and self.load is None:
            raise StudyError("data=OwnData(...) needs a loader: Study(..., load=my_loader).")

    @property
    def metric(self) -> str:
        """The validation metric that the search optimises."""
        return self.minimize or self.maximize or ""

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """`minimize` or `maximize`, as Optuna says it."""
        return "minimize" if self.minimize is not None else "maximize"

    @property
    def lasting_name(self) -> str:
        """What samplers are seeded by and folders are called: a new name changes neither."""
        return self.first_name or self.name

    def quick_version(self) -> Study:
        """Return the small version, named `…-quick`.

        Raises:
            StudyError: If the study has none.
        """
        if self.quick is None:
            raise StudyError(
                f"The study '{self.name}' has no quick version. "
                "Start it without --quick, or give it Study(..., quick=Quick(...))."
            )
        quick = self.quick
        return dataclasses.replace(
            self,
            space=quick.space or self.space,
            data=quick.data or self.data,
            epochs=quick.epochs or self.epochs,
            pruner=quick.pruner,
            trials=quick.trials,
            quick=None,
            name=f"{self.name}-quick",
        )

    def on(self, **options: Any) -> Study:
        """Return the same search, quick version included, with other options of its data.

        Args:
            options: As the data takes them; `name="fashion-mnist"` is another set, with the rest
                as it is.

        Raises:
            StudyError: If the study names no data, or its data has no such option.
        """

        def changed(data: Data | None) -> Data | None:
            if data is None:
                return None
            try:
                return _ANY_DATA.validate_python({**data.model_dump(), **options})
            except ValidationError as error:
                raise StudyError(f"Invalid data options: {explain(error)}.") from error

        if self.data is None:
            raise StudyError("Expected a study with data=..., got one whose space names its data.")
        quick = self.quick
        if quick is not None:
            quick = dataclasses.replace(quick, data=changed(quick.data))
        return dataclasses.replace(self, data=changed(self.data), quick=quick)

    def config(self, trial: optuna.Trial) -> Config:
        """Return the config that the space makes of a trial.

        Raises:
            StudyError: If the space fails, or returns something else or an invalid config.
        """
        try:
            with study_defaults(self.data, self.epochs), centred_at(self.measured_rate):
                config = self.space(_storing(trial))
        except ValidationError as error:
            raise StudyError(
                f"The space of '{self.name}' made an invalid config: {self._line(error)}"
                f"{explain(error)}."
            ) from error
        except UnstorableError as error:
            raise UnstorableError(f"The space of '{self.name}' {error}") from error
        except (DlnnSearchError, optuna.TrialPruned):
            raise
        except Exception as error:
            raise StudyError(
                f"The space of '{self.name}' failed: {self._line(error)}"
                f"{type(error).__name__}: {error}{_way_out(error)}"
            ) from error
        if not isinstance(config, Config):
            raise StudyError(
                f"Expected the space of '{self.name}' to return a Config, "
                f"got {type(config).__name__}."
            )
        config = self.with_own_code(config)
        if config.training.monitor is not None:
            return config
        training = config.training.model_copy(update={"monitor": self.metric})
        return config.model_copy(update={"training": training})

    def with_own_code(self, config: Config) -> Config:
        """Return the config with this study's name and code in its own parts.

        Raises:
            StudyError: If the study has no loader for an `OwnData`, no builder for an `OwnModel`.
        """
        named = {"study": self.code_name or None, "code": self.own_code().fingerprint}
        update: dict[str, Any] = {}
        if isinstance(config.data, OwnData):
            if self.load is None:
                raise StudyError("An OwnData needs a loader: Study(..., load=my_loader).")
            update["data"] = config.data.model_copy(update=named)
        if isinstance(config.model, OwnModel):
            if self.build is None:
                raise StudyError("An OwnModel needs a builder: Study(..., build=my_builder).")
            update["model"] = config.model.model_copy(update=named)
        return config.model_copy(update=update)

    def own_code(self) -> OwnCode:
        """Return the study's loader and builder with the hash of the code that they are part of."""
        text = json.dumps([self._code(), self._own_functions()])
        return OwnCode(self.code_name, _hash(text), self.load, self.build, self.file)

    def _line(self, error: BaseException) -> str:
        code = getattr(self.space, "__code__", None)
        return "" if code is None else line_of(error, code.co_filename)

    def definition(self) -> dict[str, Any]:
        """Return what makes trials comparable: the settings and the code, without comments.

        The budget and a trial's limit of time are left out (they may grow), and so are the sampler
        (a config is worth the same whatever suggested it), docstrings and layout.
        """
        settings = {
            "metric": self.metric,
            "direction": self.direction,
            "data": None if self.data is None else self.data.meaning(),
            "epochs": self.epochs,
            "pruner": repr(self.pruner),
            **({} if self.range_test is None else {"range_test": repr(self.range_test)}),
            **self._own_functions(),
            # Each by its name, so that what differs names the file.
            **{f"helper {file}": _hash(_normalised_helper(text)) for file, text in self.helpers},
        }
        return {"settings": settings, "code": self._code()}

    def _code(self) -> str:
        helpers = [_normalised_helper(text) for _, text in self.helpers]
        return "\n".join([*map(_normalised, self.sources), *helpers])

    def _own_functions(self) -> dict[str, str]:
        """Return which functions load and build, by name: their code is in the file's."""
        both = {"load": self.load, "build": self.build}
        return {part: own.__qualname__ for part, own in both.items() if own is not None}


class UnstorableError(StudyError):
    """A space hands the database what would come back as something else."""


class _Storing(optuna.trial.BaseTrial):
    """A trial that stores what comes back as it was, since it goes through JSON."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Suggest one of some choices, NumPy's numbers made Python's."""
        plain = [_python_s(choice) for choice in choices]
        for choice in plain:
            if not isinstance(choice, _PLAIN):
                raise UnstorableError(
                    f"lets '{name}' choose {_short(choice)}: expected text, numbers, True, False "
                    f"or None. A database changes all other values. Name the choices with "
                    f"text and look them up: "
                    f"OPTIONS[trial.suggest_categorical('{name}', list(OPTIONS))] with "
                    f"OPTIONS = {{'a': {_short(choice)}, ...}}."
                )
        return super().suggest_categorical(name, plain)  # type: ignore[safe-super]

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute, NumPy's numbers made Python's."""
        super().set_user_attr(key, _storable(key, value))  # type: ignore[safe-super]


_PLAIN = (str, int, float, type(None))  # a bool is an int


def _storing(trial: optuna.Trial) -> optuna.Trial:
    """Return the same trial, which refuses what storage would change."""
    view: optuna.Trial = object.__new__(_storing_kind(type(trial)))
    view.__dict__ = trial.__dict__  # what it draws, the trial has drawn
    return view


@lru_cache(maxsize=8)
def _storing_kind(kind: type[optuna.Trial]) -> type[optuna.Trial]:
    return type(kind.__name__, (_Storing, kind), {})


def _storable(key: str, value: Any) -> Any:
    """Return a user attribute as JSON gives it back.

    Raises:
        UnstorableError: If JSON makes something else of it.
    """
    value = _python_s(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list):
        return [_storable(key, each) for each in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _storable(key, each) for name, each in value.items()}
    raise UnstorableError(
        f"sets the user attribute '{key}' to {_short(value)}: expected text, numbers, True, False, "
        "None, or lists and dictionaries (with text for keys) of them. A database changes all "
        "other values. Convert tuples and arrays to lists, and the rest to text."
    )


def _python_s(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _way_out(error: Exception) -> str:
    """Return what helps where Optuna finds that a parameter is another one than before."""
    if not str(error).startswith(_CHANGING) or not isinstance(error, ValueError):
        return ""
    return (
        " A parameter has the same choices, and the same kind, in every trial. Where they depend "
        "on another parameter, use two names, such as 'units_small' and 'units_large'."
    )


@lru_cache(maxsize=64)  # asked for with each config, and parsing takes milliseconds
def _normalised(source: str) -> str:
    """Return the code without comments, docstrings, and the `study = …` statement.

    What that statement says is in the settings, in the version (quick or not) that counts.
    """
    tree = _without_docstrings(source)
    tree.body = [node for node in tree.body if not _assigns_study(node)]
    return ast.unparse(tree)


@lru_cache(maxsize=256)
def _normalised_helper(source: str) -> str:
    """Return the code without comments and docstrings."""
    return ast.unparse(_without_docstrings(source))


def _without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _assigns_study(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "study" for target in node.targets
    )
