"""Nothing leaks in or out: torch's defaults, gradients, networks that work in place, threads, dtypes, float64 on a device."""

import copy
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FakeGraphs, randn, short_schedule, smooth_mixture, write_colour_images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddimlib import (
    NoiseSchedule,
    SeededNoise,
    Trainer,
    TrainingConfig,
    UNet,
    VelocityDenoiser,
    accelerate,
    bundled_sample,
    ddim,
    ddim_ab2,
    ddim_step,
    ddpm,
    denoisers,
    gaussian,
    invert,
    last,
    load_dataset,
    load_pretrained,
    sample,
    slerp,
    timesteps,
)
from ddimlib.acceleration import AcceleratedDenoiser
from ddimlib.data import warped, with_channels
from ddimlib.denoisers import predict_noise
from ddimlib.distributed import SamplingConfig
from ddimlib.evaluation import evaluation_labels
from ddimlib.metrics import Classifier, Judge, augmented
from ddimlib.problem_sets import compare
from ddimlib.samplers import ddpm_step
from ddimlib.training import loss_weight, stratified_timesteps

SCHEDULE = short_schedule()
STEPS = [40, 25, 9, 1]
X = randn(2, 1, 4, 4)
WALKS = {
    "ddim": lambda model, x, **kw: ddim(model, SCHEDULE, x, STEPS, **kw),
    "ddim with noise": lambda model, x, **kw: ddim(model, SCHEDULE, x, STEPS, eta=1.0, noise=3, clip=1.0, **kw),
    "ddpm": lambda model, x, **kw: ddpm(model, SCHEDULE, x, noise=3, **kw),
    "ddim_ab2": lambda model, x, **kw: ddim_ab2(model, SCHEDULE, x, STEPS, **kw),
    "invert": lambda model, x, **kw: invert(model, SCHEDULE, x, STEPS, iterations=1, **kw),
}
walks = pytest.mark.parametrize("walk", WALKS.values(), ids=list(WALKS))


def network(*first: nn.Module, dtype=torch.float64) -> nn.Sequential:
    """A small denoiser model(x, t) that ignores t."""

    class Net(nn.Sequential):
        def forward(self, x, t):
            return super().forward(x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(*first, nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)).to(dtype)


def small_unet(**arguments) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UNet(**({"widths": (8, 8), "blocks": (1, 1), "attention": (False, True), "image_size": 8} | arguments))
        for p in model.parameters():
            nn.init.normal_(p, std=0.1)
    return model


# --- torch's process-wide defaults -----------------------------------------------------------------------------------


def everything() -> list[torch.Tensor]:
    """What each part of the library makes out of seeds and plain numbers."""
    noise = SeededNoise.from_seed(3, n=2)
    x_T = noise.initial((1, 8, 8))
    schedule = NoiseSchedule.linear(40, 0.002, 0.4)
    model = VelocityDenoiser(small_unet(num_classes=3), schedule)
    return [
        x_T,
        noise.draw((2,)),
        schedule.alpha_bar,
        NoiseSchedule([0.1, 0.2]).zero_terminal_snr().alpha_bar,
        NoiseSchedule.cosine(10).alpha_bar,
        schedule.add_noise(x_T, [3, 4], x_T),
        sample(model, schedule, (2, 1, 8, 8), 3, eta=1.0, seed=1, labels=[0, 2], guidance=2.0).cpu(),
        last(ddim(model, schedule, x_T, 3, 1.0, noise=5)),
        last(ddim_ab2(accelerate(model, bf16=False), schedule, x_T, 3)),
        slerp(x_T, x_T.flip(0), 0.3),
        smooth_mixture().draw(3, torch.Generator("cpu").manual_seed(0)),
        last(
            ddim(gaussian(0.3, 0.5).denoiser(schedule), schedule, x_T, 4, noise=torch.Generator("cpu").manual_seed(1))
        ),
        schedule.posterior(x_T, x_T, [3, 4])[1],
        schedule.zero_terminal_snr().predict_x0(x_T, [3, 4], x_T),
    ]


