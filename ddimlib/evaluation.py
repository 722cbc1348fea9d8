"""A table of quality against steps and η, measured on a trained network, with its provenance."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimlib.denoisers import VelocityDenoiser
from ddimlib.metrics import InceptionDistance, Judge
from ddimlib.samplers import Eta, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import write_json
from ddimlib.timesteps import Spacing

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
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
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
        facts: provenance, stored under "provenance".
        spacing, guidance, seed, batch_size, progress: see :func:`ddimlib.sample`.
        inception: measures FID, too.
        bf16: compute the network in bfloat16 where torch's autocast allows it; the judge stays in float32.

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
    table: dict[str, Any] = {"settings": settings, "judge": judge.facts, "provenance": facts, "rows": []}
    if out.exists():
        found = json.loads(out.read_text())
        if found.get("settings") != settings:
            raise ValueError(
                f"{out} holds a table made with {found.get('settings')}, not with {settings}; "
                "choose another file, or remove that one"
            )
        table["rows"] = found["rows"]
    done = {(row["steps"], row["eta"]) for row in table["rows"]}
    labels = evaluation_labels(n, model.num_classes or 1)
    for S, eta in ((S, eta) for S in steps for eta in etas if (S, eta) not in done):
        begin = time.perf_counter()
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=bf16):
            images = sample(
                model, schedule, (n, *model.image_shape), S, eta, spacing, seed,
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
