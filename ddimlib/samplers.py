"""DDPM and DDIM: generators that walk from x_T to x_0 and yield the state after every step."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddimlib.denoisers import GuidedDenoiser, LabelledDenoiser
from ddimlib.latents import SeededNoise, sample_seeds
from ddimlib.schedule import NoiseSchedule, check_same_shape
from ddimlib.timesteps import Spacing, check_timesteps, timesteps

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""eps = model(x, t): x [B, C, H, W], t int64 [B] in 1..T, eps of x's shape."""

Eta = float | Literal["hat"]
"""How much noise a step adds: η in [0, 1], or "hat" for the paper's larger σ̂."""

Noise = Tensor | Callable[[Tensor], Tensor] | None
"""Step noise: a tensor [S, B, C, H, W], a source called with the state it must match, or None (drawn unseeded)."""


def ddim_sigma(schedule: NoiseSchedule, t: int, prev: int, eta: Eta) -> float:
    """Standard deviation of the noise that the step from t to prev adds.

    σ = η √((1-ᾱ_prev)/(1-ᾱ_t)) √(1 - ᾱ_t/ᾱ_prev): 0 for η = 0, √β̃ of the re-spaced chain for η = 1 (Song et al. 2021,
    equation 16). "hat" is the paper's larger σ̂ = √(1 - ᾱ_t/ᾱ_prev) (section 5), but no noise on the step to t = 0.
    The book, chapters 4 and 6.

    Raises:
        ValueError: when η is outside [0, 1] and not "hat", when t or prev is outside 0..T, or when σ > 0 and prev ≥ t.
    """
    if not (0 <= t <= schedule.T and 0 <= prev <= schedule.T):
        raise ValueError(f"t and prev must lie in 0..{schedule.T}, got {t} and {prev}; the last step goes to t = 0")
    if prev >= t and eta != 0:
        raise ValueError(f"a step with noise must go to an earlier time, got t = {t}, prev = {prev}, eta = {eta!r}")
    if eta == "hat":
        return math.sqrt(1 - schedule.alpha_bar[t] / schedule.alpha_bar[prev]) if prev > 0 else 0.0
    if not (isinstance(eta, int | float) and 0 <= eta <= 1):
        raise ValueError(f'eta must lie in [0, 1] or be "hat" (the larger σ̂), got {eta!r}; 0 is DDIM, 1 is DDPM')
    return eta * math.sqrt(schedule.posterior_variance(t, prev)) if eta > 0 else 0.0


def ddim_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    eps: Tensor,
    t: int,
    prev: int,
    eta: Eta = 0.0,
    z: Tensor | None = None,
    clip: float | None = None,
) -> Tensor:
    """One step of the DDIM family from t to `prev` (Song et al. 2021, equation 12; the book, chapter 4).

    x_prev = √ᾱ_prev x̂_0 + √(1-ᾱ_prev-σ²) ε + σ z, with x̂_0 = (x_t - √(1-ᾱ_t) ε)/√ᾱ_t:
    the predicted x_0, the direction pointing to x_t, and noise.

    Args:
        x_t, eps: state and predicted noise, [B, C, H, W].
        t, prev: times in 0..T, prev < t; with η = 0 also prev > t, which is the same step undone.
        eta: see :func:`ddim_sigma`.
        z: standard Gaussian noise of x_t's shape; needed when σ > 0.
        clip: limit x̂_0 to [-clip, clip] and re-derive ε from it, so that the pair still explains x_t.

    Returns:
        x_prev, shape and dtype of x_t.
    """
    sigma = ddim_sigma(schedule, t, prev, eta)
    eps = _clipped(schedule, x_t, eps, t, clip)
    ab, ab_prev = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[prev])
    # σ̂ only scales the noise: the direction keeps the σ of η = 1, as in the paper
    sigma_direction = ddim_sigma(schedule, t, prev, 1.0) if eta == "hat" else sigma
    direction = math.sqrt(1 - ab_prev - sigma_direction**2)
    # x̂_0 put into the sum: one multiple of x_t and one of ε, both numbers from float64
    a = math.sqrt(ab_prev / ab)
    b = direction - a * math.sqrt(1 - ab)
    return _affine(x_t, a, eps, b, sigma, z)


def ddpm_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    eps: Tensor,
    t: int,
    z: Tensor | None = None,
    clip: float | None = None,
    variance: Literal["posterior", "beta"] = "posterior",
) -> Tensor:
    """One ancestral step from t to t - 1 (Ho et al. 2020, algorithm 2; the book, chapter 2).

    x_{t-1} = 1/√α_t · (x_t - β_t/√(1-ᾱ_t) · ε) + σ_t z, no noise on the last step (t = 1).

    Args:
        x_t, eps: state and predicted noise, [B, C, H, W].
        t: in 1..T.
        z: standard Gaussian noise of x_t's shape; needed when t > 1.
        clip: as in :func:`ddim_step`.
        variance: σ_t² = β̃_t ("posterior") or β_t ("beta"); section 3.2 of the paper.

    Raises:
        ValueError: when `variance` is neither of the two.
    """
    _check_variance(variance)
    eps = _clipped(schedule, x_t, eps, t, clip)
    ab, beta = float(schedule.alpha_bar[t]), float(schedule.beta[t])
    sigma_squared = float(schedule.posterior_variance(t)) if variance == "posterior" else beta
    sigma = math.sqrt(sigma_squared) if t > 1 else 0.0
    a = 1 / math.sqrt(1 - beta)
    return _affine(x_t, a, eps, -a * beta / math.sqrt(1 - ab), sigma, z)


