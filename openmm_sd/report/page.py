"""One HTML page that needs no other file: its parts, and how numbers are written for people."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.atomic import write_atomically

if TYPE_CHECKING:
    from ..analysis.verdicts import Figure

# Nothing may be fetched, whatever text ends up on the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

# What goes wrong in a script is counted where a reader and a test can see it.
_ERRORS = """
document.documentElement.dataset.scriptErrors = "0";
addEventListener("error", event => {
  const root = document.documentElement;
  root.dataset.scriptErrors = String(Number(root.dataset.scriptErrors) + 1);
  root.dataset.scriptError = event.message;
});
"""

# On paper nobody can unfold anything.
_UNFOLD = """
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
"""

DASH = "&ndash;"

#: A table's cell: HTML, or a class and HTML.
Cell = str | tuple[str, str]


class Page:
    """A page in the making: its title is also the first heading, with the subtitle below."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._body: list[str] = []
        self._before: list[str] = []
        self._sections: list[tuple[str, str]] = []
        self._scripts: list[str] = []

    def add(self, *parts: str) -> None:
        """Add HTML at the end."""
        (self._body if self._sections else self._before).extend(parts)

    def section(self, title: str) -> None:
        """Begin a section."""
        anchor = "s" + str(len(self._sections) + 1)
        self._sections.append((anchor, title))
        self._body.append(f'<h2 id="{anchor}">{text(title)}</h2>')

    def script(self, source: str) -> None:
        """Add a script, which runs when all else is there."""
        self._scripts.append(source)

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        style = (files(__package__) / "page.css").read_text(encoding="utf-8")
        links = " ".join(f'<a href="#{a}">{text(title)}</a>' for a, title in self._sections)
        lines = [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{text(self._title)}</title><style>\n{style}</style>",
            f"<script>{_ERRORS}{_UNFOLD}</script></head>\n<body>",
            f"<h1>{text(self._title)}</h1>",
            f'<p class="small">{text(self._subtitle)}</p>' if self._subtitle else "",
            *self._before,
            f"<nav>{links}</nav>" if len(self._sections) > 2 else "",
            *self._body,
            *(f"<script>{source}</script>" for source in self._scripts),
            "</body></html>\n",
        ]
        write_atomically(path, "\n".join(line for line in lines if line))


def text(value: Any) -> str:
    """Return anything as text that HTML shows as it is."""
    return html.escape(str(value))


def number(value: float | None, error: float | None = None) -> str:
    """Return a figure for people, with as many digits as its error leaves meaningful.

    One that is None, or not finite, becomes a dash; without an error three digits are shown.
    """
    if value is None or not math.isfinite(value):
        return DASH
    if error is None or error <= 0 or not math.isfinite(error):
        return plain(value, 3)
    exponent = _exponent(error)
    # Two digits of the error; more than four places after the point are shown as powers of ten.
    places = 1 - exponent
    if -2 <= -places and max(abs(value), error) < 1e6 and places <= 5:
        places = max(places, 0)
        return f"{value:.{places}f} &plusmn; {error:.{places}f}"
    if places > 5:
        power = _exponent(max(abs(value), error))
        scale = 10.0**power
        digits = max(power - exponent + 1, 0)
        return f"({value / scale:.{digits}f} &plusmn; {error / scale:.{digits}f})e{power:d}"
    places = max(places, 0)
    return f"{value:,.{places}f} &plusmn; {error:,.{places}f}"


def _exponent(value: float) -> int:
    return int(f"{abs(value):e}".split("e")[1])


def plain(value: float | None, digits: int) -> str:
    """Return a figure without an error, to so many digits; a dash where it is none."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def figure(one: Figure | None) -> str:
    """Return a figure of a report, with its error."""
    return DASH if one is None else number(one["value"], one["error"])


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a table of cells that are HTML already, some with a class before it."""
    lines = ['<div class="scroll"><table>']
    if any(head):
        lines.append("<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>")
    for row in rows:
        lines.append("<tr>" + "".join(map(_cell, row)) + "</tr>")
    return "".join(lines) + "</table></div>"


def _cell(cell: Cell) -> str:
    return f"<td>{cell}</td>" if isinstance(cell, str) else f'<td class="{cell[0]}">{cell[1]}</td>'


def small(content: str) -> str:
    """Return a paragraph in small print."""
    return f'<p class="small">{content}</p>'


def details(summary: str, content: str) -> str:
    """Return what is shown only when it is asked for."""
    return f"<details><summary>{summary}</summary>{content}</details>"


def listed(items: Iterable[str]) -> str:
    """Return a list of HTML items."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def numbers(items: Iterable[tuple[str, str, str]]) -> str:
    """Return the figures that come first: label, value, and what is said below it."""
    cells = (
        f"<div><dt>{label}</dt><dd>{value}{f'<small>{below}</small>' if below else ''}</dd></div>"
        for label, value, below in items
    )
    return f'<dl class="numbers">{"".join(cells)}</dl>'


def answers(items: Iterable[tuple[str, str, str, str, Sequence[str]]]) -> str:
    """Return questions with their answers, as HTML.

    An item has its class (``good``, ``care``, ``bad`` or ``open``), the answer, the question, what
    was found, and what is said in small print.
    """
    rows = (
        f'<li class="{kind}"><b>{question}</b> <span class="answer">{answer}</span>'
        f"<div>{found}</div>"
        + "".join(f'<div class="small">{line}</div>' for line in lines)
        + "</li>"
        for kind, answer, question, found, lines in items
    )
    return f'<ul class="answers">{"".join(rows)}</ul>'


def picture(drawing: str, title: str, caption: str) -> str:
    """Return a drawing (SVG) with its title and caption."""
    # The drawing begins with its tag, which gets a name for those who cannot see it.
    named = drawing.replace("<svg ", f'<svg class="plot" role="img" aria-label="{text(title)}" ', 1)
    return f"<figure><h3>{text(title)}</h3><figcaption>{text(caption)}</figcaption>{named}</figure>"


def settings_table(items: dict[str, Any]) -> str:
    """Return names and values of what a report was made with."""
    rows: list[list[Cell]] = [
        [text(key), ("words", text(_setting(value)))] for key, value in items.items()
    ]
    return table((), rows)


def _setting(value: Any) -> Any:
    if value is None:
        return "default"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return value
