"""Files that are whole or not there: atomic writes, and safetensors in and out with clear errors."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that at any moment either the old one or the new one is there in full.

    The bytes go to a temporary name in the same folder, reach the disk, and then take the name of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able dictionary of facts to one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata={"ddimlib": json.dumps(facts)}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote. Nothing is unpickled.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is truncated, is no safetensors file, or was not written by ddimlib.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, safe_open is no dict
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); it was cut off or is of another kind: fetch or make it again"
        ) from error
    if "ddimlib" not in metadata:
        raise ValueError(f"{path} holds tensors but was not written by ddimlib (its metadata lacks 'ddimlib')")
    return tensors, json.loads(metadata["ddimlib"])
