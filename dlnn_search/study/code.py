"""A study's own code: its loader and builder, and the modules beside its file."""

from __future__ import annotations

import ast
import builtins
import copy
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dlnn_search.config.data import OwnPart
from dlnn_search.errors import DlnnSearchError, StudyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class OwnImages:
    """What an own loader returns.

    Attributes:
        images: Shape (n, height, width) or (n, height, width, channels), uint8.
        labels: The classes, shape (n,), whole numbers in [0, n_classes).
        test_images: The test split, in the same form; None: a share of the images is taken off.
        test_labels: Of the test split.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]
    test_images: NDArray[np.uint8] | None = None
    test_labels: NDArray[np.integer[Any]] | None = None


#: What the names of helper modules begin with in `sys.modules`.
HELPERS = "dlnn_search_helpers_"

#: Makes pictures of an `OwnData`'s options.
Loader = Callable[[dict[str, Any]], OwnImages]
#: Makes a Keras model of an `OwnModel`'s options, (height, width, channels), and n_classes.
Builder = Callable[[dict[str, Any], tuple[int, int, int], int], Any]


@dataclass(frozen=True)
class OwnCode:
    """The own code of one study.

    Attributes:
        study: The study's name, which is its file's.
        fingerprint: A hash of the normalised source, 12 hexadecimal digits.
        file: The study's, as a full path.
    """

    study: str
    fingerprint: str
    load: Loader | None = None
    build: Builder | None = None
    file: str = field(default="", compare=False)


_known: dict[str, OwnCode] = {}


def register(code: OwnCode) -> None:
    """Let configs that name the study find its code."""
    _known[code.study] = code


def code_of(part: OwnPart) -> OwnCode:
    """Return the code that a config's part names.

    Raises:
        StudyError: If it was not loaded, or is another version.
    """
    code = _known.get(part.study or "")
    if code is None:
        named = "its study" if part.study is None else f"the study '{part.study}'"
        raise StudyError(
            f"The config needs the own code of {named}, which is not loaded. "
            "Load the study's file first; 'evaluate' takes it with --study FILE."
        )
    if part.code not in (None, code.fingerprint):
        raise StudyError(
            f"The config was made with another version of the code of '{part.study}': expected "
            f"code {part.code}, got {code.fingerprint}. Take the study's file as it was then; or "
            'remove "code" from the config to take the file as it is now.'
        )
    return code


def call(function: Callable[..., Any], what: str, error: type[DlnnSearchError], *args: Any) -> Any:
    """Call a study's own function with a copy of its options.

    Args:
        function: Own code.
        what: What it is, at the beginning of an error.
        error: Raised where the function raises.
        args: The options first.

    Raises:
        DlnnSearchError: What the function raises; anything that is no error of ours as `error`,
            with the line of the study's file.
    """
    options, *others = args
    try:
        return function(copy.deepcopy(options), *others)
    except DlnnSearchError:
        raise
    except (Exception, SystemExit) as raised:
        where = line_of(raised, function.__code__.co_filename)
        raise error(f"{what} failed: {where}{type(raised).__name__}: {raised}") from raised


def line_of(error: BaseException, file: str) -> str:
    """Return `line N: ` for the innermost line of a study's code on the way to an error.

    That is a line of its file, or, with the name of that, of a helper module; else nothing.
    """
    where = ""
    trace = error.__traceback__
    while trace is not None:
        code, module = trace.tb_frame.f_code, str(trace.tb_frame.f_globals.get("__name__"))
        if code.co_filename == file:
            where = f"line {trace.tb_lineno}: "
        elif module.startswith(HELPERS):
            where = f"'{Path(code.co_filename).name}', line {trace.tb_lineno}: "
        trace = trace.tb_next
    return where


#: Never a helper: what a study meant by these names before there were helpers.
NOT_HELPERS = sys.stdlib_module_names | {"dlnn_search", "keras", "numpy", "optuna", "tensorflow"}


@dataclass(frozen=True)
class Helper:
    """A module in the study's folder.

    Attributes:
        file: Below the study's folder, with slashes.
        source: Its text; of a folder without `__init__.py` none.
    """

    path: Path
    file: str
    source: str

    @property
    def is_package(self) -> bool:
        return self.path.suffix != ".py" or self.path.stem == "__init__"


def find_helpers(study_file: Path, source: str, read: Callable[[Path], str]) -> dict[str, Helper]:
    """Return what a study's file imports from its folder, and what that imports, by dotted name.

    Args:
        study_file: Resolved.
        source: Its text.
        read: Returns the text of a module, or says what is wrong with it.
    """
    found: dict[str, Helper] = {}
    waiting = [("", source)]
    while waiting:
        package, text = waiting.pop()
        for name in _imported(text, package):
            for part, path in _located(study_file, name):
                if part in found:
                    continue
                file = path.relative_to(study_file.parent).as_posix()
                helper = Helper(path, file, read(path) if path.suffix == ".py" else "")
                found[part] = helper
                inside = part if helper.is_package else part.rpartition(".")[0]
                waiting.append((inside, helper.source))
    return found


def _imported(source: str, package: str) -> Iterator[str]:
    """Yield the dotted names that may be modules, wherever the text imports them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".") if package else []
                kept = parts[: len(parts) - node.level + 1]
                base = ".".join([*kept, *filter(None, [base])])
            yield from filter(None, [base])
            yield from (".".join(filter(None, [base, alias.name])) for alias in node.names)