def everything_measured(folder: Path) -> list[torch.Tensor]:
    """What training, data sets, tables and judges make."""
    write_colour_images(folder, size=8)
    pixels, labels = load_dataset(str(folder))
    schedule, generator = NoiseSchedule.linear(40, 0.002, 0.4), torch.Generator("cpu").manual_seed(0)
    model = VelocityDenoiser(small_unet(num_classes=2, channels=3), schedule)
    trainer = Trainer(model, schedule, pixels, labels, TrainingConfig(2, 4, warp=True, flip=True))
    trainer.run(progress=False)
    digits = bundled_sample("mnist")[0][:8]
    torch.manual_seed(0)
    judge = Judge(Classifier(), device="cpu")
    judge.observe_real(digits)
    return [
        pixels,
        labels,
        with_channels(pixels, 1),
        warped(digits, generator),
        stratified_timesteps(40, 7, generator),
        *(loss_weight(schedule, labels + 1, loss) for loss in ("noise", "velocity", "balanced")),
        *model.state_dict().values(),
        evaluation_labels(5, 3),
        SamplingConfig(4, labels=[1, 0]).labels_of(range(4)),
        augmented(digits, 2, True, 4),
        judge.predict(digits),
        compare("a number", 2.0, 2.0)
        or torch.tensor(round(judge.frechet_distance(digits / 2), 5), dtype=torch.float64, device="cpu"),
    ]


@pytest.mark.parametrize(
    ("set_default", "value", "before"),
    [
        (torch.set_default_dtype, torch.float64, torch.float32),
        (torch.set_default_dtype, torch.float16, torch.float32),
        (torch.set_default_dtype, torch.bfloat16, torch.float32),
        (torch.set_default_device, "meta", None),
    ],
)
def test_torchs_defaults_change_nothing(set_default, value, before, tmp_path):
    """A tensor that followed the default device would be on "meta", where there are no numbers."""
    torch.manual_seed(0)
    expected = everything() + everything_measured(tmp_path)
    set_default(value)
    try:
        torch.manual_seed(0)
        found = everything() + everything_measured(tmp_path)
        assert torch.get_default_dtype() == (value if before else torch.float32)
    finally:
        set_default(before)
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a, b)


