"""Starting noise: one seed for each sample, and paths between two latents."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddimlib.schedule import check_same_shape


def mixed_seed(*entropy: int) -> int:
    """One well-mixed seed, in 0..2⁶³-1, out of several small non-negative numbers such as (run, sample)."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def sample_seeds(seed: int, n: int, start: int = 0) -> list[int]:
    """Seeds of samples start, …, start + n - 1 of the run `seed`: well mixed, so that runs 0 and 1 share no sample.

    Raises:
        ValueError: when `seed` or `start` is outside 0..2³²-1 (beyond, two runs would share samples).
    """
    if not (0 <= seed < 2**32 and 0 <= start < 2**32):
        raise ValueError(f"seed and start must lie in 0..{2**32 - 1}, got {seed} and {start}")
    return [mixed_seed(seed, i) for i in range(start, start + n)]


class SeededNoise:
    """A source of Gaussian noise with a generator of its own for each sample.

    What sample i receives depends on its seed alone: not on the batch around it, on its place there, on the device or on
    the dtype. (`torch.randn(3)` is not the head of `torch.randn(64, 3)`, and float64 draws differ from float32 ones.)
    Drawn on the CPU in float32.

    Args:
        seeds: one for each sample, each at least 0.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next N(0, I) draw, one for each sample: float32 [B, *shape] on the CPU."""
        return torch.stack([torch.randn(*shape, generator=generator) for generator in self._generators])

    def check_batch(self, like: Tensor) -> None:
        """Raise ValueError unless `like` [B, …] has one sample for each seed."""
        if len(like) != len(self):
            raise ValueError(f"this noise has {len(self)} seeds, but the batch has {len(like)} samples")

    def __call__(self, like: Tensor) -> Tensor:
        """The next draw with the shape, dtype and device of `like` [B, …].

        Raises:
            ValueError: when the batch does not have one sample for each seed.
        """
        self.check_batch(like)
        noise = self.draw(like.shape[1:]).to(like.dtype)
        if like.device.type == "cuda":
            noise = noise.pin_memory()  # only from pinned memory does a copy go on while the host does other things
        return noise.to(like.device, non_blocking=True)


def lerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The straight line from a to b: (1 - w) a + w b.

    Between independent Gaussian latents it leaves the shell where they live: at w = ½ the norm sags to √½ ≈ 0.71 (the book,
    chapter 8).

    Args:
        a, b: [B, …], same shape.
        weight: w in [0, 1].

    Raises:
        ValueError: when the shapes differ.
    """
    check_same_shape("a", a, "b", b)
    return torch.lerp(a, b, weight)


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The great-circle path: sin((1-w)ω)/sin ω · a + sin(wω)/sin ω · b, ω the angle between a and b.

    Source: Shoemake 1985; Song et al. 2021, appendix D.5; the book, chapter 8. Keeps the norm of two latents of equal norm.

    Args:
        a, b: [B, …], same shape; each sample has an angle of its own.
        weight: w in [0, 1].

    Raises:
        ValueError: when the shapes differ, the weight is NaN or infinite, a or b is 0 (no direction), or they point in opposite
            directions (no unique path).
    """
    check_same_shape("a", a, "b", b)
    if not math.isfinite(weight):
        raise ValueError(f"the weight must be a finite number, got {weight}; 0 is a and 1 is b")
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    norms = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    if not (norms > 0).all():  # catches NaN too
        raise ValueError("a or b is zero or holds NaN, so there is no angle between them; use lerp for zeros")
    cosine = (flat_a * flat_b).sum(1) / norms
    omega = torch.arccos(cosine.clamp(-1, 1))
    if (omega > torch.pi - 1e-4).any():
        raise ValueError("a and b point in opposite directions, so no great circle is shortest; choose another pair")
    sine = omega.sin()
    straight = omega < 1e-4  # nearly parallel: the limit is the straight line
    sine = torch.where(straight, 1.0, sine)
    w_a = torch.where(straight, 1 - weight, torch.sin((1 - weight) * omega) / sine)
    w_b = torch.where(straight, weight, torch.sin(weight * omega) / sine)
    return ((w_a[:, None] * flat_a + w_b[:, None] * flat_b).reshape(a.shape)).to(a.dtype)
