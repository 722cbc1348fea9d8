"""The site works with no network: it brings its own MathJax, and a page that would fetch anything else fails the build."""

import re
import shutil
from importlib.metadata import files
from pathlib import Path

from sphinx.errors import ExtensionError

SCRIPT = "tex-svg-full.js"  # all of TeX, glyphs as SVG paths: one file, no fonts
FETCHED = re.compile(r"""<(?:script|img|iframe|source|video)\b[^>]*?\bsrc=["']?(?:https?:)?//[^\s"'>]+"""
                     r"""|<link\b[^>]*?\brel=["']?stylesheet[^>]*?\bhref=["']?(?:https?:)?//[^\s"'>]+""")  # fmt: skip


def use_local_mathjax(app, config):
    config.mathjax_path = f"mathjax/{SCRIPT}"


def copy_mathjax(app, error):
    """Copied at the end, not through html_static_path: the theme would put every script found there into every page."""
    if error or app.builder.format != "html":
        return
    source = next(file for file in files("sphinx-mathjax-offline") if file.name == SCRIPT)
    target = Path(app.outdir, "_static", "mathjax", SCRIPT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source.locate(), target)


def refuse_other_origins(app, error):
    if error or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        if found := FETCHED.search(page.read_text(encoding="utf-8")):
            raise ExtensionError(f"{page.relative_to(app.outdir)} would fetch from another origin: {found.group()}")


def setup(app):
    app.connect("config-inited", use_local_mathjax)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", refuse_other_origins)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
