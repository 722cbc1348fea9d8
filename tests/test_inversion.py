"""From image to noise and back: the explicit inverse is of first order, the implicit one exact where it converges."""

import math

import pytest
import torch
from helpers import SPACINGS, Spy, last, randn, sharp_mixture, smooth_mixture

from ddimlib import NoiseSchedule, ddim, ddim_step, gaussian, invert, timesteps

LINEAR = NoiseSchedule.linear()
SMOOTH = smooth_mixture().denoiser(LINEAR)


def round_trip_error(model, x_0: torch.Tensor, steps: list[int], iterations: int, residuals=None) -> float:
    x_T = last(invert(model, LINEAR, x_0, steps, iterations, residuals))
    return (last(ddim(model, LINEAR, x_T, steps)) - x_0).abs().max().item()


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_the_network_is_asked_at_the_time_that_is_stepped_to(iterations):
    """ε(·, t) for the step from s to t: the time at which the sampler asks. Each (1 + iterations) times."""
    spy, steps = Spy(), timesteps(1000, 6)
    assert len(list(invert(spy, LINEAR, randn(2, 1, 2, 2), steps, iterations))) == 6
    assert spy.times == [t for t in reversed(steps) for _ in range(1 + iterations)]


def test_an_explicit_step_is_a_ddim_step_upwards():
    x_0, steps = randn(2, 1, 2, 2), [900, 300]
    first, second = invert(SMOOTH, LINEAR, x_0, steps)
    assert torch.equal(first, ddim_step(LINEAR, x_0, SMOOTH(x_0, torch.tensor([300, 300])), 0, 300))
    assert torch.equal(second, ddim_step(LINEAR, first, SMOOTH(first, torch.tensor([900, 900])), 300, 900))


def test_a_step_up_undoes_the_step_down_when_the_noise_is_known():
    x, eps = randn(2, 1, 2, 2), randn(2, 1, 2, 2, seed=1)
    for t, prev in [(1000, 900), (400, 1), (1, 0)]:
        assert ddim_step(LINEAR, ddim_step(LINEAR, x, eps, t, prev), eps, prev, t).allclose(x, atol=1e-12)


def test_a_constant_network_is_inverted_exactly_by_one_pass():
    assert round_trip_error(lambda x, t: torch.ones_like(x), randn(2, 1, 2, 2), timesteps(1000, 7), 0) < 1e-12


def test_the_explicit_round_trip_is_of_first_order():
    sizes, x_0 = [25, 50, 100, 200], smooth_mixture().draw(8, torch.Generator().manual_seed(0))
    errors = torch.tensor([round_trip_error(SMOOTH, x_0, timesteps(1000, S, "trailing"), 0) for S in sizes])
    orders = (errors[:-1] / errors[1:]).log2()
    assert errors[0] > 0.01  # there is an error to be halved
    assert orders.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("S", "iterations"), [(12, 100), (40, 25)])
def test_the_implicit_round_trip_is_exact_on_a_smooth_oracle(S, iterations, spacing):
    x_0 = smooth_mixture().draw(4, torch.Generator().manual_seed(0))
    steps, residuals = timesteps(1000, S, spacing), []
    assert round_trip_error(SMOOTH, x_0, steps, iterations, residuals) < 1e-10
    assert len(residuals) == S
    assert max(residuals) < 1e-10
    assert round_trip_error(SMOOTH, x_0, steps, 0) > 1e-3  # what the iterations are for


def test_the_residual_is_the_last_change_of_the_state():
    x_0, residuals = randn(2, 1, 2, 2), []
    (x_2,) = invert(SMOOTH, LINEAR, x_0, [500], iterations=2)
    (x_3,) = invert(SMOOTH, LINEAR, x_0, [500], iterations=3, residuals=residuals)
    assert residuals == [(x_3 - x_2).abs().max().item()]
    assert residuals[0] > 0


def test_more_iterations_leave_smaller_residuals():
    worst = []
    for iterations in (1, 3, 9):
        residuals: list[float] = []
        list(invert(SMOOTH, LINEAR, randn(2, 1, 2, 2), timesteps(1000, 20), iterations, residuals))
        worst.append(max(residuals))
    assert worst[0] > 10 * worst[1] > 100 * worst[2]


def test_where_the_fixed_point_is_not_reached_the_residual_says_so():
    """Between two almost-points the denoiser is too steep for few steps: the iteration cycles, and must admit it."""
    residuals: list[float] = []
    x_0 = torch.tensor([-0.6, -0.3, 0.1, 0.5], dtype=torch.float64).reshape(4, 1, 1, 1)
    error = round_trip_error(sharp_mixture().denoiser(LINEAR), x_0, timesteps(1000, 20), 60, residuals)
    assert error > 0.1
    assert max(residuals) > 0.1


def test_the_explicit_inverse_has_no_residuals():
    residuals: list[float] = []
    list(invert(SMOOTH, LINEAR, randn(1, 1, 2, 2), [500, 100], 0, residuals))
    assert residuals == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_image_is_left_alone_and_its_dtype_kept(dtype):
    x_0 = randn(2, 1, 2, 2).to(dtype)
    before = x_0.clone()
    states = list(invert(gaussian().denoiser(LINEAR), LINEAR, x_0, [900, 500, 1], iterations=2))
    assert {x.dtype for x in states} == {dtype}
    assert torch.equal(x_0, before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"iterations": -1}, "got -1"),
        ({"iterations": 2.0}, r"got 2\.0"),
        ({"steps": [1001, 5]}, "1001"),
        ({"steps": [5, 10]}, r"\[5, 10\]"),
        ({"steps": []}, "empty"),
        ({"x_0": torch.full((1, 1, 2, 2), math.nan)}, "NaN"),
        ({"x_0": torch.full((1, 1, 2, 2), math.inf)}, "infinity"),
        ({"x_0": torch.zeros(1, 1, 2, 2, dtype=torch.uint8)}, "uint8"),
    ],
)
def test_bad_input_is_refused_when_called_and_before_any_evaluation(change, named):
    spy = Spy()
    arguments = {"x_0": randn(1, 1, 2, 2), "steps": [10, 5]} | change
    with pytest.raises(ValueError, match=named):
        invert(spy, LINEAR, **arguments)
    assert spy.times == []
