"""How notebooks are compared. nbval compares text; here it learns to compare pictures, as the eye would."""

import base64
import io
import os
from functools import partial

import numpy as np
from PIL import Image
from twin import KERNEL_ARGUMENTS

try:
    import nbval.plugin
except ModuleNotFoundError:  # the library's own tests get by without it
    nbval = None

# On a GPU, convolutions would keep ten bits of each number (TF32), and stored outputs and closed forms differ in the third
# digit. Set before torch looks; notebooks' kernels inherit it.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

collect_ignore_glob = ["_build/*", "book/problem_sets/*"]  # problem sets are for the reader to complete

SIZE = (64, 64)
TOLERANCE = 0.02  # RMSE on a scale of 0 to 1: a changed line plot gives about 0.045, a repeated one 0


def picture(output) -> np.ndarray | None:
    """An output's PNG on white, averaged down to SIZE, in [0, 1]; None when it has none."""
    if "image/png" not in output.get("data", {}):
        return None
    image = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image.resize(SIZE, Image.Resampling.BOX), dtype=float) / 255


def difference(test_outputs, stored_outputs) -> str | None:
    """What is different about the pictures in two lists of outputs, in words; None when they agree."""
    test = [p for p in map(picture, test_outputs) if p is not None]
    stored = [p for p in map(picture, stored_outputs) if p is not None]
    if len(test) != len(stored):
        return f"{len(stored)} pictures are stored, {len(test)} were drawn"
    for i, (new, old) in enumerate(zip(test, stored, strict=True), start=1):
        rmse = np.sqrt(np.mean((new - old) ** 2))
        if rmse > TOLERANCE:
            return f"picture {i} differs from the stored one: RMSE {rmse:.3f}, allowed {TOLERANCE}"
    return None


if nbval is not None:
    nbval.kernel.start_new_kernel = partial(nbval.kernel.start_new_kernel, extra_arguments=KERNEL_ARGUMENTS)
    compare_text = nbval.plugin.IPyNbCell.compare_outputs

    def compare_text_and_pictures(cell, test, ref, skip_compare=None):
        if not compare_text(cell, test, ref, skip_compare):
            return False
        if found := difference(test, ref):
            cell.comparison_traceback.append(found)
            return False
        return True

    nbval.plugin.IPyNbCell.compare_outputs = compare_text_and_pictures
