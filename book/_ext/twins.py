"""Figures for dark pages: `tools/twin.py` leaves one in the metadata of an output; the page shows the one that suits it."""

import base64
import hashlib
import json
from pathlib import Path


def find_twins(app):
    """Every twin of every notebook, by the name under which MyST-NB will store the light picture."""
    app.twins = {}
    for name in app.env.found_docs:
        path = Path(app.env.doc2path(name))
        if path.suffix != ".ipynb":
            continue
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                about = output.get("metadata", {}).get("image/png", {})
                if "dark" in about:
                    data = base64.b64decode("".join(output["data"]["image/png"]))
                    app.twins[f"{hashlib.sha256(data).hexdigest()}.png"] = about


def with_twin(app, name: str, image: str) -> str | None:
    """Two <img> for one, when the picture called `name` has a twin; `image` is the light one's, without its size."""
    if not (about := app.twins.get(name)):
        return None
    dark = "-dark.".join(name.rsplit(".", 1))
    target = Path(app.outdir, app.builder.imagedir, dark)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(base64.b64decode(about["dark"]))
    size = f'width="{about["width"]}" height="{about["height"]}"'
    light = image.replace("<img", f'<img class="only-light" {size}', 1)
    return light + light.replace("only-light", "only-dark").replace(name, dark)


def setup(app):
    app.connect("env-before-read-docs", lambda app, env, names: find_twins(app))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
