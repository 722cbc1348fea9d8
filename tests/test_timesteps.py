"""Exactly S timesteps, strictly decreasing, in 1..T, each where its formula says: for every S, not for a few."""

from itertools import pairwise

import numpy as np
import pytest
from helpers import SPACINGS
from hypothesis import given, settings
from hypothesis import strategies as st

from ddimlib import timesteps
from ddimlib.timesteps import check_timesteps


def assert_well_formed(steps: list[int], T: int, S: int) -> None:
    assert len(steps) == S
    assert all(type(t) is int for t in steps)
    assert all(a > b for a, b in pairwise(steps))
    assert steps[0] <= T
    assert steps[-1] >= 1


def assert_rounded(tau: np.ndarray, numerator: np.ndarray, denominator: int) -> None:
    """tau is the integer nearest to numerator / denominator, halves up; checked without dividing."""
    doubled_error = 2 * (tau * denominator - numerator)
    assert ((-denominator < doubled_error) & (doubled_error <= denominator)).all()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_of_the_papers_schedule(spacing):
    for S in range(1, 1001):
        assert_well_formed(timesteps(1000, S, spacing), 1000, S)


@pytest.mark.parametrize("spacing", SPACINGS)
@settings(deadline=None, max_examples=100)
@given(data=st.data(), T=st.integers(1, 4000))
def test_any_schedule_length(spacing, data, T):
    S = data.draw(st.integers(1, T))
    assert_well_formed(timesteps(T, S, spacing), T, S)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_all_steps_are_all_of_them(spacing):
    for T in (1, 2, 7, 1000):
        assert timesteps(T, T, spacing) == list(range(T, 0, -1))


def test_leading_is_the_integer_stride_from_one():
    for S in range(1, 1001):
        assert timesteps(1000, S, "leading")[::-1] == [*range(1, 1 + S * (1000 // S), 1000 // S)]


def test_linspace_is_evenly_spaced_with_both_ends():
    for S in range(2, 1001):
        tau = np.array(timesteps(1000, S, "linspace")[::-1])
        assert_rounded(tau - 1, np.arange(S) * 999, S - 1)
        assert (tau[0], tau[-1]) == (1, 1000)


def test_trailing_ends_at_T_with_equal_gaps_down_to_data():
    for S in range(1, 1001):
        tau = np.array(timesteps(1000, S, "trailing")[::-1])
        assert_rounded(tau, np.arange(1, S + 1) * 1000, S)
        assert tau[-1] == 1000


def test_quadratic_is_the_rounded_square_moved_up_only_where_it_repeats():
    for S in range(2, 1001):
        tau = timesteps(1000, S, "quadratic")[::-1]
        assert tau[-1] == 1000
        previous = 0
        for i, t in enumerate(tau):
            square = (2 * i * i * 999 + (S - 1) ** 2) // (2 * (S - 1) ** 2)
            assert t == max(1 + square, previous + 1)
            previous = t


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "quadratic"])
def test_one_step_starts_from_pure_noise(spacing):
    assert timesteps(1000, 1, spacing) == [1000]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("leading", [751, 501, 251, 1]),
        ("linspace", [1000, 667, 334, 1]),
        ("trailing", [1000, 750, 500, 250]),
        ("quadratic", [1000, 445, 112, 1]),
    ],
)
def test_four_of_a_thousand(spacing, expected):
    assert timesteps(1000, 4, spacing) == expected


def test_halves_are_rounded_up():
    assert timesteps(5, 2, "trailing") == [5, 3]  # 5/2 becomes 3, where Python's round says 2


def test_linspace_is_the_default():
    assert timesteps(1000, 50) == timesteps(1000, 50, "linspace")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("S", [0, -1, 1001])
def test_steps_outside_the_schedule_are_refused(S, spacing):
    with pytest.raises(ValueError, match=rf"must lie in 1\.\.1000, got {S}"):
        timesteps(1000, S, spacing)


@pytest.mark.parametrize("S", [50.0, True, "50", None])
def test_steps_that_are_no_integer_are_refused(S):
    with pytest.raises(TypeError, match=f"got {S!r}"):
        timesteps(1000, S)


def test_an_unknown_spacing_is_refused_with_the_known_ones_listed():
    with pytest.raises(ValueError, match="'uniform'; use one of leading, linspace, trailing, quadratic"):
        timesteps(1000, 10, "uniform")


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([], "empty"),
        ([1, 2, 3], r"decrease strictly.*\[1, 2, 3\]"),
        ([5, 5, 1], r"decrease strictly.*\[5, 5, 1\]"),
        ([11, 5], r"1\.\.10, got \[11, 5\]"),
        ([5, 0], r"1\.\.10, got \[5, 0\]"),
        ([5.5, 1], r"integers, or their number, got \[5\.5, 1\]"),
        (list(range(20, 0, -1)), r"\[20, 19, …, 1\] \(20 entries\)"),
    ],
)
def test_a_hand_made_list_is_checked(steps, named):
    with pytest.raises(ValueError, match=named):
        check_timesteps(10, steps)


def test_a_good_hand_made_list_passes():
    check_timesteps(10, [10, 7, 1])
    check_timesteps(10, [4])
