"""Where the project lives, known in this one place: from the environment, or from the git remote `origin`.

BOOK_REPOSITORY names the repository (https://host/owner/name); GitHub's own variables do so in its workflows. BOOK_SITE names
the site; for a repository on GitHub it is GitHub Pages unless said otherwise. Where nothing is known, nothing links there: the
site then has no launch, issue and source buttons or links, no canonical addresses and no sitemap, and {on-colab} is empty.
"""

import os
import re
import subprocess
from pathlib import Path
from xml.sax.saxutils import escape

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(
    r"(?:https?://(?:[^/@]*@)?|ssh://git@|git@)([\w.-]+\.[a-z]{2,})(?::\d+)?[/:]([\w./-]+?)(?:\.git)?/?"
)
BRANCH = "main"
COLAB_BRANCH = "colab"  # its notebooks install the library first (tools/colab.py)


def public(address: str) -> str | None:
    """https://host/owner/name for a remote's address, without user or password; None when it is no public one."""
    found = ADDRESS.fullmatch(address.strip())
    return f"https://{found[1]}/{found[2]}" if found and "/" in found[2] else None


def repository(environment=os.environ, root: Path = ROOT) -> str | None:
    """The address of the repository, or None.

    Raises:
        ValueError: when BOOK_REPOSITORY is set to something else.
    """
    if given := environment.get("BOOK_REPOSITORY"):
        if not (found := public(given)):
            raise ValueError(f"BOOK_REPOSITORY must look like https://github.com/owner/name, got {given!r}")
        return found
    if name := environment.get("GITHUB_REPOSITORY"):
        return public(f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}")
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        remote = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:  # no git
        return None
    return public(remote)


def site(environment=os.environ, root: Path = ROOT) -> str | None:
    """The address of the published site with a slash at its end, or None."""
    if given := environment.get("BOOK_SITE"):
        return given.rstrip("/") + "/"
    found = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+)", repository(environment, root) or "")
    return f"https://{found[1].lower()}.github.io/{found[2]}/" if found else None


def use_address(app, config):
    options, source = config.html_theme_options, repository()
    options["repository_url"], options["repository_branch"] = source or "", BRANCH
    for button in ("use_repository_button", "use_issues_button"):
        options[button] = bool(source)
    if not source:
        options["launch_buttons"] = {}
    config.html_baseurl = site() or ""
    licence, ours = "MIT licence", "Text, figures and code"
    if source:
        licence = f'<a href="{source}/blob/{BRANCH}/LICENSE">{licence}</a>'
        ours = f'{ours} (<a href="{source}">source</a>)'
    options["extra_footer"] = f"<p>{ours}: {licence}.</p>"


def lead_colab_to_its_branch(app, pagename, templatename, context, doctree):
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("text") == "Colab":
                button["url"] = button["url"].replace(f"/blob/{BRANCH}/", f"/blob/{COLAB_BRANCH}/", 1)


class OnColab(SphinxDirective):
    """{on-colab}: the line that installs the library on Colab; nothing where the repository is not known."""

    def run(self):
        if not (source := repository()):
            return []
        code = f"%pip install -q git+{source}"
        return [
            nodes.paragraph("", "On Colab, run this in a first cell:"),
            nodes.literal_block(code, code, language="ipython3"),
        ]


def sitemap(address: str, pages: list[str]) -> str:
    """sitemap.xml for pages given relative to the site's address."""
    entries = "".join(f"  <url><loc>{escape(address + page)}</loc></url>\n" for page in sorted(pages))
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{entries}</urlset>\n'
    )


def write_for_robots(app, error):
    """robots.txt, which lets every robot read everything, and the sitemap that it names."""
    if error or app.builder.format != "html":
        return
    rules, address = "User-agent: *\nAllow: /\n", site()
    if address:
        pages = [app.builder.get_target_uri(name).removesuffix("index.html") for name in app.env.found_docs]
        Path(app.outdir, "sitemap.xml").write_text(sitemap(address, pages), encoding="utf-8")
        rules += f"Sitemap: {address}sitemap.xml\n"
    Path(app.outdir, "robots.txt").write_text(rules, encoding="utf-8")


def setup(app):
    app.add_directive("on-colab", OnColab)
    app.connect("config-inited", use_address)
    app.connect("html-page-context", lead_colab_to_its_branch, priority=900)  # after the theme has made the buttons
    app.connect("build-finished", write_for_robots)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
