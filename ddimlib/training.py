"""Training: the noise-prediction loss, an exponential moving average of the weights, checkpoint and resume."""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ddimlib.arguments import (
    KindError,
    check_bytes,
    check_choice,
    check_int,
    check_labels,
    check_number,
    check_pair,
    describe,
)
from ddimlib.data import to_model_range, warped
from ddimlib.denoisers import VelocityDenoiser, check_model, said_by
from ddimlib.latents import mixed_seed
from ddimlib.muon import Muon, hidden_weights
from ddimlib.provenance import check_settings, model_settings
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import check_output, check_tensors, digest, locked, read_tensors, write_tensors

Tensors = tuple[Tensor, ...] | list[Tensor]

LOSSES = ("noise", "velocity", "balanced")
OPTIMIZERS = ("muon", "adamw")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a training run depends on, besides the network and the data.

    Attributes:
        steps: optimiser steps in all.
        batch_size: images a step.
        learning_rate: the peak rate, reached after `warmup` steps and kept until the decay.
        warmup: steps of linear warm-up.
        decay: share of the run, in [0, 1], over which the rate falls to 0, at its end. 1 is a half cosine from the warm-up
            on. With 0.1, a run whose length is not known beforehand keeps its rate, and can be ended from any checkpoint.
        ema: decay of the moving average of the weights, in [0, 1); the effective decay rises to it, (1 + n)/(10 + n).
        label_dropout: probability with which a label is replaced by "none", so that one network serves both ways.
        loss: "noise", "velocity" or "balanced", see :func:`loss_weight`.
        optimizer: "muon" for weights between hidden features (:mod:`ddimlib.muon`), AdamW for others; or "adamw" for all.
        flip: mirror half of the images left to right. The network then draws mirrored ones too: not for digits, nor for shoes
            that all point the same way.
        warp: bend the images a little (:func:`ddimlib.data.warped`): all of them in the first half of the run, then fewer and
            fewer, none at its end. A long run then sees each image often without learning it by heart, and ends on the images
            as they are.
        clip_norm: the gradient's norm is cut to this.
        seed: of the initial weights and of every random draw.

    Raises:
        ValueError: when a number is out of its range.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 200
    decay: float = 1.0
    ema: float = 0.999
    label_dropout: float = 0.1
    loss: str = "balanced"
    optimizer: str = "muon"
    flip: bool = False
    warp: bool = False
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0)):
            check_int(name, getattr(self, name), least)
        check_int("seed", self.seed, 0, 2**63 - 1)
        for name, most in (("learning_rate", 1e3), ("decay", 1), ("ema", 0.999_999_9), ("label_dropout", 1)):
            check_number(name, getattr(self, name), 0, most)
        check_number("clip_norm", self.clip_norm, 0, above=True)
        check_choice("loss", self.loss, LOSSES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("flip", "warp"):
            if not isinstance(getattr(self, name), bool):
                raise KindError(f"{name} must be True or False, got {describe(getattr(self, name))}")


@dataclass(frozen=True)
class Recipe:
    """How the shipped network of a data set was made.

    Attributes:
        network: the arguments of :class:`ddimlib.unet.UNet`.
        training: the configuration of the run; the command line's options replace parts of it.
        half: store the finished weights as float16, in half the space; they are read back as float32.
    """

    network: dict[str, Any]
    training: TrainingConfig
    half: bool = False


# Channels, image size and classes are those of the data.
_SMALL = {"widths": (16, 48, 128), "blocks": (1, 1, 3), "attention": (False, False, False), "groups": 2}
_SMALL_RUN = TrainingConfig(steps=16_000, batch_size=128, learning_rate=5e-3, warp=True)

# 6.5 million parameters, 1.4 billion operations an image: little work at 32×32, most of it at 16×16 and 8×8, so that a laptop
# without a GPU can draw with it, and train it further.
_COLOUR = {"widths": (32, 128, 256), "blocks": (1, 2, 3), "attention": (False, False, True)}
# Large batches keep a GPU at work; the optimiser, whose cost does not grow with them, is soon done.
_COLOUR_RUN = TrainingConfig(steps=20_000, batch_size=512, learning_rate=3e-3, warmup=500, ema=0.9995, flip=True)

# For pictures of one's own, on a laptop; `--fit-minutes` chooses the number of steps.
_FOLDER_RUN = TrainingConfig(steps=3_000, batch_size=64, learning_rate=5e-3, warmup=100)

RECIPES = {
    "mnist": Recipe(_SMALL, _SMALL_RUN, half=True),
    "fashion": Recipe(_SMALL, _SMALL_RUN, half=True),
    "cifar10": Recipe(_COLOUR, _COLOUR_RUN, half=True),
    "folder": Recipe(_SMALL, _FOLDER_RUN),
}


def network_for(images: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """What of a :class:`ddimlib.unet.UNet` the data decides: channels, image size and classes.

    images is [N, C, H, W]; labels are int64 [N], or None.
    """
    _, channels, height, width = images.shape
    return {
        "channels": channels,
        "image_size": width if height == width else (height, width),
        "num_classes": None if labels is None else int(labels.max()) + 1,
    }


def noise_loss(eps: Tensor, noise: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean squared error of the predicted noise, ‖ε - ε_θ(x_t, t)‖² a pixel, averaged over the batch.

    With weight 1 it is L_simple (Ho et al. 2020, equation 14; the book, chapter 2).

    Args:
        eps, noise: predicted and true ε, [B, C, H, W].
        weight: one number, or [B].
    """
    check_pair("eps", eps, "noise", noise)
    return (weight * (eps - noise).square().flatten(1).mean(1)).mean()


def loss_weight(schedule: NoiseSchedule, t: Tensor, loss: str) -> Tensor:
    """Weight of each sample's noise loss: 1 for "noise", 1/ᾱ_t for "velocity", 2 √(1-ᾱ_t)/√ᾱ_t for "balanced".

    Since v = (ε - √(1-ᾱ_t) x_t)/√ᾱ_t, an error in ε is √ᾱ_t times the error in v: the second weight makes the noise loss
    the plain squared error of v, which still asks for something when x_t is almost all noise
    (Salimans & Ho 2022, section 4, "SNR + 1"). The third is the velocity's weight times 2 √ᾱ_t √(1-ᾱ_t), which is 1 where
    signal and noise are equal and falls to 0 at both ends, where x_t shows the image already, or nothing of it but the mean.

    t is int64 [B], in 1..T; returns float32 [B].
    """
    check_choice("loss", loss, LOSSES)
    alpha_bar = schedule.alpha_bar[t]
    if loss == "balanced":
        return 2 * ((1 - alpha_bar) / alpha_bar).sqrt().float()
    return (1 / alpha_bar).float() if loss == "velocity" else torch.ones_like(alpha_bar).float()


def stratified_timesteps(T: int, n: int, generator: torch.Generator) -> Tensor:
    """n timesteps that cover 1..T evenly, int64 [n]: a random start, then equal strides around the circle.

    Each is uniform on 1..T, but no batch consists of easy timesteps only, so the gradient is less noisy
    (Kingma et al. 2021, appendix I.1).
    """
    offset = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
    return 1 + ((offset + torch.arange(n, device="cpu").float() / n) % 1 * T).long()


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then 1, then half a cosine down to 0 over the last `decay` of the run (Loshchilov & Hutter 2017)."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    begin = max(config.warmup, round((1 - config.decay) * config.steps))
    if step < begin:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - begin) / max(1, config.steps - begin)))


def ema_update(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Averaging rule: average ← d · average + (1 - d) · weights, d = min(decay, (1+n)/(10+n)), n updates being done before.

    The warm-up in n lets the average forget the random start. Torch's `AveragedModel` takes this rule too, but keeps n on the
    device, where a GPU waits for it. Source: Ho et al. 2020, appendix B, who have no warm-up; the book, chapter 3.
    """

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, num_averaged: Tensor | int) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return update


class Trainer:
    """A training run that can be killed at any moment and continued to the same end.

    Every random draw of step k comes from generators seeded by (seed, k), and the data order of epoch e by (seed, e). The
    state is therefore the weights, their average, the optimiser's moments and k: on a CPU, a resumed run ends with the
    same weights, to the bit, as one that was never stopped.

    Where processes have been joined by `torch.distributed`, each takes its share of every batch and the gradients are
    averaged: the loss and the weights are those of one process, up to rounding (and up to dropout in the network, which
    each process draws for its share). All hold the same state; rank 0 alone writes the checkpoint, and all must see it.

    SIGINT (Ctrl-C) and SIGTERM are noted: the step ends, the checkpoint is written, and then KeyboardInterrupt is raised,
    with the number of the signal. A second one ends the run at once.

    Args:
        model: the denoiser to be trained: any module called as model(x, t), or with labels as model(x, t, labels). It then has
            `num_classes`, and takes the label num_classes as "none".
        schedule: the noise schedule.
        images: uint8 [N, C, H, W].
        labels: [N], in 0..num_classes - 1, or None.
        config: what to do; its batches can be shared out evenly among the processes.
        checkpoint: file that holds the state of the run; it is resumed from when it exists, and belongs to the same images,
            labels, network, schedule, configuration and precision.
        device: where to train.
        compile: run the network through `torch.compile`.
        bf16: compute the network in bfloat16 where torch's autocast allows it; weights, average and moments stay float32. By
            default, on a CUDA GPU that can.
        settings: what else the run depends on, JSON-able: for example a digest of the weights it starts from.
        extend: go on with a checkpoint of fewer steps: the rate then follows the longer run from where it stands.

    Raises:
        ValueError: when an argument is not as said, or the checkpoint is damaged or belongs to a run with other settings.
        OSError: when the checkpoint could not be written.
    """

    def __init__(
        self,
        model: VelocityDenoiser,
        schedule: NoiseSchedule,
        images: Tensor,
        labels: Tensor | None,
        config: TrainingConfig,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "cpu",
        compile: bool = False,
        bf16: bool | None = None,
        settings: Mapping[str, Any] | None = None,
        extend: bool = False,
    ) -> None:
        check_model(model, schedule)
        check_bytes("images", images)
        if len(images) < config.batch_size:
            raise ValueError(f"{len(images)} images do not fill one batch of {config.batch_size}; use a smaller batch")
        channels = (said_by(model, "image_shape") or images.shape[1:])[0]
        if channels != images.shape[1]:
            raise ValueError(f"the network takes images of {channels} channels, these have {images.shape[1]}")
        if labels is not None:
            labels = check_labels(labels, said_by(model, "num_classes"), len(images)).expand(len(images))
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if config.batch_size % self.world_size:
            shared = f"cannot be shared evenly by {self.world_size} processes"
            raise ValueError(f"a batch of {config.batch_size} {shared}; use a multiple of {self.world_size}")
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.averaged_model = copy.deepcopy(self.model).requires_grad_(False)  # the one to sample from
        self._models = nn.ModuleDict({"model": self.model, "average": self.averaged_model})  # what a checkpoint holds
        hidden = hidden_weights(self.model) if config.optimizer == "muon" else []
        chosen = {id(weight) for weight in hidden}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in chosen]
        kinds = ((Muon, hidden), (partial(torch.optim.AdamW, fused=True), others))
        self.optimizers = [kind(weights, lr=config.learning_rate) for kind, weights in kinds if weights]
        if not self.optimizers:
            raise ValueError(f"{type(model).__name__} has no weights to train")
        self._average = ema_update(config.ema)
        self.config, self.device = config, torch.device(device)
        self.schedule, self.images, self.labels = schedule, images.to(self.device), labels
        self.bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(False) if bf16 is None else bf16
        self.checkpoint = None if checkpoint is None else check_output(checkpoint)
        of_the_model = model_settings(model, schedule)
        self._run_settings = {
            "network": of_the_model["network"],
            "betas": of_the_model["betas"],
            "images": digest({"images": images})[:16],
            "labels": None if labels is None else digest({"labels": labels})[:16],
            "bf16": self.bf16,
            **(settings or {}),
        }
        self._extend = extend
        self._seen: tuple[int, ...] | None = None  # the checkpoint as it was last read or written
        self.step = 0
        self.loss = math.nan
        self._updating = False
        self._forward = torch.compile(self.model) if compile else self.model
        if self.world_size > 1:  # each backward pass then averages the gradients over the processes
            self._forward = DistributedDataParallel(self._forward)
        self._epoch = (-1, torch.empty(0, dtype=torch.int64, device="cpu"))
        # while a GPU is at one step, a thread draws the next one's noise, which takes as long; a CPU has no time to spare
        self._ahead: tuple[int, Future[Any]] | None = None
        self._drawer = ThreadPoolExecutor(1) if self.device.type == "cuda" else None
        self.load()

    def batch(self, step: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Images in [-1, 1], labels (some dropped), timesteps and noise of one step: a function of (seed, step) alone.

        All is drawn on the CPU, so that it is the same on every machine. The timesteps stay there, the rest is on the device.
        """
        config, count = self.config, len(self.images)
        per_epoch = count // config.batch_size
        epoch, position = divmod(step, per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, torch.randperm(count, generator=_generator(config.seed, 0, epoch), device="cpu"))
        chosen = self._epoch[1][position * config.batch_size : (position + 1) * config.batch_size]
        generator = _generator(config.seed, 1, step)
        draws: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
        t = stratified_timesteps(self.schedule.T, len(chosen), generator)
        noise = self._to_device(torch.randn(len(chosen), *self.images.shape[1:], **draws))
        labels = None
        if self.labels is not None:
            dropped = torch.rand(len(chosen), **draws) < config.label_dropout
            labels = self._to_device(torch.where(dropped, said_by(self.model, "num_classes"), self.labels[chosen]))
        x_0 = to_model_range(self.images[self._to_device(chosen)])
        if config.flip:
            mirrored = torch.rand(len(chosen), 1, 1, 1, **draws) < 0.5
            x_0 = torch.where(self._to_device(mirrored), x_0.flip(-1), x_0)
        if config.warp:
            bent = torch.rand(len(chosen), 1, 1, 1, **draws) < 2 * (1 - step / config.steps)
            x_0 = torch.where(self._to_device(bent), warped(x_0, generator), x_0)
        return x_0, labels, t, noise

    def _next_batch(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The batch of this step, drawn ahead if there is a GPU to be kept busy."""
        if self._drawer is None:
            return self.batch(self.step)
        if self._ahead is None or self._ahead[0] != self.step:
            self._ahead = (self.step, self._drawer.submit(self.batch, self.step))
        batch = self._ahead[1].result()
        self._ahead = (self.step + 1, self._drawer.submit(self.batch, self.step + 1))
        return batch

    def _to_device(self, x: Tensor) -> Tensor:
        """To a GPU without waiting for it, so that the next batch is drawn while this one is computed."""
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    def train_step(self) -> Tensor:
        """One optimiser step; returns its loss, over the whole batch."""
        config = self.config
        x_0, labels, t, noise = self._next_batch()
        share = slice(self.rank, None, self.world_size)
        x_0, labels, t, noise = x_0[share], None if labels is None else labels[share], t[share], noise[share]
        weight = self._to_device(loss_weight(self.schedule, t, config.loss))
        x_t = self.schedule.add_noise(x_0, t, noise).to(memory_format=torch.channels_last)
        torch.manual_seed(mixed_seed(config.seed, 2, self.step, self.rank))  # dropout's draws
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            eps = self._forward(x_t, self._to_device(t), *(() if labels is None else (labels,)))
        loss = noise_loss(eps, noise, weight)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = config.learning_rate * learning_rate_factor(self.step, config)
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self._updating = True
        for optimizer in self.optimizers:
            optimizer.step()
        self._update_average()
        self.step += 1
        self._updating = False
        loss = loss.detach()
        if self.world_size > 1:
            dist.all_reduce(loss)
            loss /= self.world_size
        return loss

    @torch.no_grad()
    def _update_average(self) -> None:
        averages: list[Tensor] = list(self.averaged_model.parameters())
        weights: list[Tensor] = [parameter.detach() for parameter in self.model.parameters()]
        if self.step == 0:  # the average begins with the first weights that have learnt something
            torch._foreach_copy_(averages, weights)
        else:
            self._average(averages, weights, self.step)

    def run(self, progress: bool = True, save_every: float = 60.0, stop_after: float = math.inf) -> bool:
        """Train to the end, saving a checkpoint every `save_every` seconds, at the end, and on an interruption.

        Args:
            progress: show a progress bar.
            save_every: seconds between two checkpoints.
            stop_after: seconds after which to stop with a checkpoint, at least one step on; another run continues there.

        Returns:
            Whether the end was reached.

        Raises:
            FloatingPointError: when the loss is no longer finite; the last checkpoint is left as it was.
            KeyboardInterrupt: after SIGINT or SIGTERM, with its number; the checkpoint is written.
            OSError: when another process trains into the same checkpoint, or has done so since it was read.
        """
        alone = nullcontext() if self.checkpoint is None or self.rank > 0 else locked(self.checkpoint, wait=False)
        devices = [self.device] if self.device.type == "cuda" else []  # by default, every GPU of the machine
        with (
            alone,
            torch.random.fork_rng(devices),
            noted_signals(signal.SIGINT, signal.SIGTERM, spared=1) as noted,
            tqdm(total=self.config.steps, initial=self.step, disable=not progress) as bar,
        ):
            if self.rank == 0 and self._stamp() != self._seen:
                raise OSError(f"{self.checkpoint} was written by another run since it was read; begin again from there")
            self.model.train()
            begin = saved = time.monotonic()
            over = 0
            try:
                while self.step < self.config.steps and not over:
                    loss = self.train_step()
                    bar.update()
                    if self.step % 20 == 0 or self.step == self.config.steps:
                        self._track(float(loss))
                        bar.set_postfix(loss=f"{self.loss:.4f}")
                    if time.monotonic() - saved > save_every:
                        self.save()
                        saved = time.monotonic()
                    late = math.isfinite(stop_after) and time.monotonic() - begin > stop_after
                    over = self._any(noted[0] if noted else -1 if late else 0)
            except KeyboardInterrupt:
                if not self._updating:  # half a step must not be stored; the last whole state then stays
                    self.save()
                raise
            self.save()
        if over > 0 and self.step < self.config.steps:
            raise KeyboardInterrupt(over)
        return self.step == self.config.steps

    def speed(self, seconds: float = 2.0) -> float:
        """Steps a second: real steps of a run that has not begun are timed, after those that compile, and then undone."""
        if self.step > 0:
            raise ValueError(f"the run is at step {self.step} already, and its length is fixed; leave the fitting out")
        start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for _ in range(5):  # the first ones compile
                float(self.train_step())
            first, timed = self.step, time.monotonic()
            while time.monotonic() - timed < seconds or self.step == first:
                loss = self.train_step()
            float(loss)  # waits for the device
            rate = (self.step - first) / (time.monotonic() - timed)
        for module in (self.model, self.averaged_model):
            module.load_state_dict(start)
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self.step, self._ahead = 0, None
        return rate

    def fit(self, seconds: float, measured: float = 8.0) -> None:
        """Set the number of steps so that the whole run, its decay included, takes about `seconds` from now on.

        The run that follows is the same as one that was asked for this number of steps. Five per cent are kept in reserve.

        Args:
            seconds: in all; at least one step must fit.
            measured: how long to time, at most a tenth of `seconds`; see :meth:`speed`.
        """
        if self.world_size > 1:
            raise ValueError("the length is fitted by one process alone; under torchrun give the number of steps")
        begin = time.monotonic()
        rate = self.speed(min(measured, 0.1 * seconds))
        steps = int(0.95 * rate * (seconds - (time.monotonic() - begin)))
        if steps < 1:
            raise ValueError(f"not one step fits into {seconds:.0f} seconds ({rate:.2f} a second); allow more time")
        self.config = replace(self.config, steps=steps)

    def _any(self, reason: int) -> int:
        """The reason to stop that any process has, 0 for none: all must stop after the same step."""
        if self.world_size == 1:
            return reason
        least, most = (torch.tensor(reason, device="cpu") for _ in range(2))
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most) or int(least)

    def _stamp(self) -> tuple[int, ...] | None:
        """What changes when another process writes the checkpoint."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        facts = self.checkpoint.stat()
        return facts.st_mtime_ns, facts.st_size, facts.st_ino

    def _track(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {self.step}; lower the learning rate")
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss

    def save(self) -> None:
        """Write the checkpoint, atomically. Without one, and on other ranks than 0, do nothing.

        Raises:
            FloatingPointError: when a weight is not finite; the file is left as it was.
        """
        if self.checkpoint is None or self.rank > 0:
            return
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise FloatingPointError(f"the weights hold NaN or infinity at step {self.step}; lower the learning rate")
        moments = {
            f"optimizer{k}.{i}.{name}": value
            for k, optimizer in enumerate(self.optimizers)
            for i, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        settings = {"config": asdict(self.config), **self._run_settings}
        facts = {"settings": settings, "step": self.step, "loss": self.loss, "moments": sorted(moments)}
        write_tensors(self.checkpoint, self._models.state_dict() | moments, facts)
        self._seen = self._stamp()

    def load(self) -> None:
        """Continue from the checkpoint, if there is one."""
        self._seen = self._stamp()
        if self.checkpoint is None or self._seen is None:
            return
        path = self.checkpoint
        tensors, facts = read_tensors(path)
        found = facts.get("settings")
        if self._extend and isinstance(found, dict) and isinstance(found.get("config"), dict):
            found["config"]["steps"] = max(found["config"].get("steps", 0), self.config.steps)
        check_settings(path, found, {"config": asdict(self.config), **self._run_settings})
        step, loss, moments = facts.get("step"), facts.get("loss"), [k for k in tensors if k.startswith("optimizer")]
        if not (isinstance(step, int) and 0 <= step <= self.config.steps and isinstance(loss, float)):
            raise ValueError(
                f"{path} says that it stands at step {step!r} with loss {loss!r}; it is damaged: remove it"
            )
        if sorted(moments) != facts.get("moments") or (step > 0) != bool(moments):
            raise ValueError(f"{path} has not the moments of the optimiser that it should; it is damaged: remove it")
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for name in moments:
            k, index, key = name.removeprefix("optimizer").split(".", 2)
            value, weight = tensors.pop(name), self.optimizers[int(k)].param_groups[0]["params"][int(index)].detach()
            if key != "step":  # the fused optimiser walks a moment's memory, not strides: lay it out as its weight is
                check_tensors(path, {name: value}, {name: weight}, None)
                value = torch.empty_like(weight).copy_(value)
            states[int(k)].setdefault(int(index), {})[key] = value
        check_tensors(path, tensors, self._models.state_dict(), None)
        self._models.load_state_dict(tensors)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.step, self.loss = step, loss


@contextmanager
def noted_signals(*numbers: int, spared: int) -> Iterator[list[int]]:
    """The first `spared` of these signals only join the list, so that a step can end; the next raises KeyboardInterrupt."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        if len(noted) > spared:
            raise KeyboardInterrupt(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # others receive no signals
        before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _generator(*entropy: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(mixed_seed(*entropy))
