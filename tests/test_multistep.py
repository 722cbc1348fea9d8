"""The two-step sampler against closed forms, another way of computing it, and what DDIM promises about its walk."""

import math

import numpy as np
import pytest
import torch
from helpers import SPACINGS, Spy, last, randn, short_schedule, smooth_mixture

from ddimlib import NoiseSchedule, ddim, gaussian, timesteps
from ddimlib.multistep import ddim_ab2

LINEAR = NoiseSchedule.linear()
SMOOTH = smooth_mixture().denoiser(LINEAR)
S_OF_T = ((1 - LINEAR.alpha_bar) / LINEAR.alpha_bar).sqrt().tolist()
STEPS = [40, 25, 9, 1]


def of_time(f):
    """A denoiser that looks at s alone."""
    return lambda x, t: torch.full_like(x, f(S_OF_T[int(t[0])]))


# --- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 300, 1000])
def test_a_single_step_is_ddims(t):
    x_T = randn(3, 1, 2, 2)
    assert torch.equal(last(ddim_ab2(SMOOTH, LINEAR, x_T, [t])), last(ddim(SMOOTH, LINEAR, x_T, [t])))


def test_the_first_step_is_ddims():
    x_T = randn(3, 1, 2, 2)
    first, *_ = ddim_ab2(SMOOTH, LINEAR, x_T, [900, 300, 20])
    assert torch.equal(first, next(ddim(SMOOTH, LINEAR, x_T, [900, 300, 20])))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("S", [2, 3, 17])
def test_a_constant_eps_is_followed_exactly(S, spacing):
    """x̄ moves on a straight line to x̂_0 = x̄ - s ε."""
    x_T, steps = randn(2, 1, 2, 2), timesteps(1000, S, spacing)
    expected = x_T / math.sqrt(LINEAR.alpha_bar[steps[0]]) - 0.7 * S_OF_T[steps[0]]
    assert last(ddim_ab2(of_time(lambda s: 0.7), LINEAR, x_T, steps)).allclose(expected, atol=1e-10)


@pytest.mark.parametrize("S", [1, 2, 3, 17, 1000])
def test_a_point_mass_is_recovered_exactly(S):
    x_T = 3 * randn(4, 1, 2, 2)
    x_0 = last(ddim_ab2(gaussian(0.3, 0.0).denoiser(LINEAR), LINEAR, x_T, timesteps(1000, S)))
    assert (x_0 - 0.3).abs().max() < 1e-11


