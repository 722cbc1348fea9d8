"""The samplers against what can be worked out on paper, in float64: with an exact denoiser nothing is left to chance.

Everything here is affine in (x_T, z), so moments are read off by feeding unit vectors; there is no Monte Carlo unless said.
"""

import math
from itertools import pairwise

import pytest
import torch
from helpers import ETAS, SPACINGS, Retimed, last, randn, sharp_mixture, short_schedule, smooth_mixture

from ddimlib import GaussianMixture, NoiseSchedule, ddim, ddim_sigma, ddim_step, ddpm, gaussian, timesteps
from ddimlib.samplers import ddpm_step

LINEAR = NoiseSchedule.linear()
FLOAT64 = torch.float64


def pixels(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=FLOAT64).reshape(-1, 1, 1, 1)


# --- a point mass ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("S", [1, 2, 3, 17, 1000])
def test_a_point_mass_is_recovered_exactly_in_any_number_of_steps(S, eta):
    x_T, noise = 3 * randn(4, 1, 2, 2), randn(S, 4, 1, 2, 2, seed=1)
    x_0 = last(ddim(gaussian(0.3, 0.0).denoiser(LINEAR), LINEAR, x_T, timesteps(1000, S), eta, noise))
    assert (x_0 - 0.3).abs().max() < 1e-12


def test_ddpm_recovers_a_point_mass():
    x_T, noise = 3 * randn(4, 1, 2, 2), randn(1000, 4, 1, 2, 2, seed=1)
    for variance in ("posterior", "beta"):
        x_0 = last(ddpm(gaussian(0.3, 0.0).denoiser(LINEAR), LINEAR, x_T, noise, variance=variance))
        assert (x_0 - 0.3).abs().max() < 1e-12


# --- a unit Gaussian: ∏cos ----------------------------------------------------------------------------------------


def unit_gaussian_std(steps: list[int]) -> float:
    return last(ddim(gaussian().denoiser(LINEAR), LINEAR, pixels([1.0]), steps)).item()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("S", [1, 2, 5, 10, 50, 1000])
def test_unit_gaussian_shrinks_by_the_product_of_cosines(S, spacing):
    """ε* = √(1-ᾱ) x: in the plane of signal and noise, each step projects x on a direction turned by θ_t - θ_prev."""
    steps = timesteps(1000, S, spacing)
    theta = [math.acos(math.sqrt(ab)) for ab in LINEAR.alpha_bar[[*steps, 0]].tolist()]
    expected = math.prod(math.cos(a - b) for a, b in pairwise(theta))
    assert unit_gaussian_std(steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("S", "expected"), [(1, 0.00635), (2, 0.2696), (5, 0.6798), (10, 0.8294), (50, 0.9636), (1000, 0.9981)]
)
def test_unit_gaussian_reference_values(S, expected):
    assert float(f"{unit_gaussian_std(timesteps(1000, S, 'trailing')):.4g}") == pytest.approx(expected, rel=1e-3)


# --- any Gaussian: exact mean and variance ---------------------------------------------------------------------------


def expected_moments(schedule: NoiseSchedule, steps, eta, mean: float, std: float) -> tuple[float, float]:
    """Mean and variance of x_0 for data N(mean, std²) and x_T ~ N(0, 1), from the definitions alone."""
    ab = schedule.alpha_bar.tolist()
    m, v = 0.0, 1.0
    for t, prev in zip(steps, [*steps[1:], 0], strict=True):
        a, b = ab[t], ab[prev]
        gain = math.sqrt(a) * std**2 / (a * std**2 + 1 - a)  # x̂_0 = mean + gain (x - √ᾱ mean)
        sigma_one = math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        sigma_hat = math.sqrt(1 - a / b) if prev > 0 else 0.0
        sigma = sigma_hat if eta == "hat" else eta * sigma_one
        c = math.sqrt(1 - b - (sigma_one if eta == "hat" else sigma) ** 2)
        # ε̂ = (x - √ᾱ x̂_0)/√(1-ᾱ), so x_prev = slope · x + offset + σ z
        slope = math.sqrt(b) * gain + c * (1 - math.sqrt(a) * gain) / math.sqrt(1 - a)
        offset = (math.sqrt(b) - c * math.sqrt(a) / math.sqrt(1 - a)) * mean * (1 - gain * math.sqrt(a))
        m, v = slope * m + offset, slope**2 * v + sigma**2
    return m, v


