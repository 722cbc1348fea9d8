"""Draw the cover's moving picture with the shipped network: `python tools/cover.py` writes book/_static/cover.webp.

Frames below one another, from noise to digits; where an image is dark the picture is transparent, so that it suits any ground.
The last frame also stands alone, in cover-still.webp: before the film, and instead of it where no motion is wanted.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddimlib import LabelledDenoiser, SeededNoise, ddim, load_pretrained, timesteps

COLUMNS, ROWS, FRAMES = 10, 3, 20
SEED = 14
ORANGE, BLUE = np.array([0xD5, 0x5E, 0x00]), np.array([0x00, 0x86, 0xC8])  # as in the logo
STATIC = Path(__file__).resolve().parent.parent / "book" / "_static"


def states() -> torch.Tensor:
    """x_T and what the sampler makes of it, [FRAMES, ROWS * COLUMNS, 28, 28]; digits go up from 0, and again after 9."""
    model, schedule = load_pretrained("mnist")
    n = ROWS * COLUMNS
    x_T = SeededNoise.from_seed(SEED, n=n).initial(model.image_shape)
    digits = LabelledDenoiser(model, [i % 10 for i in range(n)])
    path = list(ddim(digits, schedule, x_T, timesteps(schedule.T, FRAMES - 1)))
    return torch.stack([x_T, *path])[-FRAMES:, :, 0]


def picture(x: torch.Tensor) -> Image.Image:
    """Frames [F, N, 28, 28] in [-1, 1] as one image: alpha is brightness, colour sweeps from orange to blue."""
    frames = x.unflatten(1, (ROWS, COLUMNS)).permute(0, 1, 3, 2, 4).flatten(3).flatten(0, 2).numpy()
    alpha = np.clip((frames + 1) / 2, 0, 1)
    sweep = np.linspace(0, 1, frames.shape[1])[None, :, None]
    colour = np.broadcast_to(ORANGE + sweep * (BLUE - ORANGE), (*frames.shape, 3))
    return Image.fromarray(np.dstack([colour, 255 * alpha]).round().astype(np.uint8), "RGBA")


if __name__ == "__main__":
    frames = states()
    for name, shown in (("cover.webp", frames), ("cover-still.webp", frames[-1:])):
        picture(shown).save(STATIC / name, quality=50, alpha_quality=30, method=6)
        print(f"{name}: {(STATIC / name).stat().st_size / 1000:.0f} kB")