@pytest.mark.parametrize("steps", [[1000, 640, 400, 390, 5, 4, 1], [700, 699, 2], timesteps(1000, 50, "quadratic")])
def test_an_eps_that_is_linear_in_s_costs_the_first_steps_error_and_no_other(steps):
    """∫ (a + b s) ds is known; Euler's first step errs by ½ b h² in x̄. Weights of equal steps would fail here."""
    a, b = 2.0, -3.0
    x_T = randn(2, 1, 2, 2)
    s_first, s_second = S_OF_T[steps[0]], S_OF_T[steps[1]]
    exact = x_T / math.sqrt(LINEAR.alpha_bar[steps[0]]) - a * s_first - b * s_first**2 / 2
    expected = exact - b * (s_second - s_first) ** 2 / 2
    assert last(ddim_ab2(of_time(lambda s: a + b * s), LINEAR, x_T, steps)).allclose(expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_it_agrees_with_polynomials_fitted_and_integrated_by_numpy(spacing):
    """In (x̄, s), pixel by pixel: the line through the last two slopes, its antiderivative, and nothing of ddim_step."""
    steps, x_T = timesteps(1000, 12, spacing), randn(2, 1, 2, 2)
    x_bar, nodes, slopes = x_T.flatten().numpy() / math.sqrt(LINEAR.alpha_bar[steps[0]]), [], []
    for (t, prev), state in zip(
        zip(steps, [*steps[1:], 0], strict=True), ddim_ab2(SMOOTH, LINEAR, x_T, steps), strict=True
    ):
        x = torch.from_numpy(x_bar * math.sqrt(LINEAR.alpha_bar[t])).reshape(x_T.shape)
        nodes, slopes = [*nodes[-1:], S_OF_T[t]], [*slopes[-1:], SMOOTH(x, torch.full((2,), t)).flatten().numpy()]
        lines = np.polyfit(np.array(nodes) - S_OF_T[t], np.stack(slopes), deg=len(nodes) - 1)
        h = S_OF_T[prev] - S_OF_T[t]
        x_bar = x_bar + [np.polyval(np.polyint(line), h) for line in lines.T]
        expected = torch.from_numpy(x_bar * math.sqrt(LINEAR.alpha_bar[prev])).reshape(x_T.shape)
        assert state.allclose(expected, rtol=1e-10, atol=1e-10)


def test_the_order_is_two_where_ddims_is_one():
    """For N(m, c²) the ODE's solution is known: (x_t - √ᾱ_t m)/√v_t does not change."""
    mean, std, x_T = 0.4, 0.5, torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    ab, model = LINEAR.alpha_bar[1000].item(), gaussian(mean, std).denoiser(LINEAR)
    exact = mean + std * (x_T - math.sqrt(ab) * mean) / math.sqrt(ab * std**2 + 1 - ab)
    sizes = [25, 50, 100, 200]

    def order(sampler) -> float:
        errors = [
            (last(sampler(model, LINEAR, x_T, timesteps(1000, S, "trailing"))) - exact).abs().max() for S in sizes
        ]
        return -np.polyfit(np.log(sizes), np.log(torch.stack(errors).numpy()), 1)[0]

    assert order(ddim) == pytest.approx(1, abs=0.1)
    assert order(ddim_ab2) == pytest.approx(2, abs=0.1)


def test_with_enough_steps_it_is_closer_than_ddim_on_the_mixture():
    fine = last(ddim_ab2(SMOOTH, LINEAR, randn(8, 1, 2, 2), timesteps(1000, 500)))
    errors = {
        f: (last(f(SMOOTH, LINEAR, randn(8, 1, 2, 2), timesteps(1000, 40))) - fine).abs().max()
        for f in (ddim, ddim_ab2)
    }
    assert errors[ddim_ab2] < errors[ddim] / 4


# --- what it promises about its walk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
def test_it_evaluates_once_for_each_timestep(spacing):
    for S in (1, 2, 7, 39, 40):
        spy, steps = Spy(), timesteps(40, S, spacing)
        assert len(list(ddim_ab2(spy, short_schedule(), randn(1, 1, 1, 1), steps))) == S
        assert spy.times == steps


def test_it_works_only_when_asked_and_draws_nothing():
    spy, before = Spy(), torch.get_rng_state()
    states = ddim_ab2(spy, short_schedule(), randn(1, 1, 1, 1), STEPS)
    assert spy.times == []
    next(states)
    assert spy.times == [40]
    list(states)
    assert torch.equal(before, torch.get_rng_state())


def test_every_run_starts_afresh():
    x_T = randn(2, 1, 2, 2)
    first, again = (torch.stack([*ddim_ab2(SMOOTH, LINEAR, x_T, [900, 300, 20])]) for _ in range(2))
    assert torch.equal(first, again)


def test_a_model_may_reuse_the_memory_of_its_answer():
    buffer, x_T = torch.empty(2, 1, 2, 2, dtype=torch.float64), randn(2, 1, 2, 2)
    expected = last(ddim_ab2(SMOOTH, LINEAR, x_T, [900, 300, 20]))
    assert torch.equal(last(ddim_ab2(lambda x, t: buffer.copy_(SMOOTH(x, t)), LINEAR, x_T, [900, 300, 20])), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_states_keep_the_dtype_of_x_T_and_x_T_is_left_alone(dtype):
    x_T = randn(2, 1, 2, 2).to(dtype)
    copy = x_T.clone()
    states = list(ddim_ab2(lambda x, t: (0.1 * x).float(), short_schedule(), x_T, STEPS))
    assert {x.dtype for x in states} == {dtype}
    assert torch.equal(x_T, copy)
    assert len({x.data_ptr() for x in (x_T, *states)}) == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": []}, "empty"),
        ({"steps": [41, 5]}, "41"),
        ({"steps": [5, 9]}, r"\[5, 9\]"),
        ({"steps": [5, 0]}, r"\[5, 0\]"),
        ({"x_T": torch.full((1, 1, 1, 1), math.nan)}, "NaN"),
        ({"x_T": torch.full((1, 1, 1, 1), math.inf)}, "infinity"),
        ({"x_T": torch.zeros(1, 1, 1, 1, dtype=torch.int64)}, "int64"),
    ],
)
def test_bad_input_is_refused_when_called_and_before_any_evaluation(change, named):
    spy = Spy()
    with pytest.raises(ValueError, match=named):
        ddim_ab2(spy, short_schedule(), **({"x_T": randn(1, 1, 1, 1), "steps": STEPS} | change))
    assert spy.times == []
