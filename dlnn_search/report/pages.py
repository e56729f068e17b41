"""Pages of pictures, and what all pictures share: colours, axes, texts."""

from __future__ import annotations

import gzip
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape, unescape
from importlib.resources import files
from math import log10
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from dlnn_search.errors import StorageError, UsageError
from dlnn_search.metrics import direction_of, metric_name, metric_unit, metric_value
from dlnn_search.samplers.observations import Numeric
from dlnn_search.storage.database import Database

#: Told from each other, and from a light and a dark page.
BLUE, GREEN, ORANGE, RED, GREY = "#3b82c4", "#2f9e5f", "#e07b39", "#d1495b", "#8794a1"
#: Of lines that mean nothing else; the best trial alone is green.
COLORS = (BLUE, ORANGE, "#b05cc0", "#c9a227", RED, "#5f7d95", "#8d6e63", "#2a9d9d")

Drawn: TypeAlias = go.Figure | Sequence[go.Figure] | str


class Picture(NamedTuple):
    """One part of a page.

    Attributes:
        title: Its heading, and its file's name where each picture has a page of its own.
        drawn: A figure; several, which stand beside each other where there is room, each under
            its own title; or words that say why there is none.
        note: How to read it.
    """

    title: str
    drawn: Drawn
    note: str = ""


#: The library that a folder of pages shares.
LIBRARY = "plotly.min.js"
_UNPACKABLE = (
    "This browser cannot draw the pictures. Open the page with a current one "
    "(Chrome or Edge 80, Firefox 113, Safari 16.4, or later)."
)
_NO_LIBRARY = f"The pictures cannot be drawn: '{LIBRARY}' must lie in the folder of this page."
_NO_SCRIPTS = "<noscript><p>The pictures need JavaScript. Allow it for this page.</p></noscript>"


def page_of(
    title: str, pictures: Sequence[Picture], about: str = "", *, shares_library: bool = False
) -> str:
    """Return a page of pictures, one below the other, as wide as its window.

    Args:
        title: Of the page.
        pictures: A single one with the page's title gets no heading of its own.
        about: A sentence below the title.
        shares_library: Whether `LIBRARY` lies beside the page. Otherwise the page holds it,
            compressed: it can be sent, and opens without a network.
    """
    folder = files("dlnn_search.report")
    figures: list[dict[str, Any]] = []
    parts = [f"<h1>{escape(title)}</h1>"]
    if about:
        parts.append(f"<p>{escape(about)}</p>")
    for picture in pictures:
        if picture.title != title:
            parts.append(f"<h2>{escape(picture.title)}</h2>")
        if picture.note:
            parts.append(f"<p>{escape(picture.note)}</p>")
        if isinstance(picture.drawn, str):
            parts.append(f"<p>{escape(picture.drawn)}</p>")
            continue
        is_one = isinstance(picture.drawn, go.Figure)
        drawn: Sequence[Any] = [picture.drawn] if is_one else picture.drawn
        parts.append('<div class="pictures">' if is_one else '<div class="pictures many">')
        for figure in drawn:
            plain = figure.to_plotly_json()
            named = plain["layout"].pop("title", {}).get("text")
            plain["layout"].setdefault("colorway", COLORS)
            plain["layout"].pop("template", None)  # the page's own: light or dark, narrow or wide
            heading = "" if is_one or not named else f"<h3>{escape(unescape(named))}</h3>"
            place = f'<div class="picture" data-picture="{len(figures)}">{_NO_SCRIPTS}</div>'
            parts.append(f'<div class="frame">{heading}{place}</div>')
            figures.append(plain)
        parts.append("</div>")
    data = to_json_plotly(figures).replace("<", "\\u003c")
    missing = _NO_LIBRARY if shares_library else _UNPACKABLE
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{folder.joinpath('page.css').read_text('utf-8')}"
        f'</style></head>\n<body data-missing="{escape(missing)}">\n'
        + "\n".join(parts)
        + f'\n<script type="application/json" id="figures">{data}</script>\n'
        + (_library(shares_library) if figures else "")
        + f"<script>{folder.joinpath('page.js').read_text('utf-8')}</script>\n</body></html>\n"
    )


def _library(is_shared: bool) -> str:
    if is_shared:
        return f'<script charset="utf-8" src="{LIBRARY}"></script>\n'
    return f'<script type="text/plain" id="plotly">{_packed_library()}</script>\n'


