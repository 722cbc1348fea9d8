"""DDPM and DDIM: generators that walk from x_T to x_0 and yield the state after every step."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddimlib.arguments import (
    KindError,
    check_choice,
    check_clip,
    check_finite,
    check_guidance,
    check_int,
    check_labels,
    check_number,
    check_pair,
    describe,
)  # fmt: skip
from ddimlib.denoisers import Denoiser, begin, check_model, said_by
from ddimlib.guidance import Labels, conditioned
from ddimlib.latents import Noise, SeededNoise, noise_source
from ddimlib.schedule import NoiseSchedule, check_schedule
from ddimlib.timesteps import Spacing, Steps, check_timesteps

Eta = float | Literal["hat"]
"""How much noise a step adds: η in [0, 1], or "hat" for the paper's larger σ̂."""

Clip = float | Literal["dynamic"] | None
"""Limits of x̂_0. None sets none, a number c stands for [-c, c], "dynamic" for each image's own 99.5th percentile."""

Variance = Literal["posterior", "beta"]


def ddim_sigma(schedule: NoiseSchedule, t: int, prev: int, eta: Eta) -> float:
    """Standard deviation of the noise that the step from t to prev adds.

    σ = η √((1-ᾱ_prev)/(1-ᾱ_t)) √(1 - ᾱ_t/ᾱ_prev): 0 for η = 0, √β̃ of the re-spaced chain for η = 1 (Song et al. 2021,
    equation 16). "hat" is the paper's larger σ̂ = √(1 - ᾱ_t/ᾱ_prev) (section 5), but no noise on the step to t = 0.
    The book, chapters 4 and 6. t and prev lie in 0..T; where η > 0, prev < t.
    """
    check_schedule(schedule)
    check_int("t", t, 0, schedule.T)
    check_int("prev", prev, 0, schedule.T, fix="the last step goes to t = 0")
    if eta != "hat":
        eta = check_number("eta", eta, 0, 1, fix='0 is DDIM, 1 is DDPM, and "hat" is the larger σ̂')
    if eta == 0:
        return 0.0
    if prev >= t:
        raise ValueError(f"a step with noise must go to an earlier time, got t = {t}, prev = {prev}, eta = {eta!r}")
    ab, ab_prev = schedule.ab[t], schedule.ab[prev]
    if eta == "hat":
        return math.sqrt(1 - ab / ab_prev) if prev > 0 else 0.0
    return eta * math.sqrt((1 - ab_prev) / (1 - ab)) * math.sqrt(1 - ab / ab_prev)


def ddim_step(
    schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: int, prev: int, eta: Eta = 0.0, z: Tensor | None = None,
    clip: Clip = None,
) -> Tensor:  # fmt: skip
    """One step of the DDIM family from t to `prev` (Song et al. 2021, equation 12; the book, chapter 4).

    x_prev = √ᾱ_prev x̂_0 + √(1-ᾱ_prev-σ²) ε + σ z, with x̂_0 = (x_t - √(1-ᾱ_t) ε)/√ᾱ_t:
    the predicted x_0, the direction pointing to x_t, and noise. Returns x_prev, of x_t's shape and dtype.

    Args:
        x_t, eps: state and predicted noise, [B, C, H, W]. Where ᾱ_t = 0, ε is x_t, and `eps` is -x̂_0 instead, as
            :class:`ddimlib.PredictionDenoiser` answers.
        t, prev: times in 0..T, prev < t; with η = 0 also prev > t, which is the same step undone.
        eta: see :func:`ddim_sigma`.
        z: standard Gaussian noise of x_t's shape; needed when σ > 0.
        clip: see :data:`Clip`. ε is re-derived from the limited x̂_0, so that the pair still explains x_t.
    """
    sigma = ddim_sigma(schedule, t, prev, eta)
    eps = _clipped(schedule, x_t, eps, t, clip)
    ab, ab_prev = schedule.ab[t], schedule.ab[prev]
    # σ̂ only scales the noise: the direction keeps the σ of η = 1, as in the paper
    sigma_direction = ddim_sigma(schedule, t, prev, 1.0) if eta == "hat" else sigma
    direction = math.sqrt(max(1 - ab_prev - sigma_direction**2, 0.0))
    if ab == 0:
        return _affine(x_t, direction, eps, -math.sqrt(ab_prev), sigma, z)
    # x̂_0 put into the sum: one multiple of x_t and one of ε, both numbers from float64
    a = math.sqrt(ab_prev / ab)
    b = direction - a * math.sqrt(1 - ab)
    return _affine(x_t, a, eps, b, sigma, z)


