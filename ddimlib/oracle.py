"""Denoisers that are exact: the best possible ε(x, t) for data whose distribution is known."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddimlib.arguments import as_numbers, check_floats, check_int, check_number
from ddimlib.schedule import NoiseSchedule, check_schedule

Numbers = Sequence[float] | Tensor


class GaussianMixture:
    """Data drawn from Σ_k w_k N(m_k, s_k² I), and everything that the forward process makes of it, in closed form.

    Under q, component k at time t is N(√ᾱ_t m_k, v_k I) with v_k = ᾱ_t s_k² + 1 - ᾱ_t: a mixture stays a mixture.
    Source: Ho et al. 2020, equation 4, for each component; the book, chapter 1 (densities) and chapter 2 (the denoiser).
    All is computed in float64, on the CPU.

    Args:
        means: m_k, [K, C, H, W] or anything that broadcasts against it, such as [K, 1, 1, 1].
        stds: s_k ≥ 0, [K]; 0 makes point masses.
        weights: w_k > 0, [K]; scaled to sum to 1. Equal when None.
    """

    def __init__(self, means: Tensor, stds: Numbers, weights: Numbers | None = None) -> None:
        self.means, self.stds = (as_numbers(*x, torch.float64) for x in (("means", means), ("stds", stds)))
        self.weights = torch.ones_like(self.stds) if weights is None else as_numbers("weights", weights, torch.float64)
        shapes = [tuple(x.shape) for x in (self.means, self.stds, self.weights)]
        if not (shapes[0] and shapes[0][:1] == shapes[1] == shapes[2] != (0,)):
            raise ValueError(f"each component has one of means, stds and weights, got the shapes {shapes}")
        if not self.means.isfinite().all():
            raise ValueError("a mean is NaN or infinite; every component needs a place")
        if not ((self.stds >= 0) & (self.weights > 0) & (self.stds + self.weights).isfinite()).all():
            got = f"{self.stds.tolist()} and {self.weights.tolist()}"
            raise ValueError(f"stds must be at least 0, weights positive, and both finite, got {got}")
        self.weights = self.weights / self.weights.sum()

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples of the data, float64 [n, C, H, W]."""
        k = torch.multinomial(self.weights, check_int("n", n, 1), replacement=True, generator=generator)
        z = torch.randn(n, *self.means.shape[1:], dtype=torch.float64, device="cpu", generator=generator)
        return self.means[k] + self.stds[k].reshape(-1, *[1] * (z.ndim - 1)) * z

    def log_density(self, x: Tensor, alpha_bar: float) -> Tensor:
        """log p_t(x), float64 [B], for x [B, C, H, W] at the time with this ᾱ in [0, 1]; below 1 if there are point masses."""
        y, v = self._inputs(x, alpha_bar)
        return torch.logsumexp(self._log_joint(y, v, alpha_bar), dim=1).to(x.device)

    def expected_noise(self, x: Tensor, alpha_bar: float) -> Tensor:
        """E[ε | x_t = x] = -√(1-ᾱ_t) ∇ log p_t(x) = √(1-ᾱ_t) Σ_k r_k(x) (x - √ᾱ_t m_k)/v_k (Song et al. 2021, appendix B).

        r_k is the probability that x came from component k. Returned in the dtype of x. Errors as in :meth:`log_density`.
        """
        y, v = self._inputs(x, alpha_bar)
        responsibility = torch.softmax(self._log_joint(y, v, alpha_bar), dim=1)
        weight = (responsibility / v).reshape(*responsibility.shape, *[1] * (y.ndim - 1))
        eps = math.sqrt(1 - alpha_bar) * (weight * (y[:, None] - math.sqrt(alpha_bar) * self.means)).sum(1)
        return eps.to(x.dtype).to(x.device)

    def denoiser(self, schedule: NoiseSchedule) -> "MixtureDenoiser":
        """The exact ε(x, t) = E[ε | x_t = x] of this data under `schedule`."""
        return MixtureDenoiser(self, schedule)

    def _inputs(self, x: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor]:
        """x in float64 on the CPU, and v_k [K]."""
        check_floats("x", x)
        shape = self.means.shape[1:]
        if x.ndim != self.means.ndim or any(m not in (1, n) for m, n in zip(shape, x.shape[1:], strict=True)):
            raise ValueError(f"x must be [B, …] as the means are, {tuple(shape)} each, got {tuple(x.shape)}")
        check_number("alpha_bar", alpha_bar, 0, 1)
        v = alpha_bar * self.stds**2 + 1 - alpha_bar
        if not (v > 0).all():
            raise ValueError("a point mass has no density at alpha_bar = 1, the data itself; ask at a time t ≥ 1")
        return x.cpu().double(), v

    def _log_joint(self, y: Tensor, v: Tensor, alpha_bar: float) -> Tensor:
        """log (w_k N(y; √ᾱ m_k, v_k I)), [B, K]."""
        centred = (y[:, None] - math.sqrt(alpha_bar) * self.means).flatten(2)
        return self.weights.log() - 0.5 * (centred.square().sum(2) / v + centred.shape[2] * (2 * math.pi * v).log())


class MixtureDenoiser:
    """What a perfectly trained network would answer for a :class:`GaussianMixture`; where ᾱ_T = 0, -E[x_0], as one for v."""

    prediction = "v"

    def __init__(self, data: GaussianMixture, schedule: NoiseSchedule) -> None:
        self.data, self.schedule = data, check_schedule(schedule)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """ε(x, t) for x [B, C, H, W] and one t for the whole batch, int64 [B]."""
        times = torch.as_tensor(self.schedule.check_time(t, first=1), device="cpu").unique()
        if len(times) != 1:
            raise ValueError(f"the exact denoiser takes one t for the whole batch, got {times.tolist()}")
        alpha_bar = self.schedule.ab[int(times)]
        if alpha_bar == 0:
            mean = torch.tensordot(self.data.weights, self.data.means, dims=1)
            return (0 * x - mean.to(x.dtype).to(x.device)).expand_as(x)
        return self.data.expected_noise(x, alpha_bar)


def gaussian(mean: float = 0.0, std: float = 1.0) -> GaussianMixture:
    """One Gaussian, N(mean, std²) in every pixel; std = 0 is a point mass."""
    return GaussianMixture(as_numbers("mean", [mean], torch.float64).reshape(-1, 1, 1, 1), [std])
