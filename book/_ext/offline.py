"""The site works with no network: a page that would fetch anything from another origin fails the build."""

import re
from pathlib import Path

from sphinx.errors import ExtensionError

ELSEWHERE = r"""=["']?(?:https?:)?//[^\s"'>]+"""
FETCHED = re.compile(rf"<(?:script|img|iframe|source|video)\b[^>]*?\bsrc{ELSEWHERE}"
                     rf"|<link\b[^>]*?\brel=[\"']?(?:stylesheet|preload)[^>]*?\bhref{ELSEWHERE}")  # fmt: skip


def refuse_other_origins(app, error):
    if error or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        if found := FETCHED.search(page.read_text(encoding="utf-8")):
            raise ExtensionError(f"{page.relative_to(app.outdir)} would fetch from another origin: {found.group()}")


def setup(app):
    app.connect("build-finished", refuse_other_origins)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
