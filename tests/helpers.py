"""Denoisers, data and noise that several test files share."""

from collections.abc import Iterable
from typing import get_args

import torch
from torch import Tensor

from ddimlib import GaussianMixture, NoiseSchedule
from ddimlib.timesteps import Spacing

SPACINGS = get_args(Spacing)
ETAS = [0.0, 0.3, 1.0, "hat"]
BAD_ETAS = [-0.1, 1.1, float("nan"), float("inf"), "tilde", None]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard Gaussian noise, the same on every call."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def last(states: Iterable[Tensor]) -> Tensor:
    """x_0: the last of the states that a sampler yields."""
    *_, x = states
    return x


def smooth_mixture() -> GaussianMixture:
    """Three broad bumps in 2×2 pixels: nothing here changes quickly, so orders of convergence show."""
    return GaussianMixture(0.8 * randn(3, 1, 2, 2, seed=1), stds=[0.6, 0.8, 0.7], weights=[1, 2, 3])


def sharp_mixture() -> GaussianMixture:
    """Two almost-points in one pixel: between them the denoiser changes abruptly."""
    return GaussianMixture(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1), stds=[0.01, 0.01])


class Spy:
    """A denoiser that writes down which times it was asked about, and checks that it was asked properly."""

    def __init__(self, model=lambda x, t: 0.1 * x) -> None:
        self.model = model
        self.times: list[int] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (len(x),)
        assert (t == t[0]).all()
        self.times.append(int(t[0]))
        return self.model(x, t)


class Retimed:
    """A denoiser of the full chain, spoken to in the time of the chain re-spaced to `steps`."""

    def __init__(self, model, steps: list[int]) -> None:
        self.model = model
        self.full_time = torch.tensor([0, *reversed(steps)])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, self.full_time[t])


def short_schedule(T: int = 40) -> NoiseSchedule:
    """Few steps that nevertheless end in noise (ᾱ_T is about 3e-4)."""
    return NoiseSchedule.linear(T, 0.002, 0.4)
