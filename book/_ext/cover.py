"""{chapter-cards}: a card a chapter, made from the chapter itself: number, first picture and its twin, question, time."""

import base64
import io
import json
import os
import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from PIL import Image
from sphinx.addnodes import pending_xref
from sphinx.util.docutils import SphinxDirective

CHAPTER = re.compile(r"book/(\d\d)-[\w-]+")
WIDTH = 520  # of a thumbnail, in pixels


def facts(cells: list[dict]) -> dict[str, object]:
    """What a chapter's cells say: its question, its reading time in words, first picture and its dark twin (PNG or None)."""
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    asked = re.search(r"^# .+\n+(?:\*\*)?([^\n?]+(?:\n[^\n?]+)*\?)", text)
    time = re.search(r"\*\*Time:\*\*\s*((?:about |under |over )?(?:an hour|half an hour|\d+ minutes))", text)
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    drawn = next((output for output in outputs if "image/png" in output.get("data", {})), None)
    light, dark = (drawn["data"]["image/png"], drawn["metadata"]["image/png"].get("dark")) if drawn else (None, None)
    return {
        "question": " ".join(asked[1].replace("**", "").split()) if asked else "",
        "time": time[1] if time else "",
        "picture": base64.b64decode("".join(light)) if light else None,
        "dark": base64.b64decode("".join(dark)) if dark else None,
    }


class ChapterCards(SphinxDirective):
    def run(self):
        cards = nodes.bullet_list(classes=["chapter-cards"])
        for name in sorted(filter(CHAPTER.fullmatch, self.env.found_docs)):
            path = self.env.doc2path(name)
            self.env.note_dependency(path)
            cards += self.card(name, facts(json.loads(Path(path).read_text(encoding="utf-8"))["cells"]))
        return [cards]

    def card(self, name: str, about: dict) -> nodes.list_item:
        number = int(CHAPTER.fullmatch(name)[1])
        card, text = nodes.list_item(), nodes.container(classes=["text"])
        if about["picture"]:
            card += nodes.container(
                "",
                nodes.image(uri=self.thumbnail(number, about["picture"], about["dark"]), alt=""),
                classes=["thumbnail"],
            )
        link = pending_xref(
            "", nodes.inline(), refdomain="std", reftype="doc", reftarget=f"/{name}", refexplicit=False, refwarn=True
        )
        link["refdoc"] = self.env.docname
        text += nodes.paragraph("", f"Chapter {number}", classes=["number"])
        text += nodes.paragraph("", "", link)
        question = nodes.container(classes=["question"])
        self.state.nested_parse(StringList([about["question"]]), 0, question)
        text += question
        if about["time"]:
            text += nodes.paragraph("", f"{about['time'].capitalize()} to read", classes=["minutes"])
        card += text
        return card

    def thumbnail(self, number: int, png: bytes, dark: bytes | None) -> str:
        """Store a picture small, and make known its twin (twins.py); returns its address as seen from the source folder."""
        app, target = self.env.app, Path(self.env.app.outdir).parent / "thumbnails" / f"chapter-{number:02}.webp"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(small(png))
        if dark:
            width, height = Image.open(target).size
            twin = base64.b64encode(small(dark)).decode("ascii")
            app.twins[target.name] = {"dark": twin, "width": width, "height": height}
        return "/" + Path(os.path.relpath(target, self.env.srcdir)).as_posix()


def small(png: bytes) -> bytes:
    """The upper left of a picture as a thumbnail (WebP)."""
    image, file = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    image = image.crop((0, 0, image.width, min(image.height, round(image.width * 0.55))))
    image.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    image.save(file, "webp", quality=80, method=6)
    return file.getvalue()


def setup(app):
    app.add_directive("chapter-cards", ChapterCards)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
