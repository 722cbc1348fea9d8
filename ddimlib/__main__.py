"""The command line, `ddimlib` or `python -m ddimlib`: each command is a dataclass, whose fields are its options."""

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from torch import Tensor
from tyro.conf import OmitArgPrefixes, Positional, arg

from ddimlib import __version__
from ddimlib.data import (
    DATA_LICENCES,
    DATASETS,
    PRETRAINED,
    bundled_sample,
    bundled_samples,
    load_dataset,
    to_model_range,
    with_channels,
)
from ddimlib.denoisers import VelocityDenoiser
from ddimlib.distributed import SamplingConfig, exchange, on_first, process_group, rank, sample_shards, world_size
from ddimlib.evaluation import evaluate
from ddimlib.guidance import conditioned
from ddimlib.inversion import invert
from ddimlib.latents import SeededNoise, slerp
from ddimlib.metrics import InceptionDistance, Judge, train_classifier
from ddimlib.plotting import MOVING, check_picture, picture_format, save_animation, save_images
from ddimlib.pretrained import available, build_model, load_model, load_pretrained, save_model
from ddimlib.provenance import provenance, weights_digest
from ddimlib.samplers import Clip, Eta, ddim, last, sample
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import check_output, locked, read_json, read_tensors, write_json
from ddimlib.timesteps import Spacing, timesteps
from ddimlib.training import RECIPES, Recipe, Trainer, TrainingConfig, network_for, noted_signals

ERRORS = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ModuleNotFoundError, MemoryError)
"""What a command ends with that cannot go on: a message, no traceback."""

UNFINISHED = 3
"""Exit status of a training that ran out of its minutes: it is not an error, and the same command continues it."""


def default_device() -> str:
    """A CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(kw_only=True)
class Command:
    """What all commands have in common.

    Attributes:
        device: cpu or cuda
        quiet: no progress bar
    """

    # asked for when a command is made: to ask at import would keep processes that are forked later from using the GPU
    device: str = field(default_factory=default_device)
    quiet: bool = False

    is_shareable: ClassVar[bool] = False  # by the processes that torchrun starts

    def is_resumable(self) -> bool:
        """Whether the same command goes on where an interrupted one stopped."""
        return False

    def run(self) -> int | None:
        """Carry the command out; returns an exit status, None for 0."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Network:
    """Changes to the recipe's network, see ddimlib.unet.UNet.

    Attributes:
        widths: channels of each level
        blocks: residual blocks of each level
        attention: self-attention on each level: True or False
        dropout: probability of dropout
        groups: groups of each group norm
    """

    widths: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    attention: tuple[bool, ...] | None = None
    dropout: float | None = None
    groups: int | None = None


