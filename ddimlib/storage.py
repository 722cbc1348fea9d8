"""Files that are whole or not there: atomic writes, checksums, locks, and errors that name the file."""

import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

_HOST = re.sub(r"[^\w-]", "-", socket.gethostname())
_WRITING: set[str] = set()  # the temporary names of this process
_DAY = 86_400
_MARK = "\nsha256 "  # between facts and checksum: one entry of metadata, as the order of several is left to chance


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that at any moment either the old one or the new one is there in full.

    The bytes go to a temporary name in the same folder, reach the disk, and then take the name of `path`. The temporary name
    holds host, process and a random part, so two writers never share one; what a killed writer left is removed.

    Raises:
        OSError: when the file cannot be written; it names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    _WRITING.add(temporary.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _naming(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _WRITING.discard(temporary.name)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files that writers of `path` left when they were killed; those of living writers stay."""
    for temporary in path.parent.glob(f".{path.name.translate({ord(c): '?' for c in '[]*?'})}.*.tmp"):
        *_, host, pid, _, _ = ["", "", *temporary.name.split(".")]
        with suppress(FileNotFoundError):
            if host == _HOST and pid.isdecimal() and os.name == "posix":
                alive = temporary.name in _WRITING if int(pid) == os.getpid() else _is_alive(int(pid))
            else:  # on another machine of a shared disk nobody can tell, but no write takes a day
                alive = time.time() - temporary.stat().st_mtime < _DAY
            if not alive:
                temporary.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _naming(path: Path, error: OSError) -> OSError:
    """`error` with the name of the file that the user knows."""
    if error.errno is None:
        return OSError(f"{error}: {path}")
    return OSError(error.errno, error.strerror or str(error), str(path))  # the subclass follows from errno


def check_output(path: str | Path, folder: bool = False) -> Path:
    """Raise now what writing to `path` would raise after the work; nothing is left behind.

    Args:
        path: a file that may be there already, or with `folder` a folder.

    Raises:
        OSError: when there is a folder where a file shall be (or the other way round), or no file can be made there.
    """
    if not str(path):
        raise ValueError("the name of the output is empty; give the name of a file or a folder")
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        there, wanted = ("file", "folder") if folder else ("folder", "file")
        raise OSError(f"{path} is a {there}; give the name of a {wanted}")
    place = path if folder else path.parent
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise OSError(f"{path} cannot be written: {place} is not a folder")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise _naming(path, error) from error
    return path


@contextmanager
def locked(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time work on `path`: a lock file `.NAME.lock` beside it, which stays there.

    Raises:
        OSError: without `wait`, when another process holds it.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OSError(f"another process is at work on {path}; wait for its end, or choose another output") from error
    except OSError as error:
        raise _naming(path, error) from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; a ValueError refuses NaN and infinity, which JSON does not know."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    # the name of a file need not be UTF-8; what is not is escaped as JSON does
    write_atomically(path, (text + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a ValueError names a file that is cut off, is no JSON, or holds something else than an object."""
    path = _existing(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole JSON file ({error}); restore it or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, {{...}}, but holds a {type(content).__name__}")
    return content


def digest(tensors: Mapping[str, Tensor], *words: str) -> str:
    """SHA-256 of tensors by name and of some words, hexadecimal."""
    sha = hashlib.sha256("".join(words).encode())
    for name, value in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    return digest(tensors, facts, *(f"{k}{v.dtype}{tuple(v.shape)}" for k, v in sorted(tensors.items())))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able dictionary of facts to one safetensors file with a checksum, atomically."""
    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    text = json.dumps(facts)
    write_atomically(path, save(plain, metadata={"ddimlib": text + _MARK + _checksum(plain, text)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote. Nothing is unpickled.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is truncated or altered, is no safetensors file, or was not written by ddimlib.
    """
    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, safe_open is no dict
        if "ddimlib" not in metadata:
            raise ValueError(f"{path} holds tensors but was not written by ddimlib (its metadata lacks 'ddimlib')")
        text, mark, checksum = metadata["ddimlib"].partition(_MARK)
        facts = json.loads(text)
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        fix = "it was cut off or is of another kind: fetch or make it again"
        raise ValueError(f"{path} is not a whole safetensors file ({error}); {fix}") from error
    if not isinstance(facts, dict) or (mark and checksum != _checksum(tensors, text)):  # ddimlib 0.1 wrote no checksum
        raise ValueError(f"{path} is damaged: its content is not what it was written with; fetch or make it again")
    return tensors, facts


def check_tensors(
    path: str | Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    """Raise ValueError, naming the file and a tensor, unless names, shapes and dtypes are those of `wanted`, and all is finite.

    Args:
        path: the file that `found` was read from.
        found, wanted: what it holds, and what it should hold.
        dtype: that of all floating-point tensors in the file; None: that of `wanted`.
    """
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            raise ValueError(f"{path} {'lacks' if name in wanted else 'has the unknown'} tensor {name}")
        ours, theirs = wanted[name], found[name]
        if ours.shape != theirs.shape:
            raise ValueError(f"the tensor {name} in {path} has shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
        right = dtype if dtype is not None and ours.is_floating_point() else ours.dtype
        if theirs.dtype != right:
            raise ValueError(f"the tensor {name} in {path} has dtype {theirs.dtype}, not {right}")
        if theirs.is_floating_point() and not theirs.isfinite().all():
            raise ValueError(f"the tensor {name} in {path} holds NaN or infinity")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is a folder or a device; give the name of a file")
    return path
