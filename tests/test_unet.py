"""The network: shapes, what it looks at, and its two hand-written parts against their formulas."""

import math

import pytest
import torch
from helpers import randn
from torch import nn

from ddimlib import UNet
from ddimlib.unet import SelfAttention, time_features


def build(**arguments) -> UNet:
    """A small network in which nothing is zero: some weights start there and would hide what they multiply."""
    torch.manual_seed(0)
    model = UNet(**({"widths": (8, 16), "blocks": (1, 2), "attention": (False, True), "image_size": 8} | arguments))
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.eval()


X, T = randn(4, 1, 8, 8).float(), torch.tensor([1, 10, 500, 1000])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (12, 4)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_output_has_the_shape_of_the_input(channels, size, levels):
    model = build(channels=channels, widths=(8, 16, 8)[:levels], blocks=(2, 1, 1)[:levels], attention=(False,) * levels)
    x = randn(2, channels, *size).float()
    assert model(x, T[:2]).shape == x.shape


def test_a_fresh_network_answers_zero():
    assert UNet(widths=(8, 16), blocks=(1, 1), attention=(False, True))(X, T).abs().max() == 0


@torch.no_grad()
def test_samples_do_not_see_each_other():
    model = build()
    together = model(X, T)
    for i in range(4):
        assert together[i : i + 1].allclose(model(X[i : i + 1], T[i : i + 1]), atol=1e-5)


@torch.no_grad()
def test_time_and_label_matter_and_no_label_is_the_class_after_the_last():
    model = build(num_classes=3)
    label = torch.tensor([0, 1, 2, 0])
    assert model.label_embedding.num_embeddings == 4
    assert not model(X, T).allclose(model(X, T.flip(0)), atol=1e-3)
    assert not model(X, T, label).allclose(model(X, T, label.flip(0)), atol=1e-3)
    assert torch.equal(model(X, T), model(X, T, torch.full((4,), 3)))


def test_every_weight_takes_part():
    model = build(num_classes=3)
    model(X, T, torch.tensor([0, 1, 2, 3])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@torch.no_grad()
@pytest.mark.parametrize("groups", [2, 8])
def test_the_norms_have_the_groups_asked_for(groups):
    norms = [layer for layer in build(groups=groups).modules() if isinstance(layer, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}


def test_dropout_only_acts_in_training():
    model = build(dropout=0.5)
    assert torch.equal(model(X, T), model(X, T))
    model.train()
    assert not torch.equal(model(X, T), model(X, T))


def test_time_features_are_sines_and_cosines_of_falling_frequencies():
    features = time_features(torch.tensor([0, 3, 1000]), 64)
    assert features.shape == (3, 64)
    assert features.dtype == torch.float32
    for i, t in enumerate([0, 3, 1000]):
        for j in (0, 7, 31):
            angle = t * 10 ** (-4 * j / 31)
            assert features[i, j].item() == pytest.approx(math.sin(angle), abs=2e-4)
            assert features[i, 32 + j].item() == pytest.approx(math.cos(angle), abs=2e-4)


@torch.no_grad()
def test_attention_is_softmax_of_scaled_products():
    """Written out for one head, pixel by pixel."""
    torch.manual_seed(0)
    layer, x = SelfAttention(8), randn(2, 8, 3, 2).float()
    nn.init.normal_(layer.out.weight)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # each [B, C, H·W]
    attention = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(8), dim=-1)
    mixed = torch.einsum("bij,bcj->bci", attention, v).reshape(x.shape)
    assert layer(x).allclose(x + layer.out(mixed), atol=1e-5)


@pytest.mark.parametrize("width", range(8, 257, 8))
def test_attention_works_at_every_allowed_width(width):
    layer = SelfAttention(width)
    assert width % layer.heads == 0
    assert layer(torch.zeros(1, width, 2, 2)).shape == (1, width, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"widths": (8, 16, 8)}, r"one entry a level, got \(\(8, 16, 8\)"),
        ({"attention": (True,)}, r"one entry a level"),
        ({"widths": (8, 12)}, r"got \[12\]"),
        ({"widths": (0, 8)}, r"each width must lie in 1\.\.4096, got 0"),
        ({"groups": 3}, r"multiples of 3 .* got \[8, 16\]"),
        ({"groups": 0}, "at least 1, got 0"),
    ],
)
def test_bad_levels_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        build(**arguments)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 7, 8), (2, 1, 8, 9)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        build()(torch.zeros(shape), T[:2])


def test_it_remembers_the_shape_of_its_images():
    assert build(channels=3).image_shape == (3, 8, 8)