def propagated_moments(schedule: NoiseSchedule, steps, eta, mean: float, std: float) -> tuple[float, float]:
    """The same from the sampler: its response to (x_T, z_1, …, z_S) = 0 and to each unit vector, in one batch."""
    S = len(steps)
    x_T, noise = torch.zeros(S + 2, 1, 1, 1, dtype=FLOAT64), torch.zeros(S, S + 2, 1, 1, 1, dtype=FLOAT64)
    x_T[1] = 1
    noise[range(S), range(2, S + 2)] = 1
    x_0 = last(ddim(gaussian(mean, std).denoiser(schedule), schedule, x_T, steps, eta, noise)).flatten()
    return x_0[0].item(), (x_0[1:] - x_0[0]).square().sum().item()


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("S", [1, 2, 7, 60])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.2), (-1.5, 2.0)])
def test_gaussian_mean_and_variance_are_exact_for_any_steps_and_eta(mean, std, S, eta):
    for spacing in SPACINGS:
        steps = timesteps(1000, S, spacing)
        assert propagated_moments(LINEAR, steps, eta, mean, std) == pytest.approx(
            expected_moments(LINEAR, steps, eta, mean, std), rel=1e-10, abs=1e-12
        )


def test_gaussian_moments_approach_the_data_as_steps_are_added():
    errors = []
    for S in (10, 100, 1000):
        m, v = propagated_moments(LINEAR, timesteps(1000, S), 1.0, 0.7, 0.5)
        errors.append(abs(m - 0.7) + abs(math.sqrt(v) - 0.5))
    assert errors[0] > 5 * errors[1] > 20 * errors[2]
    assert errors[2] < 0.005  # what is left: x_T ~ N(0, 1) forgets that x_T has mean √ᾱ_T · 0.7 = 0.0044


# --- the coefficients of one step ------------------------------------------------------------------------------------


def coefficients(schedule: NoiseSchedule, t: int, prev: int, eta) -> tuple[float, float, float]:
    """What one step does to a true x_0, its true ε, and z: read off with unit vectors."""
    unit = torch.eye(3, dtype=FLOAT64).reshape(3, 3, 1, 1)
    x_0, eps, z = unit[:, :1], unit[:, 1:2], unit[:, 2:]
    return tuple(ddim_step(schedule, schedule.add_noise(x_0, t, eps), eps, t, prev, eta, z).flatten().tolist())


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_step_keeps_the_marginal(eta):
    """Lemma 1 of the DDIM paper: given x_0, the mean is √ᾱ_prev x_0 and c² + σ² = 1 - ᾱ_prev, for every pair of times."""
    schedule = short_schedule(25)
    for t in range(1, 26):
        for prev in range(t):
            ab_prev = schedule.alpha_bar[prev].item()
            of_x0, c, sigma = coefficients(schedule, t, prev, eta)
            assert of_x0 == pytest.approx(math.sqrt(ab_prev), rel=1e-12)
            assert c**2 + sigma**2 == pytest.approx(1 - ab_prev, abs=1e-13)
            assert sigma == ddim_sigma(schedule, t, prev, eta)


def test_sigma_is_eta_times_the_posteriors():
    for t, prev in [(1000, 980), (500, 1), (2, 1)]:
        ab, ab_prev = LINEAR.alpha_bar[[t, prev]].tolist()
        one = math.sqrt((1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev))
        for eta in (0, 0.3, 1):
            assert ddim_sigma(LINEAR, t, prev, eta) == pytest.approx(eta * one, rel=1e-12)
        assert ddim_sigma(LINEAR, t, prev, "hat") == pytest.approx(math.sqrt(1 - ab / ab_prev), rel=1e-12)


def test_sigma_hat_changes_only_the_noise():
    for t, prev in [(1000, 980), (500, 1), (2, 1)]:
        assert coefficients(LINEAR, t, prev, "hat")[:2] == coefficients(LINEAR, t, prev, 1.0)[:2]
        assert coefficients(LINEAR, t, prev, "hat")[2] > coefficients(LINEAR, t, prev, 1.0)[2]


@pytest.mark.parametrize("eta", ETAS)
def test_the_step_to_data_adds_no_noise(eta):
    for t in (1, 20, 1000):
        assert ddim_sigma(LINEAR, t, 0, eta) == 0
        assert coefficients(LINEAR, t, 0, eta) == pytest.approx((1, 0, 0), abs=1e-13)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_ancestral_step_is_algorithm_2(t, variance):
    x, eps, z = randn(3, 2, 1, 1, 2).unbind(0)
    alpha, ab = 1 - LINEAR.beta[t], LINEAR.alpha_bar[t]
    mean = (x - (1 - alpha) / (1 - ab).sqrt() * eps) / alpha.sqrt()
    sigma = (LINEAR.posterior_variance(t) if variance == "posterior" else LINEAR.beta[t]).sqrt() if t > 1 else 0
    step = ddpm_step(LINEAR, x, eps, t, z, variance=variance)
    assert step.allclose(mean + sigma * z, rtol=1e-13, atol=1e-13)


