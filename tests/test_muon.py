"""Muon: the orthogonalised momentum, the weights it is meant for, and its agreement with torch's own."""

import pytest
import torch
from helpers import randn
from torch import nn

from ddimlib import NoiseSchedule
from ddimlib.muon import Muon, hidden_weights, orthogonalise
from ddimlib.pretrained import build_model


@pytest.mark.parametrize("shape", [(8, 8), (16, 40), (40, 16)])
def test_singular_values_become_about_equal_and_the_directions_stay(shape):
    matrix = randn(*shape, seed=1).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    assert s.max() / s[s > 0.05 * s.max()].min() > 2  # there is something to equalise
    inner = u.T @ orthogonalise(matrix) @ v.T  # diagonal, since odd polynomials leave the singular vectors alone
    kept = s > 0.05 * s.max()
    assert inner.diagonal()[kept].min() > 0.6
    assert inner.diagonal().max() < 1.3
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), rtol=0, atol=1e-10)


def test_orthogonalise_does_not_depend_on_the_scale_and_survives_zero():
    matrix = randn(12, 20, seed=2).double()
    torch.testing.assert_close(orthogonalise(1e-3 * matrix), orthogonalise(matrix), rtol=0, atol=1e-4)
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_steps_agree_with_torchs_muon_up_to_its_bfloat16():
    ours, theirs = (nn.Parameter(randn(16, 24, seed=3)) for _ in range(2))
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    mine = Muon([ours], **options)
    reference = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    start = ours.detach().clone()
    for k in range(4):
        ours.grad = randn(16, 24, seed=10 + k)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # bfloat16 keeps 8 bits
    assert moved > 0.1


def test_a_kernel_is_read_as_a_matrix_in_any_memory_layout():
    weights = [nn.Parameter(randn(8, 6, 3, 3, seed=4)), nn.Parameter(randn(8, 6, 3, 3, seed=4).flatten(1))]
    weights.insert(1, nn.Parameter(weights[0].detach().to(memory_format=torch.channels_last)))
    for weight in weights:
        weight.grad = randn(8, 6, 3, 3, seed=5).reshape(weight.shape)
        Muon([weight], lr=0.1).step()
    for other in weights[1:]:
        torch.testing.assert_close(other.reshape(8, 6, 3, 3), weights[0], rtol=0, atol=1e-5)


def test_a_weight_without_gradient_stays():
    weight = nn.Parameter(randn(4, 4, seed=6))
    before = weight.detach().clone()
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, before)


def test_hidden_weights_are_those_between_features():
    network = {"widths": (8, 16), "blocks": (1, 1), "attention": (False, True), "image_size": 8, "num_classes": 3}
    model = build_model(network, NoiseSchedule.linear())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = {names[id(weight)] for weight in hidden_weights(model)}
    left = set(names.values()) - chosen
    assert all(name.endswith("weight") for name in chosen)
    for part in ("conv1", "qkv", "modulation"):
        assert any(part in name for name in chosen), part
    for part in ("stem", "head", "norm", "bias", "label_embedding"):
        assert not any(part in name for name in chosen), part
        assert any(part in name for name in left), part


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"two dimensions or more, got \[\(5,\)\]"):
        Muon([nn.Parameter(torch.zeros(5))], lr=0.1)
