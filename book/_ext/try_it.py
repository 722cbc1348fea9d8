"""What the page "Try it" runs on: the shipped networks as ONNX files, and onnxruntime-web from npm, at the locked version.

The ONNX files are made once and kept in .cache/try, as long as what they are made from stays the same. Where something cannot
be had, the site is built without it, with a warning, and the page keeps its still pictures.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from npm import package
from sphinx.errors import ExtensionError
from sphinx.util import logging

from ddimlib import export
from ddimlib.data import CLASS_NAMES
from ddimlib.pretrained import PRETRAINED, load_pretrained

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "try"
NETWORKS = ["mnist", "fashion"]
RUNTIME = ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"]  # one thread, no WebGPU


def cached(name: str, sources: list[Path], versions: list[str], make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, filled by `make` unless it was made from just these files and versions."""
    digest = hashlib.sha256(" ".join(versions).encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{name}-*"):
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
            make(Path(unfinished) / "files")
            Path(unfinished, "files").rename(folder)
    return folder


def runtime() -> list[Path]:
    """onnxruntime-web's files."""
    return [package("onnxruntime-web") / "dist" / name for name in RUNTIME]


def network(name: str) -> Path:
    """One shipped network as an ONNX file, and what the sampler has to know about it."""
    library = [ROOT / "ddimlib" / f"{module}.py" for module in ("export", "denoisers", "unet", "schedule")]
    versions = [version(package) for package in ("torch", "onnx", "onnxscript")]

    def make(folder: Path) -> None:
        folder.mkdir()
        model, schedule = load_pretrained(name)
        export.export_onnx(model, folder / f"{name}.onnx")
        facts = {"betas": schedule.beta[1:].tolist(), "classes": CLASS_NAMES[name], "image_shape": model.image_shape}
        (folder / f"{name}.json").write_text(json.dumps(facts))

    return cached(name, [PRETRAINED / f"{name}.safetensors", *library], versions, make)


def bring(app, error):
    """Copied at the end, not through html_static_path, so that the repository never holds them."""
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir, "_static", "try", "engine")
    target.mkdir(parents=True, exist_ok=True)
    try:
        files = [*runtime(), *(file for name in NETWORKS for file in network(name).iterdir())]
    except (OSError, ExtensionError) as reason:
        logging.getLogger(__name__).warning("the page Try it has only still pictures: %s", reason)
        return
    for file in files:
        shutil.copy(file, target)
    sizes = {file.name: file.stat().st_size for file in files}
    (target / "sizes.json").write_text(json.dumps(sizes))


def setup(app):
    app.connect("build-finished", bring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
