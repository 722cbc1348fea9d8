"""Step by step against an independent implementation: diffusers' schedulers, set up as the paper has it.

diffusers counts 0..T-1 where we count 1..T, and builds ᾱ in float32; ᾱ is replaced by ours so that float64 can be compared.
"""

import pytest
import torch
from helpers import randn, smooth_mixture

from ddimlib import NoiseSchedule, ddim, ddpm, timesteps

diffusers = pytest.importorskip("diffusers")

LINEAR = NoiseSchedule.linear()
MODEL = smooth_mixture().denoiser(LINEAR)
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def ddim_scheduler(S: int, clip: bool = False):
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=clip, set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading"
    )
    scheduler.alphas_cumprod = LINEAR.alpha_bar[1:]
    scheduler.set_timesteps(S)
    return scheduler


def theirs(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The denoiser in diffusers' time."""
    return MODEL(x, torch.full((len(x),), int(t) + 1))


def test_the_linear_schedule_is_theirs_up_to_float32():
    assert diffusers.DDIMScheduler(**BETAS).alphas_cumprod.double().allclose(LINEAR.alpha_bar[1:], rtol=1e-4)


def test_the_cosine_schedule_is_theirs_up_to_float32():
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    assert scheduler.alphas_cumprod.double().allclose(NoiseSchedule.cosine().alpha_bar[1:], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("S", [1, 3, 10, 50, 300, 700, 1000])
def test_leading_timesteps_are_theirs(S):
    assert timesteps(1000, S, "leading") == [t + 1 for t in ddim_scheduler(S).timesteps.tolist()]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("S", [1, 7, 50])
def test_ddim_agrees_at_every_step(S, eta, clip):
    """With clipping, use_clipped_model_output is what re-derives ε there."""
    scheduler = ddim_scheduler(S, clip)
    x_T, noise = randn(3, 1, 2, 2), randn(S, 3, 1, 2, 2, seed=1)
    states = ddim(MODEL, LINEAR, x_T, timesteps(1000, S, "leading"), eta, noise, 1.0 if clip else None)
    x = x_T
    for t, z, state in zip(scheduler.timesteps, noise, states, strict=True):
        x = scheduler.step(theirs(x, t), t, x, eta=eta, use_clipped_model_output=clip, variance_noise=z).prev_sample
        assert (x - state).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("variance", "their_name", "clip"),
    [("posterior", "fixed_small", False), ("posterior", "fixed_small", True), ("beta", "fixed_large", False)],
)
def test_ddpm_agrees_at_every_step(variance, their_name, clip):
    """The scheduler draws its own noise: a twin of its generator gives us the same."""
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=clip, variance_type=their_name)
    scheduler.alphas_cumprod = LINEAR.alpha_bar[1:]
    scheduler.set_timesteps(1000)
    x_T, generator, twin = randn(2, 1, 2, 2), torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)

    def noise(x):
        return torch.randn(x.shape, dtype=x.dtype, generator=twin)

    x = x_T
    states = ddpm(MODEL, LINEAR, x_T, noise, 1.0 if clip else None, variance)
    for t, state in zip(scheduler.timesteps, states, strict=True):
        x = scheduler.step(theirs(x, t), t, x, generator=generator).prev_sample
        assert (x - state).abs().max() < 1e-11
