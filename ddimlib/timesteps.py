"""Which timesteps to visit: exactly S of 1..T, strictly decreasing, in four spacings."""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal, get_args

from ddimlib.arguments import KindError, check_int, describe

Spacing = Literal["leading", "linspace", "trailing", "quadratic"]
Steps = int | Sequence[int]


def timesteps(T: int, S: int, spacing: Spacing = "linspace") -> list[int]:
    """The timesteps τ_S > … > τ_1 that a sampler visits on its way to t = 0.

    Source: Song et al. 2021, section 4.2 and appendix D.2; the book, chapter 5. In integers, for i = 1..S:

    * "leading": τ_i = 1 + (i-1)·⌊T/S⌋. Starts at t = 1; the last one is often far below T.
    * "linspace": τ_i = 1 + (i-1)·(T-1)/(S-1), rounded. Both ends are met; S = 1 gives T.
    * "trailing": τ_i = i·T/S, rounded. Ends at T; the step to t = 0 is as wide as the others.
    * "quadratic": τ_i = 1 + (T-1)·((i-1)/(S-1))², rounded; where that repeats a step, the next free one. Dense near data.

    T is the schedule's length, and S, in 1..T, the number of steps; returns S integers in 1..T, strictly decreasing.
    """
    T = check_int("T, the schedule's length,", T, 1, fix="pass schedule.T")
    S = check_int("the number of steps", S, 1, T, fix=f"the schedule has {T}")
    if spacing == "leading":
        ascending = [1 + i * (T // S) for i in range(S)]
    elif spacing == "linspace":
        ascending = [1 + _rounded_ratio(i * (T - 1), S - 1) for i in range(S)] if S > 1 else [T]
    elif spacing == "trailing":
        ascending = [_rounded_ratio(i * T, S) for i in range(1, S + 1)]
    elif spacing == "quadratic":
        ascending = [1 + _rounded_ratio(i * i * (T - 1), (S - 1) ** 2) for i in range(S)] if S > 1 else [T]
        for i in range(1, S):
            ascending[i] = max(ascending[i], ascending[i - 1] + 1)
    else:
        raise ValueError(f"unknown spacing {describe(spacing)}; use one of {', '.join(get_args(Spacing))}")
    return ascending[::-1]


def check_timesteps(T: int, steps: Any, spacing: Spacing = "linspace") -> list[int]:
    """`steps` as a strictly decreasing list of ints within 1..T; a number S stands for `timesteps(T, S, spacing)`."""
    if isinstance(steps, Integral) or getattr(steps, "ndim", 1) == 0:
        return timesteps(T, steps, spacing)  # type: ignore[arg-type]
    fix = "use timesteps(schedule.T, 50)"
    try:
        found = [check_int("t", t) for t in steps]
    except TypeError as error:
        raise KindError(f"steps must be integers, or their number, got {describe(steps)}; {fix}") from error
    if not found or found[0] > T or found[-1] < 1 or any(a <= b for a, b in pairwise(found)):
        short = found if len(found) <= 6 else f"[{found[0]}, {found[1]}, …, {found[-1]}] ({len(found)} entries)"
        fix = "they lead from noise to data, and the sampler adds t = 0"
        raise ValueError(f"steps must not be empty and decrease strictly within 1..{T}, got {short}; {fix}")
    return found


def _rounded_ratio(a: int, b: int) -> int:
    """a / b to the nearest integer, halves up."""
    return (2 * a + b) // (2 * b)
