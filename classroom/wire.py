"""What passes between the grader and a student's process: JSON and the bytes of tensors, never a pickle.

Everything that comes from the student's process is hostile until it has been read here: a message is cut off at a size, its
tensors must have the bytes that their shapes ask for, and nothing in it is ever executed.
"""

import json
import math
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGEST = 64 * 2**20
"""Bytes of the longest message that is read."""

MOST = 16 * 2**20
"""Bytes that a student's process may send for one request of the grader's, who turns them into larger lists and texts."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    )
}

Extra = Callable[[Any], Any]
"""How to write, or to read, what only one side knows: functions and networks."""


class WireError(Exception):
    """A message that cannot be written or read."""


class Foreign:
    """Stands for a value that cannot be sent; its type is told."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(f"it is a {self.kind}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"it is a {vars(self).get('kind')}, which has no {name}")

    __getitem__ = __len__ = __iter__ = __sub__ = __rsub__ = __add__ = __mul__ = __lt__ = __gt__ = __float__ = _refuse


def pack(value: Any, extra: Extra, tensors: list[Tensor]) -> Any:
    """`value` as JSON; its tensors are appended to `tensors`, and `extra` writes what is not known here."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else {"foreign": "very large int"}
    if isinstance(value, float):
        return {"float": repr(value)} if not math.isfinite(value) else value
    if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter) and value.layout == torch.strided:
        name = str(value.dtype).removeprefix("torch.")
        if name not in DTYPES:
            return {"foreign": f"tensor of {name}"}
        tensors.append(value.detach().cpu().contiguous())
        return {"tensor": [name, list(value.shape)]}
    if isinstance(value, torch.nn.Parameter):
        return pack(value.detach(), extra, tensors)
    if type(value) is list:
        return [pack(v, extra, tensors) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [pack(v, extra, tensors) for v in value]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": [[k, pack(v, extra, tensors)] for k, v in value.items()]}
    return extra(value)


def unpack(node: Any, extra: Extra, tensors: list[Tensor]) -> Any:
    """The inverse of :func:`pack`; `tensors` are consumed from the front.

    Raises:
        WireError: when the message is not one that :func:`pack` writes.
    """
    if node is None or isinstance(node, bool | str | int | float):
        return node
    if isinstance(node, list):
        return [unpack(v, extra, tensors) for v in node]
    if not (isinstance(node, dict) and len(node) == 1):
        raise WireError("a message of an unknown kind")
    ((kind, content),) = node.items()
    if kind == "tensor":
        if not tensors:
            raise WireError("a tensor is missing")
        return tensors.pop(0)
    if kind == "tuple" and isinstance(content, list):
        return tuple(unpack(v, extra, tensors) for v in content)
    if kind == "dict" and isinstance(content, list):
        return {str(k): unpack(v, extra, tensors) for k, v in content}
    if kind == "float" and content in ("nan", "inf", "-inf"):
        return float(content)
    if kind == "foreign":
        return Foreign(str(content)[:60])
    return extra(node)


def _raw(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _shapes(node: Any, found: list[tuple[str, list[int]]]) -> None:
    """The dtypes and shapes of all tensors in a message, in the order in which they were packed."""
    if isinstance(node, list):
        for v in node:
            _shapes(v, found)
    elif isinstance(node, dict):
        for kind, content in node.items():
            if kind == "tensor":
                found.append((content[0], content[1]))
            elif isinstance(content, list | dict):
                _shapes(content, found)


class Channel:
    """One end of a connection over which messages go both ways.

    Attributes:
        left: how many bytes are still read.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.left: float = math.inf

    def send(self, message: Any, tensors: list[Tensor], deadline: float | None = None) -> None:
        """Send JSON and the tensors that belong to it; errors as in :meth:`receive`."""
        text = json.dumps(message).encode()
        blob = b"".join(map(_raw, tensors))
        if len(text) + len(blob) > LARGEST:
            raise WireError(f"more than {LARGEST >> 20} MB at once")
        self.connection.settimeout(None if deadline is None else max(0.01, deadline - time.monotonic()))
        try:
            self.connection.sendall(struct.pack("!QQ", len(text), len(blob)) + text + blob)
        except ConnectionError as error:
            raise EOFError from error

    def receive(self, deadline: float | None = None) -> tuple[Any, list[Tensor]]:
        """The next message and its tensors.

        Args:
            deadline: on the clock `time.monotonic`; None waits for ever.

        Raises:
            TimeoutError: when it has not come by then.
            EOFError: when the other end is gone.
            WireError: when it is too long or is not well formed.
        """
        lengths = struct.unpack("!QQ", self._exactly(16, deadline))
        self.left -= sum(lengths)
        if sum(lengths) > LARGEST or self.left < 0:
            raise WireError(f"more than {min(LARGEST, MOST) >> 20} MB at once")
        text, blob = self._exactly(lengths[0], deadline), self._exactly(lengths[1], deadline)
        try:
            message = json.loads(text)
            shapes: list[tuple[str, list[int]]] = []
            _shapes(message, shapes)
            tensors, start = [], 0
            for name, shape in shapes:
                if not all(type(n) is int and n >= 0 for n in shape):
                    raise WireError("a tensor with an impossible shape")
                dtype, n = DTYPES[name], math.prod(shape)
                size = n * dtype.itemsize
                piece = blob[start : start + size]
                if len(piece) != size:
                    raise WireError("a tensor whose bytes do not fill its shape")
                flat = torch.frombuffer(bytearray(piece), dtype=torch.uint8) if n else torch.empty(0, dtype=torch.uint8)
                tensors.append((flat != 0 if dtype == torch.bool else flat.view(dtype)).reshape(shape))
                start += size
            return message, tensors
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, RuntimeError) as error:
            raise WireError(f"a malformed message ({type(error).__name__})") from error

    def _exactly(self, n: int, deadline: float | None) -> bytearray:
        data = bytearray()
        while len(data) < n:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self.connection.settimeout(left)
            else:
                self.connection.settimeout(None)
            try:
                piece = self.connection.recv(min(n - len(data), 2**20))
            except ConnectionError as error:
                raise EOFError from error
            if not piece:
                raise EOFError
            data += piece
        return data
