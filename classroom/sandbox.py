"""The grader's end: processes that run a student's code in isolation, asked and stopped from here."""

import functools
import json
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classroom.isolation import LEVELS, end
from classroom.wire import MOST, Channel, Foreign, WireError, pack, unpack

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("arguments.py", "data.py", "torch_defaults.py", "unet.py", "problem_sets.py")
"""Files of ddimlib that a student's code may use while it is graded: images, a network, and the printing of differences."""

ANSWER_KEYS = (
    "diffusers",
    "denoising_diffusion_pytorch",
    "k_diffusion",
    "onnxruntime",
    "ddimlib",
    "classroom",
    "nbgrader",
)
"""Packages that hold what a student is to write, or how it is graded; their folders are empty in there."""

_FACE = '''"""The part of the library that is there while work is graded."""

from ddimlib.data import bundled_sample
from ddimlib.unet import UNet


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(f"ddimlib.{name} is not there while your work is graded: what it does is what you are asked to write")
'''
_NO_PICTURES = '''"""Pictures are not drawn while work is graded."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *args, **kwargs: None
'''


class StudentError(Exception):
    """The student's code raised an exception; says which and where."""

    def __init__(self, kind: str, text: str, line: str = "") -> None:
        self.kind, self.text, self.line = kind, text, line
        super().__init__(f"{kind}: {text}" + (f" ({line})" if line else ""))


class Stopped(Exception):
    """The student's process is gone; says why."""