def ddim(
    model: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    steps: Sequence[int],
    eta: Eta = 0.0,
    noise: Noise = None,
    clip: float | None = None,
) -> Iterator[Tensor]:
    """Sample along `steps`, yielding the state after each: `*path, x_0 = ddim(...)` (Song et al. 2021, equation 12).

    The pairs walked are (τ_S, τ_{S-1}), …, (τ_1, 0): exactly S network evaluations, and no special last step.
    A NaN from the network is passed on, since a check at every step would make a GPU wait; :func:`sample` checks its result.

    Args:
        model: the denoiser.
        schedule: the noise schedule that it was trained with.
        x_T: starting noise, [B, C, H, W], any floating dtype; the states keep it.
        steps: τ_S > … > τ_1 in 1..T, as from :func:`ddimlib.timesteps`.
        eta: 0 is deterministic and draws nothing; 1 is DDPM on the re-spaced chain; "hat" is σ̂.
        noise: step noise, see :data:`Noise`; slice i of a tensor belongs to the i-th step taken.
        clip: limit x̂_0 to [-clip, clip], re-deriving ε; None leaves it alone.

    Yields:
        S states, the last of which is x_0.

    Raises:
        ValueError: before the first evaluation, when steps, eta, clip, noise or x_T break a rule above.
    """
    steps = list(steps)
    check_timesteps(schedule.T, steps)
    ddim_sigma(schedule, steps[0], 0, eta)
    draw = _noise_source(noise, x_T, len(steps))
    _check_state(x_T, clip)

    def walk() -> Iterator[Tensor]:
        x = x_T
        for i, (t, prev) in enumerate(zip(steps, [*steps[1:], 0], strict=True)):
            eps = evaluate(model, x, t)
            z = draw(i, x) if ddim_sigma(schedule, t, prev, eta) > 0 else None
            x = ddim_step(schedule, x, eps, t, prev, eta, z, clip)
            yield x

    return walk()


def ddpm(
    model: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    noise: Noise = None,
    clip: float | None = None,
    variance: Literal["posterior", "beta"] = "posterior",
) -> Iterator[Tensor]:
    """Ancestral sampling through all T steps, yielding the state after each (Ho et al. 2020, algorithm 2).

    Args and errors as in :func:`ddim`; a noise tensor is [T, B, C, H, W], `variance` as in :func:`ddpm_step`.
    A NaN from the network is passed on, since a check at every step would make a GPU wait; :func:`sample` checks its result.

    Yields:
        T states, the last of which is x_0.
    """
    _check_variance(variance)
    draw = _noise_source(noise, x_T, schedule.T)
    _check_state(x_T, clip)

    def walk() -> Iterator[Tensor]:
        x = x_T
        for i, t in enumerate(range(schedule.T, 0, -1)):
            eps = evaluate(model, x, t)
            x = ddpm_step(schedule, x, eps, t, draw(i, x) if t > 1 else None, clip, variance)
            yield x

    return walk()