def test_ancestral_step_draws_from_the_posterior_at_the_predicted_image():
    x, eps, z = randn(3, 2, 1, 1, 2).unbind(0)
    for t in (1, 2, 500, 1000):
        mean, variance = LINEAR.posterior(LINEAR.predict_x0(x, t, eps), x, t)
        assert ddpm_step(LINEAR, x, eps, t, z).allclose(mean + variance.sqrt() * z, rtol=1e-10)


# --- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", ETAS)
def test_clipping_limits_the_prediction_and_re_derives_the_noise_that_explains_x_t(eta):
    """Written out: x̂_0 clipped, ε = (x_t - √ᾱ x̂_0)/√(1-ᾱ), and then the three terms of equation 12."""
    t, prev = 600, 300
    x_t, eps, z = randn(3, 50, 1, 1, 2).unbind(0)
    ab, ab_prev = LINEAR.alpha_bar[t], LINEAR.alpha_bar[prev]
    clipped = ((x_t - (1 - ab).sqrt() * eps) / ab.sqrt()).clamp(-0.8, 0.8)
    implied = (x_t - ab.sqrt() * clipped) / (1 - ab).sqrt()
    assert (implied - eps).abs().max() > 0.1  # something was clipped
    c = math.sqrt(1 - ab_prev - ddim_sigma(LINEAR, t, prev, 1.0 if eta == "hat" else eta) ** 2)
    expected = ab_prev.sqrt() * clipped + c * implied + ddim_sigma(LINEAR, t, prev, eta) * z
    assert ddim_step(LINEAR, x_t, eps, t, prev, eta, z, clip=0.8).allclose(expected, atol=1e-12)


@pytest.mark.parametrize("clip", [0.5, 1.0])
def test_a_clipped_sample_lies_within_the_limits(clip):
    x_0 = last(ddim(lambda x, t: -x, LINEAR, randn(4, 1, 2, 2), timesteps(1000, 10), clip=clip))
    assert x_0.abs().max().item() == pytest.approx(clip, abs=1e-12)


# --- DDIM contains DDPM ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("eta", "variance"), [(1.0, "posterior"), ("hat", "beta")])
def test_on_the_full_grid_eta_one_is_ddpm_and_sigma_hat_is_ddpm_with_beta(eta, variance, clip):
    model = smooth_mixture().denoiser(LINEAR)
    x_T, noise = randn(4, 1, 2, 2), randn(1000, 4, 1, 2, 2, seed=1)
    a = torch.stack([*ddim(model, LINEAR, x_T, range(1000, 0, -1), eta, noise, clip)])
    b = torch.stack([*ddpm(model, LINEAR, x_T, noise, clip, variance)])
    assert (a - b).abs().max() < 1e-12
    if clip is not None:  # and clipping mattered
        assert (a[-1] - last(ddpm(model, LINEAR, x_T, noise, None, variance))).abs().max() > 1e-3


def test_the_two_variances_of_ddpm_differ():
    schedule = short_schedule()
    x_T, noise = randn(4, 1, 2, 2), randn(40, 4, 1, 2, 2, seed=1)
    model = smooth_mixture().denoiser(schedule)
    a, b = (last(ddpm(model, schedule, x_T, noise, variance=v)) for v in ("posterior", "beta"))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_on_fewer_steps_eta_one_is_ddpm_of_the_respaced_schedule(spacing, clip):
    steps = timesteps(1000, 30, spacing)
    model = smooth_mixture().denoiser(LINEAR)
    x_T, noise = randn(4, 1, 2, 2), randn(30, 4, 1, 2, 2, seed=1)
    a = torch.stack([*ddim(model, LINEAR, x_T, steps, 1.0, noise, clip)])
    b = torch.stack([*ddpm(Retimed(model, steps), LINEAR.respaced(steps), x_T, noise, clip)])
    assert (a - b).abs().max() < 1e-12


# --- distributions ---------------------------------------------------------------------------------------------------


def normal_quantiles(n: int) -> torch.Tensor:
    """The n midpoints of N(0, 1)'s quantiles: a sample without luck."""
    return torch.special.ndtri((torch.arange(n, dtype=FLOAT64) + 0.5) / n)