class Sandbox:
    """Starts isolated processes, quickly: each is a copy of one that has PyTorch in memory already.

    Args:
        strongest: the level of isolation to try first, see :data:`classroom.isolation.LEVELS`.

    Attributes:
        level: the level that this machine gives; no process gets less.
    """

    def __init__(self, strongest: str = "namespaces") -> None:
        self.strongest = strongest
        self.folder = Path(tempfile.mkdtemp(prefix="grading-"))
        self.folder.chmod(0o711)
        library = self.folder / "library"
        _write_library(library)
        self.packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        self.visible = [sys.base_prefix, *self.packages, str(library)]
        self.hidden = [f"{folder}/{name}" for folder in self.packages for name in ANSWER_KEYS]
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        path = [str(library), *self.packages]
        # -S: no .pth files, by which an editable install would show the project
        code = f"import sys; sys.path += {path!r}; from classroom.worker import serve; serve({theirs.fileno()})"
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/home/student", "LANG": "C.UTF-8", "MPLBACKEND": "Agg",
                       "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLCONFIGDIR": "/tmp",
                       "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": "/tmp"}  # fmt: skip
        self.server = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            env=environment,
            cwd=self.folder,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        theirs.close()
        self.lock = threading.Lock()
        self.uids = iter(range(61000 + secrets.randbelow(400), 10**9))
        if not self.control.recv(16):
            assert self.server.stderr
            raise RuntimeError(
                f"the process for students' code did not start: {self.server.stderr.read().decode()[-500:]}"
            )
        self.level = list(LEVELS)[-1]  # accepted from the probe; afterwards nothing weaker is than the probe had
        probe = Process(self)
        self.level = probe.level
        probe.stop()

    def order(self) -> tuple[Channel, int, Path]:
        """Start a copy; its connection, its process number and its folder."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        home = Path(tempfile.mkdtemp(dir=self.folder))
        with self.lock:
            text = {
                "visible": self.visible,
                "hidden": self.hidden,
                "blocked": [name for name in ANSWER_KEYS if name not in ("ddimlib", "classroom")],
                "folder": str(home),
                "uid": next(self.uids),
                "strongest": self.strongest,
            }
            socket.send_fds(self.control, [json.dumps(text).encode() + b"\n"], [theirs.fileno()])
            theirs.close()
            number = int(self.control.recv(32) or 0)
        if not number:
            raise RuntimeError("the process that starts students' code is gone")
        return Channel(mine), number, home

    def close(self) -> None:
        """End every process that was started, and remove the folders."""
        self.control.close()
        try:
            self.server.wait(5)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        if self.server.stderr:
            self.server.stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Process:
    """One isolated process: runs cells, and calls functions that these define.

    Args:
        sandbox: where it is started.
        seconds: the longest that one request may take.

    Attributes:
        withheld: functions of the grader's that it has been given, but may not ask now.
    """

    def __init__(self, sandbox: Sandbox, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.channel, self.number, self.home = sandbox.order()
        self.functions: list[Callable[..., Any]] = []
        self.withheld: list[Callable[..., Any]] = []
        self.networks: list[nn.Module] = []
        self.dead: str | None = None
        self.deadline: float | None = None
        self.level = str(self._answer_to(None, [])["level"])
        order = list(LEVELS)
        if order.index(self.level) > order.index(sandbox.level):  # the machine ran out of namespaces, say
            self.stop()
            raise RuntimeError(f"only isolation {self.level!r} was to be had, not {sandbox.level!r}")

    def run(self, source: str, name: str) -> list[str]:
        """Run a cell; the names that are defined then."""
        return self._request({"do": "run", "source": source, "name": name}, [])

    def set(self, name: str, function: Callable[..., Any]) -> None:
        """Let `name` be a function of the grader's, over there; its code stays here."""
        tensors: list[Tensor] = []
        self._request({"do": "set", "name": name, "value": pack(function, self._write, tensors)}, tensors)

    def restore(self, name: str) -> None:
        """Let `name` be the student's again."""
        self._request({"do": "restore", "name": name}, [])

    def get(self, name: str) -> Any:
        """The value of a name."""
        return self._request({"do": "get", "name": name}, [])

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function with tensors, numbers, lists, functions of the grader's and networks.

        A network that is passed comes back as it was left: with the weights that it has over there after the call.

        Raises:
            StudentError: what the function raised.
            Stopped: when the process ended, or did not answer in time.
        """
        tensors: list[Tensor] = []
        self.networks = []
        message = {"do": "call", "name": name, "args": [pack(a, self._write, tensors) for a in args],
                   "kwargs": {k: pack(v, self._write, tensors) for k, v in kwargs.items()}}  # fmt: skip
        return self._request(message, tensors)

    def stop(self) -> None:
        """End the process and everything that it has started."""
        self.dead = self.dead or "it was stopped"
        end(self.number)
        self.channel.connection.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _request(self, message: Any, tensors: list[Tensor]) -> Any:
        if self.dead:
            raise Stopped(self.dead)
        if message["do"] != "call":
            self.networks = []
        reply, answer = self._answer_to(message, tensors), None
        try:
            if "error" in reply:
                error = reply["error"]
                raise StudentError(str(error["type"])[:60], str(error["text"])[:600], str(error.get("line", ""))[:100])
            answer = unpack(reply["ok"], self._read, self._received)
            for network, state in zip(self.networks, reply["networks"], strict=True):
                network.load_state_dict(unpack(state, self._read, self._received))
        except (WireError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
            self._die(f"it sent an answer that cannot be read ({error})", error)
        return answer

    def _answer_to(self, message: Any, tensors: list[Tensor]) -> Any:
        """Send a request, unless it is None, and wait for the answer; reply to what the other side asks on the way."""
        outermost = self.deadline is None
        deadline = self.deadline = self.deadline or time.monotonic() + self.seconds
        if outermost:
            self.channel.left = MOST
        try:
            if message is not None:
                self.channel.send(message, tensors, deadline)
            while True:
                reply, self._received = self.channel.receive(deadline)
                if not isinstance(reply, dict):
                    raise WireError("not an answer")
                if "ask" not in reply:
                    return reply
                self._reply(reply, deadline)
        except TimeoutError as error:
            self._die(f"it took longer than {self.seconds:g} seconds", error)
        except EOFError as error:
            self._die("its process ended: by os._exit, for want of memory, or at a limit of its time", error)
        except (WireError, KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            self._die(f"it sent an answer that cannot be read ({error})", error)
        finally:
            if outermost:
                self.deadline = None

    def _reply(self, question: dict[str, Any], deadline: float) -> None:
        function = self.functions[int(question["ask"])]
        tensors: list[Tensor] = []
        try:
            if function in self.withheld:
                raise StudentError("PermissionError", "this is what you are asked to write")
            args = [unpack(a, self._read, self._received) for a in question["args"]]
            kwargs = {str(k): unpack(v, self._read, self._received) for k, v in question["kwargs"].items()}
            with torch.no_grad():
                reply = {"ok": pack(function(*args, **kwargs), self._write, tensors)}
        except WireError:
            raise
        except Exception as error:  # Stopped, too: then the reference was asked for more than it could do
            if self.dead:
                raise Stopped(self.dead) from error
            tensors, reply = [], {"error": {"text": f"{type(error).__name__}: {error}"[:300]}}
        self.channel.send(reply, tensors, deadline)

    def _die(self, reason: str, cause: Exception) -> None:
        self.dead = reason
        self.stop()
        raise Stopped(reason) from cause

    def _write(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            self.networks.append(value)
            state = [[k, [list(v.shape), v.flatten().tolist()]] for k, v in value.state_dict().items()]
            return {
                "network": {
                    "class": type(value).__name__,
                    "args": list(getattr(value, "arguments", ())),
                    "state": state,
                }
            }
        if callable(value):
            if value not in self.functions:
                self.functions.append(value)
            return {"function": self.functions.index(value)}
        raise WireError(f"a check passes a {type(value).__name__}, which cannot be sent")

    def _read(self, node: Any) -> Any:
        ((kind, content),) = node.items()
        if kind == "function":
            return self.functions[int(content)]
        if kind == "lent":
            return functools.partial(self._call_back, int(content))
        return Foreign(str(kind)[:60])

    def _call_back(self, number: int, *args: Any, **kwargs: Any) -> Any:
        """Call a function that the student's code passed to one of the grader's."""
        tensors: list[Tensor] = []
        message = {"do": "back", "number": number, "args": [pack(a, self._write, tensors) for a in args],
                   "kwargs": {k: pack(v, self._write, tensors) for k, v in kwargs.items()}}  # fmt: skip
        reply = self._answer_to(message, tensors)
        if "error" in reply:
            raise StudentError(str(reply["error"]["type"])[:60], str(reply["error"]["text"])[:600])
        return unpack(reply["ok"], self._read, self._received)


def _write_library(folder: Path) -> None:
    """The ddimlib of a student's process, and the code that serves it."""
    library = folder / "ddimlib"
    (library / "pretrained").mkdir(parents=True)
    for name in KEPT:
        if (ROOT / "ddimlib" / name).exists():
            shutil.copy(ROOT / "ddimlib" / name, library)
    for path in (ROOT / "ddimlib" / "pretrained").glob("*-sample.npz"):
        shutil.copy(path, library / "pretrained")
    (library / "__init__.py").write_text(_FACE)
    (library / "plotting.py").write_text(_NO_PICTURES)
    (folder / "classroom").mkdir()
    (folder / "classroom" / "__init__.py").write_text("")
    for name in ("wire.py", "isolation.py", "worker.py"):
        shutil.copy(ROOT / "classroom" / name, folder / "classroom")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
