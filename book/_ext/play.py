"""The directive {play}: a small figure to play with, drawn beforehand by tools/play.py.

    ```{play} steps
    :name: fig-few-steps-play
    :alt: what the still picture shows, for a person who cannot see it

    The caption.
    ```

It is a figure like any other, with a number and a caption. Its picture is the still one; where scripts run,
book/_static/play puts sliders under it when the reader comes near. Nothing is fetched but the strip of frames, and it works
from the disk, too.
"""

import html
import json
from pathlib import Path

from docutils import nodes
from sphinx.directives.patches import Figure  # docutils' own gives :name: to the image

STATIC = Path(__file__).resolve().parents[1] / "_static" / "play"


class Play(Figure):
    """{play} NAME, with the options of {figure}; the caption is the content, and :alt: is not optional."""

    def run(self):
        name = self.arguments[0]
        known = sorted(file.stem for file in STATIC.glob("*.json"))
        if name not in known:
            raise self.error(f"there is no figure {name!r} to play with; there are {', '.join(known)} (tools/play.py)")
        if not self.options.get("alt"):
            raise self.error(f"{{play}} {name} needs :alt:, what the picture shows to a person who cannot see it")
        self.arguments[0] = f"/book/_static/play/{name}.png"  # from the top of the sources
        self.options.setdefault("figclass", []).append("play")
        (figure, *messages) = super().run()
        facts = json.loads((STATIC / f"{name}.json").read_text(encoding="utf-8"))
        facts = {key: facts[key] for key in ("frame", "sliders", "remarks")}
        text = html.escape(json.dumps(facts, ensure_ascii=False, separators=(",", ":")))
        hook = f'<div class="play-controls" data-strip="{name}.webp" data-facts="{text}"></div>'
        figure.insert(1, nodes.raw("", hook, format="html"))
        return [figure, *messages]


def add_script(app, pagename, templatename, context, doctree):
    """Only on pages that have such a figure."""
    if doctree is not None and any("play" in figure["classes"] for figure in doctree.findall(nodes.figure)):
        app.add_css_file("play/play.css")
        # .mjs because the theme would put every .js of _static into every page; no module, which could not run from the disk
        app.add_js_file("play/play.mjs", loading_method="defer")


def setup(app):
    app.add_directive("play", Play)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
