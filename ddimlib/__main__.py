"""The command line: python -m ddimlib train | sample | evaluate."""

import argparse
import sys
from pathlib import Path

import torch

from ddimlib.data import load_dataset
from ddimlib.pretrained import build_model, save_model
from ddimlib.provenance import provenance
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import write_json
from ddimlib.training import RECIPES, Trainer, TrainingConfig


def train(args: argparse.Namespace) -> None:
    recipe = RECIPES[args.data]
    out = Path(args.out or f"runs/{args.data}")
    images, labels = load_dataset(args.data, args.root)
    schedule = NoiseSchedule.linear()
    torch.manual_seed(args.seed)
    model = build_model(recipe.network, schedule)
    config = TrainingConfig(
        steps=args.steps or recipe.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, ema=args.ema,
        loss=args.loss, flip=recipe.flip, seed=args.seed,
    )  # fmt: skip
    trainer = Trainer(
        model,
        schedule,
        images,
        labels,
        config,
        out / "checkpoint.safetensors",
        device=args.device,
        compile=args.compile,
    )
    trainer.run(progress=not args.quiet)
    save_model(out / "model.safetensors", trainer.average.module, schedule, recipe.network)
    facts = {
        "data": args.data,
        "steps": trainer.step,
        "batch_size": config.batch_size,
        "final_loss": round(trainer.loss, 5),
    }
    write_json(out / "model.json", facts | provenance(args.device))
    print(f"wrote {out / 'model.safetensors'} (the averaged weights) and {out / 'model.json'}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m ddimlib", description="Train, sample and evaluate diffusion models with DDIM."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    p = commands.add_parser("train", help="train a network", description="Train a network; run it again to continue.")
    p.set_defaults(run=train)
    p.add_argument("data", help=f"{', '.join(RECIPES)}")
    p.add_argument("--root", default="data")
    p.add_argument("--out")
    p.add_argument("--steps", type=int)
    p.add_argument("--batch-size", type=int, default=128)
    p.add_argument("--learning-rate", type=float, default=2e-3)
    p.add_argument("--ema", type=float, default=0.999)
    p.add_argument("--loss", choices=["velocity", "noise"], default="velocity")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--quiet", action="store_true")
    return top


if __name__ == "__main__":
    a = parser().parse_args()
    sys.exit(a.run(a))