@cache
def _packed_library() -> str:
    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def write_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        UsageError: If the name does not end in `.html`, or its folder does not exist.
        StorageError: If it cannot be written.
    """
    if path.suffix.lower() != ".html":
        raise UsageError(f"Expected a page to write, -o NAME.html, got '{path}'.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")
    _write(path, page)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error


def write_pages(output: Path, name: str, pictures: Sequence[Picture]) -> list[Path]:
    """Write a study's pictures: on one page, or into a folder, a page each and one library.

    Args:
        output: A page's name, which ends in `.html`, or a folder's.
        name: The study's.
        pictures: What there is.

    Raises:
        UsageError: If the page or folder cannot be meant.
        StorageError: If a file cannot be written.
    """
    if output.suffix.lower() == ".html":
        write_page(output, page_of(name, pictures))
        return [output]
    if output.suffix or output.is_file():
        raise UsageError(f"Expected a page, -o NAME.html, or a folder, got '{output}'.")
    try:
        output.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot make the folder '{output}': {error.strerror or error}."
        ) from error
    _write(output / LIBRARY, get_plotlyjs())
    paths = []
    for picture in pictures:
        paths.append(output / f"{picture.title.lower().replace(' ', '-')}.html")
        title = f"{name}: {picture.title}"
        page = page_of(title, [picture._replace(title=title)], shares_library=True)
        write_page(paths[-1], page)
    return paths


def put_into_dashboard(
    database: Database, study_name: str, figure: go.Figure, figure_id: str
) -> None:
    """Show a figure on a study's page in optuna-dashboard."""
    from optuna_dashboard import save_plotly_graph_object

    study = optuna.load_study(study_name=study_name, storage=database.optuna)
    figure = go.Figure(figure).update_layout(
        template="plotly_white",
        colorway=COLORS,
        # Below the buttons that lie over the upper edge.
        title={"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 36}, "font_size": 15},
    )
    if not figure.layout.margin.t:
        figure.update_layout(margin={"l": 70, "r": 20, "t": 80, "b": 50})
    save_plotly_graph_object(study, figure, graph_object_id=figure_id)


def plain_text(value: object) -> str:
    """Return a text as Plotly shows it: as it is, and not as markup."""
    return escape(str(value), quote=False)


def axis_label(metric: str) -> str:
    """Return a metric's name and unit, for an axis."""
    return metric_name(metric) + metric_unit(metric)


def hover_value(metric: str) -> str:
    """Return the template of a hover text that shows a metric's value, the point's y."""
    return metric_value(metric, 0.0).replace("0.0000", "%{y:.4f}").replace("0.00", "%{y:.2f}")


#: One network that learnt nothing would press all others together on a linear axis.
LOG_FROM = 10
#: Whole numbers that are drawn as if they were choices.
MAX_COUNTED = 12


def parameter_axis(distribution: BaseDistribution) -> dict[str, Any]:
    """Return the axis of a parameter over its whole range; choices lie at 0, 1, 2, ..."""
    if isinstance(distribution, CategoricalDistribution):
        choices = [plain_text(choice) for choice in distribution.choices]
        ticks = {"tickvals": list(range(len(choices))), "ticktext": choices}
        return {"type": "linear", "range": [-0.6, len(choices) - 0.4], **ticks}
    assert isinstance(distribution, Numeric)
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        ends, marks = (log10(low), log10(high)), log_marks(low, high)
    else:
        ends, marks = (low, high), round_marks(low, high, isinstance(distribution, IntDistribution))
    margin = 0.05 * (ends[1] - ends[0]) or 0.5
    if is_counted(distribution):
        margin = 0.6
    return {
        "type": "log" if distribution.log else "linear",
        "range": [ends[0] - margin, ends[1] + margin],
        "tickvals": marks,
        "ticktext": [f"{mark:.6g}" for mark in marks],
    }


def round_marks(low: float, high: float, is_whole: bool) -> list[float]:
    """Return round numbers in a range, about five."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= 0.7 * rough)
    step = max(1.0, step) if is_whole else step
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_marks(low: float, high: float) -> list[float]:
    """Return round numbers in a range whose logarithms are drawn, two to seven where it can."""
    powers = range(math.floor(log10(low)), math.ceil(log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        marks = [f * 10.0**power for power in powers for f in factors]
        marks = [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
        if len(marks) <= 7:
            break
    marks = marks[:: math.ceil(len(marks) / 7)] if marks else []
    return marks if len(marks) > 1 else [low, high]


def value_axis(metric: str, values: Iterable[float | None]) -> dict[str, Any]:
    """Return the axis of a metric's values: of errors of every size, by their logarithms."""
    known = sorted(value for value in values if value is not None and math.isfinite(value))
    if not known or direction_of(metric) == "maximize":
        return {}
    low, high = known[0], known[-1]
    if low <= 0 or high < LOG_FROM * low:
        return {}
    marks = log_marks(low, high)
    ends = [log10(low) - 0.05, log10(high) + 0.05]
    text = [f"{mark:.6g}" for mark in marks]
    return {"type": "log", "range": ends, "tickvals": marks, "ticktext": text}


def placed(distribution: BaseDistribution, value: Any) -> Any:
    """Return where a value lies on the axis of `parameter_axis`."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value)
    return value


def is_counted(distribution: BaseDistribution) -> bool:
    """Whether a parameter has so few whole numbers that each has a place of its own on the axis."""
    return (
        isinstance(distribution, IntDistribution)
        and not distribution.log
        and distribution.step == 1
        and distribution.high - distribution.low <= MAX_COUNTED
    )
