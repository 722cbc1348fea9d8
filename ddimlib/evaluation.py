"""Tables measured on a trained network, with their provenance: quality against steps and η, and the round trip."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddimlib.acceleration import accelerate
from ddimlib.denoisers import LabelledDenoiser, VelocityDenoiser
from ddimlib.inversion import invert
from ddimlib.metrics import InceptionDistance, Judge
from ddimlib.samplers import Eta, ddim, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import write_json
from ddimlib.timesteps import Spacing, timesteps

RESULTS = Path(__file__).parent / "results"


def load_results(name: str) -> dict[str, Any]:
    """A table that was measured beforehand and is shipped with the library, such as "mnist-steps".

    Returns:
        What :func:`evaluate` returned when the table was made.

    Raises:
        ValueError: when no table of that name is shipped.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise ValueError(
            f"no results {name!r}; shipped are: {', '.join(sorted(p.stem for p in RESULTS.glob('*.json')))}"
        )
    return json.loads(path.read_text())


def weights_digest(model: torch.nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all weights: which network a table belongs to."""
    return _digest(model.state_dict())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def evaluation_labels(n: int, num_classes: int) -> Tensor:
    """Labels 0, 1, …, num_classes - 1, 0, 1, …: every class equally often, int64 [n]."""
    return torch.arange(n) % num_classes


def evaluate(
    model: VelocityDenoiser,
    schedule: NoiseSchedule,
    judge: Judge,
    steps: Sequence[int],
    etas: Sequence[Eta],
    n: int,
    out: Path,
    facts: dict[str, Any],
    spacing: Spacing = "linspace",
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = True,
    inception: InceptionDistance | None = None,
    bf16: bool = False,
    compile: bool = False,
) -> dict[str, Any]:
    """Sample n images for every pair (S, η), from the same starting noise, and judge them.

    The table is written after every row. A table that is already at `out` is continued when it was made with the same
    network and settings, so an interrupted run loses one row at most.

    Args:
        model: a network with labels; they are asked for in turn, see :func:`evaluation_labels`.
        schedule, judge: the network's schedule; the judge of its data.
        steps, etas: the rows are their product.
        n: images a row, at least 2.
        out: the JSON file.
        facts: provenance; joins the list under "provenance", which has one entry for each command that made rows.
        spacing, guidance, seed, batch_size, progress: see :func:`ddimlib.sample`.
        inception: measures FID, too.
        bf16, compile: see :func:`ddimlib.accelerate`, which on a GPU captures a CUDA graph, too. The judge stays in float32.

    Returns:
        The table: "settings", "judge", "provenance", and "rows" of steps, eta, accuracy (in [0, 1]), frechet, fid (with
        `inception`), seconds.

    Raises:
        ValueError: when the file at `out` belongs to another network or other settings.
    """
    settings = {
        "weights": weights_digest(model), "samples": n, "spacing": spacing, "guidance": guidance, "seed": seed,
    }  # fmt: skip
    settings |= {"bf16": True} if bf16 else {}
    settings |= {"fid_real_images": inception.real_images} if inception else {}
    table = {"settings": settings, "judge": judge.facts} | begin_or_continue(out, settings, facts)
    done = {(row["steps"], row["eta"]) for row in table["rows"]}
    labels = evaluation_labels(n, model.num_classes or 1)
    network = accelerate(model, bf16=bf16, compile=compile)
    for S, eta in ((S, eta) for S in steps for eta in etas if (S, eta) not in done):
        begin = time.perf_counter()
        images = sample(
            network, schedule, (n, *model.image_shape), S, eta, spacing, seed,
            labels=labels, guidance=guidance, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        row = {
            "steps": S,
            "eta": eta,
            "accuracy": round(judge.accuracy(images, labels), 4),
            "frechet": round(judge.frechet_distance(images), 4),
            **({"fid": round(inception(images), 3)} if inception else {}),
            "seconds": round(seconds, 1),
        }
        table["rows"].append(row)
        write_json(out, table)
    return table


def reconstruct(
    model: VelocityDenoiser,
    schedule: NoiseSchedule,
    images: Tensor,
    labels: Tensor,
    steps: Sequence[int],
    iterations: Sequence[int],
    out: Path,
    facts: dict[str, Any],
    spacing: Spacing = "quadratic",
    batch_size: int = 100,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode and decode real images for every pair (S, iterations), and measure the round trip.

    The measure is the one of Song et al. 2021, table 2: the mean square error of a pixel, for pixels in [0, 1]. Written
    and continued row by row as in :func:`evaluate`.

    Args:
        model, schedule: a network with labels, and its schedule.
        images, labels: [N, C, H, W] in [-1, 1], and int64 [N].
        steps, iterations: the rows are their product; 0 iterations is the explicit inverse, see :func:`ddimlib.invert`.
        out, facts: the JSON file, and provenance, as in :func:`evaluate`.
        spacing: see :func:`ddimlib.timesteps`; the paper's for CIFAR-10 is quadratic.
        batch_size: images at a time.
        progress: show a progress bar for each row.

    Returns:
        The table: "settings", "provenance", and "rows" of steps, iterations, mse (pixels in [0, 1]), norm (of a code, on
        average; √(C H W) for noise), residual (the largest of all; null when explicit), seconds.

    Raises:
        ValueError: when the file at `out` belongs to another network, other images or another spacing.
    """
    settings = {
        "weights": weights_digest(model), "images": _digest({"images": images, "labels": labels}),
        "samples": len(images), "spacing": spacing,
    }  # fmt: skip
    table = {"settings": settings} | begin_or_continue(out, settings, facts)
    done = {(row["steps"], row["iterations"]) for row in table["rows"]}
    device = next(model.parameters()).device
    for S, k in ((S, k) for S in steps for k in iterations if (S, k) not in done):
        visited, begin = timesteps(schedule.T, S, spacing), time.perf_counter()
        residuals: list[float] = []
        squares = norms = 0.0
        batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
        with tqdm(total=len(batches) * 2 * S, disable=not progress, desc=f"S = {S}, {k} iterations") as bar:
            for part, asked in batches:
                x_0, denoiser = part.to(device), LabelledDenoiser(model, asked)
                code = again = x_0
                for code in invert(denoiser, schedule, x_0, visited, k, residuals):  # noqa: B007, the last one is kept
                    bar.update()
                for again in ddim(denoiser, schedule, code, visited):  # noqa: B007
                    bar.update()
                norms += float(code.flatten(1).norm(dim=1).double().sum())
                squares += float(((again - x_0) / 2).square().double().sum())
        row = {
            "steps": S,
            "iterations": k,
            "mse": float(f"{squares / images.numel():.3g}"),
            "norm": round(norms / len(images), 2),
            "residual": float(f"{max(residuals):.2g}") if k else None,
            "seconds": round(time.perf_counter() - begin, 1),
        }
        table["rows"].append(row)
        write_json(out, table)
    return table


def print_provenance(table: dict[str, Any]) -> None:
    """Print the commands that made a table, and where and when each was run."""
    for facts in table["provenance"]:
        print(f"command  {facts['command']}")
        print(f"device   {facts['device']}, torch {facts['torch']}, {facts['date']}")


def begin_or_continue(out: Path, settings: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Rows and provenance of the table at `out`, with `facts` added: what an interrupted command goes on with.

    Raises:
        ValueError: when the table there was made with other settings.
    """
    if not out.exists():
        return {"provenance": [facts], "rows": []}
    found = json.loads(out.read_text())
    if found.get("settings") != settings:
        raise ValueError(
            f"{out} holds a table made with {found.get('settings')}, not with {settings}; "
            "choose another file, or remove that one"
        )
    return {"provenance": [f for f in found["provenance"] if f != facts] + [facts], "rows": found["rows"]}
