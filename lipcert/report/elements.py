"""The parts that the HTML pages are made of; every text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from lipcert.gate import Outcome, worst
from lipcert.report.style import style_sheet

_ICON = "data:,"
# Nothing may be fetched: the page is one file, and stays so in every viewer.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, *body: str) -> str:
    """A whole document; the parts are HTML, the title is text."""
    name = escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="{_ICON}">\n<title>{name}</title>\n'
        f"<style>{style_sheet()}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the results</a>\n'
        f'<main id="main">\n{chr(10).join(part for part in body if part)}\n</main>\n'
        "</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what is below it; empty where all the parts are."""
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def details(summary: str, inner: str) -> str:
    """What opens on request; ``inner`` is HTML, and printed open."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def cards(pairs: Iterable[tuple[str, str, str]]) -> str:
    """The main numbers: a value, its name, and a line below."""
    items = "".join(
        f"<li><strong>{escape(value)}</strong>{escape(name)}"
        f'<br><span class="muted">{escape(note).replace(" %", "&nbsp;%")}</span></li>'
        for value, name, note in pairs
    )
    return f'<ul class="cards">{items}</ul>'


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    texts: int = 1,
    wrap: bool = False,
) -> str:
    """A table whose first ``texts`` columns are text and the others numbers; it scrolls by itself
    where the screen is narrow. An empty ``head`` makes the first column the heads."""
    lines = []
    for row in rows:
        first, *others = row
        cells = [f'<th scope="row">{escape(first)}</th>']
        cells += [
            f"<td{_number(i, texts)}{_name(head, i)}>{escape(cell)}</td>"
            for i, cell in enumerate(others, start=1)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if not lines:
        return ""
    heads = "".join(
        f'<th scope="col"{_number(i, texts)}>{escape(name)}</th>' for i, name in enumerate(head)
    )
    above = f"<thead><tr>{heads}</tr></thead>" if head else ""
    # What is too wide for a telephone gets a block a row there.
    wide = len(head) > 5 or (texts > 1 and len(head) > 4)
    kind = ' class="wrap"' if wrap else ' class="stack"' if wide else ""
    return (
        f'<p class="caption">{escape(caption)}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{kind}>{above}"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(drawing: str, caption: str, legend: str = "") -> str:
    """A drawing with its caption; ``legend`` is HTML."""
    key = f'<div class="key">{legend}</div>' if legend else ""
    return f"<figure>{drawing}<figcaption>{key}{escape(caption)}</figcaption></figure>"


def legend(entries: Iterable[tuple[str, str]], *, line: bool) -> str:
    """Samples of line or dot styles, each with its name."""
    mark = "M1 6H23" if line else "M12 6h0"
    kind = "line" if line else "dots"
    return "".join(
        '<span class="legend"><svg viewBox="0 0 24 12" aria-hidden="true">'
        f'<path class="{kind} {style}" d="{mark}"/></svg>{escape(name)}</span>'
        for style, name in entries
    )


def gate_table(outcomes: Sequence[Outcome]) -> str:
    """The gates, each with what was measured against its level."""
    rows = "".join(
        f'<tr><td class="{o.status}">{o.status}</td><th scope="row">{escape(o.gate)}</th>'
        f"<td>{escape(o.message)}</td></tr>"
        for o in outcomes
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("outcome", "gate", "measured"))
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Gates">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def verdict(outcomes: Sequence[Outcome]) -> str:
    """PASS, WARN or FAIL, with the figure of the first gate that decided it; empty without any."""
    if not outcomes:
        return ""
    overall = worst(outcomes)
    deciding = [outcome for outcome in outcomes if outcome.status == overall]
    more = f" (and {len(deciding) - 1} more)" if len(deciding) > 1 else ""
    said = f"{deciding[0].gate}: {deciding[0].message}{more}"
    return (
        f'<p class="verdict {overall}" role="status"><strong>{overall.upper()}</strong> '
        f"<span>{escape(said)}</span></p>"
    )


def images(entries: Iterable[tuple[Sequence[tuple[str, str]], str, str]]) -> str:
    """Pictures in a row: each entry is (address, alt) pairs side by side and two lines below."""
    items = []
    for pictures, above, below in entries:
        shown = "".join(
            f'<img src="{address}" alt="{escape(alt)}" width="80" height="80">'
            for address, alt in pictures
        )
        items.append(f"<li>{shown}<span>{escape(above)}</span><span>{escape(below)}</span></li>")
    return f'<ul class="images">{"".join(items)}</ul>' if items else ""


def _name(head: Sequence[str], column: int) -> str:
    return f' data-name="{escape(head[column])}"' if head else ""


def _number(column: int, texts: int) -> str:
    return ' class="number"' if column >= texts else ""
