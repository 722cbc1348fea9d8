"""What `make weights` needs besides the package's own commands: means of several runs, tables of round trips, tables in cards.

python tools/weights.py average runs/a/model.safetensors runs/b/model.safetensors --out runs/mean
python tools/weights.py reconstruct --model mnist --out reconstruction.json
python tools/weights.py card runs/mnist/model.json --quality runs/mnist/quality.json
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tyro.conf import Positional
from tyro.extras import subcommand_cli_from_dict

from ddimlib import LabelledDenoiser, NoiseSchedule, VelocityDenoiser, ddim, invert, timesteps
from ddimlib.__main__ import Command, Drawing, card_of, execute, images_of, load
from ddimlib.evaluation import add_row, missing_rows, open_table, read_table
from ddimlib.pretrained import read_model
from ddimlib.provenance import model_settings, provenance
from ddimlib.storage import check_output, digest, locked, read_json, write_json, write_tensors
from ddimlib.timesteps import Spacing


def average_models(paths: Sequence[str | Path], out: str | Path) -> None:
    """Write the model whose weights are the means of those of several models, a *soup* (Wortsman et al. 2022).

    It is good when the models were trained on from one common start: each then errs in its own way, and what they have in
    common remains. Models that were trained from different random weights have nothing in common, and neither has their mean.

    Args:
        paths: two or more files of :func:`save_model`.
        out: the file to write.

    Raises:
        ValueError: when there are fewer than two, or their networks or schedules differ.
    """
    if len(paths) < 2:
        raise ValueError(f"an average needs at least two models, got {len(paths)}")
    files = [read_model(path) for path in paths]
    tensors, facts = files[0]
    for path, (others, their_facts) in zip(paths, files, strict=True):
        if their_facts != facts or not torch.equal(others["betas"], tensors["betas"]):
            raise ValueError(f"{path} has another network or schedule than {paths[0]}; average models of one kind")
    means = {
        name: torch.stack([others[name].double() for others, _ in files]).mean(0).to(tensor.dtype)
        for name, tensor in tensors.items()
        if name != "betas"
    }
    write_tensors(out, means | {"betas": tensors["betas"]}, facts)


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
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images need as many labels, got {len(labels)}")
    if min(iterations) < 0 or batch_size < 1:
        raise ValueError(f"iterations must be at least 0 and batch_size at least 1, got {iterations} and {batch_size}")
    for S in steps:
        timesteps(schedule.T, S, spacing)
    settings = model_settings(model, schedule) | {
        "images": digest({"images": images, "labels": labels})[:16], "samples": len(images), "spacing": spacing,
    }  # fmt: skip
    table = open_table(out, settings, facts)
    device = next(model.parameters()).device
    for S, k in missing_rows(table, steps=steps, iterations=iterations):
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
        add_row(out, table, row, ("steps", "iterations"))
    return table


@dataclass(kw_only=True)
class Average(Command):
    """Average the weights of several models that were trained on from one start.

    The mean is often better than each of them: python tools/weights.py average A.safetensors B.safetensors --out runs/mean

    Attributes:
        models: two or more .safetensors files of one network
        out: folder of the model
    """

    models: Positional[tuple[str, ...]]
    out: str = "runs/average"

    def run(self) -> None:
        out = check_output(self.out, folder=True)
        parts = [card_of(model) or {} for model in self.models]
        average_models(self.models, out / "model.safetensors")
        kept = ("data", "data_licence", "licence", "parameters", "stored_as")
        card = {key: parts[0][key] for key in kept if key in parts[0]}
        write_json(out / "model.json", card | {"averaged_from": parts, "trained": provenance("cpu")})
        print(f"wrote {out / 'model.safetensors'} and {out / 'model.json'} (the facts about it)")


@dataclass(kw_only=True)
class Reconstruct(Drawing):
    """Measure how well real images survive encoding and decoding.

    Writes a JSON table after every row; the same command again continues it.

    Attributes:
        data: whose test images to take: mnist and fashion are bundled (default: the model's name)
        root: where the test images of other data sets are, or are downloaded to
        steps: one or more numbers of steps
        iterations: fixed-point iterations a step; 0 is the explicit inverse
        n: images; of bundled ones at most 200
        out: the table
    """

    spacing: Spacing = "quadratic"
    data: str | None = None
    root: str = "data"
    steps: tuple[int, ...] = (10, 20, 50, 100)
    iterations: tuple[int, ...] = (0, 3)
    n: int = 200
    out: str = "reconstruction.json"

    def is_resumable(self) -> bool:
        return True

    def run(self) -> None:
        out = check_output(self.out)
        model, schedule = load(self.model, self.device)
        images, labels = images_of(self.data or self.model, self.root, self.n)
        if labels is None:
            raise ValueError("these images have no classes; take a data set with classes")
        facts = provenance(self.device)
        table = reconstruct(
            model, schedule, images, labels, self.steps, self.iterations, out, facts, self.spacing, self.batch_size,
            progress=not self.quiet,
        )  # fmt: skip
        print(
            f"{'steps':>5} {'iterations':>10} {'error':>8} {'norm':>6} {'residual':>9}   (mean square, pixels in [0, 1])"
        )
        for row in table["rows"]:
            residual = "" if row["residual"] is None else f"{row['residual']:.1e}"
            print(f"{row['steps']:>5} {row['iterations']:>10} {row['mse']:>8.2g} {row['norm']:>6.1f} {residual:>9}")
        print(f"wrote {out}")


@dataclass(kw_only=True)
class Card(Command):
    """Store tables in the card of a model, so that what is shipped says how good it is and how its recipe was found.

    Attributes:
        card: the JSON file beside the weights
        quality: a table of `ddimlib evaluate`
        race: a table of tools/race.py
    """

    card: Positional[str]
    quality: str | None = None
    race: str | None = None

    def run(self) -> None:
        check_output(self.card)
        given = {name: read_table(path) for name in ("quality", "race") if (path := getattr(self, name)) is not None}
        if not given:
            raise ValueError("nothing to store; give --quality or --race, a table each")
        for name, table in given.items():
            if not table["rows"]:
                raise ValueError(f"{getattr(self, name)} has no row yet; give a finished table")
        with locked(self.card):
            write_json(self.card, read_json(self.card) | given)
        print(f"wrote {' and '.join(given)} into {self.card}")


COMMANDS: dict[str, Callable[..., Command]] = {"average": Average, "reconstruct": Reconstruct, "card": Card}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns an exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return execute(lambda: subcommand_cli_from_dict(COMMANDS, args=words, prog="python tools/weights.py"))


if __name__ == "__main__":
    sys.exit(main())
