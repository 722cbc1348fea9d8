"""What the samplers promise about evaluations, noise, seeds, modes, dtypes and bad input. The numbers: test_closed_forms."""

import math

import pytest
import torch
from helpers import BAD_ETAS, ETAS, SPACINGS, Alive, Operators, Spy, last, randn, short_schedule, smooth_mixture
from torch import nn

from ddimlib import NoiseSchedule, SeededNoise, UNet, ddim, ddim_step, ddpm, invert, sample, sample_seeds, timesteps
from ddimlib.denoisers import predict_noise
from ddimlib.samplers import ddpm_step

SCHEDULE = short_schedule()
MODEL = smooth_mixture().denoiser(SCHEDULE)
STEPS = [40, 25, 9, 1]


def refuse(*args, **kwargs):
    raise AssertionError("this sampler draws noise")


def run(sampler: str, model, x, noise=None, eta=1.0):
    """One of the three walks, lazily."""
    return {
        "ddim": lambda: ddim(model, SCHEDULE, x, STEPS, eta, noise),
        "ddpm": lambda: ddpm(model, SCHEDULE, x, noise),
        "invert": lambda: invert(model, SCHEDULE, x, STEPS, iterations=1),
    }[sampler]()


SAMPLERS = ["ddim", "ddpm", "invert"]


# --- evaluations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_evaluates_once_for_each_timestep_whatever_their_number(spacing):
    for S in range(1, 41):
        spy, steps = Spy(), timesteps(40, S, spacing)
        assert len(list(ddim(spy, SCHEDULE, randn(1, 1, 1, 1), steps))) == S
        assert spy.times == steps


@pytest.mark.parametrize("S", [300, 501, 999])
def test_steps_that_do_not_divide_the_schedule_cost_no_more(S):
    spy = Spy()
    list(ddim(spy, NoiseSchedule.linear(), randn(1, 1, 1, 1), timesteps(1000, S)))
    assert len(spy.times) == S


def test_ddpm_evaluates_once_for_each_time():
    spy = Spy()
    assert len(list(ddpm(spy, SCHEDULE, randn(1, 1, 1, 1)))) == 40
    assert spy.times == list(range(40, 0, -1))


def test_ddim_walks_the_pairs_down_to_zero():
    x, noise = randn(2, 1, 2, 2), randn(4, 2, 1, 2, 2, seed=1)
    states = ddim(MODEL, SCHEDULE, x, STEPS, 0.7, noise)
    for state, z, (t, prev) in zip(states, noise, [(40, 25), (25, 9), (9, 1), (1, 0)], strict=True):
        x = ddim_step(SCHEDULE, x, MODEL(x, torch.full((2,), t)), t, prev, 0.7, z)
        assert torch.equal(state, x)


def test_a_generator_works_only_when_asked():
    spy = Spy()
    states = ddim(spy, SCHEDULE, randn(1, 1, 1, 1), STEPS)
    assert spy.times == []
    next(states)
    assert spy.times == [40]


def test_gradients_are_not_kept():
    network = nn.Conv2d(1, 1, 1).double()
    assert not last(ddim(lambda x, t: network(x), SCHEDULE, randn(1, 1, 2, 2), STEPS)).requires_grad


# --- noise -----------------------------------------------------------------------------------------------------------


def test_a_deterministic_sampler_draws_nothing():
    before = torch.get_rng_state()
    with_source = last(ddim(MODEL, SCHEDULE, randn(2, 1, 2, 2), STEPS, 0.0, refuse))
    without = last(ddim(MODEL, SCHEDULE, randn(2, 1, 2, 2), STEPS))
    list(invert(MODEL, SCHEDULE, randn(2, 1, 2, 2), STEPS, iterations=2))
    assert torch.equal(with_source, without)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("eta", [0.3, 1.0, "hat"])
def test_each_step_draws_once_but_the_last_does_not(eta):
    drawn = []
    list(ddim(MODEL, SCHEDULE, randn(2, 1, 2, 2), STEPS, eta, lambda x: drawn.append(x.shape) or torch.zeros_like(x)))
    assert drawn == [(2, 1, 2, 2)] * 3


