"""Running DDIM backwards: from an image to the noise that would have produced it."""

import math
from collections.abc import Iterator

from torch import Tensor

from ddimlib.arguments import check_images, check_int
from ddimlib.denoisers import Denoiser, begin
from ddimlib.samplers import ddim_step
from ddimlib.schedule import NoiseSchedule
from ddimlib.timesteps import Steps


def invert(
    model: Denoiser, schedule: NoiseSchedule, x_0: Tensor, steps: Steps, iterations: int = 0,
    residuals: list[float] | None = None, differentiable: bool = False,
) -> Iterator[Tensor]:  # fmt: skip
    """Encode an image: walk the sampler's pairs in reverse, (0, τ_1), …, (τ_{S-1}, τ_S), yielding each state.

    A DDIM step with η = 0 keeps ε and x̂_0. With ε given, the step from s to t therefore undoes the step from t to s; but the
    ε that was used is ε(x_t, t), and x_t is what we look for:

    * iterations = 0, explicit: step with ε(x_s, t). The right network time, the wrong state; the error of the round trip
      is of first order in 1/S. Song et al. 2021 (sections 4.3 and 5.4) do not say at which state and time they ask.
    * iterations = k > 0, implicit: then, k times, step again with ε(x_t, t) at the x_t just found. The fixed point is the exact
      inverse, reached when the network changes slowly enough with x for the map to contract (Pan et al. 2023; the book,
      chapter 9).

    Args:
        model, schedule, steps, differentiable: as for the sampler to be inverted, :func:`ddimlib.ddim`; but no step may go to
            ᾱ_T = 0, where nothing of the image is left to come back from.
        x_0: images in [-1, 1], [B, C, H, W]; a warning says when they seem to lie in [0, 1].
        iterations: fixed-point iterations a step; (1 + iterations) · S network evaluations in all.
        residuals: a list that receives, for each implicit step, the largest change that its last iteration made to a pixel.

    Returns an iterator of S states, at τ_1, …, τ_S, the last of which is x_T. A ValueError comes before the first evaluation.
    """
    check_images("x_0", x_0)
    asked, steps = begin(model, schedule, x_0, steps, differentiable)
    schedule.check_noise_is_known(steps[0])
    iterations = check_int("iterations", iterations, 0, fix="0 is the explicit inverse")

    def walk() -> Iterator[Tensor]:
        x_s = asked.start
        ascending = steps[::-1]
        for s, t in zip([0, *ascending], ascending, strict=False):
            x_t = ddim_step(schedule, x_s, asked(x_s, t), s, t)
            change = math.nan
            for i in range(iterations):
                previous, x_t = x_t, ddim_step(schedule, x_s, asked(x_t, t), s, t)
                if residuals is not None and i == iterations - 1:
                    change = float((x_t - previous).detach().abs().max())
            if residuals is not None and iterations:
                residuals.append(change)
            x_s = x_t
            yield x_s

    return walk()
