"""Training: the noise-prediction loss, an exponential moving average of the weights, checkpoint and resume."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ddimlib.data import to_model_range, warped
from ddimlib.denoisers import VelocityDenoiser
from ddimlib.latents import mixed_seed
from ddimlib.muon import Muon, hidden_weights
from ddimlib.schedule import NoiseSchedule
from ddimlib.storage import read_tensors, write_tensors

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a training run depends on, besides the network and the data.

    Attributes:
        steps: optimiser steps in all.
        batch_size: images a step.
        learning_rate: the peak rate, reached after `warmup` steps, then a half cosine down to 0.
        warmup: steps of linear warm-up.
        ema: decay of the moving average of the weights, in [0, 1); the effective decay rises to it, (1 + n)/(10 + n).
        label_dropout: probability with which a label is replaced by "none", so that one network serves both ways.
        loss: "noise", "velocity" or "balanced", see :func:`loss_weight`.
        flip: mirror half of the images left to right. The network then draws mirrored ones too: not for digits, nor for shoes
            that all point the same way.
        warp: bend the images a little (:func:`ddimlib.data.warped`): all of them in the first half of the run, then fewer and
            fewer, none at its end. A long run then sees each image often without learning it by heart, and ends on the images
            as they are.
        clip_norm: the gradient's norm is cut to this.
        seed: of the initial weights and of every random draw.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 200
    ema: float = 0.999
    label_dropout: float = 0.1
    loss: str = "balanced"
    flip: bool = False
    warp: bool = False
    clip_norm: float = 1.0
    seed: int = 0


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


_SMALL = {
    "channels": 1,
    "widths": (16, 48, 128),
    "blocks": (1, 1, 3),
    "attention": (False, False, False),
    "num_classes": 10,
    "groups": 2,
}
_SMALL_RUN = TrainingConfig(steps=16_000, batch_size=128, learning_rate=5e-3, warp=True)

# 9.2 million parameters. As in Ho et al. 2020, appendix B: attention at 16×16, dropout 0.1, flips, EMA 0.9999, unweighted loss.
_COLOUR = {
    "channels": 3,
    "widths": (96, 192, 256),
    "blocks": (2, 2, 3),
    "attention": (False, True, False),
    "image_size": 32,
    "num_classes": 10,
    "dropout": 0.1,
}
# On a GPU large ones are: they keep it at work while the optimiser, whose cost does not grow with them, is soon done.
_COLOUR_RUN = TrainingConfig(
    steps=20_000, batch_size=512, learning_rate=2e-3, warmup=500, ema=0.9999, loss="noise", flip=True
)

RECIPES = {
    "mnist": Recipe(_SMALL, _SMALL_RUN, half=True),
    "fashion": Recipe(_SMALL, _SMALL_RUN, half=True),
    "cifar10": Recipe(_COLOUR, _COLOUR_RUN, half=True),
}


def noise_loss(eps: Tensor, noise: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean squared error of the predicted noise, ‖ε - ε_θ(x_t, t)‖² a pixel, averaged over the batch.

    With weight 1 it is L_simple (Ho et al. 2020, equation 14; the book, chapter 2).

    Args:
        eps, noise: predicted and true ε, [B, C, H, W].
        weight: one number, or [B].
    """
    return (weight * (eps - noise).square().flatten(1).mean(1)).mean()


def loss_weight(schedule: NoiseSchedule, t: Tensor, loss: str) -> Tensor:
    """Weight of each sample's noise loss: 1 for "noise", 1/ᾱ_t for "velocity", 2 √(1-ᾱ_t)/√ᾱ_t for "balanced".

    Since v = (ε - √(1-ᾱ_t) x_t)/√ᾱ_t, an error in ε is √ᾱ_t times the error in v: the second weight makes the noise loss
    the plain squared error of v, which still asks for something when x_t is almost all noise
    (Salimans & Ho 2022, section 4, "SNR + 1"). The third is the velocity's weight times 2 √ᾱ_t √(1-ᾱ_t), which is 1 where
    signal and noise are equal and falls to 0 at both ends, where x_t or the data set's mean is nearly all of the answer.

    Args:
        t: int64 [B], in 1..T.

    Returns:
        float32 [B].

    Raises:
        ValueError: when `loss` is none of the three.
    """
    alpha_bar = schedule.alpha_bar[t]
    if loss == "noise":
        return torch.ones(len(t))
    if loss == "velocity":
        return (1 / alpha_bar).float()
    if loss == "balanced":
        return 2 * ((1 - alpha_bar) / alpha_bar).sqrt().float()
    raise ValueError(f"loss must be 'noise', 'velocity' or 'balanced', got {loss!r}")