def test_ddpm_draws_once_a_step_but_not_for_the_last():
    drawn = []
    list(ddpm(MODEL, SCHEDULE, randn(2, 1, 2, 2), lambda x: drawn.append(1) or torch.zeros_like(x)))
    assert len(drawn) == 39


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_tensor_and_a_source_with_the_same_numbers_agree(sampler):
    x, noise = randn(2, 1, 2, 2), randn(4 if sampler == "ddim" else 40, 2, 1, 2, 2, seed=1)
    slices = iter(noise)
    assert torch.equal(last(run(sampler, MODEL, x, noise)), last(run(sampler, MODEL, x, lambda x: next(slices))))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_without_a_source_noise_comes_from_torchs_generator(sampler):
    results = []
    with torch.random.fork_rng():
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append(last(run(sampler, MODEL, randn(2, 1, 2, 2))))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_step_with_noise_needs_noise():
    x = randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match="needs z"):
        ddim_step(SCHEDULE, x, x, 9, 1, eta=0.5)
    with pytest.raises(ValueError, match="needs z"):
        ddpm_step(SCHEDULE, x, x, 9)


# --- seeds -----------------------------------------------------------------------------------------------------------


def seeded(seeds, dtype, eta) -> torch.Tensor:
    source = SeededNoise(seeds)
    x_T = source.draw((1, 4, 4)).to(dtype)
    return last(ddim(lambda x, t: x.tanh(), SCHEDULE, x_T, [40, 20, 5], eta, source))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_is_the_same_alone_in_a_batch_and_at_any_place(eta, dtype):
    """To the bit when the denoiser works element by element, so that no kernel depends on the batch's size."""
    seeds = sample_seeds(0, 64)
    batch = seeded(seeds, dtype, eta)
    assert torch.equal(batch, seeded(seeds[::-1], dtype, eta).flip(0))
    for i in (0, 5, 63):
        assert torch.equal(batch[i], seeded(seeds[i : i + 1], dtype, eta)[0])
    assert len(batch.flatten(1).unique(dim=0)) == 64


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_front_door_batches_do_not_show(eta):
    model, shape = smooth_mixture().denoiser(SCHEDULE), (64, 1, 2, 2)
    whole = sample(model, SCHEDULE, shape, 5, eta, seed=3, batch_size=64)
    for batch_size in (1, 7, 256):
        assert torch.equal(whole, sample(model, SCHEDULE, shape, 5, eta, seed=3, batch_size=batch_size))
    assert torch.equal(whole[:5], sample(model, SCHEDULE, (5, 1, 2, 2), 5, eta, seed=3))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_front_door_batches_hardly_show_with_a_network(eta):
    """Convolutions choose their kernel by the batch's shape, so the last bits may differ."""
    model = random_unet()
    whole = sample(model, SCHEDULE, (64, 1, 8, 8), 3, eta, seed=3)
    assert (whole[:7] - sample(model, SCHEDULE, (7, 1, 8, 8), 3, eta, seed=3, batch_size=1)).abs().max() < 1e-4


def random_unet(**arguments) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UNet(widths=(8, 8), blocks=(1, 1), attention=(False, True), image_size=8, **arguments)
        for p in model.parameters():  # some start at zero, and would hide what they multiply
            nn.init.normal_(p, std=0.1)
    return model


def test_runs_with_different_seeds_share_no_image():
    images = torch.cat([sample(MODEL, SCHEDULE, (50, 1, 2, 2), 3, seed=seed) for seed in (0, 1)])
    assert len(images.flatten(1).unique(dim=0)) == 100


def test_eta_changes_the_path_and_not_the_start():
    starts = []

    def model(x, t):
        if int(t[0]) == 40:
            starts.append(x)
        return MODEL(x, t)

    a, b = (sample(model, SCHEDULE, (4, 1, 2, 2), 4, eta, seed=0) for eta in (0.0, 1.0))
    assert torch.equal(*starts)
    assert not torch.equal(a, b)


def test_without_a_seed_torchs_generator_decides_and_is_not_reseeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (sample(MODEL, SCHEDULE, (2, 1, 2, 2), 3) for _ in range(2))
        after = torch.rand(1)
        torch.manual_seed(0)
        again = sample(MODEL, SCHEDULE, (2, 1, 2, 2), 3)
        sample(MODEL, SCHEDULE, (2, 1, 2, 2), 3)
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        assert torch.equal(after, torch.rand(1))


# --- the front door --------------------------------------------------------------------------------------------------


