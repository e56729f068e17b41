"""What the documents show is there: commands, options, links, pictures, and the layers."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dlnn_search.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "studies").rglob("*.md"),
        *(ROOT / "storage").rglob("*.md"),
    ]
)
ROOT_COMMAND: Any = typer.main.get_command(app)
FENCE = re.compile(r"^```.*?\n(.*?)^```$", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
#: A command starts a line, or follows a prompt, `&&`, Slurm's `srun` or a variable that is set.
COMMAND = re.compile(r"(?:^|&& |\$ |srun |\w=\S+ )dlnn-search (.+?)(?=&&|$)", re.M)
#: A word that the reader replaces: N, FILE, STUDY, WHEN.
PLACEHOLDER = re.compile(r"^[A-Z_]+$")
#: Code in a sentence that begins so shows options of other programs.
NOT_OURS = re.compile(r"^(?:docker|pip|pytest|psql|python)\b")
DOCKERS_OPTIONS = {"--scale", "--profile", "--build-arg", "--cpus"}


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks_of(document: Path) -> str:
    """Return the text of a document's code blocks, continued lines joined."""
    blocks = FENCE.findall(document.read_text(encoding="utf-8"))
    return "\n".join(blocks).replace("\\\n", " ")


def prose_of(document: Path) -> str:
    """Return a document without its code blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def words_of(line: str) -> list[str]:
    """Return the words of one command: up to a pipe, a further command or a comment."""
    reader = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    reader.whitespace_split = True
    words: list[str] = []
    for word in reader:
        if set(word) <= set("|&;<>"):
            break
        words.append(word)
    return [word.strip("[]") for word in words if word != "..."]


def commands_in(document: Path) -> Iterator[tuple[str, bool]]:
    """Yield each command of a document without `dlnn-search`, and whether it is written whole.

    Whole is what stands in a code block. In a sentence `start --detach` may leave the study out.
    """
    for line in COMMAND.findall(blocks_of(document)):
        yield line, True
    for code in CODE.findall(prose_of(document)):
        line = code.removeprefix("dlnn-search ")
        is_command = " " in line and line.split()[0] in ROOT_COMMAND.commands
        if line != code or is_command:
            yield line, False


def problem_with(line: str, whole: bool = True) -> str | None:
    """Return what the command line would refuse, by its parser; None where all is well."""
    words = words_of(line)
    command = ROOT_COMMAND
    while hasattr(command, "commands"):
        if not words or words[0].startswith("--"):
            return None if words in (["--help"], ["--version"], []) else f"no option {words[0]}"
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command = command.commands[words.pop(0)]
    try:
        command.make_context(command.name, [PLACEHOLDER.sub("1", word) for word in words])
    except Exception as error:  # of the parser, which typer brings along
        unfinished = type(error).__name__ == "MissingParameter" or "requires an arg" in str(error)
        return None if unfinished and not whole else str(error) or type(error).__name__
    return None


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors_of(document: Path) -> set[str]:
    return {slug(found) for found in re.findall(r"^#+ (.+)$", prose_of(document), re.M)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_in_the_documents_is_one_that_the_command_line_takes(document: Path) -> None:
    wrong = {
        line: problem
        for line, whole in commands_in(document)
        if (problem := problem_with(line, whole))
    }
    assert not wrong


def test_commands_are_found_and_wrong_ones_are_noticed() -> None:
    assert sum(1 for document in DOCUMENTS for _ in commands_in(document)) > 80
    every_command = "a && b", "dlnn-search best x && dlnn-search trials y", "$ dlnn-search doctor"
    assert COMMAND.findall("\n".join(every_command)) == ["best x ", "trials y", "doctor"]
    assert problem_with("start task3-clock --workers 2 --quick && dlnn-search nothing") is None
    assert problem_with("start task3-clock --wrokers 2") is not None
    assert problem_with("start task3-clock --workers two") is not None
    assert problem_with("strat task3-clock") is not None
    assert problem_with("start") is not None
    assert problem_with("best one another") is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_option_that_a_sentence_names_exists(document: Path) -> None:
    known = DOCKERS_OPTIONS | {"--help"}
    commands = [ROOT_COMMAND]
    for command in commands:
        commands.extend(getattr(command, "commands", {}).values())
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    named = {
        option
        for code in CODE.findall(prose_of(document))
        if not NOT_OURS.match(code)
        for option in re.findall(r"(?:^|[ \[])(--[a-z][a-z-]*)", code)
    }
    assert not named - known


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_and_picture_leads_somewhere(document: Path) -> None:
    broken = []
    for target in LINK.findall(prose_of(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    assert not broken


def test_every_document_that_the_program_names_exists() -> None:
    named = {
        found
        for file in (ROOT / "dlnn_search").rglob("*.py")
        for found in re.findall(r"\b(?:docs|studies|storage)/[\w/]+\.md", file.read_text("utf-8"))
    }
    assert named
    assert not {path for path in named if not (ROOT / path).is_file()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_benchmark_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:benchmarks|tests|dlnn_search)/[\w/]+\.py\b", text)
    assert not {path for path in named if not (ROOT / path).is_file()}


def test_the_architectures_table_of_layers_is_the_linters_contract() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    page = (ROOT / "docs/internals/architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Layers")[2].partition("\n#")[0]
    shown = []
    for row in re.findall(r"^\| (`.+?) \|", table, re.M):
        names = [name.removesuffix(".py").strip("/") for name in re.findall(r"`([^`]+)`", row)]
        shown.append((" | " if "·" in row else " : ").join(names))
    assert shown == layers
