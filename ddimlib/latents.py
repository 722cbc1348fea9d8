"""Noise as an input: one seed for each sample, every source a sampler accepts, and paths between two latents."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from ddimlib.arguments import KindError, check_finite, check_floats, check_int, check_number, check_pair, describe

MOST_SEEDS = 2**32


def mixed_seed(*entropy: int) -> int:
    """One well-mixed seed, in 0..2⁶³-1, out of several small non-negative numbers such as (run, sample)."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def sample_seeds(seed: int, n: int, start: int = 0) -> list[int]:
    """Seeds of samples start, …, start + n - 1 of the run `seed`: well mixed, so that runs 0 and 1 share no sample.

    `seed` and the samples' numbers lie in 0..2³²-1: beyond, two runs would share samples.
    """
    seed, start = check_int("seed", seed, 0, MOST_SEEDS - 1), check_int("start", start, 0, MOST_SEEDS - 1)
    return [mixed_seed(seed, i) for i in range(start, start + check_int("n", n, 0, MOST_SEEDS - start))]


class SeededNoise:
    """A source of Gaussian noise with a generator of its own for each sample; seeds are in 0..2⁶⁴-1.

    What sample i receives depends on its seed alone: not on the batch around it or its place there (`torch.randn(3)` is not
    the head of `torch.randn(64, 3)`), nor on device, dtype and torch's defaults. Drawn on the CPU in float32::

        noise = SeededNoise.from_seed(3, n=10)
        x_T = noise.initial(model.image_shape)
        images = last(ddim(model, schedule, x_T, 50, eta=1.0, noise=noise))
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        if not hasattr(seeds, "__iter__"):
            raise KindError(f"seeds must be a list, one a sample, got {describe(seeds)}; or use from_seed(seed, n)")
        self._seeds = [check_int("each seed", seed, 0, 2**64 - 1) for seed in seeds]
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in self._seeds]

    @classmethod
    def from_seed(cls, seed: int, n: int, start: int = 0) -> "SeededNoise":
        """The noise of samples start, …, start + n - 1 of the run `seed`: the same that :func:`ddimlib.sample` draws."""
        return cls(sample_seeds(seed, n, start))

    def __len__(self) -> int:
        return len(self._generators)

    def initial(self, shape: Sequence[int]) -> Tensor:
        """x_T, the first draw, independent of those that follow. Winds the generators back, so it is the same each time."""
        for seed, generator in zip(self._seeds, self._generators, strict=True):
            generator.manual_seed(seed)
        return self.draw(shape)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next N(0, I) draw, one for each sample: float32 on the CPU, [B, …] with `shape` for each."""
        if not isinstance(shape, Sequence | np.ndarray | Tensor):
            raise KindError(f"shape must be that of one sample, such as (1, 28, 28), got {describe(shape)}")
        size = [check_int("each entry of shape", n, 1) for n in shape]
        draws = [torch.randn(size, generator=g, dtype=torch.float32, device="cpu") for g in self._generators]
        return torch.stack(draws) if draws else torch.empty(0, *size, dtype=torch.float32, device="cpu")

    def check_batch(self, like: Tensor) -> None:
        """Raise ValueError unless `like` [B, …] has one sample for each seed."""
        if (n := len(like)) != len(self):
            fix = f"use SeededNoise.from_seed(seed, n={n})"
            raise ValueError(f"this noise has {len(self)} seeds, but the batch has {n} samples; {fix}")

    def __call__(self, like: Tensor) -> Tensor:
        """The next draw with the shape, floating dtype and device of `like` [B, …], which has one sample for each seed."""
        check_floats("like", like)
        self.check_batch(like)
        noise = self.draw(like.shape[1:]).to(like.dtype)
        if like.device.type == "cuda":
            noise = noise.pin_memory()  # only from pinned memory does a copy go on while the host does other things
        return noise.to(like.device, non_blocking=True)


