"""Parts of a page as plain data, and what they are in HTML and in Markdown."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lit_mmpg.pages.style import SORT, STYLE
from lit_mmpg.results import markdown_table
from lit_mmpg.texts import Html, html


def badge(text: str, kind: str = "") -> Html:
    """A short word with a colour: ``good``, ``bad``, ``open``, or none of them; nothing for no word."""
    return Html(f'<span class="badge {kind}">{html(text)}</span>' if text else "")


@dataclass(frozen=True)
class Heading:
    """A heading, with a badge behind it."""

    text: str
    level: int = 2
    badge: Html = Html()


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    soft: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Claim:
    """A verdict (``kind`` as of a badge), what it is on, and lines below."""

    verdict: str
    kind: str
    text: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Claims:
    """Verdicts."""

    items: Sequence[Claim]


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it shows.
        exact: Value that it sorts by, and that appears where it is touched.
        link: Address that it leads to.
        small: Soft text below.
    """

    text: str
    exact: float | None = None
    link: str = ""
    small: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.small}".strip()


@dataclass(frozen=True)
class Table:
    """A table; nothing where it has no rows.

    Attributes:
        head: Headings, each with an explanation where it is a pair.
        rows: Cells; None for an empty one.
        text: So many columns, from the left, hold text; -1: all.
        strong: Numbers of the rows that stand out.
        long: Numbers of further columns of text.
        ids: Anchors of the rows, by their number.
    """

    head: Sequence[str | tuple[str, str]]
    rows: Sequence[Sequence[str | Cell | None]]
    text: int = 1
    strong: Sequence[int] = ()
    long: Sequence[int] = ()
    ids: Sequence[str] = ()


@dataclass(frozen=True)
class Cards:
    """Figures in large type: pairs of a value and what it is."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """Pairs of a name and a text."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A chart, with what it shows; folded away until asked for where ``folded``."""

    chart: Html
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture of a gallery: its name, a line below, how full its bar is (0 to 1), and a JPEG file or None."""

    name: str
    text: str
    share: float
    jpeg: bytes | None


@dataclass(frozen=True)
class Gallery:
    """Pictures in order."""

    items: Sequence[Picture]


Block = Heading | Text | Bullets | Claims | Table | Cards | Facts | Figure | Gallery


def render(title: str, blocks: Iterable[Block]) -> str:
    """The page.

    Args:
        title: Title of the window.
        blocks: Its parts.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(part for block in blocks if (part := _html(block)))
        + f"\n<script>{SORT}</script></body></html>\n"
    )


def markdown(blocks: Iterable[Block]) -> str:
    """Texts and tables as Markdown."""
    return "\n\n".join(part for block in blocks if (part := _markdown(block))) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Claims(items):
            return "\n".join("\n    - ".join([f"- **{c.verdict}**: {c.text}", *c.lines]) for c in items)
        case Table(head, rows) if rows:
            return markdown_table([name if isinstance(name, str) else name[0] for name in head], rows)
    return ""


def _html(block: Block) -> str:
    match block:
        case Heading(text, level, mark):
            return f"<h{level}>{html(text)}{mark and f' {mark}'}</h{level}>"
        case Text(text, soft):
            return f"<p{' class=soft' * soft}>{html(text)}</p>"
        case Bullets(items) if items:
            return f"<ul>{''.join(f'<li>{html(item)}</li>' for item in items)}</ul>"
        case Claims(items):
            return f'<ul class="claims">{"".join(map(_claim, items))}</ul>'
        case Table() if block.rows:
            return _table(block)
        case Cards(items):
            return f'<div class="cards">{"".join(f"<div><b>{html(v)}</b>{html(t)}</div>" for v, t in items)}</div>'
        case Facts(items):
            return f"<dl>{''.join(f'<dt>{html(name)}</dt><dd>{html(text)}</dd>' for name, text in items)}</dl>"
        case Figure(chart, caption, folded) if chart:
            if folded:
                return f"<details><summary>{html(caption)}</summary>{chart}</details>"
            return f"<figure>{caption and f'<figcaption>{html(caption)}</figcaption>'}{chart}</figure>"
        case Gallery(items):
            return f'<ol class="gallery">{"".join(_picture(i, item) for i, item in enumerate(items, 1))}</ol>'
    return ""


def _claim(claim: Claim) -> str:
    lines = "".join(f"<div>{html(line)}</div>" for line in claim.lines)
    return f'<li class="{claim.kind}"><b>{html(claim.verdict)}</b>: {html(claim.text)}{lines}</li>'


def _table(table: Table) -> str:
    names = [name if isinstance(name, tuple) else (name, "") for name in table.head]
    textual = {*range(len(names) if table.text < 0 else table.text), *table.long}
    head, body = "", ""
    for i, (name, said) in enumerate(names):
        title = f' title="{html(said)}"' if said else ""
        head += f"<th{' class=text' * (i in textual)}{title}>{html(name)}</th>"
    for i, row in enumerate(table.rows):
        anchor = f' id="{html(table.ids[i])}"' if table.ids else ""
        cells = "".join(_cell(cell, j, j in textual) for j, cell in enumerate(row))
        body += f"<tr{' class=strong' * (i in table.strong)}{anchor}>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: str | Cell | None, column: int, textual: bool) -> str:
    found = cell if isinstance(cell, Cell) else Cell(cell or "")
    shown: str = html(found.text)
    if column == 0 and not isinstance(found.text, Html):
        shown = shown.replace("_", "_<wbr>")  # where a narrow page may break a name
    shown = f'<a href="{html(found.link)}">{shown}</a>' if found.link else shown
    shown += f'<br><span class="soft">{html(found.small)}</span>' if found.small else ""
    kind = f' class="text{" long" * (len(found.text) > 40)}"' if textual else ""
    value = "" if found.exact is None else f' data-v="{found.exact!r}" title="{found.exact:.6g}"'
    return f"<td{kind}{value}>{shown}</td>"


def _picture(rank: int, picture: Picture) -> str:
    shown = '<span class="none">no picture</span>'
    if picture.jpeg is not None:
        data = base64.b64encode(picture.jpeg).decode()
        shown = f'<img alt="frame of {html(picture.name)}" src="data:image/jpeg;base64,{data}">'
    return (
        f"<li>{shown}<div><small>{rank}</small> <b>{html(picture.name)}</b><br>"
        f'<meter value="{picture.share:.3f}"></meter><br><small>{html(picture.text)}</small></div></li>'
    )
