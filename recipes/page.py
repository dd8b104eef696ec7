"""One HTML file that needs nothing else: pictures stand in it, light or dark as the reader has it.

A page is well-formed XML too, and loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from . import panels
from .curves import figure

#: Drawn colours, and the variables of the page that stand for them.
_VARIABLES = {
    panels.INK: "ink", panels.GRID: "grid", panels.TRAIN: "train", panels.CHECK: "check", panels.BAND: "band"
}  # fmt: skip
_STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #ffffff; --ink: #23282d; --soft: #5d6670;
  --line: #dde2e7; --grid: #e3e7eb; --train: #1b6ac8; --check: #c8501c; --band: #2e7d6a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1e2226; --ink: #e4e7ea; --soft: #9aa4ae;
  --line: #343a40; --grid: #33393f; --train: #6aa9f4; --check: #f0915f; --band: #5fbfa6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 16px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5em; margin: .2em 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin: 1.6em 0 .6em; }
p { margin: .3em 0 .8em; max-width: 75ch; }
.soft, figcaption { color: var(--soft); }
.tiles, .panels, .small { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); }
.panels { grid-template-columns: repeat(auto-fit, minmax(min(100%, 470px), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); }
.tile, figure, .table { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0; }
.tile { padding: 8px 12px; } .tile b { display: block; font-size: 1.35em; font-weight: 600; white-space: nowrap; }
.tile span { color: var(--soft); font-size: .85em; }
figure { padding: 10px; min-width: 0; }
figcaption { font-size: .85em; overflow-wrap: anywhere; } figcaption b { color: var(--ink); font-size: 1.1em; }
.small figure { padding: 6px 8px; }
svg, img { display: block; width: 100%; height: auto; margin-top: 6px; }
img { background: #fff; border-radius: 4px; }
.missing { padding: 22px 12px; text-align: center; color: var(--soft); }
.table { overflow-x: auto; max-width: 100%; } table { border-collapse: collapse; width: 100%; font-size: .9em; }
td, th { padding: 4px 10px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
tr:first-child > * { border-top: 0; } th { font-weight: 600; }
.facts td, .facts th { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.facts th { font-weight: 400; color: var(--soft); width: 8.5em; }
code { font: .92em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
"""


def svg(draw: Callable[[Any], None], name: str, width: float = 4.8, height: float = 2.9) -> str:
    """What ``draw`` draws into axes of so many inches, as an element of a page, in the page's colours.

    Args:
        draw: is given the axes.
        name: what it shows; read aloud, and no other picture of the page may have the same.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Fixed margins: finding the right ones takes longer than all the rest.
    made = Figure(figsize=(width, height))
    axes = made.add_axes((0.6 / width, 0.4 / height, 1 - 0.7 / width, 1 - 0.56 / height))
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        draw(axes)
        made.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawn = file.getvalue()
    box = re.search(r'viewBox="[^"]*"', drawn)
    assert box is not None
    inside = drawn[drawn.index(">", box.end()) + 1 :]  # without the size, which is the page's to choose
    inside = re.sub(r"<metadata>.*?</metadata>", "", inside, flags=re.DOTALL).replace("xlink:href", "href")
    used = set(re.findall(r"#([\w-]+)", inside))
    inside = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", inside)
    inside = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", inside)
    for colour, variable in _VARIABLES.items():
        inside = inside.replace(colour, f"var(--{variable})")
    return f'<svg {box[0]} role="img" aria-label="{escape(name)}">{inside.strip()}'


def picture(draw: Callable[[Any], None], name: str, width: float, height: float, dpi: int = 130) -> str:
    """What ``draw`` draws into axes of so many inches, as a picture of points in a page, always on white."""
    made, (axes,) = figure(1, height, width=width)
    draw(axes)
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png(made, dpi)).decode()}"/>'


def png(made: Any, dpi: int) -> bytes:
    """A figure as a PNG of at most 256 colours, which pictures like these hardly exceed."""
    from PIL import Image

    file = io.BytesIO()
    made.savefig(file, dpi=dpi)
    small = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def heading(title: str, level: int = 2) -> str:
    """A heading; the page's own is of level 1."""
    return f"<h{level}>{escape(title)}</h{level}>"


def text(words: str, kind: str = "") -> str:
    """A paragraph; of kind ``"soft"`` in a quiet colour."""
    return f'<p class="{kind}">{escape(words)}</p>'


def panel(title: str, body: str, note: str = "") -> str:
    """A picture with its title and what is to be said of it, plain text."""
    return f"<figure><figcaption><b>{escape(title)}</b> {escape(note)}</figcaption>{body}</figure>"


def missing(why: str) -> str:
    """In place of a picture: why it is not there, and how to get it."""
    return f'<div class="missing">{escape(why)}</div>'


def grid(kind: str, items: Sequence[str]) -> str:
    """Things side by side, as many as there is room for: ``"tiles"``, ``"panels"`` or ``"small"`` pictures."""
    return f'<div class="{kind}">{"".join(items)}</div>'


def tile(value: str, what: str) -> str:
    """A figure, and what it is of."""
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="table"><table class="facts">{"".join(cells)}</table></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of numbers."""
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f'<div class="table"><table>{"".join(lines)}</table></div>'


def document(title: str, parts: Sequence[str]) -> str:
    """The whole file."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join([*parts, "</body></html>\n"])
    )