def ddpm_step(
    schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: int, z: Tensor | None = None, clip: Clip = None,
    variance: Variance = "posterior",
) -> Tensor:  # fmt: skip
    """One ancestral step from t to t - 1 (Ho et al. 2020, algorithm 2; the book, chapter 2).

    x_{t-1} = 1/√α_t · (x_t - β_t/√(1-ᾱ_t) · ε) + σ_t z, no noise on the last step (t = 1).

    x_t, eps, z and clip are as in :func:`ddim_step`; t lies in 1..T, and `variance` is σ_t² = β̃_t ("posterior") or β_t ("beta";
    section 3.2 of the paper).
    """
    check_int("t", t, 1, schedule.T)
    check_choice("variance", variance, get_args(Variance))
    eps = _clipped(schedule, x_t, eps, t, clip)
    ab, ab_prev = schedule.ab[t], schedule.ab[t - 1]
    alpha = ab / ab_prev
    beta = 1 - alpha
    sigma = math.sqrt(beta if variance == "beta" else (1 - ab_prev) / (1 - ab) * beta) if t > 1 else 0.0
    if ab == 0:
        return _affine(x_t, 0.0, eps, -math.sqrt(ab_prev), sigma, z)
    a = 1 / math.sqrt(alpha)
    return _affine(x_t, a, eps, -a * beta / math.sqrt(1 - ab), sigma, z)


def ddim(
    model: Denoiser, schedule: NoiseSchedule, x_T: Tensor, steps: Steps, eta: Eta = 0.0, noise: Noise = None,
    clip: Clip = None, differentiable: bool = False,
) -> Iterator[Tensor]:  # fmt: skip
    """Sample along `steps`, yielding the state after each: `x_0 = last(ddim(...))` (Song et al. 2021, equation 12).

    The pairs walked are (τ_S, τ_{S-1}), …, (τ_1, 0): exactly S network evaluations, and no special last step. A ValueError
    comes before the first of them; a NaN from the network is passed on, since to look for it would make a GPU wait.

    Args:
        model: the denoiser; how it is asked: :class:`ddimlib.denoisers.Asked`.
        schedule: the noise schedule that it was trained with; a model that knows its own is held to it.
        x_T: starting noise, [B, C, H, W], any floating dtype; the states keep it.
        steps: τ_S > … > τ_1 in 1..T, as from :func:`ddimlib.timesteps`; or their number S, spaced as "linspace".
        eta, clip: see :data:`Eta` and :data:`Clip`; with η = 0 nothing is drawn, with η = 1 it is DDPM on the re-spaced chain.
        noise: step noise, see :data:`ddimlib.latents.Noise`; slice i of a tensor belongs to the i-th step taken.
        differentiable: keep the graph, so that gradients reach x_T and the network's weights; S evaluations stay in memory.
    """
    asked, steps = begin(model, schedule, x_T, steps, differentiable)
    ddim_sigma(schedule, steps[0], 0, eta)
    check_clip(clip)
    draw = noise_source(noise, x_T, len(steps))

    def walk() -> Iterator[Tensor]:
        x = asked.start
        for i, (t, prev) in enumerate(zip(steps, [*steps[1:], 0], strict=True)):
            eps = asked(x, t)
            z = draw(i, x) if eta != 0 and prev > 0 else None  # where σ > 0
            x = ddim_step(schedule, x, eps, t, prev, eta, z, clip)
            yield x

    return walk()


def ddpm(
    model: Denoiser, schedule: NoiseSchedule, x_T: Tensor, noise: Noise = None, clip: Clip = None,
    variance: Variance = "posterior", differentiable: bool = False,
) -> Iterator[Tensor]:  # fmt: skip
    """Ancestral sampling through all T steps, yielding the state after each (Ho et al. 2020, algorithm 2).

    Arguments, states and errors as in :func:`ddim`; a noise tensor is [T, B, C, H, W], `variance` as in :func:`ddpm_step`.
    """
    asked, steps = begin(model, schedule, x_T, None, differentiable)
    check_choice("variance", variance, get_args(Variance))
    check_clip(clip)
    draw = noise_source(noise, x_T, len(steps))

    def walk() -> Iterator[Tensor]:
        x = asked.start
        for i, t in enumerate(steps):
            eps = asked(x, t)
            x = ddpm_step(schedule, x, eps, t, draw(i, x) if t > 1 else None, clip, variance)
            yield x

    return walk()


def last(states: Iterable[Tensor]) -> Tensor:
    """The last state of a walk, `x_0 = last(ddim(...))`; the others are not kept."""
    if isinstance(states, Tensor) or not isinstance(states, Iterable):
        raise KindError(f"last takes the states that a sampler yields, got {describe(states)}; leave last out")
    kept = deque(states, maxlen=1)
    if not kept:
        raise ValueError("there are no states; a walk can be used once, so call the sampler again")
    return kept[0]


