"""The book's figures in one style: rows and grids of images, and a palette that colour-blind readers can tell apart."""

import builtins
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ddimlib.arguments import KindError, check_batch, check_floats, check_int, describe
from ddimlib.data import to_bytes
from ddimlib.storage import check_output, write_atomically

COLORS = {
    "blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "pink": "#CC79A7", "sky": "#56B4E9", "yellow": "#E69F00",
    "grey": "#6B6B6B",
}  # fmt: skip
"""Okabe and Ito's palette (2008); the first five are the default cycle, used together with different line styles."""


LARGEST_PICTURE = 2**26
"""Pixels of a picture that is written, at most: more takes minutes, and gigabytes of memory."""

MOVING = ("GIF", "WEBP")
"""Formats of films."""


def use_book_style() -> None:
    """Set matplotlib to the book's style: no box, light grid, letters that a phone can show."""
    plt.style.use(Path(__file__).parent / "book.mplstyle")
    lines = plt.cycler(linestyle=["-", "--", "-.", ":", (0, (5, 1))])
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=list(COLORS.values())[:5]) + lines


def image_grid(images: Tensor, columns: int, border: int = 2) -> Tensor:
    """One picture made of many: images in [-1, 1], [N, C, H, W], to bytes [3, height, width], row by row.

    Around each image are `border` grey pixels.
    """
    check_floats("images", images)
    check_batch("images", images)
    n, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, got {channels}; show one of them as images[:, :1]")
    columns, border = min(check_int("columns", columns, 1), n), check_int("border", border, 0)
    rows = -(-n // columns)
    # each image brings its left and upper border; the others close the picture
    cells = F.pad(to_bytes(images.detach().cpu()).expand(n, 3, height, width), (border, 0, border, 0), value=128)
    cells = F.pad(cells, (0, 0, 0, 0, 0, 0, 0, rows * columns - n), value=128).unflatten(0, (rows, columns))
    return F.pad(cells.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2), (0, border, 0, border), value=128)


def picture_format(path: str | Path) -> str:
    """The format that the end of a picture's name stands for, such as "PNG".

    Raises:
        ValueError: when pillow can write none.
    """
    Image.init()
    name = Image.registered_extensions().get(Path(path).suffix.lower())
    if name not in Image.SAVE:
        raise ValueError(f"{path} is not the name of a picture that can be written; use .png, .jpg, .webp or .gif")
    return name


