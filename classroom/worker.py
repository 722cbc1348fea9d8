"""What runs in isolation: first one process that imports PyTorch, then a copy of it for each submission.

The first one waits on a file descriptor for orders to start a copy, and is handed, with each, one end of a connection. The
copy isolates itself, then runs cells and calls functions as it is told over that connection. It holds no checks, no
solutions and no grades, so nothing in here has to be defended against the code that it runs.
"""

import array
import contextlib
import importlib
import importlib.abc
import json
import os
import signal
import socket
import sys
import traceback
import types
from typing import Any

import torch
from torch import nn

from classroom.isolation import end, isolate
from classroom.wire import Channel, WireError, pack, unpack


class Worker:
    """Runs the cells of one submission, and calls its functions with what the grader sends."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module  # where classes that the cells define say that they are from
        self.names: dict[str, Any] = module.__dict__
        self.names["__name__"] = "__main__"
        self.networks: list[nn.Module] = []
        self.replaced: dict[str, Any] = {}
        self.lent: list[Any] = []  # functions of the student's that the grader may call while it answers a question

    def serve(self) -> None:
        """Obey until the grader hangs up."""
        while True:
            try:
                message, tensors = self.channel.receive()
            except EOFError:
                return
            self.networks, self.lent = [], []
            self.reply_to(message, tensors)

    def reply_to(self, message: Any, tensors: list[torch.Tensor]) -> None:
        """Do what one message asks for, and send the outcome."""
        sent: list[torch.Tensor] = []
        try:
            reply = {"ok": pack(self.obey(message, tensors), self.write, sent)}
            reply["networks"] = [pack(dict(network.state_dict()), self.write, sent) for network in self.networks]
        except BaseException as error:  # SystemExit, too, is an answer of the student's code
            sent, reply = [], {"error": described(error)}
        try:
            self.channel.send(reply, sent)
        except WireError as error:
            self.channel.send({"error": {"type": "ValueError", "text": f"the answer is too large: {error}"}}, [])

    def obey(self, message: Any, tensors: list[torch.Tensor]) -> Any:
        if message["do"] == "run":
            exec(compile(message["source"], message["name"], "exec"), self.names)
            return sorted(name for name in self.names if not name.startswith("_"))
        if message["do"] == "set":
            name = message["name"]
            self.replaced.setdefault(name, self.names.get(name))
            self.names[name] = unpack(message["value"], self.read, tensors)
            return None
        if message["do"] == "restore":
            name = message["name"]
            if name in self.replaced:
                self.names[name] = self.replaced.pop(name)
            return None
        if message["do"] == "get":
            return self.names[message["name"]]
        function = self.lent[message["number"]] if message["do"] == "back" else self.names[message["name"]]
        arguments = [unpack(a, self.read, tensors) for a in message["args"]]
        return function(*arguments, **{k: unpack(v, self.read, tensors) for k, v in message["kwargs"].items()})

    def read(self, node: Any) -> Any:
        """A function of the grader's becomes one that asks it; a network is built from the class of the same name here."""
        ((kind, content),) = node.items()
        if kind == "function":
            return Theirs(self, content)
        network = self.names[content["class"]](*content["args"])
        network.load_state_dict({k: torch.tensor(v[1]).reshape(v[0]) for k, v in content["state"]})
        self.networks.append(network)
        return network

    def write(self, value: Any) -> Any:
        return {"foreign": f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")}

    def lend(self, value: Any) -> Any:
        """A function in an argument: the grader's own goes back as what it is, another may be called from there."""
        if isinstance(value, Theirs):
            return {"function": value.number}
        if not callable(value):
            return self.write(value)
        self.lent.append(value)
        return {"lent": len(self.lent) - 1}

    def ask(self, number: int, args: Any, kwargs: Any) -> Any:
        """Call a function of the grader's."""
        sent: list[torch.Tensor] = []
        question = {"ask": number, "args": [pack(a, self.lend, sent) for a in args],
                    "kwargs": {k: pack(v, self.lend, sent) for k, v in kwargs.items()}}  # fmt: skip
        self.channel.send(question, sent)
        reply, tensors = self.channel.receive()
        while "do" in reply:  # the grader calls a function that was lent to it, before it answers
            self.reply_to(reply, tensors)
            reply, tensors = self.channel.receive()
        if "error" in reply:
            raise RuntimeError(reply["error"]["text"])
        return unpack(reply["ok"], self.read, tensors)


class Theirs:
    """A function of the grader's, to be called from here."""

    def __init__(self, worker: Worker, number: int) -> None:
        self.worker, self.number = worker, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.worker.ask(self.number, args, kwargs)


class Blocked(importlib.abc.MetaPathFinder):
    """Refuses packages that would be an answer key, also where their folders cannot be hidden."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}: it is not there while your work is graded", name=name)


def described(error: BaseException) -> dict[str, str]:
    """An exception as text: its type, its message, and the line of the notebook that it came from."""
    line = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith("cell "):
            line = f"{frame.filename}, line {frame.lineno}"
    if isinstance(error, SyntaxError):
        line = f"{error.filename}, line {error.lineno}"
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)  # str would tell the line again
    except Exception:
        text = "(its message cannot be printed)"
    return {"type": type(error).__name__[:60], "text": text[:600], "line": line[:100]}


def start(order: dict[str, Any], connection: socket.socket) -> None:
    """In a fresh copy of this process: isolate it, say how well that went, and serve the connection. Does not return."""
    try:
        level = isolate(order["visible"], order["hidden"], order["folder"], order["uid"], order["strongest"])
        for descriptor in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        for descriptor in range(3, 256):
            if descriptor != connection.fileno():
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.meta_path.insert(0, Blocked(order["blocked"]))
        channel = Channel(connection)
        channel.send({"level": level}, [])
        Worker(channel).serve()
    except BaseException:
        pass
    finally:
        os._exit(0)


def _warm_up() -> None:
    """Import now, once, what PyTorch and students' cells would import at their first use, for seconds in every copy."""
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    torch.optim.Adam([weight]).step()
    with contextlib.suppress(ImportError):
        importlib.import_module("matplotlib.pyplot")


def serve(descriptor: int) -> None:
    """The process that is copied. It ends, with all copies, when the grader does."""
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the grader's to handle
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # copies that ended leave nothing behind
    torch.set_num_threads(1)
    _warm_up()
    control.sendall(b"ready")
    copies: set[int] = set()
    while True:
        text, ancillary, _, _ = control.recvmsg(2**16, socket.CMSG_SPACE(4))
        if not text:
            break
        while not text.endswith(b"\n"):
            text += control.recv(2**16)
        descriptors = array.array("i")
        for _, kind, data in ancillary:
            if kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[:4])
        connection = socket.socket(fileno=descriptors[0])
        copy = os.fork()
        if copy == 0:
            os.setsid()
            control.close()
            start(json.loads(text), connection)
        connection.close()
        copies.add(copy)
        control.sendall(str(copy).encode())
    for copy in copies:
        end(copy)
    os._exit(0)  # at once: the grader waits for it, and PyTorch takes seconds to be taken down
