"""A denoiser as an ONNX file: onnxruntime computes what torch does, and finds the schedule in the file."""

import builtins
import json

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import randn

from ddimlib import NoiseSchedule, UNet, VelocityDenoiser, load_pretrained
from ddimlib.denoisers import PredictionDenoiser
from ddimlib.export import export_onnx


def small(num_classes=None):
    """A network with weights that do something, in a moment's training mode."""
    torch.manual_seed(0)
    unet = UNet(
        widths=(8, 16), blocks=(1, 1), attention=(False, True), image_size=8, num_classes=num_classes, dropout=0.5
    )
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return VelocityDenoiser(unet, NoiseSchedule.linear(50))


def inputs(model, batch, seed=0):
    x = randn(batch, *model.image_shape, seed=seed, dtype=torch.float32)
    t = torch.arange(batch) * 7 % model.schedule.T + 1
    return (x, t) if model.num_classes is None else (x, t, torch.arange(batch) % (model.num_classes + 1))


def difference(session, model, batch):
    """The largest difference between the file and the model, on one batch."""
    given = inputs(model, batch)
    names = [entry.name for entry in session.get_inputs()]
    (eps,) = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
    model.eval()
    with torch.no_grad():
        expected = model(*given).numpy()
    assert np.abs(expected).max() > 0.1
    return np.abs(eps - expected).max()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "mnist.onnx"
    model, schedule = load_pretrained("mnist")
    export_onnx(model, path)
    return model, schedule, path


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_shipped_network_computes_the_same(shipped, batch):
    model, _, path = shipped
    assert difference(onnxruntime.InferenceSession(path), model, batch) < 2e-5


def test_the_difference_would_show(shipped):
    """Parity is a statement about this network: another one is far away."""
    other, _ = load_pretrained("fashion")
    assert difference(onnxruntime.InferenceSession(shipped[2]), other, 2) > 0.1


def test_the_file_says_what_a_sampler_needs(shipped):
    model, schedule, path = shipped
    facts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    facts = {name: json.loads(fact) for name, fact in facts.items()}
    assert facts["betas"] == schedule.beta[1:].tolist()
    assert facts["image_shape"] == list(model.image_shape)
    assert facts["num_classes"] == 10


def test_weights_that_float16_holds_take_half_the_space(shipped):
    model, _, path = shipped
    assert path.stat().st_size < 2.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_network_of_ones_own_with_float32_weights(tmp_path, num_classes):
    model = small(num_classes).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "own.onnx")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    session = onnxruntime.InferenceSession(tmp_path / "own.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["x", "t", *(["labels"] if num_classes else [])]
    for batch in (1, 2, 5):
        assert difference(session, model, batch) < 2e-5
    assert [path.name for path in tmp_path.iterdir()] == ["own.onnx"]


def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_onnx(name, *args, **kwargs):
        if name == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(ModuleNotFoundError, match=r"exporting needs the package onnxscript; .*pip install"):
        export_onnx(small(), tmp_path / "own.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_schedule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not know its schedule"):
        export_onnx(PredictionDenoiser(small().network), tmp_path / "own.onnx")
