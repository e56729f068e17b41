"""A study's own loader and builder, by the study's name.

Filled when a study's file is loaded, read where a config asks for the code: configs are plain
data, and neither data nor models import a file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlnn_search.config.own import OwnPart
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
