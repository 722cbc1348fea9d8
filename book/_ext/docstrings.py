"""Docstrings are written as plain text with `code` in backticks, and use ddimlib's short names; make Sphinx read them so."""

import re

import ddimlib


def as_plain_text(app, what, name, obj, options, lines):
    # A star that touches a word would open emphasis, as in [B, *shape]. Bullets and code are left alone.
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = re.sub(r"(`[^`]*`)|\*(?=\S)", lambda found: found[1] or r"\*", line)
    # Napoleon would read an attribute's "How much noise: η" as type and description; it looks in the first line only.
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def resolve_short_name(app, env, node, contnode):
    """ddimlib.sample stands in ddimlib.samplers: link to it there."""
    package, _, name = node.get("reftarget", "").partition(".")
    found = getattr(ddimlib, name, None) if package == "ddimlib" else None
    if node.get("refdomain") != "py" or not hasattr(found, "__qualname__"):
        return None
    target = f"{found.__module__}.{found.__qualname__}"
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, contnode)


def setup(app):
    app.connect("autodoc-process-docstring", as_plain_text, priority=400)  # before napoleon, at 500
    app.connect("missing-reference", resolve_short_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
