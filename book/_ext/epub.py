"""The e-book (`make paper`): the text in Sphinx's own plain pages, for e-book readers have their own ways with everything else.

Its pages are XML, so what browsers forgive is put right; no scripts, no addresses of the first edition, no error page.
"""

from bs4 import BeautifulSoup

STYLES = {"pygments.css", "epub.css", "ebook.css"}
OF_THE_SITE = "script, noscript, button, input, select, output, canvas, form, a.headerlink, .pst-js-only, .frames"
OF_THE_SITE += ", summary .expanded"  # "Hide the code", beside "Show the code"


def leave_the_site_out(app):
    if app.builder.name != "epub":
        return
    app.config.redirects = {}
    app.config.html_additional_pages = {}
    app.config.html_static_path = ["book/_epub"]
    app.config.templates_path = []
    app.builder.templates.init(app.builder, app.builder.theme)


def as_xml(body: str) -> str:
    page = BeautifulSoup(body, "html.parser")
    for unwanted in page.select(OF_THE_SITE):
        unwanted.decompose()
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
    app.connect("builder-inited", leave_the_site_out, priority=100)  # before other extensions look
    app.connect("html-page-context", on_page, priority=950)  # after all that add to a page
    return {"parallel_read_safe": True, "parallel_write_safe": True}