def _located(study_file: Path, name: str) -> Sequence[tuple[str, Path]]:
    """Return the modules of a dotted name, outermost first, as far as they are in the folder."""
    located: list[tuple[str, Path]] = []
    parts, below = name.split("."), study_file.parent
    if parts[0] in NOT_HELPERS:
        return []
    for number, part in enumerate(parts, 1):
        candidates = (below / part / "__init__.py", below / f"{part}.py", below / part)
        path = next((path for path in candidates[:2] if path.is_file()), candidates[2])
        if path == study_file or not path.exists():
            break
        located.append((".".join(parts[:number]), path))
        if path == candidates[1]:
            break  # no package: what follows is a name in it
        below /= part
    while located and located[-1][1].suffix != ".py":
        del located[-1]  # a folder that only happens to have that name
    return located


def run_with_helpers(code: Any, module: ModuleType, helpers: dict[str, Helper]) -> None:
    """Run a study's file so that its import statements find its helpers, now and later."""
    if helpers:
        module.__dict__["__builtins__"] = _Private(helpers).builtins
    exec(code, module.__dict__)


class _Private:
    """The helpers of one study, imported under names that no other study has.

    It is what Python calls a finder and a loader.
    """

    def __init__(self, helpers: dict[str, Helper]) -> None:
        text = repr(sorted((str(helper.path), helper.source) for helper in helpers.values()))
        self._prefix = HELPERS + hashlib.sha256(text.encode()).hexdigest()[:12]
        self._helpers = {f"{self._prefix}.{name}": helper for name, helper in helpers.items()}
        self._tops = {name.partition(".")[0] for name in helpers}
        #: What the study and its helpers have for `__builtins__`; import statements ask there.
        self.builtins = {**vars(builtins), "__import__": self._import}
        if self._prefix not in sys.modules:
            package = ModuleType(self._prefix)
            package.__path__ = []
            sys.modules[self._prefix] = package
            sys.meta_path.append(self)

    def _import(
        self,
        name: str,
        globals_: Any = None,
        locals_: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or top not in self._tops:
            return __import__(name, globals_, locals_, fromlist, level)
        own = f"{self._prefix}.{name}"
        try:
            importlib.import_module(own)
            if not fromlist:
                return sys.modules[f"{self._prefix}.{top}"]
            return __import__(own, globals_, locals_, fromlist, 0)
        except ImportError as error:
            error.msg = error.msg.replace(f"{self._prefix}.", "")
            raise

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        helper = self._helpers.get(name)
        if helper is None:
            return None
        spec = importlib.util.spec_from_file_location(name, helper.path, loader=self)  # type: ignore[arg-type]
        assert spec is not None
        # No place to look for more: a module that no statement named is in no definition.
        spec.submodule_search_locations = [] if helper.is_package else None
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make it."""

    def exec_module(self, module: ModuleType) -> None:
        helper = self._helpers[module.__name__]
        module.__dict__["__builtins__"] = self.builtins
        # The very text that the definition is made of.
        code = compile(helper.source, str(helper.path), "exec", dont_inherit=True)
        exec(code, module.__dict__)
