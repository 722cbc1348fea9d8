"""Draw the book's small figures to play with: for each, a strip of frames, a still picture, and what its sliders say.

    python tools/play.py [NAME ...]

writes book/_static/play/NAME.webp, NAME.png and NAME.json, from the shipped network, on the CPU, in minutes; without a
name, all of FIGURES. A chapter shows one with the directive {play} (book/_ext/play.py). To add a figure, write a function
here that returns it, and name it in FIGURES.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ddimlib import (
    LabelledDenoiser,
    SeededNoise,
    bundled_sample,
    ddim,
    invert,
    last,
    lerp,
    load_pretrained,
    slerp,
    timesteps,
)
from ddimlib.denoisers import predict_noise
from ddimlib.plotting import image_grid
from ddimlib.provenance import provenance
from ddimlib.storage import write_json

FOLDER = Path(__file__).resolve().parent.parent / "book" / "_static" / "play"
COLUMNS = 8
WIDEST = 16383  # pixels, in a WebP


@dataclass
class Slider:
    """One slider: what it is called, what it says at each of its stops, and the stop where it starts."""

    name: str
    stops: Sequence[str]
    start: int


@dataclass
class Figure:
    """One or two sliders, and what to draw where they stand.

    draw(i) or draw(i, j) returns the images of one frame, in [-1, 1], [N, 1, H, W], laid out in rows of COLUMNS, and a
    remark on this frame, which may be empty. The frames of all stops have the same N.
    """

    sliders: list[Slider]
    draw: Callable[..., tuple[Tensor, str]]


@cache
def network():
    return load_pretrained("mnist")


@cache
def digits() -> tuple[Tensor, Tensor]:
    """One test image of each of the classes 0 to 7, and these labels."""
    images, labels = bundled_sample("mnist")
    chosen = torch.stack([(labels == label).nonzero()[0, 0] for label in range(COLUMNS)])
    return images[chosen], labels[chosen]


def noise(seed: int, n: int = COLUMNS) -> Tensor:
    return SeededNoise.from_seed(seed, n).initial((1, 28, 28))


def forward() -> Figure:
    """Above, x_t: digits on their way to noise. Below, what the network still makes out in it."""
    model, schedule = network()
    images, labels = digits()
    times = list(range(0, schedule.T + 1, 50))

    def draw(i: int) -> tuple[Tensor, str]:
        x_t = schedule.add_noise(images, times[i], noise(0))
        guess = images
        if times[i] > 0:
            eps = predict_noise(LabelledDenoiser(model, labels), x_t, times[i])
            guess = schedule.predict_x0(x_t, times[i], eps)
        share = schedule.alpha_bar[times[i]]
        return torch.cat([x_t, guess]), f"{share.sqrt():.2f} of the image and {(1 - share).sqrt():.2f} of the noise"

    return Figure([Slider("time t", [str(t) for t in times], 6)], draw)


def steps() -> Figure:
    """The same eight x_T, decoded with few or many steps, at each of the four spacings."""
    model, schedule = network()
    _, labels = digits()
    spacings = ["leading", "linspace", "trailing", "quadratic"]
    counts = [1, 2, 3, 4, 5, 7, 10, 15, 20, 50, 100]

    def draw(i: int, j: int) -> tuple[Tensor, str]:
        visited = timesteps(schedule.T, counts[j], spacings[i])
        named = visited if len(visited) <= 7 else [*visited[:4], "…", *visited[-2:]]
        x_0 = last(ddim(LabelledDenoiser(model, labels), schedule, noise(1), visited))
        return x_0, "visits t = " + ", ".join(map(str, named))

    return Figure([Slider("spacing", spacings, 1), Slider("steps S", [str(S) for S in counts], 4)], draw)


def eta() -> Figure:
    """Two x_T, one a row, each decoded eight times with other step noise: how much does x_T decide?"""
    model, schedule = network()
    etas = [0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
    counts = [5, 10, 20, 50, 100]

    def draw(i: int, j: int) -> tuple[Tensor, str]:
        x_T = noise(2, 2).repeat_interleave(COLUMNS, 0)
        z = SeededNoise.from_seed(3, 2 * COLUMNS)
        x_0 = last(ddim(model, schedule, x_T, counts[j], etas[i], z))
        spread = x_0.unflatten(0, (2, COLUMNS)).std(1).square().mean().sqrt()
        return x_0, f"pixels of one row differ by {spread:.2f} (standard deviation)"

    return Figure(
        [Slider("η", [f"{value:g}" for value in etas], 0), Slider("steps S", [str(S) for S in counts], 2)], draw
    )


def slerp_lerp() -> Figure:
    """From one latent to another: above on the great circle, below on the straight line; without labels, or with."""
    model, schedule = network()
    _, labels = digits()
    denoisers = {"none": model, "0 to 7": LabelledDenoiser(model, labels.repeat(2))}
    weights = [i / 24 for i in range(25)]

    def draw(i: int, j: int) -> tuple[Tensor, str]:
        a, b = noise(4), noise(5)
        x_T = torch.cat([slerp(a, b, weights[j]), lerp(a, b, weights[j])])
        x_0 = last(ddim(list(denoisers.values())[i], schedule, x_T, 20))
        lengths = [half.flatten(1).norm(dim=1).mean() / 28 for half in x_T.chunk(2)]
        return x_0, f"length of the latent: {lengths[0]:.2f} above, {lengths[1]:.2f} below (true noise: 1)"

    return Figure([Slider("labels", list(denoisers), 0), Slider("weight u", [f"{w:.2f}" for w in weights], 12)], draw)


def round_trip() -> Figure:
    """Four rows: the image, its code, the image decoded from it, and the error (grey is none)."""
    model, schedule = network()
    images, labels = digits()
    ways = {"explicit": 0, "one iteration": 1, "three iterations": 3}
    counts = [2, 3, 5, 10, 20, 50, 100]

    def draw(i: int, j: int) -> tuple[Tensor, str]:
        denoiser = LabelledDenoiser(model, labels)
        code = last(invert(denoiser, schedule, images, counts[j], list(ways.values())[i]))
        decoded = last(ddim(denoiser, schedule, code, counts[j]))
        error = decoded - images
        remark = (
            f"error of a pixel {error.square().mean().sqrt():.3f}, spread of the code {code.std():.2f} (true noise: 1)"
        )
        return torch.cat([images, code, decoded, error]), remark

    return Figure([Slider("inversion", list(ways), 0), Slider("steps S", [str(S) for S in counts], 3)], draw)


FIGURES = {"forward": forward, "steps": steps, "eta": eta, "slerp": slerp_lerp, "round-trip": round_trip}


def picture(images: Tensor) -> Image.Image:
    """One frame, grey: a row of COLUMNS images, or several."""
    return Image.fromarray(image_grid(images, COLUMNS)[0].numpy())


def write(name: str, folder: Path = FOLDER) -> None:
    """Draw every frame of a figure, and write its three files."""
    figure = FIGURES[name]()
    stops = [range(len(slider.stops)) for slider in figure.sliders]
    drawn = [figure.draw(*place) for place in itertools.product(*stops)]
    frames = [picture(images) for images, _ in drawn]
    width, height = frames[0].size
    columns, rows = len(stops[-1]), len(frames) // len(stops[-1])
    if max(columns * width, rows * height) > WIDEST:
        raise ValueError(f"{name} is too large for one strip: {columns} × {rows} frames of {width} × {height}")
    strip = Image.new("L", (columns * width, rows * height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (i % columns * width, i // columns * height))
    folder.mkdir(parents=True, exist_ok=True)
    strip.save(folder / f"{name}.webp", lossless=True, method=6)
    first = 0
    for slider in figure.sliders:
        first = first * len(slider.stops) + slider.start
    frames[first].resize((3 * width, 3 * height), Image.Resampling.NEAREST).save(folder / f"{name}.png", optimize=True)
    facts = {
        "frame": [width, height],
        "sliders": [vars(slider) for slider in figure.sliders],
        "remarks": [remark for _, remark in drawn],
        "made": {**provenance(), "command": f"python tools/play.py {name}"},
    }
    write_json(folder / f"{name}.json", facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}; default: all")
    names = parser.parse_args().names or list(FIGURES)
    if unknown := set(names) - set(FIGURES):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    for name in names:
        write(name)
        print(f"wrote {name}")
