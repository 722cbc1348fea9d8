"""Running DDIM backwards: from an image to the noise that would have produced it."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from ddimlib.samplers import Denoiser, ddim_step, evaluate
from ddimlib.schedule import NoiseSchedule
from ddimlib.timesteps import check_timesteps


def invert(
    model: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    steps: Sequence[int],
    iterations: int = 0,
    residuals: list[float] | None = None,
) -> Iterator[Tensor]:
    """Encode an image: walk the sampler's pairs in reverse, (0, τ_1), …, (τ_{S-1}, τ_S), yielding each state.

    A DDIM step with η = 0 keeps ε and x̂_0. With ε given, the step from s to t therefore undoes the step from t to s; but the
    ε that was used is ε(x_t, t), and x_t is what we look for:

    * iterations = 0, explicit: step with ε(x_s, t). The right network time, the wrong state; the error of the round trip
      is of first order in 1/S. Song et al. 2021 (sections 4.3 and 5.4) run the ODE of their equation 14 backwards and do
      not say at which state and time they ask.
    * iterations = k > 0, implicit: then, k times, step again with ε(x_t, t) at the x_t just found. The fixed point is the
      exact inverse; it is reached when the network changes slowly enough with x for the map to contract. Pan et al. 2023
      edit images this way.

    The book, chapter 9. A NaN from the network is passed on, since a check at every step would make a GPU wait; of the
    library's functions :func:`ddimlib.sample` alone checks its result.

    Args:
        model: the denoiser.
        schedule: its noise schedule.
        x_0: images in [-1, 1], [B, C, H, W].
        steps: the timesteps of the sampler to be inverted, decreasing, in 1..T.
        iterations: fixed-point iterations a step; (1 + iterations) · S network evaluations in all.
        residuals: a list that receives, for each implicit step, the largest change that its last iteration made to a pixel.

    Yields:
        S states at τ_1, …, τ_S, the last of which is x_T.

    Raises:
        ValueError: before the first evaluation, for bad steps, a negative `iterations`, or an x_0 that is not finite.
    """
    steps = list(steps)
    check_timesteps(schedule.T, steps)
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations must be an integer of at least 0, got {iterations!r}; 0 is the explicit inverse")
    if not (x_0.is_floating_point() and x_0.isfinite().all()):
        raise ValueError(
            f"x_0 must be a finite floating-point tensor, got dtype {x_0.dtype}, or NaN or infinity inside"
        )

    def walk() -> Iterator[Tensor]:
        x_s = x_0
        ascending = steps[::-1]
        for s, t in zip([0, *ascending], ascending, strict=False):
            x_t = ddim_step(schedule, x_s, evaluate(model, x_s, t), s, t)
            change = math.nan
            for i in range(iterations):
                previous, x_t = x_t, ddim_step(schedule, x_s, evaluate(model, x_t, t), s, t)
                if residuals is not None and i == iterations - 1:
                    change = float((x_t - previous).abs().max())
            if residuals is not None and iterations:
                residuals.append(change)
            x_s = x_t
            yield x_s

    return walk()
