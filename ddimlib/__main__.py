"""The command line: python -m ddimlib train | average | sample | evaluate | reconstruct | judge | benchmark."""

import argparse
import io
import json
import math
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image

from ddimlib.benchmark import PEERS, benchmark, format_table
from ddimlib.data import (
    DATA_LICENCES,
    DATASETS,
    PRETRAINED,
    bundled_sample,
    bundled_samples,
    load_dataset,
    to_model_range,
)
from ddimlib.denoisers import VelocityDenoiser
from ddimlib.distributed import SamplingConfig, exchange, on_first, process_group, rank, sample_shards, world_size
from ddimlib.evaluation import evaluate, reconstruct
from ddimlib.metrics import InceptionDistance, Judge, train_classifier
from ddimlib.plotting import image_grid, plot_benchmark, use_book_style
from ddimlib.pretrained import available, average_models, build_model, load_model, load_pretrained, save_model
from ddimlib.provenance import provenance
from ddimlib.samplers import Eta, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import read_tensors, write_atomically, write_json
from ddimlib.timesteps import Spacing
from ddimlib.training import RECIPES, Trainer, TrainingConfig

UNFINISHED = 3
"""Exit status of a training that ran out of its minutes: it is not an error, and the same command continues it."""


def train_command(args: argparse.Namespace) -> int:
    """Train a data set's recipe to the end, from where the checkpoint left off."""
    begin = time.monotonic()
    recipe = RECIPES[args.recipe or (args.data if args.data in RECIPES else "cifar10")]
    out = Path(args.out or f"runs/{Path(args.data).name}")
    if world_size() > 1:
        on_first(lambda: bool(load_dataset(args.data, args.root)))  # one process downloads, the others find it
    images, labels = load_dataset(args.data, args.root)
    schedule = NoiseSchedule.linear()
    torch.manual_seed(args.seed)
    of_the_data = {"channels": images.shape[1], "image_size": images.shape[-1], "num_classes": int(labels.max()) + 1}
    network = recipe.network | of_the_data | args.network
    model = build_model(network, schedule)
    if args.start_from:
        model.load_state_dict(_load(args.start_from, "cpu")[0].state_dict())
    given = {f.name: getattr(args, f.name) for f in fields(TrainingConfig) if f.name in args}
    config = replace(recipe.training, **given)
    if (
        args.fit_minutes is not None and (out / "checkpoint.safetensors").exists()
    ):  # a run that goes on keeps its length
        stored = read_tensors(out / "checkpoint.safetensors")[1]
        config = replace(config, steps=stored["config"]["steps"])
    trainer = Trainer(
        model,
        schedule,
        images,
        labels,
        config,
        out / "checkpoint.safetensors",
        device=args.device,
        compile=args.compile,
        bf16=args.bf16,
    )
    if len(set(exchange(trainer.step))) > 1:
        raise ValueError(f"the processes found different checkpoints; {out} must be on a disk that all of them see")
    torch.backends.cudnn.benchmark = True  # all batches have one shape: its fastest convolutions are worth looking for
    if torch.device(args.device).type == "cuda":
        torch.set_float32_matmul_precision("high")  # enough for Muon's matrix products
    if args.fit_minutes is not None and trainer.step == 0:
        trainer.fit(60 * args.fit_minutes - (time.monotonic() - begin))
        config = trainer.config
        print(f"{config.steps} steps fit into {args.fit_minutes:g} minutes")
    left = math.inf if args.minutes is None else 60 * args.minutes - (time.monotonic() - begin)
    finished = trainer.run(progress=not args.quiet and rank() == 0, stop_after=left)
    exchange(None)  # rank 0 has saved: torchrun ends every process when one returns an exit status
    if rank() > 0:
        return 0 if finished else UNFINISHED
    if not finished:
        print(
            f"unfinished: {trainer.step} of {config.steps} steps are done and in {trainer.checkpoint}; "
            f"the same command again continues from there (exit status {UNFINISHED})",
            file=sys.stderr,
        )
        return UNFINISHED
    save_model(out / "model.safetensors", trainer.averaged_model, schedule, network, recipe.half)
    save_model(out / "last.safetensors", trainer.model, schedule, network, recipe.half)  # to see what averaging does
    card = {
        "data": args.data,
        "data_licence": DATA_LICENCES.get(args.data, "that of the images"),
        "licence": "MIT",
        "parameters": sum(p.numel() for p in model.parameters()),
        "stored_as": "float16" if recipe.half else "float32",
        "computed_in": "bfloat16 (autocast)" if trainer.bf16 else "float32",
        "started_from": _card_of(args.start_from),
        "steps": trainer.step,
        "batch_size": config.batch_size,
        "loss": config.loss,
        "final_loss": round(trainer.loss, 4),
        "ema": config.ema,
        "trained": provenance(args.device),
    }
    write_json(out / "model.json", card)
    print(f"wrote {out / 'model.safetensors'} (the averaged weights) and {out / 'model.json'} (the facts about them); "
          f"{out / 'last.safetensors'} holds the last step's weights, for comparison")  # fmt: skip
    return 0


