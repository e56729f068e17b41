"""Find studies: those that come with the product, and a user's own files."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from dlnn_search.errors import DlnnSearchError, StudyError, UsageError, did_you_mean

if TYPE_CHECKING:
    from dlnn_search.config import Config
    from dlnn_search.study import Study

#: A study is a page of Python; a file far larger is something else.
MAX_STUDY_BYTES = 1_000_000


def studies_folder() -> Path:
    """Return the folder of the built-in studies: in the wheel, or in the checkout."""
    installed = Path(__file__).parents[1] / "_studies"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "studies"


def built_in_studies(folder: Path | None = None) -> dict[str, Path]:
    """Return the built-in studies' files by name, sorted; of another folder than today's if given.

    While an earlier version of one is read, those that were kept with it go before today's.
    """
    today = {
        path.stem.replace("_", "-"): path
        for path in sorted((folder or studies_folder()).glob("*.py"))
        if not path.stem.startswith("_")
    }
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
    does.

    Args:
        config: With or without own parts.
        source: Where it was read from, for errors.
        study_file: The study that the config is from; not needed without own parts.

    Raises:
        UsageError: If there is no such study, or the config needs another one.
        StudyError: If the study's file is not valid, or its code is another version.
    """
    from dlnn_search.study.code import code_of

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
                f"--study {study_file}. A study is named as its file."
            )
        if part.study is not None:
            code_of(part)
    return config if study is None else study.with_own_code(config)


def _load_file(path: Path) -> Study:
    from dlnn_search.study import NAME_PATTERN, Study
    from dlnn_search.study.code import find_helpers, line_of, register, run_with_helpers

    name = path.stem.replace("_", "-").lower()
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
            f"The {what} '{path}' is no valid Python: it is nested too deep."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or null bytes
        raise StudyError(f"The {what} '{path}' cannot be read: {error}") from error
    return source