def sample(
    model: Denoiser, schedule: NoiseSchedule, shape: Sequence[int] | None = None, steps: Steps = 50, eta: Eta = 0.0,
    spacing: Spacing = "linspace", seed: int | None = None, labels: Labels | None = None,
    guidance: float = 1.0, clip: Clip = None, batch_size: int = 256, progress: bool = False, first: int = 0,
    x_T: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Draw images: the friendly front door to :func:`ddim`.

    Args:
        model, schedule, eta, clip: as for :func:`ddim`; with labels, model is called as model(x, t, labels).
        shape: [N, C, H, W] of the images wanted; may be left out where x_T is given.
        steps, spacing: the number of steps S, in 1..T, and their spacing, see :func:`ddimlib.timesteps`, or a list of them;
            DDPM is steps = T with eta = 1.
        seed: image i is a function of (seed, i), whatever the batch it is drawn in; None draws one from torch's generator.
        labels: one class for each image, see :data:`ddimlib.guidance.Labels`; or None.
        guidance: classifier-free guidance scale, see :class:`ddimlib.GuidedDenoiser`; needs labels.
        batch_size, progress: images at a time; whether to show a progress bar.
        first: number of the first image, for a part of a larger run: images first, …, first + N - 1 of that seed are drawn.
        x_T: noise to start from instead of the seed's, [N, C, H, W], such as latents that were interpolated.

    Returns [N, C, H, W] on the model's device, in [-1, 1] (what lies outside is clipped); float32, or the dtype of x_T.
    Raises FloatingPointError when the network returns NaN or infinity.
    """
    if x_T is not None:
        check_finite("x_T", x_T)
        if shape is not None and tuple(shape) != tuple(x_T.shape):
            raise ValueError(f"shape is {tuple(shape)}, but x_T has {tuple(x_T.shape)}; leave shape out")
        shape = x_T.shape
    if not isinstance(shape, Sequence) or len(shape) != 4:
        raise ValueError(f"shape must be (N, C, H, W), each at least 1, got {describe(shape)}; or give x_T")
    n, *image = (check_int("each entry of shape", size, 1, 2**31 - 1) for size in shape)
    batch_size, first = check_int("batch_size", batch_size, 1), check_int("first", first, 0)
    check_model(model, schedule)
    seed = int(torch.randint(2**32, (), dtype=torch.int64, device="cpu")) if seed is None else seed
    if labels is not None:
        labels = check_labels(labels, said_by(model, "num_classes"), n).expand(n)
    check_guidance(guidance, labels)
    visited = check_timesteps(schedule.T, steps, spacing)
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    device = next((weight.device for weight in weights), torch.device("cpu"))
    images, batches = [], range(0, n, batch_size)
    with tqdm(total=len(batches) * len(visited), disable=not progress, desc="sampling") as bar:
        for start in batches:
            part = slice(start, min(start + batch_size, n))
            source = SeededNoise.from_seed(seed, part.stop - start, first + start)
            x = source.initial(image)
            begin = (x if x_T is None else x_T[part].detach()).to(device)
            # labels go to the device now: inside the loop, the host would wait for them
            denoiser = conditioned(model, None if labels is None else labels[part].to(device), guidance)
            for x in ddim(denoiser, schedule, begin, visited, eta, source, clip):  # noqa: B007, the last one is kept
                bar.update()
            images.append(x)
    result = torch.cat(images)
    if not result.isfinite().all():
        raise FloatingPointError("the network returned NaN or infinity; check its weights and its precision")
    return result.clamp(-1, 1)


def _affine(x: Tensor, a: float, eps: Tensor, b: float, sigma: float, z: Tensor | None) -> Tensor:
    """a x + b ε + σ z: two operations, three with noise, and the result is the only new tensor."""
    result = (x * a).add_(eps, alpha=b)
    if sigma == 0:
        return result
    if z is None:
        raise ValueError(f"this step adds noise (σ = {sigma:.3g}), so it needs z; pass noise of x_t's shape")
    check_pair("x_t", x, "z", z)
    return result.add_(z, alpha=sigma)


def _clipped(schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: int, clip: Clip) -> Tensor:
    """The noise that belongs to x̂_0 within its limits, so that the pair still explains x_t. Every step begins here."""
    check_pair("x_t", x_t, "eps", eps)
    check_clip(clip)
    if clip is None:
        return eps
    if schedule.ab[t] == 0:
        return -_limited(-eps, clip)
    return schedule.predict_eps(x_t, t, _limited(schedule.predict_x0(x_t, t, eps), clip))


def _limited(x_0: Tensor, clip: float | Literal["dynamic"]) -> Tensor:
    """x̂_0 in [-clip, clip]; or, "dynamic", in [-s, s] and divided by s, the 99.5th percentile of its sizes, at least 1
    (Saharia et al. 2022, section 2.3)."""
    if clip != "dynamic":
        return x_0.clamp(-float(clip), float(clip))
    sizes = x_0.abs().flatten(1)
    s = sizes.to(torch.promote_types(sizes.dtype, torch.float32)).quantile(0.995, dim=1).clamp(min=1)
    s = s.to(x_0.dtype).reshape(-1, *[1] * (x_0.ndim - 1))
    return x_0.clamp(-s, s) / s
