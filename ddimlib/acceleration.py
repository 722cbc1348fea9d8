"""The same denoiser, faster: a CUDA graph, bfloat16, channels_last, torch.compile. Samplers stay as they are."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddimlib.arguments import KindError, describe


def accelerate(
    model: nn.Module, bf16: bool | None = None, compile: bool = False, graph: bool | None = None
) -> "AcceleratedDenoiser":
    """A faster denoiser made out of `model`; `print(accelerate(model).report)` says by what means.

    On a CUDA GPU the network is captured in a CUDA graph, computed in bfloat16 where the GPU can, and laid out
    channels_last. On a CPU it is laid out channels_last, and computed in bfloat16 where that pays: on a processor that
    multiplies matrices of bfloat16 numbers (Intel's AMX) always, on one that multiplies vectors of them if it is compiled.

    Accelerate the network and wrap the result: `LabelledDenoiser(accelerate(model), labels)`.

    Args:
        model: called as model(x, t) or model(x, t, labels), on the device where it shall run. It is left alone: the weights
            are copied, and what it learns later does not reach the copy.
        bf16: compute in bfloat16 where torch's autocast allows it; None decides as said above. The states that samplers keep
            are float32 all the same. Images move a little: by some thousandths of a pixel's range on average, by much more
            where the edge of a stroke shifts. False keeps float32, and images equal to rounding.
        compile: let `torch.compile` write kernels for the network, at the first call: that takes from seconds to minutes.
        graph: replay a CUDA graph, on a CUDA GPU only; None: where there is one.
    """
    if not isinstance(model, nn.Module):
        raise KindError(f"only a network, an nn.Module, can be accelerated, got {describe(model)}")
    if any(isinstance(module, AcceleratedDenoiser) for module in model.modules()):
        raise ValueError("this model is accelerated already; accelerate the plain network, once, and wrap the result")
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    on_gpu = device.type == "cuda"
    if graph and not on_gpu:
        raise ValueError(f"CUDA graphs need a CUDA GPU, but the model is on {device}; leave graph out")
    if bf16 and parameter is not None and parameter.dtype not in (torch.float32, torch.bfloat16):
        fix = "use model.float(), or leave it"
        raise ValueError(f"bf16 converts a float32 network, but this one is {parameter.dtype}; {fix}")
    if bf16 is None:
        bf16 = gains_by_bf16(device, compile) and parameter is not None and parameter.dtype == torch.float32
    return AcceleratedDenoiser(model, device, bf16, compile, on_gpu if graph is None else graph)


def gains_by_bf16(device: torch.device, compiled: bool) -> bool:
    """Whether a device is faster with bfloat16 numbers; torch emulates them on processors without instructions for them.

    With vector units alone, the conversions between the convolutions, which need float32, cost what the convolutions gain,
    unless the network is compiled, which shares them among several operations.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(False)
    checks = ["_is_amx_tile_supported"] + ["_is_avx512_bf16_supported"] * compiled
    return any(getattr(torch.cpu, name, bool)() for name in checks)


class AcceleratedDenoiser(nn.Module):
    """What :func:`accelerate` returns: a denoiser with the attributes `num_classes` and `image_shape` of its model.

    A CUDA graph holds for one shape. Each shape that arrives is captured when it first does, and the last `MOST_GRAPHS` are
    kept, in one pool of memory; what is captured and how often stands in the report. Weights may be loaded, and the whole
    moved or converted, at any time: graphs that read them elsewhere are dropped. Every answer is a fresh tensor of the dtype
    of x, so that a sampler may keep it. Answers carry no gradients, and asking for them is an error. Not for two CUDA streams
    or threads at once, which would share the graph's memory.

    Attributes:
        bf16, compiled, uses_graph: by which means it is faster.
        captures: how many graphs were captured so far.
    """

    MOST_GRAPHS = 4

    def __init__(self, model: nn.Module, device: torch.device, bf16: bool, compile: bool, graph: bool) -> None:
        super().__init__()
        for name in ("num_classes", "image_shape"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.model = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        if bf16:
            # what autocast would do at every call, done once
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)
        if compile:
            self.model.compile()
        self.bf16, self.compiled, self.uses_graph = bf16, compile, graph
        self.captures = 0
        self._graphs: OrderedDict[object, CapturedCall] = OrderedDict()
        self._pool: Any = None
        self._device, self._dtype, self._place = device, torch.float32, 0

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype in which samplers ask, the widest of the weights."""
        self._look_for_weights()
        return self._dtype

    def _look_for_weights(self) -> None:
        """Drop what belongs to weights that have been moved, converted or replaced since the last call."""
        first = next(self.model.parameters(), None)
        if first is None or first.data_ptr() == self._place:
            return
        self._graphs.clear()
        self._device, self._place = first.device, first.data_ptr()
        self._dtype = max((p.dtype for p in self.model.parameters()), key=lambda dtype: dtype.itemsize)

    @property
    def report(self) -> str:
        """What was done to make the model faster, in words."""
        parts = [
            "bfloat16 where autocast allows it, states float32" if self.bf16 else "float32",
            "channels_last",
            "compiled" if self.compiled else "not compiled",
        ]
        if self.uses_graph:
            shapes = ", ".join("×".join(map(str, call.inputs[0].shape)) for call in self._graphs.values())
            parts.append(f"CUDA graph ({self.captures} captured, kept: {shapes or 'none yet'})")
        elif not (self.bf16 or self.compiled):
            parts.append("else as it was" + ("; compile=True is what helps here" if self._device.type == "cpu" else ""))
        return f"{self._device.type}: {', '.join(parts)}"

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("an accelerated denoiser carries no gradients; differentiate through the plain network")
        self._look_for_weights()
        inputs = (x, t) if labels is None else (x, t, labels)
        with torch.no_grad():
            return self.captured(*inputs)(*inputs) if self.uses_graph else self._evaluate(*inputs)

    def captured(self, *inputs: Tensor) -> "CapturedCall":
        """The graph for inputs of these shapes and dtypes, captured now if it is not at hand."""
        if wrong := [x.device for x in inputs if x.device != self._device]:
            raise ValueError(f"the graph runs on {self._device}, but an input is on {wrong[0]}; move it there first")
        key = tuple((x.shape, x.dtype) for x in inputs)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if len(self._graphs) == self.MOST_GRAPHS:
            dropped = f"the oldest of {self.MOST_GRAPHS} graphs is dropped for {tuple(inputs[0].shape)}"
            cost = "capturing costs as much as several evaluations: use few batch sizes"
            warnings.warn(f"{self.captures} shapes were captured, and {dropped}; {cost}", stacklevel=2)
            self._graphs.popitem(last=False)
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        self._graphs[key] = CapturedCall(self._evaluate, inputs, self._pool)
        self.captures += 1
        return self._graphs[key]

    def _evaluate(self, x: Tensor, *rest: Tensor) -> Tensor:
        # autocast keeps no copies of weights: those made while a graph is captured would be gone when it is replayed
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            return self.model(x.to(self._dtype), *rest).to(x.dtype)


class CapturedCall:
    """A function on the GPU, recorded once for fixed memory and replayed with a single launch.

    The graph reads its inputs from, and writes its output to, the same addresses at each replay. So new inputs are copied in,
    and the output is copied out.

    Args:
        function: tensors to one tensor; it must neither wait for the GPU nor depend on the values of the inputs.
        inputs: tensors of the shapes and dtypes to come.
        pool: memory shared with other graphs. One is replayed at a time and its output copied out, so they may overlap.

    Raises:
        RuntimeError: when `function` does something that cannot be recorded.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], pool: Any = None) -> None:
        # ordinary tensors, even when the first call is made in inference mode: later ones may not be
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(inputs[0].device):
            self.inputs = tuple(x.clone() for x in inputs)
            # torch and cuDNN prepare themselves at the first calls, which must not be recorded, on a stream of their own
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    function(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph, pool=pool):
                    self.output = function(*self.inputs)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]  # CUDA adds a page of advice on debugging
                why = "its forward pass waits for the GPU or takes data from the host. Accelerate it with graph=False"
                raise RuntimeError(f"this network cannot be captured in a CUDA graph ({reason}); {why}") from error

    def __call__(self, *inputs: Tensor) -> Tensor:
        for fixed, new in zip(self.inputs, inputs, strict=True):
            fixed.copy_(new)
        self.graph.replay()
        return self.output.clone()