def average_command(args: argparse.Namespace) -> None:
    """Average the weights of several models that were trained on from one start."""
    out = Path(args.out)
    average_models(args.models, out / "model.safetensors")
    parts = [_card_of(model) or {} for model in args.models]
    kept = ("data", "data_licence", "licence", "parameters", "stored_as")
    card = {key: parts[0][key] for key in kept if key in parts[0]}
    write_json(out / "model.json", card | {"averaged_from": parts, "trained": provenance("cpu")})
    print(f"wrote {out / 'model.safetensors'} and {out / 'model.json'} (the facts about it)")


def _card_of(model: str | None) -> dict[str, Any] | None:
    """What is known about the model that a run started from: its name, and its card where there is one."""
    if model is None:
        return None
    card = Path(PRETRAINED / model if model in available() else model).with_suffix(".json")
    return {"model": model} | (json.loads(card.read_text()) if card.exists() else {})


def sample_command(args: argparse.Namespace) -> None:
    """Draw images and write them as one picture, or as a folder of shards."""
    if Path(args.out).suffix.lower() != ".png":
        return _sample_shards(args)
    if world_size() > 1:
        raise ValueError(f"{args.out} is one picture, drawn by one process; under torchrun give --out a folder")
    model, schedule = _load(args.model, args.device)
    labels = None if args.labels is None else torch.tensor([args.labels[i % len(args.labels)] for i in range(args.n)])
    images = sample(
        model,
        schedule,
        (args.n, *model.image_shape),
        args.steps,
        args.eta,
        args.spacing,
        args.seed,
        labels=labels,
        guidance=args.guidance,
        clip=args.clip,
        batch_size=args.batch_size,
        progress=not args.quiet,
    )
    buffer = io.BytesIO()
    grid = image_grid(images, args.columns)
    enlarged = grid.repeat_interleave(args.scale, 1).repeat_interleave(args.scale, 2)
    Image.fromarray(enlarged.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    write_atomically(args.out, buffer.getvalue())
    print(f"wrote {args.out}: {args.n} images, {args.steps} steps, eta {args.eta}, seed {args.seed}")


def _sample_shards(args: argparse.Namespace) -> None:
    config = SamplingConfig(**{field.name: getattr(args, field.name) for field in fields(SamplingConfig)})
    model, schedule = _load(args.model, args.device)
    manifest = sample_shards(model, schedule, config, args.out, provenance(args.device), progress=not args.quiet)
    if rank() == 0:
        print(f"wrote {args.out}: {args.n} images in {len(manifest['shards'])} shards, and manifest.json about them")


def evaluate_command(args: argparse.Namespace) -> None:
    """Measure a table of quality against steps and η."""
    model, schedule = _load(args.model, args.device)
    judge = Judge.load(args.judge or args.model, args.device)
    inception = None
    if args.inception:
        inception = InceptionDistance(load_dataset(judge.facts["data"], args.root)[0], args.device)
    out = Path(args.out)
    table = evaluate(
        model,
        schedule,
        judge,
        args.steps,
        args.eta,
        args.n,
        out,
        provenance(args.device),
        args.spacing,
        args.guidance,
        args.seed,
        args.batch_size,
        progress=not args.quiet,
        inception=inception,
        bf16=args.bf16,
        compile=args.compile,
    )
    print(f"{'steps':>5} {'eta':>5} {'accuracy':>9} {'Fréchet':>8}   (floor {judge.facts['floor']:.3f})")
    for row in table["rows"]:
        fid = f"   FID {row['fid']:.2f}" if "fid" in row else ""
        print(f"{row['steps']:>5} {row['eta']!s:>5} {row['accuracy']:>9.2%} {row['frechet']:>8.3f}{fid}")
    if args.card:
        card = json.loads(Path(args.card).read_text())
        write_json(args.card, card | {"quality": {k: table[k] for k in ("settings", "judge", "rows")}})
    print(f"wrote {out}")


def reconstruct_command(args: argparse.Namespace) -> None:
    """Measure the round trip of real images: encode them, decode, compare."""
    model, schedule = _load(args.model, args.device)
    data = args.data or args.model
    if data in bundled_samples():
        images, labels = bundled_sample(data)
    else:
        pixels, labels = load_dataset(data, args.root, train=False)
        images = to_model_range(pixels[: args.n])
    if not 1 <= args.n <= len(images):
        raise ValueError(f"--n must lie in 1..{len(images)}, the number of images at hand, got {args.n}")
    out = Path(args.out)
    table = reconstruct(
        model,
        schedule,
        images[: args.n],
        labels[: args.n],
        args.steps,
        args.iterations,
        out,
        provenance(args.device),
        args.spacing,
        args.batch_size,
        progress=not args.quiet,
    )
    print(f"{'steps':>5} {'iterations':>10} {'error':>8} {'norm':>6} {'residual':>9}   (mean square, pixels in [0, 1])")
    for row in table["rows"]:
        residual = "" if row["residual"] is None else f"{row['residual']:.1e}"
        print(f"{row['steps']:>5} {row['iterations']:>10} {row['mse']:>8.2g} {row['norm']:>6.1f} {residual:>9}")
    print(f"wrote {out}")


def judge_command(args: argparse.Namespace) -> None:
    """Train the classifier that judges samples of a data set."""
    judge = train_classifier(args.data, args.root, args.epochs, args.seed, not args.quiet, args.device)
    judge.facts |= {"trained": provenance(args.device)}
    judge.save(args.out)
    print(f"wrote {args.out}: test accuracy {judge.facts['test_accuracy']:.2%}, floor {judge.facts['floor']:.4f}")


def benchmark_command(args: argparse.Namespace) -> None:
    """Time our sampler and others on one network."""
    model, schedule = _load(args.model, args.device)
    out = Path(args.out or f"benchmark-{torch.device(args.device).type}.json")
    table = benchmark(
        model,
        schedule,
        args.batch,
        args.steps,
        out,
        provenance(args.device),
        args.peers,
        args.compile,
        args.repeats,
        args.seconds,
        args.seed,
        progress=not args.quiet,
    )
    print(format_table(table))
    print(f"wrote {out}")
    if args.figure:
        use_book_style()
        plot_benchmark(table).savefig(args.figure)
        print(f"wrote {args.figure}")


def _load(name: str, device: str) -> tuple[VelocityDenoiser, NoiseSchedule]:
    if name in {*available(), *DATASETS}:
        return load_pretrained(name, device)
    if name.endswith(".safetensors"):
        return load_model(name, device)
    raise ValueError(f"no model {name!r}: use one of {', '.join(available())}, or the path of a .safetensors file")


def _eta(text: str) -> Eta:
    return "hat" if text == "hat" else float(text)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds defaults, but for those that the help text tells in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        in_words = action.default is None or action.default is False or "(default" in (action.help or "")
        return action.help if in_words else super()._get_help_string(action)


def _json(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{text} is not a JSON object")
    return value


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="python -m ddimlib",
        description="Train small diffusion models, draw images from them with DDIM, and measure how good they are.",
        epilog="Try first: python -m ddimlib sample --model mnist --steps 20 --n 64 --out grid.png",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"

    def command(name: str, run: object, summary: str, details: str, draws: bool = True) -> argparse.ArgumentParser:
        p = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {details}",
            formatter_class=_HelpFormatter,
        )
        p.set_defaults(run=run)
        if draws:
            p.add_argument(
                "--seed", type=int, default=0, help="the same seed gives the same result on the same machine"
            )
        p.add_argument("--quiet", action="store_true", help="no progress bar")
        return p

    def model_options(p: argparse.ArgumentParser) -> None:
        p.add_argument("--model", default="mnist", help=f"{', '.join(available())}, or the path of a .safetensors file")
        p.add_argument(
            "--spacing",
            default="linspace",
            choices=get_args(Spacing),
            help="which timesteps to visit",
        )
        p.add_argument("--batch-size", type=int, default=64, help="images at a time")
        p.add_argument("--device", default=default_device, help="cpu or cuda")

    def sampling_options(p: argparse.ArgumentParser) -> None:
        model_options(p)
        p.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance; 1 is none")

    p = command(
        "train", train_command, "train a network on a data set",
        "A checkpoint is written every minute, when you press Ctrl-C and when the --minutes are over; the same command again "
        "continues from it. The exit status is 0 at the end, 3 when the minutes were over before.",
    )  # fmt: skip
    p.add_argument(
        "data", help=f"{', '.join(RECIPES)}, or a folder with train/ and test/, and in each a folder per class"
    )
    p.add_argument(
        "--recipe",
        choices=list(RECIPES),
        help="network and options to begin with (default: the data set's own; for a folder, cifar10)",
    )
    p.add_argument(
        "--network",
        type=_json,
        default={},
        metavar="JSON",
        help="""changes to the recipe's network, such as '{"widths": [64, 128, 192]}' (default: none)""",
    )
    p.add_argument("--minutes", type=float, help="stop after so long, with a checkpoint (default: at the end)")
    p.add_argument(
        "--fit-minutes",
        type=float,
        help="choose the number of steps so that the run, loading and compiling included, ends after so long: its speed is "
        "measured first (default: --steps)",
    )
    p.add_argument("--root", default="data", help="where the data set is, or is downloaded to")
    p.add_argument("--out", help="folder of the checkpoint and the finished model (default: runs/DATA)")
    recipes = argparse.SUPPRESS  # an option that is not given is absent, and the recipe's value stays
    p.add_argument("--steps", type=int, default=recipes, help="optimiser steps in all (default: the recipe's)")
    p.add_argument("--start-from", metavar="MODEL", help="begin with the weights of this model instead of random ones")
    p.add_argument("--batch-size", type=int, default=recipes, help="images a step (default: the recipe's)")
    p.add_argument("--learning-rate", type=float, default=recipes, help="peak rate (default: the recipe's)")
    p.add_argument(
        "--ema", type=float, default=recipes, help="decay of the average of the weights (default: the recipe's)"
    )
    losses = ["balanced", "velocity", "noise"]
    p.add_argument(
        "--warp",
        action=argparse.BooleanOptionalAction,
        default=recipes,
        help="bend the images a little, ever fewer of them (default: the recipe's)",
    )
    p.add_argument("--loss", choices=losses, default=recipes, help="how timesteps are weighted (default: the recipe's)")
    p.add_argument("--device", default=default_device, help="cpu or cuda")
    p.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    p.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="compute the network in bfloat16 (default: on a CUDA GPU that can)",
    )

    p = command(
        "average", average_command, "average the weights of several models that were trained on from one start",
        "The mean is often better than each of them: python -m ddimlib average A.safetensors B.safetensors --out runs/mean",
        draws=False,
    )  # fmt: skip
    p.add_argument("models", nargs="+", help="two or more .safetensors files of one network")
    p.add_argument("--out", default="runs/average", help="folder of the model")

    p = command(
        "sample", sample_command, "draw images and write them as one picture, or as a folder of shards",
        "With --out NAME.png they become one picture. Any other name is a folder, for shards of uint8 images (safetensors) and "
        "a manifest.json. The same command again continues a run that was stopped, and torchrun shares it out: "
        "torchrun --nproc-per-node 8 -m ddimlib sample -n 50000 --out samples",
    )  # fmt: skip
    sampling_options(p)
    p.add_argument("--steps", type=int, default=50, help="network evaluations an image, 1 to 1000")
    p.add_argument("--eta", type=_eta, default=0.0, help="0 is DDIM, 1 is DDPM, hat is the larger variance")
    # Before Python 3.12.8 and 3.13.1, torchrun takes --n for an unclear --nnodes and stops (pytorch issue 120601); -n gets past
    p.add_argument("-n", "--n", type=int, default=64, help="number of images")
    p.add_argument("--labels", type=int, nargs="+", help="classes to draw, in turn; without it, the network chooses")
    p.add_argument("--clip", type=float, help="limit the predicted image to [-CLIP, CLIP] at every step")
    p.add_argument("--columns", type=int, default=8, help="images in a row of the picture")
    p.add_argument("--scale", type=int, default=3, help="the picture's pixels for each image pixel, in each direction")
    p.add_argument(
        "--shard-batches", type=int, default=8, help="batches in a shard; processes take a shard each in turn"
    )
    p.add_argument("--out", default="grid.png", help="the picture NAME.png, or a folder for shards")

    p = command(
        "evaluate", evaluate_command, "measure quality against steps and eta",
        "Writes a JSON table after every row; the same command again continues it.",
    )  # fmt: skip
    sampling_options(p)
    p.add_argument("--judge", help="a shipped classifier's name, or the path of your own (default: the model's name)")
    p.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50], help="one or more numbers of steps")
    p.add_argument("--eta", type=_eta, nargs="+", default=[0.0], help="one or more values in [0, 1], or hat")
    p.add_argument("--n", type=int, default=1000, help="images a row")
    p.add_argument("--out", default="table.json", help="the table")
    p.add_argument("--card", help="a model's card to store the table in, too")
    p.add_argument("--bf16", action="store_true", help="compute the network in bfloat16, which is faster on a GPU")
    p.add_argument(
        "--compile", action="store_true", help="run the network through torch.compile, worth it for long tables"
    )
    p.add_argument(
        "--inception",
        action="store_true",
        help="measure FID, too, against the training images; for this the package torch-fidelity must be installed, and it "
        "downloads Inception's weights. (Tested with another network in Inception's place only.)",
    )
    p.add_argument("--root", default="data", help="where these training images are, or are downloaded to")

    p = command(
        "reconstruct", reconstruct_command, "measure how well real images survive encoding and decoding",
        "Writes a JSON table after every row; the same command again continues it.", draws=False,
    )  # fmt: skip
    model_options(p)
    p.set_defaults(spacing="quadratic")
    p.add_argument(
        "--data", help="whose test images to take: mnist and fashion are bundled (default: the model's name)"
    )
    p.add_argument("--root", default="data", help="where the test images of other data sets are, or are downloaded to")
    p.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100], help="one or more numbers of steps")
    p.add_argument(
        "--iterations", type=int, nargs="+", default=[0, 3], help="fixed-point iterations a step; 0: explicit"
    )
    p.add_argument("--n", type=int, default=200, help="images; of bundled ones at most 200")
    p.add_argument("--out", default="reconstruction.json", help="the table")

    p = command(
        "judge", judge_command, "train the classifier that judges samples of a data set",
        "It shares nothing with the diffusion network but the training images.",
    )  # fmt: skip
    p.add_argument(
        "data", help=f"{', '.join(DATASETS)}, or a folder with train/ and test/, and in each a folder per class"
    )
    p.add_argument("--root", default="data", help="where the data set is, or is downloaded to")
    p.add_argument("--epochs", type=int, help="passes over the training images (default: 12 if grey, 40 if colour)")
    p.add_argument("--device", default=default_device, help="cpu or cuda")
    p.add_argument("--out", default="classifier.safetensors", help="the classifier and its reference features")

    p = command(
        "benchmark", benchmark_command, "time our sampler, plain and accelerated, against others on the same network",
        "Checks first that all draw the same images. Writes a JSON table after every row; the same command again continues it. "
        "Let nothing else run meanwhile. The peers come with the extra: pip install -e '.[bench]' -c constraints.txt",
    )  # fmt: skip
    p.add_argument("--model", default="mnist", help=f"{', '.join(available())}, or the path of a .safetensors file")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256, 1024], help="one or more batch sizes")
    p.add_argument(
        "--steps", type=int, nargs="+", default=[10, 50, 250], help="one or more numbers of steps; each divides 1000"
    )
    p.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="none or more other samplers")
    p.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let torch.compile work on the accelerated network",
    )
    p.add_argument("--repeats", type=int, default=7, help="how often at least each sampler is timed in a row")
    p.add_argument("--seconds", type=float, default=20.0, help="go on with a row for at least so long")
    p.add_argument("--device", default=default_device, help="cpu or cuda")
    p.add_argument("--out", help="the table (default: benchmark-cpu.json or benchmark-cuda.json)")
    p.add_argument("--figure", help="draw the table, too: a .png or .svg (default: no)")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 after an error, 3 when it has more to do, 130 after an interruption."""
    args = parser().parse_args(argv)
    try:
        with process_group(getattr(args, "device", "cpu")) as args.device:
            if world_size() > 1 and args.run not in (train_command, sample_command):
                raise ValueError(
                    "only train and sample can be shared by processes; start this command without torchrun"
                )
            return args.run(args) or 0
    except KeyboardInterrupt:
        print("\ninterrupted; the same command again continues where this one stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, ModuleNotFoundError) as error:
        print(f"error: {f'rank {rank()}: ' if world_size() > 1 else ''}{error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
