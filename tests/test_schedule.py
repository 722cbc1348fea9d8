"""The schedule's numbers against plain arithmetic, and its closed forms against the step-by-step chain and Bayes."""

import math

import pytest
import torch
from helpers import randn, short_schedule

from ddimlib import NoiseSchedule

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "short": short_schedule(),
    "given": NoiseSchedule([0.5, 0.1, 0.3]),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def image(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_alpha_bar_is_the_running_product_and_starts_with_one(schedule):
    assert schedule.alpha_bar.dtype == schedule.beta.dtype == torch.float64
    assert len(schedule.alpha_bar) == len(schedule.beta) == schedule.T + 1
    assert schedule.beta[0] == 0
    assert schedule.alpha_bar[0] == 1
    product = 1.0
    for beta, alpha_bar in zip(schedule.beta.tolist(), schedule.alpha_bar.tolist(), strict=True):
        product *= 1 - beta
        assert alpha_bar == pytest.approx(product, rel=1e-13)


def test_linear_betas_are_the_papers():
    schedule = NoiseSchedule.linear()
    assert schedule.T == 1000
    assert schedule.beta[1] == 1e-4
    assert schedule.beta[1000].item() == pytest.approx(0.02, rel=1e-15)
    assert schedule.beta[1:].diff().allclose(torch.tensor((0.02 - 1e-4) / 999, dtype=torch.float64), rtol=1e-10)
    logs = math.fsum(math.log1p(-(1e-4 + (0.02 - 1e-4) * i / 999)) for i in range(1000))
    assert schedule.alpha_bar[1000].item() == pytest.approx(math.exp(logs), rel=1e-12)
    assert schedule.alpha_bar[1000].item() == pytest.approx(4.03583e-5, rel=1e-6)


def test_cosine_alpha_bar_is_the_papers_until_beta_is_clipped():
    schedule = NoiseSchedule.cosine(1000)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    for t in (1, 2, 500, 998):
        assert schedule.alpha_bar[t].item() == pytest.approx(f[t] / f[0], rel=1e-10)
    assert schedule.beta[1000] == 0.999
    assert (schedule.beta[1:1000] < 0.999).all()


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, lambda b: torch.tensor(b, dtype=torch.float64)])
def test_betas_may_be_any_sequence(make):
    schedule = NoiseSchedule(make([0.5, 0.25]))
    assert schedule.alpha_bar.tolist() == [1, 0.5, 0.375]


def test_snr(schedule):
    assert schedule.snr(0) == math.inf
    assert schedule.snr(2).item() == pytest.approx(1 / (1 / schedule.alpha_bar[2].item() - 1), rel=1e-12)
    assert (schedule.snr(torch.arange(schedule.T + 1)).diff() < 0).all()


