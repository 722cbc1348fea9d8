"""The accelerated denoiser: the same images, the same rules, and a graph that is replayed and not misused.

Where there is no GPU, `FakeGraphs` records and replays instead: what is done around a graph is then tested, not the graph.
"""

import pytest
import torch
from helpers import FakeGraphs, last, randn
from torch import nn

from ddimlib import (
    DiffusersDenoiser,
    GuidedDenoiser,
    LabelledDenoiser,
    NoiseSchedule,
    UNet,
    VelocityDenoiser,
    ddim,
    ddim_ab2,
    invert,
    load_pretrained,
    sample,
    timesteps,
)
from ddimlib.acceleration import AcceleratedDenoiser, accelerate

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
SCHEDULE = NoiseSchedule.linear()
STEPS = timesteps(1000, 5)
SHAPE = (3, 1, 8, 8)


@pytest.fixture
def model():
    """A small random network with two classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(widths=(8, 8), blocks=(1, 1), attention=(False, True), image_size=8, num_classes=2)
        for p in network.parameters():  # some start at zero, and would hide what they multiply
            nn.init.normal_(p, std=0.1)
    return VelocityDenoiser(network, SCHEDULE).eval()


@pytest.fixture(params=["fake", pytest.param("cuda", marks=needs_gpu)])
def device(request, monkeypatch):
    """Where graphs are captured: on a GPU, or, by the stand-in, on the CPU."""
    if request.param == "fake":
        FakeGraphs.install(monkeypatch)
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def graphed(model, device) -> AcceleratedDenoiser:
    return AcceleratedDenoiser(model.to(device), device, bf16=False, compile=False, graph=True)


def noise(*shape, seed=0, device="cpu"):
    return randn(*shape, seed=seed, dtype=torch.float32).to(device)


def t(x, value=500):
    return torch.full((len(x),), value, device=x.device)


# --- a graph ---------------------------------------------------------------------------------------------------------


def test_one_capture_serves_every_step_and_every_image_is_the_same(model, device):
    fast, x = graphed(model, device), noise(*SHAPE, device=device)
    for start in (x, noise(*SHAPE, seed=1, device=device)):
        states = zip(ddim(fast, SCHEDULE, start, STEPS), ddim(model, SCHEDULE, start, STEPS), strict=True)
        assert all((a - b).abs().max() < 1e-5 for a, b in states)
    assert fast.captures == 1


def test_an_answer_is_not_overwritten_by_the_next(model, device):
    fast, x = graphed(model, device), noise(*SHAPE, device=device)
    first = fast(x, t(x, 900))
    kept = first.clone()
    second = fast(2 * x, t(x, 10))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_inputs_are_not_written_to(model, device):
    fast, x = graphed(model, device), noise(*SHAPE, device=device)
    inputs = x, t(x), torch.tensor([0, 1, 0], device=device)
    copies = [a.clone() for a in inputs]
    fast(*inputs)
    fast(-x, t(x, 3), torch.tensor([1, 1, 1], device=device))
    assert all(map(torch.equal, inputs, copies))


@pytest.mark.parametrize("labels", [[0, 1, 1], [1, 0, 1]])
def test_labels_and_guidance_pass_through_a_graph(model, device, labels):
    fast, x = graphed(model, device), noise(*SHAPE, device=device)
    asked = torch.tensor(labels)
    for wrap in (lambda m: LabelledDenoiser(m, asked), lambda m: GuidedDenoiser(m, asked, 2.0)):
        images = [last(ddim(wrap(m), SCHEDULE, x, STEPS)) for m in (fast, model)]
        assert (images[0] - images[1]).abs().max() < 1e-4  # guidance doubles what differs
    assert fast.captures == 2  # B with labels, 2B with labels


def test_samplers_that_keep_what_the_network_said(model, device):
    fast, x = graphed(model, device), noise(*SHAPE, device=device)
    for walk in (ddim_ab2, lambda *a: invert(*a, iterations=2)):
        images = [last(walk(m, SCHEDULE, x, STEPS)) for m in (fast, model)]
        assert (images[0] - images[1]).abs().max() < 1e-4


def test_the_front_door_with_a_last_batch_that_is_smaller(model, device):
    fast = graphed(model, device)
    labels = torch.tensor([0, 1, 0, 1, 0])
    images = [
        sample(m, SCHEDULE, (5, *SHAPE[1:]), 3, eta=1.0, seed=1, labels=labels, batch_size=3) for m in (fast, model)
    ]
    assert (images[0] - images[1]).abs().max() < 1e-5
    assert fast.captures == 2
    assert "2 captured" in fast.report
    assert "3×1×8×8, 2×1×8×8" in fast.report


def test_a_shape_seen_before_is_not_captured_again_and_few_graphs_are_kept(model, device):
    fast = graphed(model, device)
    for n in (1, 2, 3, 4, 1):
        fast(noise(n, 1, 8, 8, device=device), torch.full((n,), 7, device=device))
    assert fast.captures == 4
    with pytest.warns(UserWarning, match="4 shapes were captured, and the oldest of 4 graphs is dropped"):
        fast(noise(5, 1, 8, 8, device=device), torch.full((5,), 7, device=device))
    assert fast.captures == 5
    fast(noise(1, 1, 8, 8, device=device), torch.full((1,), 7, device=device))  # was used lately, so it was kept
    assert fast.captures == 5


def test_a_first_call_in_inference_mode_does_not_spoil_later_ones(model, device):
    fast, x = graphed(model, device), noise(*SHAPE, device=device)
    with torch.inference_mode():
        first = fast(x, t(x)).clone()
    assert torch.equal(fast(x.clone(), t(x)), first)


def test_a_network_that_looks_at_its_numbers_cannot_be_captured(device):
    class Nosy(nn.Module):
        def forward(self, x, t):
            return x * float(t[0])

    fast, x = graphed(Nosy(), device), noise(*SHAPE, device=device)
    with pytest.raises(RuntimeError, match=r"cannot be captured .* graph=False"):
        fast(x, t(x))


def test_an_input_on_another_device_is_refused(model, device):
    fast, x = graphed(model, device), torch.empty(SHAPE, device="meta")
    with pytest.raises(ValueError, match="an input is on meta"):
        fast(x, t(x))


# --- whatever the means ----------------------------------------------------------------------------------------------


def test_the_model_is_left_alone(model):
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.train()
    fast = accelerate(model, bf16=True)
    assert {id(p) for p in fast.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    assert all(m.training and p.requires_grad for m in model.modules() for p in m.parameters())
    assert all(torch.equal(p, before[name]) and p.dtype == before[name].dtype for name, p in model.state_dict().items())
    assert not any(m.training for m in fast.model.modules())


def test_an_accelerated_denoiser_says_what_samplers_ask_of_a_network(model):
    fast = accelerate(model)
    assert (fast.num_classes, fast.image_shape) == (2, (1, 8, 8))
    assert not hasattr(accelerate(nn.Identity()), "num_classes")
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        LabelledDenoiser(fast, torch.tensor([2]))


def test_on_a_cpu_without_bfloat16_the_network_is_as_it_was_and_the_report_says_so(model, monkeypatch):
    monkeypatch.setattr("ddimlib.acceleration.gains_by_bf16", lambda device, compiled: False)
    fast, x = accelerate(model), noise(*SHAPE)
    assert (fast(x, t(x)) - model(x, t(x))).abs().max() < 1e-5
    assert fast.report.startswith("cpu: float32, channels_last, not compiled, else as it was")


@pytest.mark.parametrize(
    ("units", "eager", "compiled"),
    [
        ({"vectors", "matrices"}, True, True),
        ({"matrices"}, True, True),
        ({"vectors"}, False, True),
        (set(), False, False),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_pays(model, monkeypatch, units, eager, compiled):
    """Matrix units pay by themselves, vector units when conversions are shared, which takes a compiler."""
    for name, unit in {"_is_amx_tile_supported": "matrices", "_is_avx512_bf16_supported": "vectors"}.items():
        monkeypatch.setattr(torch.cpu, name, lambda unit=unit: unit in units, raising=False)
    assert ("bfloat16" in accelerate(model).report) == eager
    assert ("bfloat16" in accelerate(model, compile=True).report) == compiled
    assert "bfloat16" not in accelerate(model, bf16=False).report
    assert "bfloat16" not in accelerate(model.double(), compile=True).report


def test_a_graph_on_a_cpu_is_refused(model):
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA GPU, but the model is on cpu"):
        accelerate(model, graph=True)


def test_bfloat16_is_what_autocast_computes(model):
    """Weights are rounded once instead of at every call; nothing else differs."""
    fast, x = accelerate(model, bf16=True), noise(*SHAPE)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(x, t(x))
    assert torch.equal(fast(x, t(x)), expected.float())


def test_in_bfloat16_states_stay_float32_whatever_surrounds_the_call(model):
    x = noise(*SHAPE)
    for surrounding in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=surrounding):
            states = list(ddim(accelerate(model, bf16=True), SCHEDULE, x, STEPS))
            assert {s.dtype for s in states} == {torch.float32}
            assert torch.equal(accelerate(model)(x, t(x)), accelerate(model)(x, t(x)).float())


def test_compiled_images_are_the_same(model):
    fast, x = accelerate(model, compile=True, bf16=False), noise(*SHAPE)
    assert "compiled" in fast.report
    images = [last(ddim(m, SCHEDULE, x, STEPS)) for m in (fast, model)]
    assert (images[0] - images[1]).abs().max() < 1e-4


def test_a_network_from_diffusers(model):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    plain, x = DiffusersDenoiser(unet), noise(*SHAPE)
    with torch.no_grad():
        expected = plain(x, t(x))
    assert (accelerate(plain, bf16=False)(x, t(x)) - expected).abs().max() < 1e-5
    assert 0 < (accelerate(plain, bf16=True)(x, t(x)) - expected).abs().max() < 0.05


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_shipped_network_in_bfloat16(where):
    """How far images move when the network computes with eight bits of precision."""
    shipped, schedule = load_pretrained("mnist", where)
    images = [
        sample(network, schedule, (8, 1, 28, 28), 10, seed=0, labels=torch.arange(8))
        for network in (shipped, accelerate(shipped, bf16=True))
    ]
    difference = images[0] - images[1]
    assert difference.square().mean().sqrt() < 1e-2  # on a scale of 2; 2e-3 was seen


@needs_gpu
def test_on_a_gpu_nothing_in_the_loop_waits_for_it():
    shipped, schedule = load_pretrained("mnist", "cuda")
    labels = torch.arange(4, device="cuda")
    for model in (shipped, accelerate(shipped)):
        for denoiser in (LabelledDenoiser(model, labels), GuidedDenoiser(model, labels, 2.0)):
            for eta in (0.0, 1.0):
                x_T = noise(4, 1, 28, 28, device="cuda")
                list(ddim(denoiser, schedule, x_T, STEPS, eta))  # captures
                states = ddim(denoiser, schedule, x_T, STEPS, eta)
                torch.cuda.set_sync_debug_mode("error")
                try:
                    list(states)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
