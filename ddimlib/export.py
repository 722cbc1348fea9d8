"""A denoiser as an ONNX file, for programs that have no torch: onnxruntime, a phone, the page of a website."""

import copy
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ddimlib.denoisers import PredictionDenoiser
from ddimlib.storage import check_output, write_atomically
from ddimlib.torch_defaults import torch_defaults

if TYPE_CHECKING:
    import onnx


@torch_defaults()
def export_onnx(model: PredictionDenoiser, path: str | Path) -> None:
    """Write eps = model(x, t, labels) to one ONNX file, atomically.

    The file's inputs are `x` float32 [B, C, H, W], `t` int64 [B] in 1..T and, for a network with classes, `labels` int64
    [B] in 0..num_classes, where num_classes itself means "no label". Its output is `eps` [B, C, H, W]. B is free in every
    call. A sampler also needs the schedule: `betas`, `image_shape` and `num_classes` stand as JSON in the file's metadata.

    Weights that float16 holds exactly, as those of a model saved in half precision do, are stored so and cast when the
    file is loaded: half the size, the same numbers.

    Args:
        model: a network with its schedule, as from :func:`ddimlib.load_pretrained`, on any device; left as it was.
        path: the file to write; one that is there is replaced.

    Raises:
        ModuleNotFoundError: before any work, when onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401, torch's exporter needs it
    except ModuleNotFoundError as error:
        fix = "install what it needs with: pip install onnx onnxscript"
        raise ModuleNotFoundError(f"exporting needs the package {error.name}; {fix}") from error
    check_output(path)
    schedule = getattr(model, "schedule", None)
    if schedule is None:
        raise ValueError(
            "this model does not know its schedule, which a sampler needs; pass it when wrapping the network"
        )
    model = copy.deepcopy(model).cpu().eval()
    # an example of batch 2, because the exporter takes a size of 1 for a constant
    example = {"x": torch.zeros(2, *model.image_shape), "t": torch.ones(2, dtype=torch.int64)}
    if model.num_classes is not None:
        example["labels"] = torch.zeros(2, dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on the exporter's inner workings
        program = torch.onnx.export(
            model,
            tuple(example.values()),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in example),
            input_names=list(example),
            output_names=["eps"],
            opset_version=18,
            verbose=False,
        )
    assert program is not None
    file = program.model_proto
    _store_as_float16(file)
    betas = schedule.beta[1:].tolist()
    facts = {"betas": betas, "image_shape": model.image_shape, "num_classes": model.num_classes}
    onnx.helper.set_model_props(file, {name: json.dumps(fact) for name, fact in facts.items()})
    onnx.checker.check_model(file, full_check=True)
    write_atomically(path, file.SerializeToString())


def _store_as_float16(file: "onnx.ModelProto") -> None:
    """Store each weight that float16 holds exactly as such, behind a cast that gives the float32 back."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in file.graph.initializer:
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):  # what is too large becomes infinity, and stays as it was
            half = values.astype("float16")
        if weight.data_type == TensorProto.FLOAT and (half.astype("float32") == values).all():
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}.float16"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *file.graph.node]
    del file.graph.node[:]
    file.graph.node.extend(nodes)