def mixture_cdf(data: GaussianMixture, x: torch.Tensor) -> torch.Tensor:
    z = (x[:, None] - data.means.flatten()) / data.stds
    return (data.weights * torch.special.ndtr(z)).sum(1)


BUMPS = GaussianMixture(pixels([-1.0, 0.2, 1.0]), stds=[0.2, 0.1, 0.3], weights=[0.3, 0.2, 0.5])


def kolmogorov_distance(samples: torch.Tensor) -> float:
    x = samples.flatten().sort().values
    ranks = (torch.arange(len(x), dtype=FLOAT64) + 0.5) / len(x)
    return (mixture_cdf(BUMPS, x) - ranks).abs().max().item()


def test_ddim_turns_gaussian_quantiles_into_the_mixtures():
    """One pixel, η = 0: the map from x_T to x_0 is monotone, so it must carry quantiles to quantiles; no luck involved."""
    model, x_T = BUMPS.denoiser(LINEAR), pixels(normal_quantiles(500))
    distance = {S: kolmogorov_distance(last(ddim(model, LINEAR, x_T, timesteps(1000, S)))) for S in (20, 250)}
    assert distance[250] < 0.006
    assert distance[250] < distance[20] / 3


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_samples_follow_the_mixture(eta):
    """Monte Carlo with a fixed seed: 1.63/√n is the Kolmogorov–Smirnov limit that chance exceeds once in 100 seeds."""
    n, S = 8000, 200
    x_T, noise = randn(n, 1, 1, 1), randn(S, n, 1, 1, 1, seed=1)
    samples = last(ddim(BUMPS.denoiser(LINEAR), LINEAR, x_T, timesteps(1000, S), eta, noise))
    assert kolmogorov_distance(samples) < 1.63 / math.sqrt(n)


def test_marginals_are_kept_by_steps_with_any_noise():
    """Monte Carlo: walking down from q(x_T | x_0) with the true ε and a random η at each step stays on q(x_t | x_0)."""
    schedule, n, x_0 = short_schedule(), 20_000, 0.6
    data = torch.full((n, 1, 1, 1), x_0, dtype=FLOAT64)
    x = schedule.add_noise(data, 40, randn(n, 1, 1, 1))
    etas = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    times = [40, 33, 30, 29, 20, 11, 5, 2, 1]
    for i, (t, prev) in enumerate(pairwise(times)):
        x = ddim_step(schedule, x, schedule.predict_eps(x, t, data), t, prev, etas[i], randn(n, 1, 1, 1, seed=i + 1))
        ab = schedule.alpha_bar[prev].item()
        standardised = (x - math.sqrt(ab) * x_0) / math.sqrt(1 - ab)
        assert abs(standardised.mean().item()) < 4 / math.sqrt(n)
        assert abs(standardised.var().item() - 1) < 4 * math.sqrt(2 / n)


# --- the order of convergence ----------------------------------------------------------------------------------------


def slope(S: list[int], errors: list[float]) -> float:
    """Of log(error) over log(1/S)."""
    x, y = -torch.tensor(S, dtype=FLOAT64).log(), torch.tensor(errors, dtype=FLOAT64).log()
    return ((x - x.mean()) * (y - y.mean())).sum().item() / (x - x.mean()).square().sum().item()


def test_ddim_is_of_first_order():
    """For N(m, s²) the ODE's solution is known: (x_t - √ᾱ_t m)/√v_t does not change."""
    mean, std, x_T = 0.4, 0.5, pixels([-1.5, 0.3, 2.0])
    ab = LINEAR.alpha_bar[1000].item()
    exact = mean + std * (x_T - math.sqrt(ab) * mean) / math.sqrt(ab * std**2 + 1 - ab)
    sizes = [25, 50, 100, 200]
    errors = [
        (last(ddim(gaussian(mean, std).denoiser(LINEAR), LINEAR, x_T, timesteps(1000, S, "trailing"))) - exact)
        .abs()
        .max()
        .item()
        for S in sizes
    ]
    assert slope(sizes, errors) == pytest.approx(1, abs=0.07)


def test_few_steps_blur_a_sharp_mixture():
    """Why S matters: one step from x_T lands on the mean of the data, which is no data at all."""
    model = sharp_mixture().denoiser(LINEAR)
    x_T = pixels([-0.5, 0.5])
    assert last(ddim(model, LINEAR, x_T, [1000])).abs().max() < 0.01
    assert (last(ddim(model, LINEAR, x_T, timesteps(1000, 100))).abs() - 1).abs().max() < 0.05
