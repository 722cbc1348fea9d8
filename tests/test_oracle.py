"""The exact denoisers against quadrature, automatic differentiation and torch.distributions."""

import math

import pytest
import torch
from helpers import randn, sharp_mixture, smooth_mixture
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ddimlib import GaussianMixture, NoiseSchedule, gaussian

LINEAR = NoiseSchedule.linear()
ALPHA_BARS = [0.9999, 0.7, 0.1, 4e-5]


@pytest.mark.parametrize("ab", [1.0, *ALPHA_BARS])
def test_log_density_is_that_of_the_diffused_mixture(ab):
    data = smooth_mixture()
    std = (ab * data.stds**2 + 1 - ab).sqrt().reshape(3, 1, 1, 1).expand_as(data.means)
    components = Independent(Normal(math.sqrt(ab) * data.means, std), 3)
    reference = MixtureSameFamily(Categorical(data.weights), components)
    x = 2 * randn(20, 1, 2, 2)
    assert data.log_density(x, ab).allclose(reference.log_prob(x), rtol=1e-12)


@pytest.mark.parametrize("ab", ALPHA_BARS)
@pytest.mark.parametrize("data", [smooth_mixture(), gaussian(0.5, 0.0)], ids=["smooth", "point"])
def test_expected_noise_is_minus_the_score_times_sigma(data, ab):
    x = (2 * randn(20, 1, 2, 2)).requires_grad_()
    (score,) = torch.autograd.grad(data.log_density(x, ab).sum(), x)
    assert data.expected_noise(x.detach(), ab).allclose(-math.sqrt(1 - ab) * score, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("ab", ALPHA_BARS)
def test_expected_noise_is_the_mean_of_the_noise_given_x(ab):
    """E[ε | x_t] = ∫ ε p(x_0 | x_t) dx_0 with ε = (x_t - √ᾱ x_0)/√(1-ᾱ), on a fine grid."""
    data = GaussianMixture(torch.tensor([-1.0, 0.5]).reshape(2, 1, 1, 1), stds=[0.3, 0.5], weights=[1, 2])
    grid = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    prior = data.log_density(grid.reshape(-1, 1, 1, 1), 1.0)
    for x_t in (-2.0, 0.1, 1.3):
        eps = (x_t - math.sqrt(ab) * grid) / math.sqrt(1 - ab)
        expected = (torch.softmax(prior - eps.square() / 2, 0) * eps).sum()
        found = data.expected_noise(torch.full((1, 1, 1, 1), x_t, dtype=torch.float64), ab)
        assert found.item() == pytest.approx(expected.item(), rel=1e-8)


def test_the_denoiser_reads_alpha_bar_at_its_own_time():
    data, x = smooth_mixture(), randn(3, 1, 2, 2)
    model = data.denoiser(LINEAR)
    for t in (1, 2, 1000):
        expected = data.expected_noise(x, LINEAR.alpha_bar[t].item())
        assert torch.equal(model(x, torch.full((3,), t)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_denoiser_keeps_the_dtype_and_thinks_in_float64(dtype):
    model, x = smooth_mixture().denoiser(LINEAR), randn(3, 1, 2, 2).float()
    eps = model(x.to(dtype), torch.full((3,), 7))
    assert eps.dtype == dtype
    assert torch.equal(eps.float(), model(x.double(), torch.full((3,), 7)).float())


def test_draws_have_the_right_weights_means_and_stds():
    """Monte Carlo within four standard errors."""
    data = GaussianMixture(torch.tensor([-2.0, 2.0]).reshape(2, 1, 1, 1), stds=[0.0, 0.5], weights=[3, 1])
    x = data.draw(20_000, torch.Generator().manual_seed(0))
    assert x.shape == (20_000, 1, 1, 1)
    assert x.dtype == torch.float64
    right = x[x > 0]
    assert (x[x < 0] == -2).all()
    assert len(right) / 20_000 == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 20_000))
    assert right.mean().item() == pytest.approx(2, abs=4 * 0.5 / math.sqrt(5000))
    assert right.std().item() == pytest.approx(0.5, rel=4 / math.sqrt(10_000))
    assert torch.equal(x, data.draw(20_000, torch.Generator().manual_seed(0)))


def test_far_from_all_components_nothing_overflows():
    x = torch.tensor([-1e3, 1e3]).reshape(2, 1, 1, 1)
    assert sharp_mixture().denoiser(LINEAR)(x, torch.tensor([1, 1])).isfinite().all()


def test_weights_are_scaled_to_one():
    assert smooth_mixture().weights.tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert sharp_mixture().weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("stds", "weights", "named"),
    [
        ([1.0], None, r"\(2, 1, 1, 1\), \(1,\)"),
        ([1.0, 1.0], [1.0], r"\(2,\), \(1,\)"),
        ([1.0, -0.5], None, r"-0\.5"),
        ([1.0, math.nan], None, "nan"),
        ([1.0, 1.0], [1.0, 0.0], r"0\.0"),
    ],
)
def test_bad_components_are_refused(stds, weights, named):
    with pytest.raises(ValueError, match=named):
        GaussianMixture(torch.zeros(2, 1, 1, 1), stds, weights)


@pytest.mark.parametrize("mean", [math.nan, math.inf])
def test_a_mean_that_is_not_finite_is_refused(mean):
    with pytest.raises(ValueError, match="a mean"):
        gaussian(mean)


def test_one_time_for_the_whole_batch():
    with pytest.raises(ValueError, match="one t for the whole batch"):
        gaussian().denoiser(LINEAR)(randn(2, 1, 1, 1), torch.tensor([1, 2]))
