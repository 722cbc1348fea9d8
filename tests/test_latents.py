"""Seeds that name one image each, and paths between two latents."""

import math

import pytest
import torch
from helpers import randn

from ddimlib import SeededNoise, lerp, sample_seeds, slerp


def test_runs_share_no_sample():
    seeds = [s for run in range(20) for s in sample_seeds(run, 500)]
    assert len(set(seeds)) == 20 * 500
    assert all(0 <= s < 2**63 for s in seeds)


def test_seeds_are_those_of_the_sample_wherever_a_batch_starts():
    assert sample_seeds(7, 10)[4:] == sample_seeds(7, 6, start=4)


def test_seeds_never_change():
    """Stored pictures depend on them."""
    assert sample_seeds(0, 2) == [7896617691693857887, 2918264622725855778]


@pytest.mark.parametrize(("seed", "start"), [(-1, 0), (0, -1), (2**32, 0)])
def test_seeds_outside_their_range_are_refused(seed, start):
    with pytest.raises(ValueError, match=r"(seed|start) must lie in 0\.\.4294967295, got"):
        sample_seeds(seed, 1, start)


def test_a_sample_gets_the_same_noise_in_any_batch_and_at_any_place():
    seeds = sample_seeds(0, 64)
    batch, shuffled = SeededNoise(seeds), SeededNoise(seeds[::-1])
    alone = [SeededNoise([s]) for s in seeds]
    for _ in range(2):  # the second draw, too
        together = batch.draw((1, 3, 3))
        assert torch.equal(together, shuffled.draw((1, 3, 3)).flip(0))
        assert torch.equal(together, torch.cat([source.draw((1, 3, 3)) for source in alone]))


def test_draws_follow_each_other_without_repeating():
    source = SeededNoise([1, 2])
    values = torch.cat([source.draw((4, 4)) for _ in range(3)]).flatten()
    assert len(values.unique()) == len(values)


def test_noise_is_standard_gaussian():
    values = SeededNoise(sample_seeds(0, 400)).draw((10, 10)).flatten()
    assert abs(values.mean()) < 4 / math.sqrt(len(values))
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / len(values))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_dtype_gets_the_same_values(dtype):
    like = torch.zeros(3, 1, 2, 2)
    values = SeededNoise([1, 2, 3])(like.to(dtype))
    assert values.dtype == dtype
    assert torch.equal(values, SeededNoise([1, 2, 3])(like).to(dtype))


def test_torchs_own_generator_is_left_alone():
    before = torch.get_rng_state()
    SeededNoise([1, 2]).draw((3,))
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(ValueError, match="2 seeds, but the batch has 3"):
        SeededNoise([1, 2])(torch.zeros(3, 1, 2, 2))


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [lerp, slerp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_paths_start_and_end_where_asked(path, dtype):
    a, b = randn(2, 3, 1, 4, 4).to(dtype).unbind(0)
    assert path(a, b, 0.0).dtype == dtype
    assert path(a, b, 0.0).allclose(a)
    assert path(a, b, 1.0).allclose(b)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
def test_slerp_turns_at_constant_speed_and_keeps_the_norm(weight):
    a, b = randn(2, 5, 1, 4, 4).unbind(0)
    a, b = (x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (a, b))
    c = slerp(a, b, weight)

    def angle(u, v):
        return (u * v).flatten(1).sum(1).arccos()

    assert c.flatten(1).norm(dim=1).allclose(torch.ones(5, dtype=torch.float64))
    assert angle(a, c).allclose(weight * angle(a, b))
    assert angle(c, b).allclose((1 - weight) * angle(a, b))


def test_lerp_is_the_straight_line_and_sags_halfway():
    a, b = randn(2, 4, 3, 64, 64).unbind(0)
    assert lerp(a, b, 0.25).allclose(0.75 * a + 0.25 * b)
    assert (lerp(a, b, 0.5).norm() / a.norm()).item() == pytest.approx(math.sqrt(0.5), rel=0.02)
    assert (slerp(a, b, 0.5).norm() / a.norm()).item() == pytest.approx(1, rel=0.02)


def test_slerp_between_almost_equal_latents_is_the_straight_line():
    a = randn(1, 1, 4, 4)
    for b in (a, 2 * a, a + 1e-9 * randn(1, 1, 4, 4, seed=1)):
        assert slerp(a, b, 0.3).allclose(lerp(a, b, 0.3), rtol=1e-7)


def test_each_sample_has_an_angle_of_its_own():
    a, b = randn(2, 3, 1, 4, 4).unbind(0)
    together = slerp(a, b, 0.3)
    assert together.allclose(torch.cat([slerp(a[i : i + 1], b[i : i + 1], 0.3) for i in range(3)]), rtol=1e-14)


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (randn(2, 1, 2, 2), randn(1, 1, 2, 2), r"\(2, 1, 2, 2\) and \(1, 1, 2, 2\)"),
        (randn(1, 1, 2, 2), -2 * randn(1, 1, 2, 2), "opposite"),
        (randn(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "zero"),
        (randn(1, 1, 2, 2), torch.full((1, 1, 2, 2), math.nan), "NaN"),
    ],
)
def test_where_there_is_no_one_great_circle_slerp_says_so(a, b, named):
    with pytest.raises(ValueError, match=named):
        slerp(a, b, 0.5)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_slerp_refuses_a_weight_that_is_no_number(weight):
    with pytest.raises(ValueError, match=f"weight must be a finite number, got {weight}"):
        slerp(randn(1, 1, 2, 2), randn(1, 1, 2, 2, seed=1), weight)


def test_lerp_refuses_what_torch_would_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 1, 2, 2\) and \(1, 1, 2, 2\)"):
        lerp(randn(2, 1, 2, 2), randn(1, 1, 2, 2), 0.5)