def test_what_is_imported_lazily_is_not_imported_before():
    code = (
        "import sys, ddimlib; heavy = {'torchvision', 'torchmetrics', 'matplotlib'}; assert not heavy & set(sys.modules); "
        "ddimlib.sample; ddimlib.to_bytes; assert not heavy & set(sys.modules); assert callable(ddimlib.show_images); "
        "assert all(hasattr(ddimlib, name) and name in dir(ddimlib) for name in ddimlib.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_terminal_that_knows_no_greek_can_show_a_schedule():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print(NoiseSchedule.linear(), file=out, flush=True)


# --- gradients -------------------------------------------------------------------------------------------------------


@walks
def test_no_gradient_is_carried_unless_asked_for(walk):
    """A state with half a graph, that of the updates but not that of the network, would give a wrong one."""
    x = X.clone().requires_grad_()
    assert not any(state.requires_grad for state in walk(network(), x))


@walks
def test_the_gradient_asked_for_is_the_true_one(walk):
    """Against a directional derivative, by central differences in float64."""
    model, direction = network(), randn(2, 1, 4, 4, seed=5)

    def loss(x: torch.Tensor, **kw) -> torch.Tensor:
        return last(walk(model, x, **kw)).square().sum()

    x = (0.3 * X).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, differentiable=True), x)
    h = 1e-6
    expected = (loss(x.detach() + h * direction) - loss(x.detach() - h * direction)) / (2 * h)
    assert (gradient * direction).sum().item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_reaches_the_weights_too():
    model = network()
    last(ddim(model, SCHEDULE, X, STEPS, differentiable=True)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("model", [lambda x, t: torch.ones_like(x), torch.no_grad()(lambda x, t: 0.1 * x)])
def test_a_network_that_gives_no_gradient_is_named_when_one_is_asked_for(model):
    with pytest.raises(ValueError, match="carries no gradient"):
        last(ddim(model, SCHEDULE, X.clone().requires_grad_(), STEPS, differentiable=True))


def test_an_accelerated_network_refuses_to_be_differentiated():
    with pytest.raises(RuntimeError, match="carries no gradients"):
        last(ddim(accelerate(network()), SCHEDULE, X.clone().requires_grad_(), STEPS, differentiable=True))
    assert not accelerate(network())(X, None).requires_grad


# --- networks that work in place -------------------------------------------------------------------------------------


class Doubles(nn.Module):
    """Doubles its input in place, from the n-th call on."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start, self.calls = start, 0

    def forward(self, x, t):
        self.calls += 1
        return x.mul_(2) * 0.05 if self.calls > self.start else x * 0.1


@walks
@pytest.mark.parametrize("inference", [False, True])
def test_a_network_that_works_in_place_changes_no_state(walk, inference):
    with torch.inference_mode(inference):
        x = X.clone()
        expected = list(walk(lambda x, t: x * 0.1, x))
        kept = []
        states = []
        for state in walk(Doubles(), x):
            states.append(state)
            kept.append(state.clone())
        assert torch.equal(x, X)
        for a, b, c in zip(states, kept, expected, strict=True):
            assert torch.equal(a, b)
            assert torch.allclose(a, c, atol=1e-12)


def test_the_usual_network_that_works_in_place():
    x = X.clone()
    expected = last(ddim(network(nn.ReLU()), SCHEDULE, x, STEPS))
    assert torch.equal(last(ddim(network(nn.ReLU(inplace=True)), SCHEDULE, x, STEPS)), expected)
    assert torch.equal(x, X)


def test_a_network_that_begins_to_work_in_place_later_is_reported():
    with pytest.raises(RuntimeError, match="in place at t = 9"):
        last(ddim(Doubles(start=2), SCHEDULE, X, STEPS))


# --- threads and the network's mode ----------------------------------------------------------------------------------


def test_threads_may_share_a_network_in_training_mode():
    """Each evaluation is in eval mode, and the network is in training mode when the last one has ended."""
    model = network(nn.Dropout(0.5))
    model[0].p = 0.5
    expected = last(ddim(copy.deepcopy(model).eval(), SCHEDULE, X, 20))
    model.train()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: last(ddim(model, SCHEDULE, X, 20)), range(24)))
    assert sum(torch.equal(x, expected) for x in found) == 24
    assert all(module.training for module in model.modules())


def test_threads_whose_evaluations_overlap_by_force():
    """The second begins while the first is inside, and ends after it: the first must not give the mode back too early."""
    import threading

    inside, release = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x, t):
            if int(t[0]) == 1:
                inside.set()
                release.wait(10)
            assert not self.training
            return x * 0.1

    model = Slow().train()
    seen = []
    first = threading.Thread(target=lambda: seen.append(predict_noise(model, X, 1)))
    first.start()
    inside.wait(10)
    predict_noise(model, X, 2)
    assert not model.training  # the first is still at work
    release.set()
    first.join()
    assert len(seen) == 1
    assert model.training


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_mode_is_put_back_whatever_ends_an_evaluation(error):
    class Fails(nn.Module):
        def forward(self, x, t):
            raise error("stop")

    model = nn.Sequential(nn.Dropout(), Fails())
    model.forward = lambda x, t: model[1](x, t)
    model[0].eval()
    with pytest.raises(error):
        predict_noise(model, X, 3)
    assert [module.training for module in model.modules()] == [True, False, True]


@pytest.mark.parametrize("entry", [1, 2])
def test_ctrl_c_may_come_while_the_mode_is_changed(entry, monkeypatch):
    """At the first entry the network is about to be put in eval mode, at the second it is given back."""

    class Interrupted:
        entries = 0

        def __enter__(self):
            self.entries += 1
            if self.entries == entry:
                raise KeyboardInterrupt

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(denoisers, "_lock", Interrupted())
    model = network(nn.Dropout()).train()
    with pytest.raises(KeyboardInterrupt):
        predict_noise(model, X, 3)
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    assert not denoisers._borrowed


def compiled_network():
    return torch.compile(network(nn.Dropout(0.5)), backend="eager")


def scripted_network():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    return torch.jit.script(Plain())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "make", [compiled_network, scripted_network, lambda: nn.DataParallel(network(nn.Dropout(0.5)))]
)
def test_networks_that_keep_their_mode_elsewhere(make):
    model = make().train()
    x = X.to(next(model.parameters()).device)  # DataParallel takes a network to the GPU if there is one
    first, second = (last(ddim(model, SCHEDULE, x, STEPS)) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert all(module.training for module in model.modules())


# --- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32, torch.float64])
def test_a_network_is_asked_in_its_own_dtype_and_states_keep_theirs(weights, state):
    model = VelocityDenoiser(small_unet(num_classes=2), SCHEDULE)
    x_T = randn(2, 1, 8, 8, dtype=torch.float32)
    expected = last(ddim(model, SCHEDULE, x_T, 3))
    exact = {weights, state} <= {torch.float32, torch.float64}
    for denoiser in (model.to(weights), accelerate(model, bf16=False)):
        found = last(ddim(denoiser, SCHEDULE, x_T.to(state), 3))
        assert found.dtype == state
        assert (found.float() - expected).abs().max() < (1e-5 if exact else 0.3)
    if weights != torch.float64:
        assert last(ddim(accelerate(model, bf16=True), SCHEDULE, x_T.to(state), 3)).dtype == state


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_shipped_network_takes_every_dtype(dtype):
    model, schedule = load_pretrained("mnist")
    x_T = SeededNoise.from_seed(0, n=2).initial(model.image_shape)
    expected = sample(model, schedule, x_T=x_T, steps=4, labels=[3, 1])
    images = sample(model, schedule, x_T=x_T.to(dtype), steps=4, labels=[3, 1])
    assert images.dtype == dtype
    assert (images.float() - expected).abs().max() < 0.1
    assert (sample(model.to(dtype), schedule, x_T=x_T, steps=4, labels=[3, 1]) - expected).abs().max() < 0.1


class NoFloat64(TorchDispatchMode):
    """Some devices, Apple's for one, have no float64: this one refuses it, and "meta" stands for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor) and x.device.type == "meta":
                assert x.dtype != torch.float64, f"{func} makes a float64 tensor on the device"
        return result


def test_no_float64_reaches_the_device():
    x = torch.empty(2, 1, 8, 8, device="meta")
    model = VelocityDenoiser(small_unet(), SCHEDULE)
    with NoFloat64():
        model.to("meta")(x, torch.full((2,), 3, device="meta"))
        for t in (3, [3, 4]):
            SCHEDULE.add_noise(x, t, x)
            SCHEDULE.predict_x0(x, t, x)
            SCHEDULE.posterior(x, x, t)
        ddim_step(SCHEDULE, x, x, 9, 5, 0.5, x, clip=1.0)
        ddpm_step(SCHEDULE, x, x, 9, x)
        SeededNoise([1, 2])(x)
    with pytest.raises(AssertionError, match="float64"), NoFloat64():
        x.double()


# --- the accelerated network's weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [False, True])
def test_a_state_dict_holds_each_weight_once(compile):
    model = VelocityDenoiser(small_unet(), SCHEDULE)
    assert len(accelerate(model, compile=compile).state_dict()) == len(model.state_dict())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("inside", [False, True], ids=["whole", "the network inside"])
def test_a_graph_never_answers_with_old_weights(monkeypatch, assign, inside):
    FakeGraphs.install(monkeypatch)
    model = VelocityDenoiser(small_unet(), SCHEDULE)
    fast = AcceleratedDenoiser(model, torch.device("cpu"), bf16=False, compile=False, graph=True)
    x, t = randn(2, 1, 8, 8, dtype=torch.float32), torch.tensor([9, 9])
    fast(x, t)
    target = fast.model if inside else fast
    target.load_state_dict({name: 2 * value for name, value in target.state_dict().items()}, assign=assign)
    expected = fast.model(x, t)
    assert torch.allclose(fast(x, t), expected, atol=1e-6)
    assert fast.captures == (2 if assign else 1)  # in place, the graph reads the new numbers where the old ones were


def test_a_graph_is_dropped_when_the_network_is_converted(monkeypatch):
    FakeGraphs.install(monkeypatch)
    model = VelocityDenoiser(small_unet(), SCHEDULE)
    fast = AcceleratedDenoiser(model, torch.device("cpu"), bf16=False, compile=False, graph=True)
    x, t = randn(2, 1, 8, 8, dtype=torch.float32), torch.tensor([9, 9])
    before = fast(x, t)
    after = fast.double()(x.double(), t)
    assert after.dtype == torch.float64
    assert torch.allclose(before.double(), after, atol=1e-5)
    assert fast.captures == 2


def test_graphs_share_one_pool_of_memory(monkeypatch):
    FakeGraphs.install(monkeypatch)
    fast = AcceleratedDenoiser(network(), torch.device("cpu"), bf16=False, compile=False, graph=True)
    for n in (1, 2, 3):
        fast(randn(n, 1, 4, 4), torch.full((n,), 3))
    pools = {id(call.graph.pool) for call in fast._graphs.values()}
    assert len(fast._graphs) == 3
    assert len(pools) == 1
    assert None not in [call.graph.pool for call in fast._graphs.values()]


# --- images that are not square --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 8), (8, 24), [8, 16]])
def test_rectangular_images_keep_height_and_width(size):
    model = VelocityDenoiser(small_unet(image_size=size, channels=3), SCHEDULE)
    assert model.image_shape == (3, *size)
    assert sample(model, SCHEDULE, (2, *model.image_shape), 2, seed=0).shape == (2, 3, *size)


def test_an_int_seed_of_step_noise_continues_the_seeds_own_noise_and_never_repeats_x_T():
    model = smooth_mixture().denoiser(SCHEDULE)
    noise = SeededNoise.from_seed(7, n=3)
    x_T = noise.initial((1, 2, 2))
    expected = last(ddim(model, SCHEDULE, x_T, timesteps(40, 5), 1.0, noise))
    assert torch.equal(last(ddim(model, SCHEDULE, x_T, 5, 1.0, noise=7)), expected)
    assert torch.equal(sample(model, SCHEDULE, x_T.shape, 5, 1.0, seed=7), expected.clamp(-1, 1))
    assert torch.equal(sample(model, SCHEDULE, steps=5, eta=1.0, seed=7, x_T=x_T), expected.clamp(-1, 1))
    assert torch.equal(noise.initial((1, 2, 2)), x_T)


@pytest.mark.parametrize("as_given", [int, np.int64, np.int32, torch.tensor])
def test_numpys_numbers_are_numbers(as_given):
    model, x = smooth_mixture().denoiser(SCHEDULE), randn(2, 1, 2, 2)
    half = np.float32(0.5)
    expected = sample(model, SCHEDULE, (2, 1, 2, 2), 5, 0.5, "quadratic", seed=3, clip=1.5)
    found = sample(
        model, SCHEDULE, (2, 1, 2, 2), as_given(5) if as_given is not torch.tensor else 5, half, "quadratic",
        seed=as_given(3), clip=np.float64(1.5),
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert timesteps(as_given(40), as_given(5)) == timesteps(40, 5)
    assert torch.equal(SCHEDULE.add_noise(x, as_given(5), x), SCHEDULE.add_noise(x, 5, x))
    assert torch.equal(slerp(x, x.flip(0), half), slerp(x, x.flip(0), 0.5))
    walk = ddim(model, SCHEDULE, x, np.array([9, 5]))
    assert torch.equal(last(walk), last(ddim(model, SCHEDULE, x, [9, 5])))
    assert torch.equal(
        last(invert(model, SCHEDULE, x.tanh(), [9, 5], as_given(2))), last(invert(model, SCHEDULE, x.tanh(), [9, 5], 2))
    )
