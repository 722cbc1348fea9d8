"""The noise schedule: betas, their running product ᾱ, and every closed form of the forward process.

Time is the paper's: t = 0 is data, t = T is (almost) pure noise. Each array has T + 1 entries and is indexed by t
itself; β₀ = 0 and ᾱ₀ = 1 are stored. All of them are float64 and live on the host: β̃ in float32 is wrong by 1e-4.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddimlib.arguments import KindError, as_numbers, check_int, check_number, check_pair, describe
from ddimlib.timesteps import Steps, check_timesteps

Time = int | Tensor
"""A timestep: one int for the whole batch, or one integer a sample, [B]."""

MOST_STEPS = 10**6  # of a schedule that is made by formula: more is a slip


class NoiseSchedule:
    """A variance-preserving noise schedule, q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I).

    Source: Ho et al. 2020, equations 2 and 4. The DDIM paper writes α_t for what is ᾱ_t here and in the DDPM paper.

    Args:
        betas: β_1 … β_T, [T], each strictly between 0 and 1; the last of several may be 1 (:meth:`zero_terminal_snr`).

    Attributes:
        T: number of steps.
        beta: [T + 1] float64, β_t; beta[0] = 0.
        alpha_bar: [T + 1] float64, ᾱ_t = ∏_{s≤t} (1 - β_s); alpha_bar[0] = 1, strictly decreasing.
        ab: alpha_bar as a list of Python floats: a sampler looks up two a step, and no device need know float64.

    Raises:
        ValueError: for other betas, and when ᾱ cannot be told apart from 0 or from its neighbour in float64.
    """

    def __init__(self, betas: Tensor | Sequence[float]) -> None:
        beta = as_numbers("betas", betas, torch.float64)
        if beta.ndim != 1 or len(beta) == 0:
            raise ValueError(f"betas must be a sequence β_1 … β_T, got shape {tuple(beta.shape)}; pass a 1-D sequence")
        wrong = ~((beta > 0) & (beta < 1))  # catches NaN too
        wrong[-1] &= len(beta) == 1 or bool(beta[-1] != 1)
        if wrong.any():
            i, why = int(wrong.nonzero()[0]), "such a step keeps or destroys everything"
            raise ValueError(f"every beta must lie strictly between 0 and 1, got β_{i + 1} = {beta[i]:.4g}; {why}")
        self.T = len(beta)
        self.beta = torch.cat([beta.new_zeros(1), beta])
        self.alpha_bar = torch.cumprod(1 - self.beta, dim=0)
        self.ab: list[float] = self.alpha_bar.tolist()
        if self.ab[-1] == 0 and beta[-1] < 1:
            raise ValueError(f"ᾱ_T underflows to 0 after {self.T} steps, and x_0 is lost; use fewer or smaller betas")
        if not (self.alpha_bar.diff() < 0).all():
            raise ValueError("some beta is below float64 resolution, so ᾱ does not decrease there; use larger betas")

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "NoiseSchedule":
        """β_t on a straight line from `beta_start` to `beta_end` (Ho et al. 2020, section 4; the book, chapter 1)."""
        T = check_int("T, the number of steps,", T, 1, MOST_STEPS)
        start, end = check_number("beta_start", beta_start), check_number("beta_end", beta_end)
        return cls(torch.linspace(start, end, T, dtype=torch.float64, device="cpu"))

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> "NoiseSchedule":
        """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), each β_t at most `beta_max` (Nichol & Dhariwal 2021,
        equation 17; the book, chapter 1)."""
        T = check_int("T, the number of steps,", T, 1, MOST_STEPS)
        s = check_number("the cosine offset s", s, 0, fix="the paper's is 0.008")
        t = torch.arange(T + 1, dtype=torch.float64, device="cpu")
        f = torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(max=check_number("beta_max", beta_max, 0, 1, above=True)))

    def zero_terminal_snr(self) -> "NoiseSchedule":
        """This schedule shifted and scaled to end in pure noise, ᾱ_T = 0: √ᾱ_t becomes (√ᾱ_t - √ᾱ_T) √ᾱ_1/(√ᾱ_1 - √ᾱ_T).

        Source: Lin et al. 2024, algorithm 1. The network has to predict v or x_0: :class:`ddimlib.PredictionDenoiser`.
        """
        if self.T < 2:
            raise ValueError("a chain of one step cannot end in pure noise: T must be at least 2")
        root = self.alpha_bar[1:].sqrt()
        ab = torch.cat([root.new_ones(1), ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2])
        return NoiseSchedule(1 - ab[1:] / ab[:-1])

    def __repr__(self) -> str:
        # plain letters: a terminal may not know Greek
        return f"NoiseSchedule(T={self.T}, beta: {self.beta[1]:.3g} ... {self.beta[-1]:.3g}, alpha_bar_T={self.ab[-1]:.3g})"

    def same_as(self, other: "NoiseSchedule") -> bool:
        """Whether all ᾱ agree to nine digits."""
        return self.T == other.T and torch.allclose(self.alpha_bar, other.alpha_bar, rtol=1e-9, atol=1e-12)

    def snr(self, t: Time) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), float64; infinite at t = 0 (Kingma et al. 2021, section 3.1; chapter 1)."""
        ab = self.alpha_bar[self.check_time(t)]
        return ab / (1 - ab)

    def add_noise(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """Jump from data to time t: x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε, a sample of q(x_t | x_0) if ε ~ N(0, I).

        Source: Ho et al. 2020, equation 4; the book, chapter 1. The data x_0 in [-1, 1] and the `noise` ε are floating point,
        [B, C, H, W], and t, in 0..T, is an int or integers [B]; else a ValueError is raised. Returns x_t, of the same shape and
        the wider of the two dtypes.
        """
        check_pair("x_0", x_0, "noise", noise)
        signal, sigma = self._signal_and_noise(t, x_0)
        return signal * x_0 + sigma * noise

    def predict_x0(self, x_t: Tensor, t: Time, eps: Tensor) -> Tensor:
        """The x_0 that x_t would come from, were ε its noise: x̂_0 = (x_t - √(1-ᾱ_t) ε) / √ᾱ_t, where ᾱ_t > 0 (Song et al.
        2021, equation 9; the book, chapter 2). Shapes and errors as in :meth:`add_noise`."""
        check_pair("x_t", x_t, "eps", eps)
        signal, sigma = self._signal_and_noise(t, x_t)
        if self.ab[-1] == 0:
            self.check_noise_is_known(t)
        return (x_t - sigma * eps) / signal

    def predict_eps(self, x_t: Tensor, t: Time, x_0: Tensor) -> Tensor:
        """The noise in x_t, were `x_0` its data: ε = (x_t - √ᾱ_t x_0) / √(1-ᾱ_t), for t in 1..T; there is none at t = 0 (Song
        et al. 2021, equation 9, solved for ε; the book, chapter 6). Shapes and errors as in :meth:`add_noise`."""
        check_pair("x_t", x_t, "x_0", x_0)
        signal, sigma = self._signal_and_noise(t, x_t, first=1)
        return (x_t - signal * x_0) / sigma

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0), a Gaussian: the mean has x_t's shape, the variance broadcasts against it.

        μ̃ = √ᾱ_{t-1} β_t / (1-ᾱ_t) · x_0 + √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t) · x_t,   β̃ = (1-ᾱ_{t-1}) / (1-ᾱ_t) · β_t.
        Source: Ho et al. 2020, equations 6 and 7; the book, chapter 2. As in :meth:`add_noise`, with t in 1..T.
        """
        check_pair("x_0", x_0, "x_t", x_t)
        t = self.check_time(t, first=1)
        ab, ab_prev, beta = self.alpha_bar[t], self.alpha_bar[t - 1], self.beta[t]
        a = _like(ab_prev.sqrt() * beta / (1 - ab), x_t)
        b = _like((1 - beta).sqrt() * (1 - ab_prev) / (1 - ab), x_t)
        return a * x_0 + b * x_t, _like(self.posterior_variance(t), x_t)

    def posterior_variance(self, t: Time, prev: Time | None = None) -> Tensor:
        """β̃: the variance of q(x_prev | x_t, x_0), (1-ᾱ_prev)/(1-ᾱ_t) · (1 - ᾱ_t/ᾱ_prev), float64; 0 ≤ prev < t ≤ T.

        Source: Ho et al. 2020, equation 7 for prev = t - 1 (the default); Song et al. 2021, equation 16 with η = 1; the
        book, chapters 2 and 6.
        """
        t = self.check_time(t, first=1)
        prev = t - 1 if prev is None else self.check_time(prev, name="prev")
        if not torch.all(torch.as_tensor(prev < t, device="cpu")):
            raise ValueError(f"prev must be earlier than t, got t = {t} and prev = {prev}; a chain's step goes down")
        ab, ab_prev = self.alpha_bar[t], self.alpha_bar[prev]
        return (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)

    def respaced(self, steps: Steps) -> "NoiseSchedule":
        """The schedule of the shorter chain x_0, x_{τ_1}, …, x_{τ_S}, its ᾱ being this one's at τ; `steps` as for a sampler."""
        ab = self.alpha_bar[[0, *reversed(check_timesteps(self.T, steps))]]
        return NoiseSchedule(1 - ab[1:] / ab[:-1])

    def check_time(self, t: Any, first: int = 0, name: str = "t") -> Time:
        """t as an int, or as int64 [B] on the host: the one rule for times. Raises unless integers (no bools) in first..T."""
        fix = "it must be an int or an int64 tensor [B], one for each sample, and t = 0 is data"
        if getattr(t, "ndim", 0 if isinstance(t, int) else 1) == 0:
            return check_int(name, t, first, self.T, fix)
        times = as_numbers(name, t, fix=fix)
        if times.is_floating_point() or times.is_complex() or times.dtype == torch.bool or times.ndim > 1:
            raise ValueError(f"{name} must be an int or an int64 tensor [B], got {describe(times)}; one time a sample")
        times = times.cpu().long()
        if (wrong := times[(times < first) | (times > self.T)]).numel():
            raise ValueError(f"{name} must lie in {first}..{self.T}, got {int(wrong[0])}; t = 0 is data")
        return times

    def check_noise_is_known(self, t: Time) -> None:
        """Raise ValueError where ᾱ_t = 0: there, x_0 cannot be told from ε."""
        if self.ab[-1] == 0 and torch.any(torch.as_tensor(t, device="cpu") == self.T):
            fix = "leave that time out, or sample with a network that predicts v or x_0 (PredictionDenoiser)"
            raise ValueError(f"at t = {self.T} this schedule is pure noise, so x_0 cannot be computed from ε; {fix}")

    def _signal_and_noise(self, t: Time, like: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        ab = self.alpha_bar[self.check_time(t, first)]
        return _like(ab.sqrt(), like), _like((1 - ab).sqrt(), like)


def _like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, [] or [B], shaped, typed and placed to multiply x."""
    if coefficient.ndim == 0:  # stays on the host: torch multiplies any device's tensor by it without a copy
        return coefficient.to(x.dtype)
    if len(coefficient) != len(x):
        raise ValueError(f"t has {len(coefficient)} entries for a batch of {len(x)}; give one t per sample, or an int")
    # the dtype first: some devices have no float64
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype).to(x.device, non_blocking=True)


def check_schedule(schedule: Any) -> NoiseSchedule:
    """`schedule`, if it is one."""
    if not isinstance(schedule, NoiseSchedule):
        raise KindError(f"schedule must be a NoiseSchedule, got {describe(schedule)}; models come with theirs")
    return schedule
