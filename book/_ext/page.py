"""What every page carries besides its text: a description, tags for those who share it, pictures that come when near."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from docutils import nodes
from PIL import Image
from twins import with_twin

# The theme and its companions bring these to every page; nothing here uses them.
UNUSED = re.compile(r"thebe|design-tabs|_OPTIONS\.(?:pagename|search)", re.IGNORECASE)
IMAGE = re.compile(r'<img\b(?![^>]*\bloading=)([^>]*?\bsrc="(?!data:)([^"]+)"[^>]*)>')
# MyST-NB writes a figure's size as a style, which no style sheet overrules: on a phone it would be squeezed, not scaled.
FIXED_SIZE = re.compile(r' style="width: (\d+)px; height: (\d+)px;"')
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
            if len(kept) + 1 + len(sentence) > limit:
                return kept or sentence[: limit - 1].rsplit(" ", 1)[0] + "…"
            kept = f"{kept} {sentence}".strip()
    return kept


@cache
def paper(path: Path) -> tuple[int, int, bool]:
    """A picture's width, its height, and whether it is drawn on white."""
    with Image.open(path) as image:
        return *image.size, image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def prepare_images(app, body: str) -> str:
    """Say how large a picture is before it is there, so that nothing jumps; fetch all but the first when they come near."""
    sources = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}
    first = True

    def prepared(found: re.Match) -> str:
        nonlocal first
        attributes, name = found[1].rstrip(" /"), found[2].rsplit("/", 1)[-1]
        lazily, first = "" if first else ' loading="lazy"', False
        # Of twins, both lazily: then the one that is not shown is not fetched.
        if pair := with_twin(app, name, f'<img{FIXED_SIZE.sub("", attributes)} loading="lazy" decoding="async">'):
            return pair
        attributes = FIXED_SIZE.sub(r' width="\1" height="\2"', attributes)
        image = f'<img{attributes}{lazily} decoding="async">'
        path = sources.get(name)
        if path and path.suffix in RASTER:
            width, height, white = paper(path)
            if not re.search(r"\b(width|height)=", attributes):
                image = image.replace("<img", f'<img width="{width}" height="{height}"', 1)
            if white:
                image = (
                    image.replace('class="', 'class="paper ')
                    if 'class="' in image
                    else f'<img class="paper"{image[4:]}'
                )
        return image

    return IMAGE.sub(prepared, body)


# Roles that are deprecated, or that what they stand on has not; a name that hides what a fold says is in it; an identifier that
# every box of a kind has; heads of table columns without a word.
MEANINGLESS = re.compile(
    r' role="(?:doc-biblioentry|doc-backlink|list)"|(?<=<summary) aria-label="Toggle hidden content"'
    r'| id="(?:exercise|solution|proof)-content"|(?<=<div class="proof admonition") id="proof"'
)
EMPTY_HEAD = re.compile(r'<th class="head([^"]*)">\s*(?:<p>\s*</p>\s*)?</th>')


# Names in code may be broken between their parts: in the narrow column of a table they would be broken anywhere.
CODE = re.compile(r'(?<=<span class="pre">)[^<]+(?=</span>)')
PART = re.compile(r"(?<=\w[._(=])(?=\w)")


# "Solution to" and the link after it: the space between them is not part of the link.
LATE_SPACE = re.compile(r"(<a\b[^>]*>) ")


def let_code_break(body: str) -> str:
    return CODE.sub(lambda code: PART.sub("<wbr>", code[0]), body)


def mend_for_screen_readers(body: str) -> str:
    body = LATE_SPACE.sub(r" \1", MEANINGLESS.sub("", body))
    return EMPTY_HEAD.sub(r'<td class="head\1"></td>', body)


def on_page(app, pagename, templatename, context, doctree):
    if app.builder.name != "html":
        return
    for kind in ("script_files", "css_files"):
        files = {(str(file.filename), file.attributes.get("body")): file for file in context[kind]}  # each once
        context[kind] = [file for names, file in files.items() if not UNUSED.search(" ".join(map(str, names)))]
    for file in context["script_files"]:
        if doctree is None and not str(file.filename).endswith("book.js"):
            # search and indexes have scripts of their own that run at once, and need Sphinx's
            file.attributes.pop("defer", None)
        elif not file.attributes.get("body"):
            file.attributes["defer"] = "defer"  # no script is waited for
    context["metatags"] = context.get("metatags", "")
    if doctree:
        context["description"] = description(doctree)
        context["body"] = let_code_break(mend_for_screen_readers(prepare_images(app, context["body"])))
    context["default_mode"] = "light"  # of the page as it comes; a script chooses
    context["site_address"] = app.config.html_baseurl
    context["site_path"] = urlsplit(app.config.html_baseurl).path or "/"
    context["root_doc"] = app.config.root_doc


def setup(app):
    app.connect("html-page-context", on_page, priority=900)  # after all that add to a page
    return {"parallel_read_safe": True, "parallel_write_safe": True}
