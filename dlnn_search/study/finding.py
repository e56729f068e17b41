"""Studies and what belongs to them: their files, their own code, the modules beside them."""

from __future__ import annotations

import ast
import builtins
import copy
import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dlnn_search.config.data import OwnPart
from dlnn_search.errors import DlnnSearchError, StudyError, UsageError, did_you_mean
from dlnn_search.files import shipped, study_files, study_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dlnn_search.config import Config
    from dlnn_search.study import Study


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
            f"code {part.code}, got {code.fingerprint}. Name the study's file as it was then with "
            '--study FILE; or remove "code" from the config to take the file as it is now.'
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


#: A study is a page of Python; a file far larger is something else.
MAX_STUDY_BYTES = 1_000_000


def studies_folder() -> Path:
    """Return the folder of the built-in studies: in the wheel, or in the checkout."""
    return shipped("studies")


def built_in_studies(folder: Path | None = None) -> dict[str, Path]:
    """Return the built-in studies' files by name, sorted; of another folder than today's if given.

    While an earlier version of one is read, those that were kept with it go before today's.
    """
    today = study_files(folder or studies_folder())
    kept = _kept_with.get() if folder is None else None
    return today if kept is None else {**today, **built_in_studies(kept)}


#: The folder of the earlier version that is being read.
_kept_with: ContextVar[Path | None] = ContextVar("kept_with", default=None)


def earlier_version(study: Study, code: str) -> Study | None:
    """Return a built-in study as it was when a database stored its code, if that was kept.

    `studies/earlier/HASH/` holds its file, and those of built-in studies that it was made from;
    the hash is `code_hash` of the code in its definition.
    """
    if study.file not in {str(path.resolve()) for path in built_in_studies().values()}:
        return None
    folder = studies_folder() / "earlier" / code_hash(code)
    path = folder / Path(study.file).name
    if not path.is_file():
        return None
    token = _kept_with.set(folder)
    try:
        found = _load_file(path)
    finally:
        _kept_with.reset(token)
    return found if study.name == found.name else found.quick_version()


def code_hash(code: str) -> str:
    """Return 12 hexadecimal digits of a definition's code."""
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def is_built_in(name: str) -> bool:
    """Whether a study of that name, or its quick version, comes with the product."""
    known = built_in_studies()
    return name in known or name.removesuffix("-quick") in known


def load_study(name_or_file: str, *, quick: bool = False) -> Study:
    """Return a study by its name, or from a file that ends in `.py`.

    A name that ends in `-quick` means the quick version of the study before it.

    Raises:
        UsageError: If there is no such study or file.
        StudyError: If the file cannot be read or makes no study.
    """
    known = built_in_studies()
    if name_or_file.endswith(".py"):
        path = Path(name_or_file)
        try:
            is_there = path.is_file()
        except OSError:  # a name that is too long for a file
            is_there = False
        if not is_there:
            raise UsageError(f"There is no study file '{name_or_file}'.")
    else:
        name = name_or_file
        if name not in known and name.endswith("-quick"):
            name, quick = name.removesuffix("-quick"), True
        if name not in known:
            raise UsageError(
                f"Unknown study '{name_or_file}'."
                + did_you_mean(name_or_file, known)
                + " 'dlnn-search studies' lists them; a file of your own ends in '.py'."
            )
        path = known[name]
    study = _load_file(path)
    return study.quick_version() if quick else study


def bring_code(config: Config, source: str, study_file: str | None) -> Config:
    """Return a config with the code of its own data and its own model loaded.

    A config is data that may come from anywhere, so it never says which file to run: the user
    does, or the database of the user's search (`storage.studies.code_file`).

    Args:
        config: With or without own parts.
        source: Where it was read from, for errors.
        study_file: The study that the config is from; not needed without own parts.

    Raises:
        UsageError: If there is no such study, or the config needs another one.
        StudyError: If the study's file is not valid, or its code is another version.
    """
    study = None if study_file is None else load_study(study_file)
    for part in config.own_parts:
        whose = "a study" if part.study is None else f"the study '{part.study}'"
        if study is None:
            raise UsageError(
                f"'{source}' needs the own code of {whose}. Name its file: --study "
                f"{(part.study or 'my-study').replace('-', '_')}.py"
            )
        if part.study not in (None, study.code_name):
            raise UsageError(
                f"'{source}' needs the own code of {whose}, got that of '{study.code_name}' from "
                f"--study {study_file}. A study has the name of its file."
            )
        if part.study is not None:
            code_of(part)
    return config if study is None else study.with_own_code(config)


def _load_file(path: Path) -> Study:
    from dlnn_search.study import NAME_PATTERN, Study

    name = study_name(path)
    if not NAME_PATTERN.fullmatch(name):
        raise StudyError(
            f"Expected a study file named with letters, digits, '-' and '_' (it names the study), "
            f"got '{path.name}'."
        )
    source = _read(path)
    whole = path.resolve()
    helpers = find_helpers(whole, source, lambda helper: _read(helper, "helper module"))
    module_name = f"dlnn_search_study_{path.stem}"
    spec = importlib.util.spec_from_loader(module_name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(whole)
    sys.modules[module_name] = module
    try:
        # Compiled from the very text that the definition is made of.
        run_with_helpers(compile(source, str(path), "exec"), module, helpers)
    except DlnnSearchError as error:
        raise StudyError(f"The study file '{path}' is not valid: {error}") from error
    except (Exception, SystemExit) as error:
        raise StudyError(
            f"The study file '{path}' cannot be run: {line_of(error, str(path))}"
            f"{type(error).__name__}: {error}"
        ) from error
    study = getattr(module, "study", None)
    if not isinstance(study, Study):
        came = "no such name" if study is None else type(study).__name__
        raise StudyError(f"Expected '{path}' to hold `study = Study(...)`, got {came}.")
    summary = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].replace("\n", " ")
    # A study that was made from another one keeps that one's source: it holds the space.
    sources = (*study.sources, source)
    texts = sorted((helper.file, helper.source) for helper in helpers.values() if helper.source)
    study = dataclasses.replace(
        study,
        name=name,
        code_name=name,
        summary=summary,
        sources=sources,
        helpers=(*study.helpers, *texts),
        file=str(whole),
    )
    register(study.own_code())
    return study


def _read(path: Path, what: str = "study file") -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_STUDY_BYTES + 1)
        if len(raw) > MAX_STUDY_BYTES:
            raise StudyError(f"'{path}' is too large for a {what}: over {MAX_STUDY_BYTES:,} bytes.")
        # As text mode reads it, whatever line ends the editor made.
        source = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
        ast.parse(source, filename=str(path))
    except SyntaxError as error:
        line = "" if error.lineno is None else f"line {error.lineno}: "  # none for null bytes
        raise StudyError(f"The {what} '{path}' is no valid Python: {line}{error.msg}.") from error
    except (MemoryError, RecursionError) as error:  # Python's words for it
        raise StudyError(
            f"The {what} '{path}' is no valid Python: it is nested too deeply."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or null bytes
        raise StudyError(f"The {what} '{path}' cannot be read: {error}") from error
    return source