@dataclass(kw_only=True)
class Train(Command):
    """Train a network, or train one further.

    A checkpoint is written every minute, on Ctrl-C and on SIGTERM, and when the --minutes are over; the same command again
    continues from it. The exit status is 0 at the end, and 3 when the minutes were over before (under torchrun 0, too).

    Attributes:
        data: mnist, fashion, cifar10, or a folder of pictures: with a subfolder for each class, or without classes
        recipe: network and options to begin with (default: the data set's own; for a folder, one for small pictures)
        start_from: a model to train further: a shipped one, a .safetensors file, or the folder of a run
        schedule: the noise schedule (default: that of --start-from, or linear)
        out: folder of the checkpoint and the finished model (default: runs/ and the name of the data)
        root: where the data set is, or is downloaded to
        minutes: stop after so long, with a checkpoint (default: at the end)
        fit_minutes: measure the speed first, and choose --steps so that the run takes so long (default for a folder: 10)
        extend: go on with a finished or unfinished run to more --steps
        compile: run the network through torch.compile
        bf16: compute the network in bfloat16 (default: on a CUDA GPU that can); alone, the option means True
    """

    data: Positional[str]
    recipe: Literal["mnist", "fashion", "cifar10", "folder"] | None = None
    start_from: str | None = None
    schedule: Literal["linear", "cosine"] | None = None
    out: str | None = None
    root: str = "data"
    minutes: float | None = None
    fit_minutes: float | None = None
    extend: bool = False
    compile: bool = False
    bf16: bool | None = None
    network: OmitArgPrefixes[Network] = field(default_factory=Network)
    training: OmitArgPrefixes[TrainingConfig] = field(default_factory=lambda: RECIPES["mnist"].training)

    is_shareable = True

    def is_resumable(self) -> bool:
        return True

    def chosen_recipe(self) -> Recipe:
        """The recipe whose numbers the options replace."""
        return RECIPES[self.recipe or (self.data if self.data in RECIPES else "folder")]

    def run(self) -> int:
        begin, recipe = time.monotonic(), self.chosen_recipe()
        for name in ("minutes", "fit_minutes"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be finite and at least 0, got {getattr(self, name)}")
        out = check_output(self.out or f"runs/{Path(self.data).resolve().name}", folder=True)
        start, card = (None, None) if self.start_from is None else (load(self.start_from), card_of(self.start_from))
        if world_size() > 1:
            on_first(lambda: bool(load_dataset(self.data, self.root)))  # one process downloads, the others find it
        images, labels = load_dataset(self.data, self.root)
        given = {k: v for k, v in vars(self.network).items() if v is not None}
        base = recipe.network if start is None else dict(start[0].network.arguments)  # type: ignore[arg-type]
        if start is not None:
            if given:
                raise ValueError(f"--start-from brings its network with it; leave {', '.join(given)} out")
            images = with_channels(images, start[0].image_shape[0])
        network = base | given | network_for(images, labels)
        fresh = self.schedule or ("linear" if start is None else None)
        schedule = getattr(NoiseSchedule, fresh)() if fresh else start[1]  # type: ignore[index]
        torch.manual_seed(self.training.seed)
        model = build_model(network, schedule)
        if start is not None:
            _take_over(model, start[0])
        checkpoint = out / "checkpoint.safetensors"
        config = self.training
        if config.batch_size == recipe.training.batch_size > len(images):
            config = replace(config, batch_size=len(images))
        fit = self.fit_minutes
        if fit is None and recipe is RECIPES["folder"] and config.steps == recipe.training.steps and world_size() == 1:
            fit = 10.0
        if fit is not None and checkpoint.exists():  # a run that goes on keeps its length
            stored = read_tensors(checkpoint)[1].get("settings", {}).get("config", {}).get("steps")
            config = replace(config, steps=stored or config.steps)
        settings = {"start_from": None if start is None else weights_digest(start[0])}
        trainer = Trainer(
            model, schedule, images, labels, config, checkpoint, self.device, self.compile, self.bf16, settings, self.extend
        )  # fmt: skip
        if len(set(exchange(trainer.step))) > 1:
            raise ValueError(f"the processes found different checkpoints; {out} must be on a disk that all of them see")
        torch.backends.cudnn.benchmark = True  # all batches have one shape: look for its fastest convolutions
        if trainer.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # enough for Muon's matrix products
        if fit is not None and trainer.step == 0:
            trainer.fit(60 * fit - (time.monotonic() - begin))
            print(f"{trainer.config.steps} steps fit into {fit:g} minutes")
        elif trainer.step == 0 and config.steps > 100 and world_size() == 1:
            print(f"{config.steps} steps will take about {_duration(config.steps / trainer.speed())} on this {self.device}; "
                  "Ctrl-C stops with a checkpoint, --fit-minutes chooses fewer steps")  # fmt: skip
        left = math.inf if self.minutes is None else 60 * self.minutes - (time.monotonic() - begin)
        finished = trainer.run(progress=not self.quiet and rank() == 0, stop_after=left)
        exchange(None)  # rank 0 has saved: torchrun ends every process when one returns an exit status
        if not finished:
            if rank() == 0:
                print(f"unfinished: {trainer.step} of {trainer.config.steps} steps are done and in {checkpoint}; "
                      "the same command again continues from there", file=sys.stderr)  # fmt: skip
            return UNFINISHED if world_size() == 1 else 0  # torchrun takes any other status for a failure
        if rank() == 0:
            self._write(out, trainer, recipe, card)
        return 0

    def _write(self, out: Path, trainer: Trainer, recipe: Recipe, start: dict[str, Any] | None) -> None:
        for name, model in (("model", trainer.averaged_model), ("last", trainer.model)):  # to see what averaging does
            save_model(out / f"{name}.safetensors", model, trainer.schedule, half=recipe.half)  # type: ignore[arg-type]
        config = trainer.config
        card = {
            "data": self.data,
            "data_licence": DATA_LICENCES.get(self.data, "that of the images"),
            "licence": "MIT",
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "stored_as": "float16" if recipe.half else "float32",
            "computed_in": "bfloat16 (autocast)" if trainer.bf16 else "float32",
            "started_from": start,
            "steps": trainer.step,
            "batch_size": config.batch_size,
            "loss": config.loss,
            "final_loss": round(trainer.loss, 4),
            "ema": config.ema,
            "trained": provenance(self.device),
        }
        write_json(out / "model.json", card)
        print(f"wrote {out / 'model.safetensors'} (the averaged weights) and {out / 'model.json'} (the facts about them); "
              f"{out / 'last.safetensors'} holds the last step's weights, for comparison")  # fmt: skip


@dataclass(kw_only=True)
class Drawing(Command):
    """What the commands have in common that draw with a model.

    Attributes:
        model: mnist, fashion, cifar10, a .safetensors file, or the folder of a run
        spacing: which timesteps to visit
        batch_size: images at a time
    """

    model: str = "mnist"
    spacing: Spacing = "linspace"
    batch_size: int = 64


@dataclass(kw_only=True)
class Sample(Drawing):
    """Draw images: as one picture, a moving picture of the denoising, single pictures, or a folder of tensors.

    With --out NAME.png (or .jpg, .webp, …) they become one picture, with .gif a film of how they form. Any other name is a
    folder, for files of uint8 images (safetensors) and a manifest.json: the same command again continues a run that was
    stopped, or goes on to a larger --n, and torchrun shares it out:
    torchrun --nproc-per-node 8 -m ddimlib sample -n 50000 --out samples

    Attributes:
        steps: network evaluations an image, 1 to 1000
        eta: 0 is DDIM, 1 is DDPM, hat is the larger variance
        n: number of images
        seed: the same seed gives the same images on the same machine
        labels: classes to draw, in turn (default: the network chooses)
        guidance: classifier-free guidance; 1 is none
        clip: limit the predicted image to [-CLIP, CLIP] at every step, or dynamic (default: no)
        columns: images in a row of the picture
        scale: the picture's pixels for each image pixel, in each direction
        kind: what to write (default: what the name of --out says); pictures are single PNGs in a folder
        out: the picture, or the folder
    """

    steps: int = 50
    eta: Eta = 0.0
    # Before Python 3.12.8 and 3.13.1, torchrun takes --n for an unclear --nnodes and stops (pytorch issue 120601); -n gets past
    n: Annotated[int, arg(aliases=["-n"])] = 64
    seed: int = 0
    labels: tuple[int, ...] | None = None
    guidance: float = 1.0
    clip: Clip = None
    columns: int = 8
    scale: int = 3
    kind: Literal["picture", "film", "pictures", "tensors"] | None = None
    out: str = "grid.png"

    is_shareable = True

    def is_resumable(self) -> bool:
        return self.what() == "tensors"

    def what(self) -> str:
        """The kind of output: as asked for, or as the name of --out says."""
        suffix = Path(self.out).suffix.lower()
        return self.kind or ("film" if suffix == ".gif" else "picture" if suffix in PICTURES else "tensors")

    def run(self) -> None:
        suffix = Path(self.out).suffix.lower()
        if self.kind is None and suffix in NO_PICTURES:
            raise ValueError(f"{self.out} cannot be written as {suffix}; name a picture (.png, .jpg, .gif) or a folder")
        kind = self.what()
        config = SamplingConfig(
            self.n, self.steps, self.eta, self.spacing, self.seed, self.labels, self.guidance, self.clip, self.batch_size
        )  # fmt: skip
        check_output(self.out, folder=kind in ("pictures", "tensors"))
        if kind in ("picture", "film") and (name := picture_format(self.out)) not in MOVING and kind == "film":
            raise ValueError(f"a film needs a name that ends in .gif or .webp, got {self.out} ({name})")
        files = [f"{i:05d}.png" for i in range(self.n)] if kind == "pictures" else []
        if files and (left := {path.name for path in Path(self.out).glob("[0-9]*.png")}.difference(files)):
            raise ValueError(f"{self.out} holds {max(left)} of a longer run; choose another folder, or empty it")
        if world_size() > 1 and kind != "tensors":
            raise ValueError(f"{self.out} is drawn by one process; under torchrun give --out a folder for tensors")
        model, schedule = load(self.model, self.device)
        if kind == "tensors":
            facts = provenance(self.device)
            sample_shards(model, schedule, config, self.out, facts, progress=not self.quiet)
            if rank() == 0:
                count = len(config.shards())
                print(f"wrote {self.out}: {self.n} images in {count} files, and manifest.json about them")
            return
        name, n, columns = (files[0], 1, 1) if files else (self.out, self.n, self.columns)
        check_picture(name, (n, *model.image_shape), columns, self.scale)
        if kind == "film":
            self._film(model, schedule, config.labels_of(range(self.n)))
        else:
            images = config.draw(model, schedule, range(self.n), progress=not self.quiet)
            if kind == "picture":
                save_images(images, self.out, self.columns, self.scale)
            with locked(self.out) if files else nullcontext():  # two runs' pictures do not mix
                for file, image in zip(files, images, strict=False):
                    save_images(image[None], Path(self.out, file), 1, self.scale, border=0)
        print(f"wrote {self.out}: {self.n} images, {self.steps} steps, eta {self.eta}, seed {self.seed}")

    def _film(self, model: VelocityDenoiser, schedule: NoiseSchedule, labels: Tensor | None) -> None:
        denoiser = conditioned(model, labels, self.guidance)
        noise = SeededNoise.from_seed(self.seed, self.n)
        x_T = noise.initial(model.image_shape).to(self.device)
        visited = timesteps(schedule.T, self.steps, self.spacing)
        states = [x_T, *ddim(denoiser, schedule, x_T, visited, self.eta, noise, self.clip)]
        shown = sorted({*range(0, len(states), -(-len(states) // 60)), len(states) - 1})
        save_animation([states[i].clamp(-1, 1) for i in shown], self.out, self.columns, self.scale)


@dataclass(kw_only=True)
class Interpolate(Drawing):
    """Draw the images along the great circle between the starting noise of two seeds.

    Attributes:
        seeds: the two ends
        n: images, both ends included
        label: class to draw (default: the network chooses)
        steps: network evaluations an image, 1 to 1000
        scale: the picture's pixels for each image pixel, in each direction
        out: the picture
    """

    seeds: tuple[int, int] = (0, 1)
    n: int = 10
    label: int | None = None
    steps: int = 50
    scale: int = 3
    out: str = "interpolation.png"

    def run(self) -> None:
        check_output(self.out)
        if self.n < 2:
            raise ValueError(f"--n must be at least 2, got {self.n}")
        model, schedule = load(self.model, self.device)
        check_picture(self.out, (self.n, *model.image_shape), self.n, self.scale)
        a, b = (SeededNoise.from_seed(seed, 1).initial(model.image_shape) for seed in self.seeds)
        x_T = torch.cat([slerp(a, b, i / (self.n - 1)) for i in range(self.n)]).to(self.device)
        x_0 = sample(
            model, schedule, steps=self.steps, spacing=self.spacing, labels=self.label, batch_size=self.batch_size,
            progress=not self.quiet, x_T=x_T,
        )  # fmt: skip
        save_images(x_0, self.out, self.n, self.scale)
        ends = f"from seed {self.seeds[0]} to seed {self.seeds[1]}"
        print(f"wrote {self.out}: {self.n} images {ends}, {self.steps} steps")


@dataclass(kw_only=True)
class Invert(Drawing):
    """Encode real images as noise, decode them again, and draw all three: images, codes and decoded images.

    Attributes:
        data: whose test images to take: mnist and fashion are bundled (default: the model's name); or a folder of pictures
        n: number of images
        steps: network evaluations an image and direction, 1 to 1000
        iterations: fixed-point iterations a step; 0 is the explicit inverse
        root: where a data set is, or is downloaded to
        scale: the picture's pixels for each image pixel, in each direction
        out: the picture
    """

    data: str | None = None
    n: int = 8
    steps: int = 50
    iterations: int = 0
    root: str = "data"
    scale: int = 3
    out: str = "inversion.png"

    def run(self) -> None:
        check_output(self.out)
        model, schedule = load(self.model, self.device)
        check_picture(self.out, (3 * max(self.n, 1), *model.image_shape), max(self.n, 1), self.scale)
        visited = timesteps(schedule.T, self.steps, self.spacing)
        images, labels = images_of(self.data or self.model, self.root, self.n)
        x_0 = images.to(self.device)
        denoiser = conditioned(model, None if model.num_classes is None else labels)
        code = last(invert(denoiser, schedule, x_0, visited, self.iterations))
        again = last(ddim(denoiser, schedule, code, visited))
        save_images(torch.cat([x_0, code.clamp(-3, 3) / 3, again.clamp(-1, 1)]), self.out, self.n, self.scale)
        error = float(((again - x_0) / 2).square().mean())
        print(f"wrote {self.out}: images, codes, decoded images; mean square error {error:.2g} (pixels in [0, 1])")


@dataclass(kw_only=True)
class Export(Command):
    """Write a network as ONNX, to draw with it outside of PyTorch.

    Attributes:
        model: mnist, fashion, cifar10, a .safetensors file, or the folder of a run
        out: the .onnx file
    """

    model: str = "mnist"
    out: str = "model.onnx"

    def run(self) -> None:
        model, _ = load(self.model)
        from ddimlib.export import export_onnx  # onnx takes seconds to import

        export_onnx(model, self.out)
        print(f"wrote {self.out}")


@dataclass(kw_only=True)
class Evaluate(Drawing):
    """Measure quality against steps and eta.

    Writes a JSON table after every row; the same command again continues it.

    Attributes:
        judge: a shipped judge's name, or the file of your own (default: the model's name)
        steps: one or more numbers of steps
        eta: one or more values in [0, 1], or hat
        n: images a row
        seed: of the starting noise
        guidance: classifier-free guidance; 1 is none
        out: the table
        bf16: compute the network in bfloat16: faster on a GPU and on a CPU with AMX, many times slower on CPUs that emulate it
        compile: run the network through torch.compile, worth it for long tables
        inception: measure FID, too, against the training images; the package torch-fidelity must be installed, and it downloads
            Inception's weights (tested with another network in Inception's place only)
        root: where these training images are, or are downloaded to
    """

    judge: str | None = None
    steps: tuple[int, ...] = (10, 20, 50)
    eta: tuple[Eta, ...] = (0.0,)
    n: Annotated[int, arg(aliases=["-n"])] = 1000
    seed: int = 0
    guidance: float = 1.0
    out: str = "table.json"
    bf16: bool = False
    compile: bool = False
    inception: bool = False
    root: str = "data"

    def is_resumable(self) -> bool:
        return True

    def run(self) -> None:
        out = check_output(self.out)
        model, schedule = load(self.model, self.device)
        judge = Judge.load(self.judge or self.model, self.device)
        inception = None
        if self.inception:
            inception = InceptionDistance(load_dataset(judge.facts["data"], self.root)[0], self.device)
        table = evaluate(
            model, schedule, judge, self.steps, self.eta, self.n, out, provenance(self.device), self.spacing, self.guidance,
            self.seed, self.batch_size, progress=not self.quiet, inception=inception, bf16=self.bf16, compile=self.compile,
        )  # fmt: skip
        print(f"{'steps':>5} {'eta':>5} {'accuracy':>9} {'Fréchet':>8}   (floor {judge.facts['floor']:.3f})")
        for row in table["rows"]:
            accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
            fid = f"   FID {row['fid']:.2f}" if "fid" in row else ""
            print(f"{row['steps']:>5} {row['eta']!s:>5} {accuracy:>9} {row['frechet']:>8.3f}{fid}")
        print(f"wrote {out}")


@dataclass(kw_only=True)
class MakeJudge(Command):
    """Train the classifier that judges samples of a data set.

    It shares nothing with the diffusion network but the training images.

    Attributes:
        data: mnist, fashion, cifar10, or a folder with train/ and test/, and in each a folder per class
        root: where the data set is, or is downloaded to
        epochs: passes over the training images (default: 12 if grey, 40 if colour, more for few images)
        seed: of the weights, the order and the distortions
        out: the classifier and its reference features
    """

    data: Positional[str]
    root: str = "data"
    epochs: int | None = None
    seed: int = 0
    out: str = "classifier.safetensors"

    def run(self) -> None:
        check_output(self.out)
        judge = train_classifier(self.data, self.root, self.epochs, self.seed, not self.quiet, self.device)
        judge.facts |= {"trained": provenance(self.device)}
        judge.save(self.out)
        print(f"wrote {self.out}: test accuracy {judge.facts['test_accuracy']:.2%}, floor {judge.facts['floor']:.4f}")


PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
NO_PICTURES = {".npz", ".npy", ".pt", ".safetensors", ".zip", ".mp4", ".svg", ".txt", ".json", ".csv", ".pdf", ".avi",
               ".eps", ".psd", ".gz", ".h5"}  # fmt: skip

COMMANDS: dict[str, Callable[..., Command]] = {
    "train": Train, "sample": Sample, "interpolate": Interpolate, "invert": Invert, "evaluate": Evaluate,
    "judge": MakeJudge, "export": Export,
}  # fmt: skip

DESCRIPTION = """Train small diffusion models, draw images from them with DDIM, and measure how good they are.
Try first: ddimlib sample --model mnist --steps 20 --n 64 --out grid.png. `ddimlib --version` says the version, and
`ddimlib --tyro-print-completion bash` (or zsh, tcsh) prints a script that completes commands and options."""


def load(name: str, device: str = "cpu") -> tuple[VelocityDenoiser, NoiseSchedule]:
    """A model and its schedule: a shipped one by name, a file's, or that of a run's folder."""
    if name in {*available(), *DATASETS}:
        return load_pretrained(name, device)
    if name.endswith(".safetensors") or Path(name).is_dir():
        return load_model(name, device)
    names = ", ".join(available())
    raise ValueError(f"no model {name!r}: use one of {names}, a .safetensors file, or the folder of a run")


def card_of(model: str) -> dict[str, Any]:
    """What is known about the model that a run started from: its name, and its card where there is one."""
    path = Path(PRETRAINED / model if model in available() else model)
    card = path / "model.json" if path.is_dir() else path.with_suffix(".json")
    return {"model": model} | (read_json(card) if card.exists() else {})


def _take_over(model: VelocityDenoiser, start: VelocityDenoiser) -> None:
    """Give `model` the weights of `start`; those of classes, when there are others, begin anew."""
    weights = start.state_dict()
    if model.num_classes != start.num_classes:
        weights = {name: value for name, value in weights.items() if "label_embedding" not in name}
        print(f"the classes are others ({start.num_classes} there, {model.num_classes} here): these weights begin anew")
    model.load_state_dict(weights, strict=False)


def images_of(data: str, root: str, n: int) -> tuple[Tensor, Tensor | None]:
    """The first n test images of a data set in [-1, 1], and their labels."""
    labels: Tensor | None
    if data in bundled_samples():
        images, labels = bundled_sample(data)
    else:
        part = data in DATASETS or any(Path(data, name).is_dir() for name in ("train", "test"))
        pixels, labels = load_dataset(data, root, train=not part)  # a folder without parts is all for training
        images = to_model_range(pixels[: max(n, 1)])
    if not 1 <= n <= len(images):
        raise ValueError(f"--n must lie in 1..{len(images)}, the number of images at hand, got {n}")
    return images[:n], None if labels is None else labels[:n]


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used ({str(error).splitlines()[0]}); use cpu or cuda") from error


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def parse(argv: Sequence[str]) -> Command:
    """The command that the words stand for, with its options.

    Raises:
        SystemExit: 2 when they stand for none, 0 after --help and --version; it is printed why.
    """
    if list(argv) in (["--version"], ["-V"]):
        print(f"ddimlib {__version__}")
        raise SystemExit(0)
    words = list(argv)
    if words[:1] == ["train"]:  # where the option has three states, tyro wants a word after it
        three = ("--bf16", "--no-bf16")
        pairs = zip(words, [*words[1:], ""], strict=True)
        words = [f"--bf16={w == '--bf16'}" if w in three and v not in ("True", "False") else w for w, v in pairs]
    chosen = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=words, prog="ddimlib", description=DESCRIPTION)
    if isinstance(chosen, Train):  # once more, with the numbers of its recipe where no others are given
        base = replace(chosen, training=chosen.chosen_recipe().training)
        chosen = tyro.cli(Train, args=words[1:], default=base, prog="ddimlib train")
    return chosen


def execute(parsed: Callable[[], Command]) -> int:
    """Run the command that `parsed` returns; returns the exit status, see :func:`main`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter gets a question mark
    command: Command | None = None
    # an error after Ctrl-C is an interruption, too: torch turns one into a ValueError while it reads a file
    with noted_signals(signal.SIGINT, spared=0) as noted:
        try:
            command = parsed()
            with process_group(command.device) as command.device:
                if world_size() > 1 and not command.is_shareable:
                    raise ValueError("only train and sample can be shared by processes; start this without torchrun")
                _check_device(command.device)
                return command.run() or 0
        except (KeyboardInterrupt, *ERRORS) as error:
            if not noted and not isinstance(error, KeyboardInterrupt):
                print(f"error: {f'rank {rank()}: ' if world_size() > 1 else ''}{error}", file=sys.stderr)
                return 2
            goes_on = "the same command again continues where this one stopped"
            kept = goes_on if command and command.is_resumable() else "nothing is kept"
            print("\ninterrupted" + (f"; {kept}" if command else ""), file=sys.stderr)
            number = error.args[0] if error.args and isinstance(error, KeyboardInterrupt) else signal.SIGINT
            return 128 + number if isinstance(number, int) else 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 after an error, 3 when it has more to do, 130 after an interruption."""
    return execute(lambda: parse(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
