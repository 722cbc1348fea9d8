"""Denoisers that are exact: the best possible ε(x, t) for data whose distribution is known."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddimlib.schedule import NoiseSchedule


class GaussianMixture:
    """Data drawn from Σ_k w_k N(m_k, s_k² I), and everything that the forward process makes of it, in closed form.

    Under q, component k at time t is N(√ᾱ_t m_k, v_k I) with v_k = ᾱ_t s_k² + 1 - ᾱ_t: a mixture stays a mixture.
    Source: Ho et al. 2020, equation 4, for each component; the book, chapter 1 (densities) and chapter 2 (the denoiser).

    Args:
        means: m_k, [K, C, H, W] or anything that broadcasts against it, such as [K, 1, 1, 1].
        stds: s_k ≥ 0, [K]; 0 makes point masses.
        weights: w_k > 0, [K]; scaled to sum to 1. Equal when None.

    Raises:
        ValueError: when the numbers of components differ, a mean is not finite, a std is negative, or a weight is not positive.
    """

    def __init__(
        self, means: Tensor, stds: Sequence[float] | Tensor, weights: Sequence[float] | Tensor | None = None
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.stds = torch.as_tensor(stds, dtype=torch.float64)
        weights = torch.ones(len(self.stds)) if weights is None else weights
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        if not len(self.means) == len(self.stds) == len(self.weights):
            raise ValueError(
                f"{len(self.means)} means, {len(self.stds)} stds, {len(self.weights)} weights; give one of each per component"
            )
        if not self.means.isfinite().all():
            raise ValueError("a mean is NaN or infinite; every component needs a place")
        if not ((self.stds >= 0).all() and (self.weights > 0).all()):
            raise ValueError(
                f"stds must be at least 0 and weights positive, got {self.stds.tolist()} and {self.weights.tolist()}"
            )
        self.weights = self.weights / self.weights.sum()

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples of the data, float64 [n, C, H, W]."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, *self.means.shape[1:], dtype=torch.float64, generator=generator)
        return self.means[k] + self.stds[k].reshape(-1, *[1] * (z.ndim - 1)) * z

    def log_density(self, x: Tensor, alpha_bar: float) -> Tensor:
        """log p_t(x) at the time with this ᾱ; alpha_bar = 1 is the data itself.

        Args:
            x: [B, C, H, W].

        Returns:
            float64 [B].
        """
        return torch.logsumexp(self._log_joint(x.double(), alpha_bar), dim=1)

    def _log_joint(self, x: Tensor, alpha_bar: float) -> Tensor:
        """log (w_k N(x; √ᾱ m_k, v_k I)), [B, K]."""
        centred = (x[:, None] - math.sqrt(alpha_bar) * self.means).flatten(2)
        v = alpha_bar * self.stds**2 + 1 - alpha_bar
        return self.weights.log() - 0.5 * (centred.square().sum(2) / v + centred.shape[2] * (2 * math.pi * v).log())

    def denoiser(self, schedule: NoiseSchedule) -> "MixtureDenoiser":
        """The exact ε(x, t) = E[ε | x_t = x] of this data under `schedule`."""
        return MixtureDenoiser(self, schedule)

    def expected_noise(self, x: Tensor, alpha_bar: float) -> Tensor:
        """E[ε | x_t = x] = -√(1-ᾱ_t) ∇ log p_t(x) = √(1-ᾱ_t) Σ_k r_k(x) (x - √ᾱ_t m_k)/v_k (Song et al. 2021, appendix B).

        r_k is the probability that x came from component k. Computed in float64, returned in the dtype of x.
        """
        y = x.double()
        responsibility = torch.softmax(self._log_joint(y, alpha_bar), dim=1)
        v = alpha_bar * self.stds**2 + 1 - alpha_bar
        weight = (responsibility / v).reshape(*responsibility.shape, *[1] * (y.ndim - 1))
        eps = math.sqrt(1 - alpha_bar) * (weight * (y[:, None] - math.sqrt(alpha_bar) * self.means)).sum(1)
        return eps.to(x.dtype)


class MixtureDenoiser:
    """A denoiser with no error at all: what a perfectly trained network would return for a :class:`GaussianMixture`."""

    def __init__(self, data: GaussianMixture, schedule: NoiseSchedule) -> None:
        self.data = data
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """ε(x, t) for x [B, C, H, W] on the CPU and one t for the whole batch, int64 [B]."""
        if not (t == t[0]).all():
            raise ValueError("the exact denoiser takes one t for the whole batch")
        return self.data.expected_noise(x, float(self.schedule.alpha_bar[int(t[0])]))


def gaussian(mean: float = 0.0, std: float = 1.0) -> GaussianMixture:
    """One Gaussian, N(mean, std²) in every pixel; std = 0 is a point mass."""
    return GaussianMixture(torch.full((1, 1, 1, 1), mean, dtype=torch.float64), [std])
