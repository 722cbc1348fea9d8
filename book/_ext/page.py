"""What every page carries besides its text: a description, tags for those who share it, pictures that load when they are near."""

import re
from functools import cache
from pathlib import Path

from docutils import nodes
from PIL import Image

# The theme and its companions bring these to every page; nothing here uses them.
UNUSED = re.compile(r"thebe|design-tabs", re.IGNORECASE)
IMAGE = re.compile(r'<img\b(?![^>]*\bloading=)([^>]*?\bsrc="(?!data:)([^"]+)"[^>]*)>')
RASTER = {".png", ".jpg", ".jpeg", ".webp"}
SENTENCE = re.compile(r"(?<=[.?!])\s+")


def description(doctree: nodes.document, limit: int = 200) -> str:
    """The first whole sentences of a page, up to `limit` characters; those with a formula in them are left out."""
    kept, paragraphs = "", (p for p in doctree.findall(nodes.paragraph) if isinstance(p.parent, nodes.section))
    for paragraph in paragraphs:
        text = "".join(
            "\0" if isinstance(leaf.parent, nodes.math) else leaf.astext() for leaf in paragraph.findall(nodes.Text)
        )
        for sentence in SENTENCE.split(" ".join(text.split())):
            if "\0" in sentence or "[" in sentence:
                continue
            if len(kept) + len(sentence) > limit:
                return kept or sentence[: limit - 1].rsplit(" ", 1)[0] + "…"
            kept = f"{kept} {sentence}".strip()
    return kept


@cache
def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def prepare_images(body: str, sources: dict[str, Path]) -> str:
    """Say how large a picture is before it is there, so that nothing jumps, and fetch all but the first when they come near."""
    first = True

    def prepared(found: re.Match) -> str:
        nonlocal first
        attributes, path = found[1], sources.get(found[2].rsplit("/", 1)[-1])
        if path and path.suffix in RASTER and not re.search(r"\b(width|height)[=:]", attributes):
            attributes += ' width="{}" height="{}"'.format(*size(path))
        lazily, first = "" if first else ' loading="lazy"', False
        return f'<img{attributes.rstrip(" /")}{lazily} decoding="async">'

    return IMAGE.sub(prepared, body)


def on_page(app, pagename, templatename, context, doctree):
    if app.builder.format != "html":
        return
    for kind in ("script_files", "css_files"):
        files = {(str(file.filename), file.attributes.get("body")): file for file in context[kind]}  # each once
        context[kind] = [file for names, file in files.items() if not UNUSED.search(" ".join(map(str, names)))]
    context["metatags"] = context.get("metatags", "")
    if doctree:
        context["description"] = description(doctree)
        sources = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}
        context["body"] = prepare_images(context["body"], sources)


def setup(app):
    app.connect("html-page-context", on_page, priority=900)  # after all that add to a page
    return {"parallel_read_safe": True, "parallel_write_safe": True}
