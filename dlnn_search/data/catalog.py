"""Which data sets there are, and what this machine already has of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dlnn_search.config.data import CLOCKS_PER_TIME
from dlnn_search.data.clocks.imported import TIMES_ON_DIAL, imported
from dlnn_search.data.prepared import is_intact, prepared_root, read_about
from dlnn_search.data.sources import DIGIT_SETS, find

if TYPE_CHECKING:
    from pathlib import Path

State = Literal["prepared", "available", "imported", "to import", "to render", "to download"]


@dataclass(frozen=True)
class Entry:
    """A data set, as `data list` shows it.

    Attributes:
        name: What `data prepare` calls it.
        variant: Which clocks, or whose own pictures; empty for digits.
        state: `available`: its files were found, and are yet to be prepared.
        n_images: Of all splits; None if not known.
        n_bytes: On disk; None if nothing is.
        where: A folder or file, or how to get it.
    """

    name: str
    variant: str
    state: State
    n_images: int | None
    n_bytes: int | None
    where: str


def catalog() -> list[Entry]:
    """Return every data set that can be used, prepared ones first.

    Raises:
        DataError: If `$DLNN_SEARCH_DATA` is no folder, or a set there lacks files.
    """
    entries = []
    prepared = _prepared()
    for digits in DIGIT_SETS.values():
        ready = [entry for entry in prepared if entry.name == digits.name]
        entries += ready
        if not ready:
            n_images = digits.n_train + digits.n_test
            found = find(digits)
            if found is None:
                where = "downloaded when first used"
                entries.append(Entry(digits.name, "", "to download", n_images, None, where))
            else:
                n_bytes = sum(path.stat().st_size for path in set(found.files.values()))
                where = found.place
                entries.append(Entry(digits.name, "", "available", n_images, n_bytes, where))

    course = imported()
    if course is None:
        where = "dlnn-search data import clocks images.npy labels.npy"
        entries.append(Entry("clocks", "course", "to import", None, None, where))
    else:
        _, n_bytes = size_of(course.folder)
        variant = f"course, {course.edge} px"
        where = str(course.folder)
        entries.append(Entry("clocks", variant, "imported", course.n, n_bytes, where))
    clocks = [entry for entry in prepared if entry.name == "clocks"]
    entries += clocks
    if not any(entry.variant.startswith("rendered") for entry in clocks):
        n_images = TIMES_ON_DIAL * CLOCKS_PER_TIME
        where = "rendered when first used"
        entries.append(Entry("clocks", "rendered", "to render", n_images, None, where))
    return entries + [entry for entry in prepared if entry.name == "own"]


def size_of(folder: Path) -> tuple[int, int]:
    """Return how many pictures a prepared or imported set has, and how many bytes."""
    about = read_about(folder)
    return about["n_images"], sum(about["files"].values())


def _prepared() -> list[Entry]:
    entries = []
    for folder in sorted(prepared_root().glob("*/")):
        about = read_about(folder)
        if folder.suffix == ".partial" or "data" not in about or not is_intact(folder):
            continue
        n_images, n_bytes = size_of(folder)
        variant = _variant(about)
        entries.append(Entry(about["data"], variant, "prepared", n_images, n_bytes, str(folder)))
    return entries


def _variant(about: dict[str, Any]) -> str:
    """Say which clocks, by what differs from the defaults; or whose pictures, and how made."""
    if "study" in about:
        options = [f"{name} {value}" for name, value in about["options"].items()]
        # None where an earlier version prepared it.
        file = [f"from {about['file']}"] if about.get("file") else []
        return ", ".join([about["study"], *options, *file])
    if "kind" not in about:
        return ""
    words = [about["kind"], f"{about['image_size']} px"]
    drawing = about.get("drawing")
    if drawing:
        words += [
            f"{drawing['images_per_time']} a time",
            f"{drawing['azimuth_spread']:.3g} rad",
            f"difficulty {drawing['difficulty']:g}",
        ]
        if about["kind"] == "rendered":
            words.append(f"seed {drawing['seed']}")
    if "split_seed" in about:
        words.append(f"test {about['test']:g}/{about['split_seed']}")
    return ", ".join(words)
