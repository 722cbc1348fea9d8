"""The e-book (`make paper`): the text in Sphinx's own plain pages, for e-book readers have their own ways with everything else.

Its pages are XML, so what browsers forgive is put right; no scripts, no addresses of the first edition, no error page.
"""

import re
import shutil
from pathlib import Path

from bs4 import BeautifulSoup
from page import mend_for_screen_readers
from sphinx.builders.epub3 import Epub3Builder

import ddimlib

STYLES = {"pygments.css", "epub.css", "ebook.css"}
OF_THE_SITE = "script, noscript, button, input, select, output, canvas, form, link, a.headerlink, .pst-js-only, .frames"
OF_THE_SITE += ", summary .expanded, summary svg"  # "Hide the code", beside "Show the code"; the mark of a fold
PAGE = re.compile(r'(<item id="[^"]+" href="([^"]+\.xhtml)" media-type="application/xhtml\+xml")(?= />)')


class Ebook(Epub3Builder):
    def build_content(self) -> None:
        """Add the still pictures that pages name by their address, and say in the list of files which pages have formulas."""
        target = Path(self.outdir, "_static", "play")
        target.mkdir(parents=True, exist_ok=True)
        for picture in Path(self.srcdir, "book", "_static", "play").glob("*.png"):
            shutil.copyfile(picture, target / picture.name)
        super().build_content()
        files = Path(self.outdir, "content.opf")
        declared = PAGE.sub(
            lambda item: item[1] + ' properties="mathml"' * ("<math" in Path(self.outdir, item[2]).read_text("utf-8")),
            files.read_text("utf-8"),
        )
        files.write_text(declared, encoding="utf-8")


def leave_the_site_out(app):
    if app.builder.name != "epub":
        return
    app.config.version = ddimlib.__version__
    app.config.redirects = {}
    app.config.html_additional_pages = {}
    app.config.html_static_path = ["book/_epub"]
    app.config.templates_path = []
    app.builder.templates.init(app.builder, app.builder.theme)


def as_xml(body: str) -> str:
    page = BeautifulSoup(mend_for_screen_readers(body), "html.parser")
    for unwanted in page.select(OF_THE_SITE):
        unwanted.decompose()
    for paragraph in page.select("summary p"):
        paragraph.name = "span"
    for link in page.select('a[href$=".mjs"]'):  # of the page Try it, which runs on the site alone
        link.unwrap()
    return page.decode(formatter="minimal")


def on_page(app, pagename, templatename, context, doctree):
    if app.builder.name != "epub":
        return
    context["css_files"] = [file for file in context["css_files"] if str(file.filename).split("/")[-1] in STYLES]
    context["script_files"] = []
    if doctree:
        context["body"] = as_xml(context["body"])


def setup(app):
    app.add_builder(Ebook, override=True)
    app.connect("builder-inited", leave_the_site_out, priority=100)  # before other extensions look
    app.connect("html-page-context", on_page, priority=950)  # after all that add to a page
    return {"parallel_read_safe": True, "parallel_write_safe": True}
