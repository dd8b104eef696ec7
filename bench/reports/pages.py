"""A report's blocks as Markdown with pictures beside it, and as one HTML file that needs no other."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from . import pictures
from .blocks import Block, Heading, Listing, Picture, Table, Text

TITLE = "What rawgrad's bench has measured"

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --line: #d4d8de; --soft: #f3f5f7; --mark: #b3305a }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --paper: #14171b; --line: #3a4048; --soft: #1e2228; --mark: #f08cab }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1280px; padding: 0 16px 48px; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 1.2rem 0 .6rem } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem;
  border-bottom: 1px solid var(--line); padding-bottom: .2rem } h3 { font-size: 1.05rem }
p, li { overflow-wrap: anywhere; max-width: 80ch }
code { font: .9em ui-monospace, monospace; background: var(--soft); padding: 0 .25em; border-radius: 3px }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 24px;
  align-items: start; margin: 1rem 0 }
figure { margin: 0; min-width: 0 } figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .3rem }
figure ol { columns: 2; font-size: .8rem; padding-left: 1.8em; margin: .3rem 0 0 }
svg { display: block; width: 100%; max-width: 500px; height: auto }
svg text { font-family: system-ui, sans-serif !important }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .85rem; width: 100% }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  min-width: 5.5em }
td:last-child { min-width: 18em } td:nth-last-child(2), td:nth-last-child(4) { min-width: 10em }
th { background: var(--soft) } tr:last-child td { border-bottom: 0 } td code { background: none; padding: 0 }
tr.failed td { color: var(--mark) } tr.noisy td { font-style: italic }
"""


def markdown(blocks: Sequence[Block], folder: Path) -> str:
    """The page; the pictures go into ``folder`` as PNG."""
    parts = [f"# {TITLE}\n"]
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {text}\n")
            case Text(text):
                parts.append(f"{text}\n")
            case Listing(lines):
                parts.append("".join(f"* {line}\n" for line in lines))
            case Table(head, lines):
                rows = [head, ["---"] * len(head), *([_cell(cell) for cell in line] for line in lines)]
                parts.append("".join(f"| {' | '.join(row)} |\n" for row in rows))
            case Picture(name, title, draw, legend):
                pictures.png(draw(), folder / f"{name}.png")
                parts.append(f"![{title}]({name}.png)\n")
                if legend:
                    parts.append(" · ".join(f"{number} {line}" for number, line in enumerate(legend, start=1)) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _inline(text: str) -> str:
    """Text with `code` and *emphasis*, escaped."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]*)`", r"<code>\1</code>", escaped)
    return re.sub(r"(?<![\w*])\*(\w[^*<]*)\*(?![\w*])", r"<em>\1</em>", escaped)


def page(blocks: Sequence[Block]) -> str:
    """The HTML page: style and pictures are in it."""
    parts: list[str] = []
    drawn: list[str] = []

    def flush() -> None:
        if drawn:
            parts.append(f'<div class="pictures">{"".join(drawn)}</div>')
            drawn.clear()

    for block in blocks:
        if not isinstance(block, Picture):
            flush()
        match block:
            case Heading(text, level):
                parts.append(f"<h{level}>{_inline(text)}</h{level}>")
            case Text(text):
                parts.append(f"<p>{_inline(text)}</p>")
            case Listing(lines):
                parts.append(_list("ul", lines))
            case Table(head, lines):
                parts.append(_html_table(head, lines))
            case Picture(name, title, draw, legend):
                label = html.escape(title)
                image = pictures.svg(draw(), name).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
                below = _list("ol", legend) if legend else ""
                drawn.append(f"<figure><figcaption>{label}</figcaption>{image}{below}</figure>")
    flush()
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(TITLE)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(TITLE)}</h1>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _list(tag: str, lines: Sequence[str]) -> str:
    return f"<{tag}>{''.join(f'<li>{_inline(line)}</li>' for line in lines)}</{tag}>"


def _html_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = []
    for line in lines:
        marks = [mark for mark in ("failed", "noisy") if any(c.startswith(mark) for c in line)]
        cells = "".join(f"<td>{_inline(cell)}</td>" for cell in line)
        rows.append(f"<tr{f' class={marks[0]}' if marks else ''}>{cells}</tr>")
    heads = "".join(f"<th>{_inline(cell)}</th>" for cell in head)
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