def test_respaced_chain_has_the_same_alpha_bar_at_its_own_times(schedule):
    steps = sorted({1, (schedule.T + 1) // 2, schedule.T}, reverse=True)
    short = schedule.respaced(steps)
    assert len(steps) == short.T
    assert short.alpha_bar.allclose(schedule.alpha_bar[[0, *reversed(steps)]], rtol=1e-12)


def test_repr_says_what_it_is():
    assert "T=1000" in repr(NoiseSchedule.linear())


# --- the closed form -------------------------------------------------------------------------------------------------


def test_closed_form_forward_equals_the_chain_step_by_step(schedule):
    """Mean factor and variance of x_t given x_0, one step at a time, against the two coefficients of add_noise."""
    t = torch.arange(schedule.T + 1)
    ones, zeros = (torch.full((schedule.T + 1, 1, 1, 1), v, dtype=torch.float64) for v in (1.0, 0.0))
    signal = schedule.add_noise(ones, t, zeros).flatten()
    sigma = schedule.add_noise(zeros, t, ones).flatten()
    mean, variance = 1.0, 0.0
    assert (signal[0], sigma[0]) == (1, 0)
    for k, beta in enumerate(schedule.beta[1:].tolist(), start=1):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert signal[k].item() == pytest.approx(mean, rel=1e-12)
        assert sigma[k].item() ** 2 == pytest.approx(variance, rel=1e-11)


def test_time_may_be_one_int_or_one_per_sample(schedule):
    x_0, noise = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    t = torch.tensor([0, 1, schedule.T])
    together = schedule.add_noise(x_0, t, noise)
    for i in range(3):
        assert torch.equal(together[i], schedule.add_noise(x_0[i : i + 1], int(t[i]), noise[i : i + 1])[0])
    assert torch.equal(together[0], x_0[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_closed_forms_keep_the_dtype(dtype):
    schedule, x = NoiseSchedule.linear(), randn(2, 1, 2, 2, dtype=torch.float32).to(dtype)
    for t in (5, torch.tensor([5, 900])):
        assert schedule.add_noise(x, t, x).dtype == dtype
        assert schedule.predict_x0(x, t, x).dtype == dtype
        assert schedule.predict_eps(x, t, x).dtype == dtype
        assert schedule.posterior(x, x, t)[0].dtype == dtype


def test_predictions_invert_the_forward_process(schedule):
    x_0, noise = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    for t in (1, 2, schedule.T, torch.tensor([1, 2, 3])):
        x_t = schedule.add_noise(x_0, t, noise)
        assert schedule.predict_x0(x_t, t, noise).allclose(x_0, atol=1e-11)
        assert schedule.predict_eps(x_t, t, x_0).allclose(noise, atol=1e-11)


# --- the posterior ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [2, 3, 17, 40])
def test_posterior_is_bayes_rule_on_a_grid(t):
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0), summed numerically."""
    schedule, x_0, x_t = short_schedule(), 0.7, -0.4
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    ab, beta = schedule.alpha_bar[t - 1], schedule.beta[t]
    log_p = -((x_t - (1 - beta).sqrt() * grid) ** 2) / (2 * beta) - (grid - ab.sqrt() * x_0) ** 2 / (2 * (1 - ab))
    p = torch.softmax(log_p, 0)
    expected_mean = (p * grid).sum()
    expected_variance = (p * (grid - expected_mean) ** 2).sum()
    mean, variance = schedule.posterior(image(x_0), image(x_t), t)
    assert mean.item() == pytest.approx(expected_mean.item(), abs=1e-9)
    assert variance.item() == pytest.approx(expected_variance.item(), rel=1e-7)


def test_posterior_at_the_last_step_is_the_image_itself(schedule):
    mean, variance = schedule.posterior(image(0.7), image(-3.0), 1)
    assert mean.item() == pytest.approx(0.7, abs=1e-12)
    assert variance == 0


def test_posterior_takes_one_time_per_sample():
    schedule, x_0, x_t = short_schedule(), randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    times = torch.tensor([1, 7, 40])
    mean, variance = schedule.posterior(x_0, x_t, times)
    for i, t in enumerate(times.tolist()):
        one_mean, one_variance = schedule.posterior(x_0[i : i + 1], x_t[i : i + 1], t)
        assert torch.equal(mean[i], one_mean[0])
        assert variance[i].item() == one_variance.item()


@pytest.mark.parametrize(("t", "prev"), [(2, 1), (40, 39), (40, 1), (25, 10)])
def test_posterior_variance_over_any_gap_adds_precisions(t, prev):
    ab, ab_prev = short_schedule().alpha_bar[[t, prev]].tolist()
    a = ab / ab_prev
    precision = a / (1 - a) + 1 / (1 - ab_prev)
    assert short_schedule().posterior_variance(t, prev).item() == pytest.approx(1 / precision, rel=1e-12)


def test_posterior_variance_to_data_is_zero_and_the_default_gap_is_one(schedule):
    assert schedule.posterior_variance(schedule.T, 0) == 0
    t = torch.arange(1, schedule.T + 1)
    assert torch.equal(schedule.posterior_variance(t), schedule.posterior_variance(t, t - 1))
    assert (schedule.posterior_variance(t) < schedule.beta[1:]).all()  # β̃ < β: x_0 is known


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("betas", "named"),
    [
        ([0.1, 0.0], r"β_2 = 0;"),
        ([1.0], r"β_1 = 1;"),
        ([0.1, 0.2, -0.5], r"β_3 = -0\.5"),
        ([0.1, math.nan], "β_2 = nan"),
        ([math.inf], "β_1 = inf"),
        ([], r"shape \(0,\)"),
        ([[0.1, 0.2]], r"shape \(1, 2\)"),
        (0.1, r"shape \(\)"),
        ([0.999] * 200, "underflows"),
        ([0.5, 1e-17], "resolution"),
    ],
)
def test_bad_betas_are_refused(betas, named):
    with pytest.raises(ValueError, match=named):
        NoiseSchedule(betas)


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.cosine])
@pytest.mark.parametrize("T", [0, -3, 10.0, "10"])
def test_bad_length_is_refused(make, T):
    with pytest.raises(ValueError, match=f"got {T!r}"):
        make(T)


def test_bad_ends_and_offset_are_refused():
    with pytest.raises(ValueError, match=r"β_2 = 1\.5"):
        NoiseSchedule.linear(2, 0.1, 1.5)
    with pytest.raises(ValueError, match=r"got -0\.1"):
        NoiseSchedule.cosine(10, s=-0.1)


@pytest.mark.parametrize("method", ["add_noise", "predict_x0", "predict_eps"])
def test_mismatched_shapes_are_refused(method):
    with pytest.raises(ValueError, match=r"\(2, 1, 2, 2\) and \(1, 1, 2, 2\)"):
        getattr(short_schedule(), method)(randn(2, 1, 2, 2), 3, randn(1, 1, 2, 2))


def test_posterior_refuses_mismatched_shapes():
    with pytest.raises(ValueError, match=r"\(2, 1, 2, 2\) and \(2, 1, 1, 1\)"):
        short_schedule().posterior(randn(2, 1, 2, 2), randn(2, 1, 1, 1), 3)


@pytest.mark.parametrize("t", [-1, 41])
@pytest.mark.parametrize("method", ["add_noise", "predict_x0", "predict_eps", "posterior"])
def test_time_outside_the_schedule_is_refused(method, t):
    x = randn(2, 1, 2, 2)
    for times in (t, torch.tensor([3, t])):
        args = (x, x, times) if method == "posterior" else (x, times, x)
        with pytest.raises(ValueError, match=f"got {t}"):
            getattr(short_schedule(), method)(*args)


def test_the_noise_in_data_is_not_defined():
    """At t = 0 there is no noise: predict_eps and the posterior would divide by zero."""
    x = randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"1\.\.40, got 0"):
        short_schedule().predict_eps(x, 0, x)
    with pytest.raises(ValueError, match=r"1\.\.40, got 0"):
        short_schedule().posterior(x, x, 0)


def test_one_time_per_sample_means_one_for_each():
    x = randn(3, 1, 2, 2)
    with pytest.raises(ValueError, match="2 entries for a batch of 3"):
        short_schedule().add_noise(x, torch.tensor([1, 2]), x)


@pytest.mark.parametrize("t", [2.5, torch.tensor([2.0, 3.0]), torch.tensor([True, False])])
def test_a_time_that_is_no_integer_is_refused(t):
    x = randn(2, 1, 2, 2)
    with pytest.raises(ValueError, match="int64"):
        short_schedule().add_noise(x, t, x)


@pytest.mark.parametrize("steps", [[], [0], [-1], [41], [5, 10], [10, 10]])
def test_a_chain_of_steps_that_do_not_decrease_within_the_schedule_is_refused(steps):
    """Index -1 would be read as the end of ᾱ, and silently make a chain of one step."""
    with pytest.raises(ValueError, match=r"decrease strictly within 1\.\.40"):
        short_schedule().respaced(steps)
