"""Figures in notebooks are drawn twice, for light pages and for dark ones, with twice as many pixels as they take up.

The light picture is the output itself; its dark twin stands in the output's metadata, from where the book's build takes it.
"""

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageChops, ImageStat

# what a kernel is started with, so that it draws so: nothing of it is seen in the notebook
_LINE = "import sys; sys.path.insert(0, {!r}); __import__('twin').draw_twice(); del sys.path[0], sys"
KERNEL_ARGUMENTS = [f"--IPKernelApp.exec_lines={_LINE.format(str(Path(__file__).resolve().parent))}"]

DARK_GROUND = "#111418"
"""The colour of the dark page on which the twin lies."""

COLOR_MAPS = {
    "Greys": "Greys_r", "binary": "binary_r", "gist_yarg": "gray",
    "RdBu": "berlin_r", "RdBu_r": "berlin", "bwr": "berlin", "seismic": "berlin", "coolwarm": "berlin",
}  # fmt: skip
"""Colour maps in which white means "nothing", and those in which the dark page's colour means it."""

_PROPERTIES = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def draw_twice() -> None:
    """Let IPython show figures in both versions. Does nothing outside of IPython."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()  # type: ignore[no-untyped-call]
    if shell is not None:
        plt.switch_backend(mpl.get_backend())  # a notebook's, loaded later, would set its own way of showing figures
        shell.display_formatter.formatters["image/png"].for_type(Figure, pictures)


def pictures(figure: Figure) -> tuple[bytes, dict[str, Any]]:
    """The figure as PNG for a light page, and what belongs to it: width and height on the page in pixels, "dark" in base64."""
    light = png(figure)
    width, height = Image.open(io.BytesIO(light)).size
    with darkened(figure):
        dark = png(figure)
    return light, {"width": width // 2, "height": height // 2, "dark": base64.b64encode(dark).decode("ascii")}


def png(figure: Figure) -> bytes:
    """A figure at 2x as PNG, with a palette of 256 colours unless one would see the difference."""
    figure.draw_without_rendering()  # the first layout of a figure is not yet its last
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * figure.dpi, bbox_inches="tight", facecolor=figure.get_facecolor())
    image = Image.open(file).convert("RGB")
    fewer = image.quantize(256, dither=Image.Dither.NONE)
    difference = ImageStat.Stat(ImageChops.difference(image, fewer.convert("RGB"))).rms
    file = io.BytesIO()
    (fewer if max(difference) < 1.5 else image).save(file, format="png", optimize=True)
    return file.getvalue()


@contextmanager
def darkened(figure: Figure) -> Iterator[None]:
    """Within the block the figure has colours for a dark page; afterwards it is as it was."""
    undo: list[tuple[Callable[[Any], Any], Any]] = []

    def change(setter: Callable[[Any], Any], old: Any, new: Any) -> None:
        undo.append((setter, old))
        setter(new)

    # a ground of another colour than white means something, and stays one
    white = [axes.patch for axes in figure.axes if axes.get_facecolor()[:3] == (1, 1, 1)]
    grounds = {id(figure.patch): DARK_GROUND, **{id(patch): "none" for patch in white}}
    boxes = [text.get_bbox_patch() for text in figure.findobj(Text)]
    for artist in [*figure.findobj(lambda artist: not isinstance(artist, (Figure, Axes))), *filter(None, boxes)]:
        if id(artist) in grounds:
            change(artist.set_facecolor, artist.get_facecolor(), grounds[id(artist)])  # type: ignore[attr-defined]
            continue
        for name, value in list(_colors(artist)):  # all before the first is changed: one may follow another
            colors = [dark_color(color) for color in to_rgba_array(value)]
            change(getattr(artist, f"set_{name}"), value, colors[0] if is_color_like(value) else colors)
        if (cmap := getattr(artist, "cmap", None)) is not None and cmap.name in COLOR_MAPS:
            change(artist.set_cmap, cmap, COLOR_MAPS[cmap.name])  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for setter, old in reversed(undo):
            setter(old)


def _colors(artist: Artist) -> Iterator[tuple[str, Any]]:
    """The names and values of an artist's colours, as far as it has any that can be set."""
    for name in _PROPERTIES:
        getter, setter = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
        if getter is None or setter is None or getattr(artist, "get_array", lambda: None)() is not None:
            continue
        value = getter()
        try:
            if len(to_rgba_array(value)):
                yield name, value
        except (TypeError, ValueError):  # "auto", or values that become colours when they are drawn
            continue


def dark_color(color: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """A colour for dark ground: greys change places, black becoming almost white; the others become light enough to be seen."""
    red, green, blue, alpha = (float(part) for part in color)
    darkest, lightest = min(red, green, blue), max(red, green, blue)
    lightness = (darkest + lightest) / 2
    if lightest - darkest < 0.08:
        ground = np.array(mpl.colors.to_rgb(DARK_GROUND))
        red, green, blue = (float(part) for part in ground + (1 - lightness) * (0.9 - ground))
    elif lightness < 0.6:
        red, green, blue = (part + 0.35 * (1 - part) for part in (red, green, blue))
    return red, green, blue, alpha