Noise = Union[None, int, torch.Generator, Tensor, SeededNoise, Callable[[Tensor], Tensor]]  # noqa: UP007, one is a string
"""Step noise, as one of None (drawn from torch's generator), a seed, a generator, a tensor [S, B, C, H, W], a
:class:`SeededNoise`, or any source that is called with the state it must match. A seed stands for what
`SeededNoise.from_seed(seed, B)` has left after `initial`, so it never repeats the x_T of the same seed."""


def noise_source(noise: Any, x_T: Tensor, count: int) -> Callable[[int, Tensor], Tensor]:
    """What the i-th of `count` steps calls for its noise, as source(i, x); raises unless it is a :data:`Noise`, finite, that
    fits x_T [B, C, H, W]."""
    if noise is None:
        return lambda i, x: torch.randn_like(x)
    if isinstance(noise, torch.Generator):
        draw = partial(torch.randn, generator=noise, dtype=torch.float32, device=noise.device)
        return lambda i, x: draw(x.shape).to(x.dtype).to(x.device)
    if isinstance(noise, Tensor):
        if noise.shape != (count, *x_T.shape):
            raise ValueError(f"step noise must be [S, B, C, H, W] = {(count, *x_T.shape)}, got {tuple(noise.shape)}")
        check_finite("noise", noise, batch=False)
        return lambda i, x: noise[i].to(x.dtype).to(x.device)  # in this order: some devices have no float64
    if not callable(noise):
        fix = "or None, a torch.Generator, a tensor [S, B, C, H, W], a SeededNoise, or a function of the state"
        noise = SeededNoise.from_seed(check_int("noise", noise, 0, MOST_SEEDS - 1, fix), len(x_T))
        noise.initial(x_T.shape[1:])
    if isinstance(noise, SeededNoise):
        noise.check_batch(x_T)
    return lambda i, x: noise(x)


def lerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The straight line from a to b: (1 - u) a + u b. Between Gaussian latents the norm sags (the book, chapter 8).

    a and b are [B, …], floating point, finite, of one shape; the result has the dtype of a. The weight u is finite, and in
    [0, 1] between a and b.
    """
    weight = _check_path(a, b, weight)
    return torch.lerp(a, b.to(a.dtype), weight)


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The great-circle path: sin((1-u)ω)/sin ω · a + sin(uω)/sin ω · b, ω the angle between a and b, one for each sample.

    Keeps the norm of two latents of equal norm. Source: Shoemake 1985; Song et al. 2021, appendix D.5; the book, chapter 8.
    Arguments and errors as for :func:`lerp`; a and b must not be 0 (no direction), nor opposite (no unique path).
    """
    weight = _check_path(a, b, weight)
    flat_a, flat_b = (x.flatten(1).cpu().double() for x in (a, b))  # on the host: some devices have no float64
    norms = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    if not (norms > 0).all():
        raise ValueError("a or b is zero, so there is no angle between them; use lerp for zeros")
    omega = torch.arccos(((flat_a * flat_b).sum(1) / norms).clamp(-1, 1))
    if (omega > torch.pi - 1e-4).any():
        raise ValueError("a and b point in opposite directions, so no great circle is shortest; choose another pair")
    straight = omega < 1e-4  # nearly parallel: the limit is the straight line
    sine = torch.where(straight, 1.0, omega.sin())
    w_a = torch.where(straight, 1 - weight, torch.sin((1 - weight) * omega) / sine)
    w_b = torch.where(straight, weight, torch.sin(weight * omega) / sine)
    return (w_a[:, None] * flat_a + w_b[:, None] * flat_b).reshape(a.shape).to(a.dtype).to(a.device)


def _check_path(a: Tensor, b: Tensor, weight: float) -> float:
    check_finite("a", a, batch=False)
    check_finite("b", b, batch=False)
    check_pair("a", a, "b", b)
    return check_number("the weight", weight, fix="0 is a and 1 is b; for a path, call once for each weight")