def check_picture(path: str | Path, shape: Sequence[int], columns: int, scale: int, border: int = 2) -> None:
    """Raise now, before the images of this shape [N, C, H, W] are drawn, if :func:`save_images` could not write them."""
    name, columns = picture_format(path), min(check_int("columns", columns, 1), shape[0])
    scale, rows = check_int("scale", scale, 1), -(-shape[0] // columns)
    width, height = (scale * (n * (side + border) + border) for n, side in ((columns, shape[-1]), (rows, shape[-2])))
    if max(width, height) > (16_383 if name == "WEBP" else 65_500) or width * height > LARGEST_PICTURE:
        fix = "lower --scale, or change --columns or --n"
        raise ValueError(f"{path} would have {width}×{height} pixels, more than can be written; {fix}")


def save_images(images: Tensor, path: str | Path, columns: int = 10, scale: int = 1, border: int = 2) -> None:
    """Write images in [-1, 1], [N, C, H, W], as one picture: a grid of so many columns, each pixel `scale` times as large.

    Raises:
        ValueError: when an argument is out of range, or the name's end is no picture's; OSError: when it cannot be written.
    """
    save_animation([images], path, columns, scale, border)


def save_animation(
    states: Sequence[Tensor], path: str | Path, columns: int = 10, scale: int = 1, border: int = 2
) -> None:
    """Write states, each [N, C, H, W] in [-1, 1], as the frames of one moving picture (.gif or .webp) that rests at the end.

    Args, errors: as for :func:`save_images`.
    """
    name, path, states = picture_format(path), check_output(path), list(states)
    if not states or (len(states) > 1 and name not in MOVING):
        raise ValueError(f"{path} cannot hold {len(states)} frames; a film has some, and ends in .gif or .webp")
    for x in states:
        check_floats("images", x)
        check_picture(path, x.shape, columns, scale, border)
    grids = [image_grid(x, columns, border).repeat_interleave(scale, 1).repeat_interleave(scale, 2) for x in states]
    frames = [Image.fromarray(grid.permute(1, 2, 0).numpy()) for grid in grids]
    options: dict[str, Any] = {"quality": 95} if name == "JPEG" else {}
    if len(frames) > 1:
        milliseconds = [80] * len(frames[1:]) + [2000]
        options |= {"save_all": True, "append_images": frames[1:], "loop": 0, "duration": milliseconds}
    buffer = io.BytesIO()
    frames[0].save(buffer, format=name, **options)
    write_atomically(path, buffer.getvalue())


def show_images(
    images: Tensor, columns: int = 10, title: str | None = None, width: float = 7.0, path: str | Path | None = None
) -> Figure:
    """Draw images in [-1, 1], [N, C, H, W], as a grid, without axes.

    A notebook shows the figure; from a script or a terminal, a window opens where there is a display.

    Args:
        images, columns: see :func:`image_grid`.
        title: above the grid.
        width: in inches.
        path: a file to leave the figure in, too.
    """
    grid = image_grid(images, columns)
    figure, axis = plt.subplots(figsize=(width, width * grid.shape[1] / grid.shape[2] + (0.3 if title else 0)))
    axis.imshow(grid.permute(1, 2, 0).numpy())
    axis.set_axis_off()
    if title:
        axis.set_title(title)
    if path is not None:
        figure.savefig(check_output(path))
    if not hasattr(builtins, "__IPYTHON__"):
        if plt.get_backend().lower() != "agg":
            plt.show(block=not hasattr(sys, "ps1"))
        elif path is None:
            fix = 'show_images(images, path="images.png") leaves a file'
            print(f"no display to show the images on; {fix}", file=sys.stderr)
    return figure


def show_rows(rows: Mapping[str, Tensor], title: str | None = None, width: float = 7.0) -> Figure:
    """Draw one row of images for each entry, its name at the left. Each value is [N, C, H, W] in [-1, 1]."""
    if not isinstance(rows, Mapping) or not rows:
        raise KindError(f"show_rows takes at least one row, {{name: images}}, got {describe(rows)}")
    columns = max(len(images) for images in rows.values())
    # shorter rows are filled up with white images
    filled = (F.pad(x.detach().cpu(), (0, 0, 0, 0, 0, 0, 0, columns - len(x)), value=1.0) for x in rows.values())
    grids = [image_grid(x, columns) for x in filled]
    picture = torch.cat([grids[0][:, :2], *(grid[:, 2:] for grid in grids)], dim=1)
    height = (width - 1) * picture.shape[1] / picture.shape[2] + (0.4 if title else 0.1)
    figure, axis = plt.subplots(figsize=(width, height))
    axis.imshow(picture.permute(1, 2, 0).numpy())
    row = (picture.shape[1] - 2) / len(grids)
    axis.set_yticks([2 + row * (i + 0.5) for i in range(len(grids))], list(rows))
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title)
    return figure


def plot_benchmark(table: Mapping[str, Any]) -> Figure:
    """Draw a table of `benchmarks/sampler.py`: the time of each sampler, in units of our plain one's.

    A panel for each batch size, a marker for each number of steps, bars from quartile to quartile.
    """
    rows = table["rows"]
    batches, counts = (sorted({row[key] for row in rows}) for key in ("batch", "steps"))
    names = list(dict.fromkeys(name for row in rows for name in row["samplers"]))
    size = (7.0, 0.9 + 0.32 * len(names))
    figure, axes = plt.subplots(1, len(batches), sharex=True, sharey=True, figsize=size, squeeze=False)
    styles = list(zip("osD^v", ("blue", "orange", "green", "pink", "sky"), strict=True))
    for axis, batch in zip(axes[0], batches, strict=True):
        axis.axvline(1, color=COLORS["grey"], linewidth=1, linestyle="--")
        for row in (row for row in rows if row["batch"] == batch):
            place = counts.index(row["steps"])
            marker, color = styles[place % len(styles)]
            for i, entry in ((names.index(name), entry) for name, entry in row["samplers"].items()):
                y = i + 0.22 * (place - (len(counts) - 1) / 2)
                axis.plot(entry["ratio_quartiles"], [y, y], "-", color=COLORS[color], linewidth=1.2)
                label = f"S = {row['steps']}" if i == 0 else None
                axis.plot(entry["ratio"], y, marker, color=COLORS[color], markersize=4.5, label=label)
        axis.set_title(f"batch {batch}", fontsize=9)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(left=0)
    figure.supxlabel("time of a run, in units of plain ddimlib's", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(counts))
    return figure
