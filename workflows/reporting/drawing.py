"""matplotlib as a drawing board for web pages: figures measured in pixels, coloured by CSS.

Every colour is written as a stand-in while drawing and comes out as `var(--name)`, so that one
plot serves light, dark and print; text stays text, in the page's font. An SVG has no
background, no date and no reference to anything outside itself.
"""

from __future__ import annotations

import html
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("ink", "muted", "line", "page", "accent", "warm", "quiet", "alternative")
"""The CSS variables that a plot uses; the page gives them for light and for dark."""

TEXT = 12.0
SMALL = 11.0
"""Sizes of text, in pixels."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": SMALL,
    "axes.unicode_minus": True,
    "path.simplify": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """The settings under which all that is drawn must be drawn: plain text, no typesetting."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib only measures with its own font; the page's fonts do the drawing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def new_figure(*, width: float, height: float) -> Figure:
    """An empty figure of so many pixels."""
    from matplotlib.figure import Figure

    # matplotlib's SVG has 72 dots to the inch; so a dot is a pixel here.
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def add_axes(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes with margins in pixels, no frame and quiet tick labels."""
    width, height = figure.get_size_inches() * 72
    across, down = width - left - right, height - top - bottom
    axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
    axes.set_frame_on(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=ink("muted"), labelsize=SMALL, pad=5)
    return axes


def ink(name: str) -> str:
    """What to draw with so that the page's `--name` is seen."""
    number = COLOURS.index(name) + 1
    return f"#0{number}f0e{number}"


def shorten(text: str, *, limit: int) -> str:
    """One printable line of at most `limit` characters; names often differ at their ends."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(line) <= limit:
        return line
    end = (limit - 1) // 3
    return f"{line[: limit - 1 - end]}…{line[-end:]}"


def text_width(text: str, *, size: float = TEXT) -> float:
    """Pixels that a label needs at most in the usual fonts; East Asian characters are wide."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return (wide + (len(text) - wide) * 0.58) * size


def to_svg(figure: Figure, *, label: str) -> str:
    """A figure as an SVG element that takes colours and fonts from the page around it.

    `label` is what a screen reader says; with the width it makes the ids inside unique.
    """
    import matplotlib

    buffer = io.StringIO()
    width, height = figure.get_size_inches() * 72
    with matplotlib.rc_context({"svg.hashsalt": f"{label} {width:.0f}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    for useless in (r"^.*?(?=<svg)", r"<metadata>.*?</metadata>", r"<style.*?</style>"):
        text = re.sub(useless, "", text, count=1, flags=re.DOTALL)
    # Within text, `<` and `>` are escaped: what is between them here is markup, never data.
    text = re.sub(r"<[^<>]*>", _themed, text)
    opening = (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="--width: {width:.0f}px" '
        f'role="img" aria-label="{html.escape(label)}">'
    )
    text = re.sub(r"<svg[^<>]*>", lambda _: opening, text, count=1)
    return re.sub(r"\n\s*", "\n", text).strip()


def _themed(tag: re.Match[str]) -> str:
    """A tag with the page's colours and fonts instead of matplotlib's, and no idle id."""
    text = re.sub(r'^<g id="[^"]*"', "<g", tag[0])
    text = re.sub(r"font-family: [^;\"]*(; )?", "", text)
    text = re.sub(r"font: ([^\"]*?)(\d[\d.]*px)[^;\"]*", _font, text)
    return re.sub(r"#0(\d)f0e\1", lambda found: f"var(--{COLOURS[int(found[1]) - 1]})", text)


def _font(found: re.Match[str]) -> str:
    weight = re.search(r"bold|[1-9]00", found[1])
    return f"font-size: {found[2]}" + (f"; font-weight: {weight[0]}" if weight else "")
