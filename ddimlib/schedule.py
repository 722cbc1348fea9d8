"""The noise schedule: betas, their running product ᾱ, and every closed form of the forward process.

Time is the paper's: t = 0 is data, t = T is (almost) pure noise. Each array has T + 1 entries and is indexed by t
itself; β₀ = 0 and ᾱ₀ = 1 are stored. All of them are float64 and live on the host: β̃ in float32 is wrong by 1e-4.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddimlib.timesteps import check_timesteps

Time = int | Tensor
"""A timestep: one int for the whole batch, or an int64 tensor [B]."""


class NoiseSchedule:
    """A variance-preserving noise schedule, q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I).

    Source: Ho et al. 2020, equations 2 and 4. The DDIM paper writes α_t for what is ᾱ_t here and in the DDPM paper.

    Args:
        betas: β_1 … β_T in this order, [T], each strictly between 0 and 1.

    Attributes:
        T: number of steps.
        beta: [T + 1] float64, β_t; beta[0] = 0.
        alpha_bar: [T + 1] float64, ᾱ_t = ∏_{s≤t} (1 - β_s); alpha_bar[0] = 1, strictly decreasing, positive.

    Raises:
        ValueError: when `betas` is not one-dimensional or is empty, when an entry is NaN or outside (0, 1), or when ᾱ
            cannot be told apart from 0 or from its neighbour in float64.
    """

    def __init__(self, betas: Tensor | Sequence[float]) -> None:
        beta = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if beta.ndim != 1 or len(beta) == 0:
            raise ValueError(f"betas must be a sequence β_1 … β_T, got shape {tuple(beta.shape)}; pass a 1-D sequence")
        wrong = ~((beta > 0) & (beta < 1))  # catches NaN too
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise ValueError(
                f"every beta must lie strictly between 0 and 1, got β_{i + 1} = {beta[i].item():.4g}; "
                "a variance of 0 or 1 keeps everything or destroys everything in one step"
            )
        self.T = len(beta)
        self.beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta])
        self.alpha_bar = torch.cumprod(1 - self.beta, dim=0)
        if not self.alpha_bar[-1] > 0:
            raise ValueError(
                f"ᾱ_T underflows to 0 after T = {self.T} steps, so x_0 cannot be recovered; use fewer or smaller betas"
            )
        if not (self.alpha_bar.diff() < 0).all():
            raise ValueError("some beta is below float64 resolution, so ᾱ does not decrease there; use larger betas")

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "NoiseSchedule":
        """β_t on a straight line from `beta_start` to `beta_end` (Ho et al. 2020, section 4; the book, chapter 1).

        Raises:
            ValueError: when T < 1, or a beta is outside (0, 1).
        """
        _check_length(T)
        return cls(torch.linspace(beta_start, beta_end, T, dtype=torch.float64))

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> "NoiseSchedule":
        """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), each β_t at most `beta_max`.

        Source: Nichol & Dhariwal 2021, equation 17; the book, chapter 1.

        Raises:
            ValueError: when T < 1 or s < 0.
        """
        _check_length(T)
        if not s >= 0:
            raise ValueError(f"the cosine offset s must be at least 0, got {s}; the paper's is 0.008")
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(max=beta_max))

    def __repr__(self) -> str:
        return f"NoiseSchedule(T={self.T}, β: {self.beta[1]:.3g} … {self.beta[-1]:.3g}, ᾱ_T = {self.alpha_bar[-1]:.3g})"

    def snr(self, t: Time) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), float64; infinite at t = 0 (Kingma et al. 2021, section 3.1; chapter 1)."""
        ab = self.alpha_bar[self._check_time(t)]
        return ab / (1 - ab)

    def add_noise(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """Jump from data to time t: x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε, a sample of q(x_t | x_0) if ε ~ N(0, I).

        Source: Ho et al. 2020, equation 4; the book, chapter 1.

        Args:
            x_0: data in [-1, 1], [B, C, H, W].
            t: int, or int64 [B]; in 0..T.
            noise: ε, the shape of `x_0`.

        Returns:
            x_t, shape and dtype of `x_0`.

        Raises:
            ValueError: when the shapes differ or t is outside 0..T.
        """
        check_same_shape("x_0", x_0, "noise", noise)
        signal, sigma = self._signal_and_noise(t, x_0)
        return signal * x_0 + sigma * noise

    def predict_x0(self, x_t: Tensor, t: Time, eps: Tensor) -> Tensor:
        """The x_0 that x_t would come from, were ε its noise: x̂_0 = (x_t - √(1-ᾱ_t) ε) / √ᾱ_t.

        Source: Song et al. 2021, equation 9; the book, chapter 2. Shapes and errors as in :meth:`add_noise`.
        """
        check_same_shape("x_t", x_t, "eps", eps)
        signal, sigma = self._signal_and_noise(t, x_t)
        return (x_t - sigma * eps) / signal

    def predict_eps(self, x_t: Tensor, t: Time, x_0: Tensor) -> Tensor:
        """The noise in x_t, were `x_0` its data: ε = (x_t - √ᾱ_t x_0) / √(1-ᾱ_t), for t in 1..T.

        The inverse of :meth:`predict_x0`: Song et al. 2021, equation 9, solved for ε; it is what re-derives ε after x̂_0 was
        clipped (the book, chapter 6). Shapes and errors as in :meth:`add_noise`, but for t = 0, where there is no noise.
        """
        check_same_shape("x_t", x_t, "x_0", x_0)
        signal, sigma = self._signal_and_noise(t, x_t, first=1)
        return (x_t - signal * x_0) / sigma

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0), a Gaussian.

        μ̃ = √ᾱ_{t-1} β_t / (1-ᾱ_t) · x_0 + √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t) · x_t,   β̃ = (1-ᾱ_{t-1}) / (1-ᾱ_t) · β_t.
        Source: Ho et al. 2020, equations 6 and 7; the book, chapter 2.

        Args:
            x_0, x_t: [B, C, H, W].
            t: int, or int64 [B]; in 1..T.

        Returns:
            The mean, shape of `x_t`, and the variance, a tensor that broadcasts against it.

        Raises:
            ValueError: when the shapes differ or t is outside 1..T.
        """
        check_same_shape("x_0", x_0, "x_t", x_t)
        t = self._check_time(t, first=1)
        ab, ab_prev, beta = self.alpha_bar[t], self.alpha_bar[t - 1], self.beta[t]
        c_0 = self._like(ab_prev.sqrt() * beta / (1 - ab), x_t)
        c_t = self._like((1 - beta).sqrt() * (1 - ab_prev) / (1 - ab), x_t)
        return c_0 * x_0 + c_t * x_t, self._like(self.posterior_variance(t), x_t)

    def posterior_variance(self, t: Time, prev: Time | None = None) -> Tensor:
        """β̃: the variance of q(x_prev | x_t, x_0), (1-ᾱ_prev)/(1-ᾱ_t) · (1 - ᾱ_t/ᾱ_prev), float64; 0 when prev = 0.

        Source: Ho et al. 2020, equation 7 for prev = t - 1 (the default); Song et al. 2021, equation 16 with η = 1; the
        book, chapters 2 and 6.
        """
        t = self._check_time(t, first=1)
        ab, ab_prev = self.alpha_bar[t], self.alpha_bar[t - 1 if prev is None else prev]
        return (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)

    def respaced(self, steps: Sequence[int]) -> "NoiseSchedule":
        """The schedule of the shorter chain x_0, x_{τ_1}, …, x_{τ_S}: its ᾱ are this schedule's at τ.

        Args:
            steps: τ_S > … > τ_1, in 1..T, as from :func:`ddimlib.timesteps`.

        Raises:
            ValueError: when `steps` is empty, leaves 1..T, does not decrease strictly or holds something else than integers.
        """
        check_timesteps(self.T, steps)
        ab = self.alpha_bar[[0, *reversed(steps)]]
        return NoiseSchedule(1 - ab[1:] / ab[:-1])

    def _signal_and_noise(self, t: Time, like: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1-ᾱ_t), shaped, typed and placed to multiply `like`."""
        ab = self.alpha_bar[self._check_time(t, first)]
        return self._like(ab.sqrt(), like), self._like((1 - ab).sqrt(), like)

    @staticmethod
    def _like(coefficient: Tensor, x: Tensor) -> Tensor:
        if coefficient.ndim == 1:
            if len(coefficient) != len(x):
                raise ValueError(
                    f"t has {len(coefficient)} entries for a batch of {len(x)}; give one t per sample, or an int"
                )
            coefficient = coefficient.reshape(-1, *[1] * (x.ndim - 1))
        # a 0-d tensor stays on the host: torch multiplies any device's tensor by it without a copy
        if not coefficient.ndim:
            return coefficient.to(x.dtype)
        return coefficient.to(dtype=x.dtype, device=x.device, non_blocking=True)  # the host need not wait

    def _check_time(self, t: Time, first: int = 0) -> Time:
        t = t.cpu() if isinstance(t, Tensor) else t
        if isinstance(t, float) or (isinstance(t, Tensor) and (t.is_floating_point() or t.dtype == torch.bool)):
            raise ValueError(f"t must be an int or an int64 tensor, got {t!r}; a time is an index into the schedule")
        low, high = (int(t.min()), int(t.max())) if isinstance(t, Tensor) else (t, t)
        if low < first or high > self.T:
            raise ValueError(f"t must lie in {first}..{self.T}, got {low if low < first else high}; t = 0 is data")
        return t


def _check_length(T: int) -> None:
    if not isinstance(T, int) or T < 1:
        raise ValueError(f"T, the number of steps, must be an integer of at least 1, got {T!r}")


def check_same_shape(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Raise ValueError unless a and b, called so in the message, have the same shape: torch would broadcast them."""
    if a.shape != b.shape:
        raise ValueError(f"{name_a} and {name_b} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