def sample(
    model: nn.Module,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    steps: int = 50,
    eta: Eta = 0.0,
    spacing: Spacing = "linspace",
    seed: int | None = None,
    labels: Tensor | None = None,
    guidance: float = 1.0,
    clip: float | None = None,
    batch_size: int = 256,
    progress: bool = False,
    first: int = 0,
) -> Tensor:
    """Draw images: the friendly front door to :func:`ddim`.

    Args:
        model: a denoiser; with labels, one that is called as model(x, t, labels).
        schedule: its noise schedule.
        shape: [N, C, H, W] of the images wanted.
        steps: number of steps S, in 1..T; DDPM is steps = T with eta = 1.
        eta: in [0, 1], or "hat".
        spacing: see :func:`ddimlib.timesteps`.
        seed: image i is a function of (seed, i), whatever the batch it is drawn in; None draws one from torch's generator.
        labels: int64 [N], one class for each image, or None.
        guidance: classifier-free guidance scale, see :class:`ddimlib.denoisers.GuidedDenoiser`; needs labels.
        clip: limit x̂_0 to [-clip, clip] at each step.
        batch_size: images at a time.
        progress: show a progress bar.
        first: number of the first image, for a part of a larger run: images first, …, first + N - 1 of that seed are drawn.

    Returns:
        float32 [N, C, H, W] on the model's device, in [-1, 1] (what lies outside is clipped).

    Raises:
        ValueError: on a bad argument; FloatingPointError when the network returns NaN or infinity.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"shape must be (N, C, H, W), each at least 1, got {tuple(shape)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if labels is not None and len(labels) != shape[0]:
        raise ValueError(f"{shape[0]} images need {shape[0]} labels, got {len(labels)}")
    if labels is None and guidance != 1:
        raise ValueError(f"guidance = {guidance} needs labels to guide towards; pass labels, or leave guidance at 1")
    visited = timesteps(schedule.T, steps, spacing)
    seed = int(torch.randint(2**32, ())) if seed is None else seed
    parameter = next(model.parameters(), torch.empty(0)) if isinstance(model, nn.Module) else torch.empty(0)
    images = []
    batches = range(0, shape[0], batch_size)
    with tqdm(total=len(batches) * steps, disable=not progress, desc="sampling") as bar:
        for start in batches:
            n = min(batch_size, shape[0] - start)
            source = SeededNoise(sample_seeds(seed, n, first + start))
            denoiser: Denoiser = model
            if labels is not None:
                chosen = labels[start : start + n].to(
                    parameter.device
                )  # now: inside the loop, the host would wait for it
                denoiser = LabelledDenoiser(model, chosen) if guidance == 1 else GuidedDenoiser(model, chosen, guidance)
            x_T = source.draw(shape[1:]).to(parameter.device)
            x_0 = x_T
            for x_0 in ddim(denoiser, schedule, x_T, visited, eta, source, clip):  # noqa: B007, the last one is kept
                bar.update()
            images.append(x_0)
    result = torch.cat(images)
    if not result.isfinite().all():
        raise FloatingPointError("the network returned NaN or infinity; check its weights and its precision")
    return result.clamp(-1, 1)


def evaluate(model: Denoiser, x: Tensor, t: int) -> Tensor:
    """ε = model(x, t) with one t for the batch: in eval mode, without gradients; the model's mode is put back after.

    The mode is restored after every evaluation and not at the end of a run, so that a run that is interrupted or simply
    abandoned leaves nothing behind.

    Raises:
        ValueError: when the output does not have the shape of `x`.
    """
    with _eval_mode(model), torch.no_grad():
        eps = model(x, torch.full((len(x),), t, device=x.device))
    if eps.shape != x.shape:
        raise ValueError(
            f"a denoiser must return the shape it was given, {tuple(x.shape)}, got {tuple(eps.shape)}; "
            "a network that also predicts variances needs a wrapper that drops them"
        )
    return eps.to(x.dtype)


@contextmanager
def _eval_mode(model: Denoiser) -> Iterator[None]:
    # model.modules() would do, but is several times as slow, and this is done at every step
    everything: list[nn.Module | None] = [model] if isinstance(model, nn.Module) else []
    for module in everything:
        if module is not None and module._modules:
            everything.extend(module._modules.values())
    training = [module for module in everything if module is not None and module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _affine(x: Tensor, a: float, eps: Tensor, b: float, sigma: float, z: Tensor | None) -> Tensor:
    """a x + b ε + σ z: two operations, three with noise, and the result is the only new tensor."""
    result = (x * a).add_(eps, alpha=b)
    if sigma == 0:
        return result
    if z is None:
        raise ValueError(f"this step adds noise (σ = {sigma:.3g}), so it needs z; pass noise of x_t's shape")
    check_same_shape("x_t", x, "z", z)
    return result.add_(z, alpha=sigma)


def _clipped(schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: int, clip: float | None) -> Tensor:
    """The noise that belongs to x̂_0 limited to [-clip, clip], so that the pair still explains x_t.

    Every step begins here, so this is also where ε is refused when its shape is not that of x_t: it would be broadcast.
    """
    check_same_shape("x_t", x_t, "eps", eps)
    if clip is None:
        return eps
    return schedule.predict_eps(x_t, t, schedule.predict_x0(x_t, t, eps).clamp(-clip, clip))


def _check_variance(variance: str) -> None:
    if variance not in ("posterior", "beta"):
        raise ValueError(f"variance must be 'posterior' (β̃) or 'beta' (β), got {variance!r}")


def _check_state(x_T: Tensor, clip: float | None) -> None:
    if not x_T.is_floating_point():
        raise ValueError(f"x_T must be a floating-point tensor, got {x_T.dtype}")
    if not x_T.isfinite().all():
        raise ValueError("x_T holds NaN or infinity")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}; data in [-1, 1] wants clip = 1")


def _noise_source(noise: Noise, x_T: Tensor, count: int) -> Callable[[int, Tensor], Tensor]:
    """What the i-th step of a walk calls for its noise."""
    if noise is None:
        return lambda i, x: torch.randn_like(x)
    if isinstance(noise, SeededNoise):
        noise.check_batch(x_T)
    if isinstance(noise, Tensor):
        if noise.shape != (count, *x_T.shape):
            raise ValueError(f"step noise must be [S, B, C, H, W] = {(count, *x_T.shape)}, got {tuple(noise.shape)}")
        return lambda i, x: noise[i].to(device=x.device, dtype=x.dtype)
    return lambda i, x: noise(x)