def test_sample_is_ddim_from_the_seeds_own_noise():
    source = SeededNoise(sample_seeds(3, 4))
    x_T = source.draw((1, 2, 2))
    expected = last(ddim(MODEL, SCHEDULE, x_T, timesteps(40, 6, "quadratic"), 0.5, source, 0.9)).clamp(-1, 1)
    images = sample(MODEL, SCHEDULE, (4, 1, 2, 2), 6, 0.5, "quadratic", seed=3, clip=0.9)
    assert images.dtype == torch.float32
    assert torch.equal(images, expected)


def test_samples_stay_in_range():
    images = sample(lambda x, t: -x, SCHEDULE, (4, 1, 2, 2), 3, seed=0)
    assert images.abs().max() == 1


def test_labels_and_guidance_reach_the_network():
    model = random_unet(num_classes=3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    shape, source = (5, 1, 8, 8), SeededNoise(sample_seeds(0, 5))
    x_T = source.draw(shape[1:])
    for guidance in (0.0, 1.0, 2.5):
        images = sample(model, SCHEDULE, shape, 2, seed=0, labels=labels, guidance=guidance, batch_size=2)

        def by_hand(x, t, scale=guidance):
            without = model(x, t, torch.full_like(labels, 3))
            return without + scale * (model(x, t, labels) - without)

        expected = last(ddim(by_hand, SCHEDULE, x_T, timesteps(40, 2))).clamp(-1, 1)
        assert images.allclose(expected, atol=1e-5)


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_shown_when_asked_and_silent_otherwise(progress, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    sample(MODEL, SCHEDULE, (4, 1, 2, 2), 3, seed=0, batch_size=2, progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("6/6" in captured.err) == progress


# --- the network's mode ----------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A network with some parts in train mode and some in eval mode, which can be told to fail at its n-th evaluation."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.trained = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1, dtype=torch.float64))
        self.frozen = nn.Sequential(nn.Dropout(0.9), nn.Identity())
        self.train()
        self.frozen.eval()
        self.trained[1].eval()
        self.evaluations, self.fail_at, self.error = 0, fail_at, error

    def forward(self, x, t):
        assert not any(m.training for m in self.modules())
        self.evaluations += 1
        if self.evaluations == self.fail_at:
            raise self.error("stop")
        return self.frozen(self.trained(x))


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: m.training for name, m in model.named_modules()}


BEFORE = modes(Mixed())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_run_leaves_every_module_in_its_mode(sampler):
    model = Mixed()
    assert set(BEFORE.values()) == {True, False}
    list(run(sampler, model, randn(2, 1, 2, 2)))
    assert model.evaluations >= 4
    assert modes(model) == BEFORE


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_abandoned_run_leaves_every_module_in_its_mode(sampler):
    model = Mixed()
    states = run(sampler, model, randn(2, 1, 2, 2))
    next(states)
    next(states)
    assert modes(model) == BEFORE  # already while the generator is still alive
    states.close()
    assert modes(model) == BEFORE


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_run_leaves_every_module_in_its_mode(sampler, error):
    model = Mixed(fail_at=3, error=error)
    with pytest.raises(error, match="stop"):
        list(run(sampler, model, randn(2, 1, 2, 2)))
    assert modes(model) == BEFORE


def test_the_front_door_leaves_every_module_in_its_mode():
    model = Mixed().float()
    sample(model, SCHEDULE, (2, 1, 2, 2), 3, seed=0)
    assert modes(model) == BEFORE


# --- dtypes, and inputs that are left alone --------------------------------------------------------------------------


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_states_keep_the_dtype_of_x_T_whatever_the_network_returns(sampler, dtype, model_dtype):
    noise = randn(40 if sampler == "ddpm" else 4, 2, 1, 2, 2, seed=1)
    states = list(run(sampler, lambda x, t: (0.1 * x).to(model_dtype), randn(2, 1, 2, 2).to(dtype), noise))
    assert {x.dtype for x in states} == {dtype}


@pytest.mark.parametrize("eta", ETAS)
def test_x_T_and_the_noise_are_never_written_to(eta):
    x_T, noise = randn(2, 1, 2, 2), randn(4, 2, 1, 2, 2, seed=1)
    copies = x_T.clone(), noise.clone()
    states = list(ddim(MODEL, SCHEDULE, x_T, STEPS, eta, noise, clip=1.0))
    assert torch.equal(x_T, copies[0])
    assert torch.equal(noise, copies[1])
    earlier = [x.clone() for x in states]
    assert all(torch.equal(a, b) for a, b in zip(states, earlier, strict=True))
    assert len({x.data_ptr() for x in (x_T, *states)}) == 5  # nor does a state overwrite another


def test_ddpm_leaves_x_T_and_the_noise_alone():
    x_T, noise = randn(2, 1, 2, 2), randn(40, 2, 1, 2, 2, seed=1)
    copies = x_T.clone(), noise.clone()
    list(ddpm(MODEL, SCHEDULE, x_T, noise, clip=1.0))
    assert torch.equal(x_T, copies[0])
    assert torch.equal(noise, copies[1])


# --- bad input -------------------------------------------------------------------------------------------------------

X = randn(2, 1, 2, 2)
NAN = torch.full((2, 1, 2, 2), math.nan)

BAD_FOR_BOTH = [
    ({"x_T": NAN}, "NaN"),
    ({"x_T": X / 0}, "infinity"),
    ({"x_T": torch.zeros(2, 1, 2, 2, dtype=torch.int64)}, "int64"),
    ({"clip": -1.0}, r"got -1\.0"),
    ({"clip": 0.0}, r"got 0\.0"),
    ({"clip": math.nan}, "got nan"),
    ({"noise": SeededNoise([1, 2, 3])}, "3 seeds, but the batch has 2"),
]
BAD_FOR_DDIM = [
    *BAD_FOR_BOTH,
    *(({"eta": eta}, f"got {eta!r}") for eta in BAD_ETAS),
    ({"steps": []}, "empty"),
    ({"steps": [41, 5]}, "41"),
    ({"steps": [5, 0]}, r"\[5, 0\]"),
    ({"steps": [5, 9]}, r"\[5, 9\]"),
    ({"steps": [9.0, 5.0]}, r"9\.0"),
    ({"noise": randn(3, 2, 1, 2, 2)}, r"\(4, 2, 1, 2, 2\), got \(3, 2, 1, 2, 2\)"),
    ({"noise": randn(2, 1, 2, 2)}, r"got \(2, 1, 2, 2\)"),
]
BAD_FOR_DDPM = [
    *BAD_FOR_BOTH,
    ({"variance": "learned"}, "'learned'"),
    ({"noise": randn(4, 2, 1, 2, 2)}, r"\(40, 2, 1, 2, 2\), got \(4, 2, 1, 2, 2\)"),
]


@pytest.mark.parametrize(("change", "named"), BAD_FOR_DDIM)
def test_ddim_refuses_bad_input_when_called_and_before_any_evaluation(change, named):
    spy = Spy()
    with pytest.raises(ValueError, match=named):
        ddim(spy, SCHEDULE, **({"x_T": X, "steps": STEPS} | change))
    assert spy.times == []


@pytest.mark.parametrize(("change", "named"), BAD_FOR_DDPM)
def test_ddpm_refuses_bad_input_when_called_and_before_any_evaluation(change, named):
    spy = Spy()
    with pytest.raises(ValueError, match=named):
        ddpm(spy, SCHEDULE, **({"x_T": X} | change))
    assert spy.times == []


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"shape": (4, 2, 2)}, ValueError, r"got \(4, 2, 2\)"),
        ({"shape": (0, 1, 2, 2)}, ValueError, r"got 0"),
        ({"batch_size": 0}, ValueError, "got 0"),
        ({"steps": 0}, ValueError, "got 0"),
        ({"steps": 41}, ValueError, "got 41"),
        ({"steps": 4.0}, TypeError, r"got 4\.0"),
        ({"steps": True}, TypeError, "got True"),
        ({"eta": -0.1}, ValueError, r"got -0\.1"),
        ({"spacing": "uniform"}, ValueError, "'uniform'"),
        ({"seed": -1}, ValueError, "got -1"),
        ({"clip": -1.0}, ValueError, r"got -1\.0"),
        ({"guidance": 2.0}, ValueError, r"guidance = 2\.0 needs labels"),
        ({"labels": torch.tensor([0, 1])}, ValueError, "without classes"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, ValueError, "without classes"),
    ],
)
def test_sample_refuses_bad_input_before_any_evaluation(change, error, named):
    spy = Spy()
    with pytest.raises(error, match=named):
        sample(spy, SCHEDULE, **({"shape": (4, 1, 2, 2), "steps": 4} | change))
    assert spy.times == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_breaks_down_is_reported(bad):
    with pytest.raises(FloatingPointError, match="network returned NaN or infinity"):
        sample(lambda x, t: x * bad, SCHEDULE, (2, 1, 2, 2), 3, seed=0)


