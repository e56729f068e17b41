"""Pages of figures: self-contained HTML, with plotly in each, for offline reading and for mail."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio

from dlnn_search.errors import StorageError, UsageError

STYLE = (
    "body{font:16px/1.45 system-ui,sans-serif;max-width:1100px;margin:24px auto;padding:0 16px;"
    "color:#222}h1{font-size:26px}h2{font-size:20px;margin-top:36px}p{color:#555}"
    "table{border-collapse:collapse}td,th{padding:4px 12px;text-align:right}"
    "th{border-bottom:1px solid #999}td:first-child,th:first-child{text-align:left}"
)


def page_of(
    title: str, figures: Sequence[tuple[str | None, go.Figure | str]], about: str = ""
) -> str:
    """Return a page of figures, one below the other.

    Args:
        title: Of the page.
        figures: Each with its heading; words in place of a figure say why there is none.
        about: A sentence below the title.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if about:
        parts.append(f"<p>{escape(about)}</p>")
    has_library = False
    for heading, figure in figures:
        if heading:
            parts.append(f"<h2>{escape(heading)}</h2>")
        if isinstance(figure, str):
            parts.append(f"<p>{escape(figure)}</p>")
            continue
        parts.append(
            pio.to_html(figure, full_html=False, include_plotlyjs=not has_library, div_id=None)
        )
        has_library = True
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        UsageError: If its name is no page's, or its folder does not exist.
        StorageError: If it cannot be written.
    """
    if path.suffix.lower() != ".html":
        raise UsageError(f"Expected a page to write, -o NAME.html, got '{path}'.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder '{path.parent}' to write '{path.name}' into.")
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error


def write_pages(
    output: Path, name: str, figures: Sequence[tuple[str | None, go.Figure | str]]
) -> list[Path]:
    """Write a study's figures: on one page, or into a folder, a page each.

    Args:
        output: A page's name, which ends in `.html`, or a folder's.
        name: The study's.
        figures: Each with its title.

    Raises:
        UsageError: If the page or folder cannot be meant.
        StorageError: If a file cannot be written.
    """
    if output.suffix.lower() == ".html":
        write_page(output, page_of(name, figures))
        return [output]
    if output.suffix or output.is_file():
        raise UsageError(f"Expected a page, -o NAME.html, or a folder, got '{output}'.")
    try:
        output.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot make the folder '{output}': {error.strerror or error}."
        ) from error
    paths = []
    for title, figure in figures:
        assert title is not None  # it is the file's name
        paths.append(output / f"{title.lower().replace(' ', '-')}.html")
        write_page(paths[-1], page_of(f"{name}: {title}", [(None, figure)]))
    return paths
