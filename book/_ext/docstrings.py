"""Docstrings are written as plain text with `code` in backticks; make Sphinx read them so."""

import re


def as_plain_text(app, what, name, obj, options, lines):
    # A star that touches a word would open emphasis, as in [B, *shape]. Bullets and code are left alone.
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = re.sub(r"(`[^`]*`)|\*(?=\S)", lambda found: found[1] or r"\*", line)
    # Napoleon would read an attribute's "How much noise: η" as type and description; it looks in the first line only.
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def setup(app):
    app.connect("autodoc-process-docstring", as_plain_text, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