def test_a_network_that_returns_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 2, 2\), got \(2, 2, 2, 2\)"):
        predict_noise(lambda x, t: x.repeat(1, 2, 1, 1), X, 3)


def test_a_step_refuses_what_torch_would_broadcast():
    """One ε, or one noise, for all images of a batch."""
    one = X[:1]
    assert one.shape != X.shape
    for step in (
        lambda eps, z: ddim_step(SCHEDULE, X, eps, 9, 1, 1.0, z),
        lambda eps, z: ddpm_step(SCHEDULE, X, eps, 9, z),
    ):
        with pytest.raises(ValueError, match="x_t and eps"):
            step(one, X)
        with pytest.raises(ValueError, match="x_t and z"):
            step(X, one)
    with pytest.raises(ValueError, match="x_t and z"):
        last(ddim(MODEL, SCHEDULE, X, STEPS, 1.0, noise=lambda x: torch.randn_like(x[:1])))


@pytest.mark.parametrize(("t", "prev", "named"), [(5, -1, "prev"), (41, 3, "t"), (-1, 0, "t")])
def test_a_step_to_or_from_nowhere_is_refused(t, prev, named):
    """Python would read index -1 as the end of ᾱ: pure noise where data was meant."""
    with pytest.raises(ValueError, match=rf"^{named} must lie in 0\.\.40, got"):
        ddim_step(SCHEDULE, X, X, t, prev)


