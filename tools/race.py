"""Which network, loss, batch and optimiser learn most in the same time? Short runs, compared by their loss on unseen images.

python tools/race.py cifar10 --minutes 20 --out runs/race.json
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from ddimlib import NoiseSchedule
from ddimlib.__main__ import Command, default_device, execute
from ddimlib.acceleration import gains_by_bf16
from ddimlib.data import load_dataset, to_model_range
from ddimlib.denoisers import VelocityDenoiser
from ddimlib.evaluation import add_row, missing_rows, open_table
from ddimlib.pretrained import build_model
from ddimlib.provenance import provenance
from ddimlib.storage import check_output, digest
from ddimlib.training import RECIPES, Trainer, loss_weight, network_for, noise_loss, stratified_timesteps

# name: (changes of the recipe's network, changes of the run); each differs from the first in one point, AdamW in its rate, too
ENTRIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the recipe": ({}, {}),
    "the recipe, another seed": ({}, {"seed": 1}),  # how far apart two equal runs end
    "wide stem": ({"widths": (48, 128, 192), "blocks": (1, 2, 2)}, {}),
    "narrow": ({"widths": (24, 96, 192), "blocks": (1, 2, 2)}, {}),
    "loss of the noise": ({}, {"loss": "noise"}),
    "loss of the velocity": ({}, {"loss": "velocity"}),
    "batches of 32": ({}, {"batch_size": 32}),
    "batches of 128": ({}, {"batch_size": 128}),
    "AdamW, 3 × the rate": ({}, {"optimizer": "adamw", "learning_rate": 9e-3}),
    "AdamW": ({}, {"optimizer": "adamw"}),
    "AdamW, 1/3 of the rate": ({}, {"optimizer": "adamw", "learning_rate": 1e-3}),
}
# Few steps are left in a short run on a laptop: smaller batches than the recipe's, which are a GPU's, and a short warm-up.
RUN: dict[str, Any] = {"batch_size": 64, "warmup": 100, "learning_rate": 3e-3}


@torch.no_grad()
def validation_losses(
    model: VelocityDenoiser, schedule: NoiseSchedule, images: Tensor, labels: Tensor | None, seed: int = 0
) -> dict[str, float]:
    """Training losses on other images, each at one time and with one noise, which are the same for every network.

    Args:
        images, labels: [N, C, H, W] in [-1, 1], and int64 [N] or None.
        seed: of times and noise.

    Returns:
        "balanced" and "noise", see :func:`ddimlib.training.loss_weight`.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    t = stratified_timesteps(schedule.T, len(images), generator)
    noise = torch.randn(images.shape, generator=generator)
    device, totals = next(model.parameters()).device, {"balanced": 0.0, "noise": 0.0}
    for part in torch.arange(len(images)).split(250):
        x_t = schedule.add_noise(images[part], t[part], noise[part]).to(device)
        asked = () if labels is None else (labels[part].to(device),)
        eps = model.eval()(x_t, t[part].to(device), *asked).cpu()
        for loss in totals:
            totals[loss] += len(part) * float(noise_loss(eps, noise[part], loss_weight(schedule, t[part], loss)))
    return {loss: total / len(images) for loss, total in totals.items()}


def fit_to_the_end(trainer: Trainer, end: float, every: float = 30.0, progress: bool = True) -> None:
    """Train until the time `end`, the rate's decay included: the number of steps follows the speed as it changes.

    Args:
        trainer: one that has not begun.
        end: of `time.monotonic`.
        every: seconds after which the number of steps is set again.
        progress: show a progress bar.
    """
    trainer.fit(end - time.monotonic())
    begin = time.monotonic()
    while not trainer.run(progress, stop_after=every):
        now = time.monotonic()
        steps = round(trainer.step * (end - begin) / (now - begin))
        trainer.config = replace(trainer.config, steps=max(steps, trainer.step + 1))


@dataclass(kw_only=True)
class Race(Command):
    """Train several networks for the same time, each from the same seed, and write their losses on unseen images.

    A run that was interrupted begins anew; the table has a row for each that was finished, and the same command goes on.

    Attributes:
        data: mnist, fashion or cifar10
        root: where the data set is, or is downloaded to
        entries: who takes part (default: all)
        minutes: for each, compilation included
        n: unseen images, each at one time and with one noise
        bf16: compute the networks in bfloat16 (default: on a GPU that can and on a CPU with AMX; others emulate it)
        compile: run them through torch.compile
        out: the table
    """

    data: Positional[Literal["mnist", "fashion", "cifar10"]]
    root: str = "data"
    entries: tuple[str, ...] = tuple(ENTRIES)
    minutes: float = 20.0
    n: int = 2000
    bf16: bool = field(default_factory=lambda: gains_by_bf16(torch.device(default_device()), compiled=False))
    compile: bool = True
    out: str = "runs/race.json"

    def is_resumable(self) -> bool:
        return True

    def run(self) -> None:
        out, recipe, schedule = check_output(self.out), RECIPES[self.data], NoiseSchedule.linear()
        if unknown := set(self.entries) - set(ENTRIES):
            raise ValueError(f"no entry {', '.join(sorted(unknown))}; there are: {', '.join(ENTRIES)}")
        images, labels = load_dataset(self.data, self.root)
        unseen, their_labels = load_dataset(self.data, self.root, train=False)
        x_0, asked = to_model_range(unseen[: self.n]), None if their_labels is None else their_labels[: self.n]
        settings = {
            "data": self.data, "images": digest({"images": images})[:16], "unseen": digest({"images": x_0})[:16],
            "minutes": self.minutes, "run": RUN, "bf16": self.bf16, "compile": self.compile, "device": self.device,
        }  # fmt: skip
        table = open_table(out, settings, provenance(self.device))
        for (name,) in missing_rows(table, name=self.entries):
            print(f"{name}: {self.minutes:g} minutes")
            begin = time.monotonic()
            network, run = ENTRIES[name]
            config = replace(recipe.training, steps=1, **(RUN | run))
            torch.manual_seed(config.seed)
            model = build_model(recipe.network | network | network_for(images, labels), schedule)
            trainer = Trainer(
                model, schedule, images, labels, config, device=self.device, compile=self.compile, bf16=self.bf16
            )
            fit_to_the_end(trainer, begin + 60 * self.minutes, progress=not self.quiet)
            row = {
                "name": name, "network": network, "training": run,
                "parameters": sum(p.numel() for p in model.parameters()),
                "images_seen": trainer.step * config.batch_size, "seconds": round(time.monotonic() - begin),
            }  # fmt: skip
            found = validation_losses(trainer.averaged_model, schedule, x_0, asked)  # type: ignore[arg-type]
            row |= {loss: float(f"{value:.4g}") for loss, value in found.items()}
            add_row(out, table, row, ("name",))
        for row in table["rows"]:
            print(f"{row['name']:28}{row['images_seen']:10,} images{row['balanced']:9.4f}{row['noise']:9.4f}")
        print(f"wrote {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the race; returns an exit status."""
    words = sys.argv[1:] if argv is None else argv
    return execute(lambda: tyro.cli(Race, args=words, prog="python tools/race.py"))


if __name__ == "__main__":
    sys.exit(main())
