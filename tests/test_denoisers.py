"""Wrappers: labels, guidance, velocities, and somebody else's network."""

import pytest
import torch
from helpers import last, randn, short_schedule
from torch import nn

from ddimlib import DiffusersDenoiser, GuidedDenoiser, LabelledDenoiser, VelocityDenoiser, ddim

SCHEDULE = short_schedule()


class Conditional(nn.Module):
    """ε depends on the label, on t and on x, and writes down what it was asked. Label 3 is "none"."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def forward(self, x, t, labels):
        self.calls.append((x.shape, labels.tolist()))
        scale = torch.tensor([1.0, -2.0, 3.0, 0.25], dtype=x.dtype)
        return scale[labels][:, None, None, None] * x + t[:, None, None, None] / 100


X, T = randn(3, 1, 2, 2), torch.full((3,), 7)
LABELS = torch.tensor([2, 0, 1])


def test_a_label_is_fixed():
    assert torch.equal(LabelledDenoiser(Conditional(), LABELS)(X, T), Conditional()(X, T, LABELS))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_linear_between_no_label_and_label(scale):
    model = Conditional()
    without, with_label = model(X, T, torch.full((3,), 3)), model(X, T, LABELS)
    guided = GuidedDenoiser(model, LABELS, scale)(X, T)
    assert guided.allclose(without + scale * (with_label - without), rtol=1e-13)
    if scale == 0:
        assert torch.equal(guided, without)
    if scale == 1:
        assert torch.equal(guided, with_label)


def test_guidance_asks_once_with_both_halves():
    model = Conditional()
    GuidedDenoiser(model, LABELS, 2.0)(X, T)
    assert model.calls == [((6, 1, 2, 2), [3, 3, 3, 2, 0, 1])]


@pytest.mark.parametrize("wrap", [LabelledDenoiser, lambda model, labels: GuidedDenoiser(model, labels, 2.0)])
@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.tensor([0, 3]), r"0\.\.2, got 0\.\.3"),
        (torch.tensor([-1, 0]), r"0\.\.2, got -1\.\.0"),
        (torch.tensor([0.0, 1.0]), "float32"),
        (torch.tensor([[0, 1]]), r"\(1, 2\)"),
        (True, "bool"),
    ],
)
def test_bad_labels_are_refused(wrap, labels, named):
    with pytest.raises(ValueError, match=named):
        wrap(Conditional(), labels)


@pytest.mark.parametrize("wrap", [LabelledDenoiser, lambda model, labels: GuidedDenoiser(model, labels, 2.0)])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_another_number_of_labels_than_images_is_refused(wrap, n):
    model = Conditional()
    with pytest.raises(ValueError, match=f"{n} labels for a batch of 3"):
        wrap(model, torch.zeros(n, dtype=torch.int64))(X, T)
    assert not model.calls


@pytest.mark.parametrize("scale", [-0.5, float("nan")])
def test_bad_guidance_is_refused(scale):
    with pytest.raises(ValueError, match=f"got {scale}"):
        GuidedDenoiser(Conditional(), LABELS, scale)


@pytest.mark.parametrize("model", [nn.Identity(), lambda x, t: x])
def test_labels_for_a_network_without_classes_are_refused(model):
    with pytest.raises(ValueError, match="without classes"):
        LabelledDenoiser(model, LABELS)


def test_wrappers_expose_the_network_inside():
    """Samplers look for modules to switch to eval mode; one that hid its network would leave dropout on."""
    inner = Conditional()
    for wrapper in (LabelledDenoiser(inner, LABELS), GuidedDenoiser(inner, LABELS, 2.0)):
        assert inner in list(wrapper.modules())


# --- velocity --------------------------------------------------------------------------------------------------------


class Returns(nn.Module):
    num_classes = None

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x, t, labels=None):
        return self.value


def test_the_true_velocity_gives_the_true_noise_at_every_time():
    x_0, eps = randn(41, 1, 2, 2), randn(41, 1, 2, 2, seed=1)
    t = torch.arange(41)
    ab = SCHEDULE.alpha_bar[:, None, None, None]
    velocity = ab.sqrt() * eps - (1 - ab).sqrt() * x_0  # the definition
    found = VelocityDenoiser(Returns(velocity), SCHEDULE)(SCHEDULE.add_noise(x_0, t, eps), t)
    assert found.allclose(eps, atol=1e-6)  # its tables are float32


def test_velocity_tables_are_no_weights():
    model = VelocityDenoiser(Returns(X), SCHEDULE)
    assert model.state_dict() == {}
    assert {b.dtype for b in model.buffers()} == {torch.float32}


def test_velocity_denoiser_knows_its_networks_classes():
    assert VelocityDenoiser(Conditional(), SCHEDULE).num_classes == 3
    with pytest.raises(ValueError, match="without classes"):
        LabelledDenoiser(VelocityDenoiser(Returns(X), SCHEDULE), LABELS)


# --- diffusers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), num_class_embeds=4,
    ).eval()  # fmt: skip


@torch.no_grad()
def test_a_diffusers_network_is_asked_one_time_earlier(unet):
    """Its first noise level is called 0, ours 1."""
    x, labels = randn(3, 1, 8, 8).float(), torch.tensor([0, 3, 1])
    model = DiffusersDenoiser(unet)
    for t in (1, 2, 40):
        expected = unet(x, t - 1, class_labels=labels).sample
        assert torch.equal(model(x, torch.full((3,), t), labels), expected)
        assert not torch.allclose(expected, unet(x, t, class_labels=labels).sample)


def test_a_diffusers_network_can_be_sampled(unet):
    labels = torch.tensor([0, 3])
    unet.train()
    x_0 = last(ddim(LabelledDenoiser(DiffusersDenoiser(unet), labels), SCHEDULE, randn(2, 1, 8, 8).float(), [40, 3, 1]))
    assert x_0.isfinite().all()
    assert unet.training


def test_a_diffusers_network_tells_its_classes(unet):
    assert DiffusersDenoiser(unet).num_classes == 4
    with pytest.raises(ValueError, match=r"0\.\.3, got 4\.\.4"):
        LabelledDenoiser(DiffusersDenoiser(unet), torch.tensor([4]))