def stratified_timesteps(T: int, n: int, generator: torch.Generator) -> Tensor:
    """n timesteps that cover 1..T evenly: a random start, then equal strides around the circle.

    Each is uniform on 1..T, but no batch consists of easy timesteps only, so the gradient is less noisy
    (Kingma et al. 2021, appendix I.1).

    Returns:
        int64 [n].
    """
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    return 1 + ((offset + torch.arange(n) / n) % 1 * T).long()


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then half a cosine from 1 to 0 (Loshchilov & Hutter 2017)."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def ema_update(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Averaging rule for torch's `AveragedModel`: average ← d · average + (1 - d) · weights, d = min(decay, (1+n)/(10+n)).

    The warm-up in n, the number of updates so far, lets the average forget the random start.
    Source: Ho et al. 2020, appendix B, who have no warm-up; the book, chapter 2.
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

    Args:
        model: the denoiser to be trained, called as model(x, t, labels).
        schedule: the noise schedule.
        images: uint8 [N, C, H, W].
        labels: int64 [N], or None.
        config: what to do.
        checkpoint: file that holds the state of the run; it is resumed from when it exists.
        device: where to train.
        compile: run the network through `torch.compile`.
        bf16: compute the network in bfloat16 where torch's autocast allows it; weights, average and moments stay float32. By
            default, on a CUDA GPU that can.

    Raises:
        ValueError: when the checkpoint is damaged, or belongs to a run with another configuration, or when the batch cannot
            be shared out evenly.
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
    ) -> None:
        if len(images) < config.batch_size:
            raise ValueError(f"{len(images)} images do not fill one batch of {config.batch_size}; use a smaller batch")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{len(images)} images need as many labels, got {len(labels)}")
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if config.batch_size % self.world_size:
            raise ValueError(
                f"a batch of {config.batch_size} cannot be shared evenly by {self.world_size} processes; "
                f"use a batch size that is a multiple of {self.world_size}"
            )
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.model, multi_avg_fn=ema_update(config.ema), use_buffers=False)
        hidden = hidden_weights(self.model)
        chosen = {id(weight) for weight in hidden}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(hidden, lr=config.learning_rate),
            torch.optim.AdamW(others, lr=config.learning_rate, fused=True),
        ]
        self.config, self.device = config, torch.device(device)
        self.schedule, self.images, self.labels = schedule, images.to(self.device), labels
        self.bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(False) if bf16 is None else bf16
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.step = 0
        self.loss = math.nan
        self._updating = False
        self._forward = torch.compile(self.model) if compile else self.model
        if self.world_size > 1:  # each backward pass then averages the gradients over the processes
            self._forward = DistributedDataParallel(self._forward)
        self._epoch = (-1, torch.empty(0, dtype=torch.int64))
        self.load()

    @property
    def averaged_model(self) -> VelocityDenoiser:
        """The denoiser with the averaged weights: the one to sample from."""
        return cast(VelocityDenoiser, self.average.module)

    def batch(self, step: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Images in [-1, 1], labels (some dropped), timesteps and noise of one step: a function of (seed, step) alone.

        All is drawn on the CPU, so that it is the same on every machine. The timesteps stay there, the rest is on the device.
        """
        config = self.config
        per_epoch = len(self.images) // config.batch_size
        epoch, position = divmod(step, per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, torch.randperm(len(self.images), generator=_generator(config.seed, 0, epoch)))
        chosen = self._epoch[1][position * config.batch_size : (position + 1) * config.batch_size]
        generator = _generator(config.seed, 1, step)
        t = stratified_timesteps(self.schedule.T, len(chosen), generator)
        noise = self._to_device(torch.randn(len(chosen), *self.images.shape[1:], generator=generator))
        labels = None
        if self.labels is not None:
            dropped = torch.rand(len(chosen), generator=generator) < config.label_dropout
            labels = self._to_device(torch.where(dropped, cast(int, self.model.num_classes), self.labels[chosen]))
        x_0 = to_model_range(self.images[self._to_device(chosen)])
        if config.flip:
            mirrored = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
            x_0 = torch.where(self._to_device(mirrored), x_0.flip(-1), x_0)
        if config.warp:
            bent = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 2 * (1 - step / config.steps)
            x_0 = torch.where(self._to_device(bent), warped(x_0, generator), x_0)
        return x_0, labels, t, noise

    def _to_device(self, x: Tensor) -> Tensor:
        """To a GPU without waiting for it, so that the next batch is drawn while this one is computed."""
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    def train_step(self) -> Tensor:
        """One optimiser step; returns its loss, over the whole batch."""
        config = self.config
        x_0, labels, t, noise = self.batch(self.step)
        share = slice(self.rank, None, self.world_size)
        x_0, labels, t, noise = x_0[share], None if labels is None else labels[share], t[share], noise[share]
        weight = self._to_device(loss_weight(self.schedule, t, config.loss))
        x_t = self.schedule.add_noise(x_0, t, noise).to(memory_format=torch.channels_last)
        torch.manual_seed(mixed_seed(config.seed, 2, self.step, self.rank))  # dropout's draws
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            eps = self._forward(x_t, self._to_device(t), labels)
        loss = noise_loss(eps, noise, weight)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = config.learning_rate * learning_rate_factor(self.step, config)
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self._updating = True
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self._updating = False
        loss = loss.detach()
        if self.world_size > 1:
            dist.all_reduce(loss)
            loss /= self.world_size
        return loss

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
        """
        self.model.train()
        begin = saved = time.monotonic()
        devices = [self.device] if self.device.type == "cuda" else []  # by default, every GPU of the machine
        with (
            torch.random.fork_rng(devices),
            tqdm(total=self.config.steps, initial=self.step, disable=not progress) as bar,
        ):
            try:
                while self.step < self.config.steps:
                    loss = self.train_step()
                    bar.update()
                    save = time.monotonic() - saved > save_every
                    if save or self.step % 20 == 0 or self.step == self.config.steps:
                        self._track(float(loss))
                        bar.set_postfix(loss=f"{self.loss:.4f}")
                    if save:
                        self.save()
                        saved = time.monotonic()
                    if math.isfinite(stop_after) and self._any(time.monotonic() - begin > stop_after):
                        break
            except KeyboardInterrupt:
                if not self._updating:  # half a step must not be stored; the last whole state then stays
                    self.save()
                raise
        self.save()
        return self.step == self.config.steps

    def _any(self, flag: bool) -> bool:
        """Whether it is so on any process: all must stop after the same step."""
        flags = torch.tensor(int(flag))
        if self.world_size > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def _track(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.loss = loss
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
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        facts = {"config": asdict(self.config), "step": self.step, "loss": self.loss}
        write_tensors(self.checkpoint, tensors | moments, facts)

    def load(self) -> None:
        """Continue from the checkpoint, if there is one."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        tensors, facts = read_tensors(self.checkpoint)
        if facts.get("config") != asdict(self.config):
            other = {k: v for k, v in facts.get("config", {}).items() if v != asdict(self.config).get(k)}
            raise ValueError(
                f"{self.checkpoint} belongs to a run with another configuration ({other}); "
                "repeat that run's options, or choose another output folder"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
        except RuntimeError as error:
            raise ValueError(
                f"{self.checkpoint} belongs to a run with another network ({error}); choose another output folder"
            ) from error
        self.average.load_state_dict(part("average."))
        for k, optimizer in enumerate(self.optimizers):
            parameters = optimizer.param_groups[0]["params"]
            state: dict[int, dict[str, Any]] = {}
            for name, value in part(f"optimizer{k}.").items():
                index, key = name.split(".")
                weight = parameters[int(index)].detach()
                if value.shape == weight.shape:
                    # a moment: the fused optimiser walks memory, not strides, so lay it out as its weight is
                    value = torch.empty_like(weight).copy_(value)
                state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.step, self.loss = facts["step"], facts["loss"]


def _generator(*entropy: int) -> torch.Generator:
    return torch.Generator().manual_seed(mixed_seed(*entropy))
