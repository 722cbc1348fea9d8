"""Formulas are set when the book is built, by KaTeX: a page needs no script to show them, and they are there with the text.

Each is HTML for the eye and MathML for screen readers. A formula that KaTeX cannot read is a warning with its place.
"""

import json
import re
import shutil
import subprocess
from functools import cache
from html import escape
from pathlib import Path

from docutils import nodes
from npm import package, program
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

SCRIPT = Path(__file__).with_suffix(".mjs")
MATHML = re.compile(r"<math.*?</math>", re.DOTALL)
SOURCE = re.compile(r"<annotation.*?</annotation>", re.DOTALL)  # the TeX, which search would show and nobody reads
BASE = '<span class="katex-base">'
SHORT = 12  # letters of TeX up to which a formula in the text is not broken: "S = 1"
CLINGS_BEFORE, CLINGS_AFTER = re.compile(r"[(\[“‘—–-]$"), re.compile(r"^[.,;:!?)\]”’…—–-]")

logger = logging.getLogger(__name__)


@cache
def renderer():
    """A Node process that answers line by line; it ends with the build."""
    package("katex")
    return subprocess.Popen(
        [program("node"), str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )


@cache
def render(tex: str, display: bool) -> dict[str, str]:
    """KaTeX's {"html": ...} for a formula, or {"error": ...}."""
    process = renderer()
    process.stdin.write(json.dumps({"tex": tex, "display": display}) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def html_of(builder, node: nodes.Node, tex: str, display: bool) -> str:
    """HTML and MathML; in an e-book, whose readers have their own ways with style sheets, MathML alone."""
    answer = render(tex, display)
    if "error" in answer:
        logger.warning("KaTeX cannot set %r: %s", tex, answer["error"], location=node, type="formula")
        return f"<code>{escape(tex)}</code>"
    html = SOURCE.sub("", answer["html"])
    return MATHML.search(html)[0] if builder.name == "epub" else html


class Cling(SphinxPostTransform):
    """No line is broken between a formula and the punctuation beside it: both go into one span, which is not broken.

    Browsers break a line after the inline blocks of which KaTeX makes a formula, whatever character follows.
    """

    default_priority = 900

    def run(self, **kwargs):
        for math in list(self.document.findall(nodes.math)):
            parent = math.parent
            place = parent.index(math)
            before = parent[place - 1] if place else None
            after = parent[place + 1] if place + 1 < len(parent) else None
            whole = nodes.inline(classes=["clings"])
            if isinstance(before, nodes.Text) and CLINGS_BEFORE.search(before):
                parent[place - 1] = nodes.Text(before[:-1])
                whole += nodes.Text(before[-1])
            whole += math.deepcopy()
            if isinstance(after, nodes.Text) and CLINGS_AFTER.match(after):
                parent[place + 1] = nodes.Text(after[1:])
                whole += nodes.Text(after[0])
            if len(whole) > 1:
                parent[place] = whole


def visit_inline(self, node: nodes.math) -> None:
    html = html_of(self.builder, node, node.astext().strip(), False)
    first, *others = html.split(BASE)
    short = len(node.astext().strip()) <= SHORT
    if others and not short:  # between its parts a formula may be broken, in a span that is not broken, too
        html = first + BASE + f"<wbr>{BASE}".join(others)
    self.body.append(self.starttag(node, "span", "", CLASS="math short" if short else "math") + html + "</span>")
    raise nodes.SkipNode


def as_one_display(source: str) -> str:
    """Blank lines and bare line ends mean rows, as in Sphinx's other ways of setting formulas."""
    parts = [part.strip() for part in source.split("\n\n") if part.strip()]
    parts = [
        rf"\begin{{split}}{part}\end{{split}}" if r"\\" in part and r"\begin" not in part else part for part in parts
    ]
    return parts[0] if len(parts) == 1 else r"\begin{gathered}" + r"\\".join(parts) + r"\end{gathered}"


def visit_displayed(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math displayed"))
    tex = node.astext().strip() if node["nowrap"] else as_one_display(node.astext())
    self.body.append(f'<div class="formula">{html_of(self.builder, node, tex, True)}</div>')
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def copy_style(app, error):
    """KaTeX's style sheet and licence, and its fonts in the one format that every browser of today reads."""
    if error or app.builder.name != "html":
        return
    dist, target = package("katex") / "dist", Path(app.outdir, "_static", "katex")
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    for font in dist.glob("fonts/*.woff2"):
        shutil.copyfile(font, target / "fonts" / font.name)
    shutil.copyfile(package("katex") / "LICENSE", target / "LICENSE")
    style = re.sub(r',url\([^)]*\.(?:woff|ttf)\) format\("\w+"\)', "", (dist / "katex.min.css").read_text("utf-8"))
    (target / "katex.css").write_text(style, encoding="utf-8")


def stop(app, error):
    if renderer.cache_info().currsize:
        renderer().communicate()
        renderer.cache_clear()
        render.cache_clear()


def setup(app):
    app.add_post_transform(Cling)
    app.add_html_math_renderer("katex", (visit_inline, None), (visit_displayed, None))
    app.add_css_file("katex/katex.css")
    app.connect("build-finished", copy_style)
    app.connect("build-finished", stop)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
