"""The house keeps its size: few files, few in a folder, none too long."""

import subprocess
import sys
from pathlib import Path

import dlnn_search

PACKAGE = Path(dlnn_search.__file__).parent
#: A feature that needs more files raises it, in a commit that says why.
MAX_FILES = 117
MAX_FILES_A_FOLDER = 12
#: One file a group of use cases.
MAX_FILES_OF_COMMANDS = 16
MAX_LINES = 600


def sources() -> list[Path]:
    """Return the package's files, without the studies and documents that a wheel adds."""
    found = sorted(PACKAGE.rglob("*.py"))
    beside = {"_studies", "_docs"}
    return [path for path in found if not beside & set(path.relative_to(PACKAGE).parts)]


def test_the_package_has_no_more_files_than_it_needs() -> None:
    assert 0 < len(sources()) <= MAX_FILES


def test_no_folder_has_more_files_than_a_reader_keeps_in_mind() -> None:
    n_files: dict[str, int] = {}
    for path in sources():
        if path.name != "__init__.py":
            folder = path.parent.relative_to(PACKAGE).as_posix()
            n_files[folder] = n_files.get(folder, 0) + 1
    most = {"commands": MAX_FILES_OF_COMMANDS}
    crowded = {
        folder: n for folder, n in n_files.items() if n > most.get(folder, MAX_FILES_A_FOLDER)
    }
    assert not crowded


def test_no_file_is_longer_than_one_idea() -> None:
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources()
    }
    assert not {path: n for path, n in lines.items() if n > MAX_LINES}


def test_what_looks_after_workers_or_shows_them_loads_no_tensorflow() -> None:
    names = "commands.start, commands.trying, commands.export, report.figures, dashboard"
    modules = ", ".join(f"dlnn_search.{name}" for name in names.split(", "))
    heavy = "sorted({'tensorflow', 'keras'} & set(sys.modules))"
    code = f"import sys, {modules}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