@pytest.mark.parametrize("eta", [0.5, "hat"])
def test_only_a_deterministic_step_can_be_undone(eta):
    with pytest.raises(ValueError, match="t = 3, prev = 7"):
        ddim_step(SCHEDULE, X, X, 3, 7, eta, X)


def test_an_unknown_variance_is_refused_by_a_step_too():
    with pytest.raises(ValueError, match="'learned'"):
        ddpm_step(SCHEDULE, X, X, 3, X, variance="learned")


# --- what the sampler itself costs -----------------------------------------------------------------------------------

FLOAT = randn(4, 1, 8, 8, dtype=torch.float32)
ANSWERS = randn(4, 1, 8, 8, seed=1, dtype=torch.float32)


def operators(S: int, eta: float, noise=None) -> Operators:
    """Everything that runs in a walk of S steps whose network costs nothing, from the first evaluation to the end."""
    states = ddim(lambda x, t: ANSWERS, SCHEDULE, FLOAT, timesteps(40, S), eta, noise)
    with Operators() as ran:
        list(states)
    return ran


@pytest.mark.parametrize(("eta", "most"), [(0.0, 2), (1.0, 4)])
def test_a_step_takes_few_operations_on_images(eta, most):
    S = 10
    names = operators(S, eta).of_size(FLOAT.numel())
    assert len(names) <= most * S + 1, names  # and a copy, to see whether the network works in place
    assert len(operators(2 * S, eta).of_size(FLOAT.numel())) - len(names) <= most * S


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_host_looks_at_no_state_in_the_loop(eta):
    """On a GPU each look would make it wait: for the copy of a number, or of a whole image."""
    ran = operators(10, eta, torch.stack([FLOAT] * 10) if eta else None)
    assert ran.reads_by_host() == []


def test_looks_by_the_host_would_be_noticed():
    states = ddim(lambda x, t: x * float(x.abs().max()), SCHEDULE, FLOAT, STEPS)
    with Operators() as ran:
        list(states)
    assert len(ran.reads_by_host()) == len(STEPS)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_memory_does_not_grow_with_the_number_of_steps(eta):
    """Tensors of an image's size that are alive at once, beside x_T and the network's answer."""
    peaks = []
    for S in (3, 30):
        alive = Alive(FLOAT.numel())
        states = ddim(lambda x, t: ANSWERS, SCHEDULE, FLOAT, timesteps(40, S), eta)
        with alive:
            for state in states:  # noqa: B007, a caller keeps the last one
                pass
        peaks.append(alive.most)
    assert peaks[0] == peaks[1] <= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_on_a_gpu_nothing_in_the_loop_waits_for_it(eta):
    source = SeededNoise(sample_seeds(0, 4))
    states = ddim(lambda x, t: 0.1 * x, SCHEDULE, FLOAT.cuda(), STEPS, eta, source)
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(states)
    finally:
        torch.cuda.set_sync_debug_mode("default")
