"""The repository's address is known in one place, or nowhere; then nothing leads to it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("docutils")  # the site's, not needed where only the library is tested

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import address  # noqa: E402

PUBLIC = {
    "https://github.com/owner/name": "https://github.com/owner/name",
    "https://github.com/owner/name.git": "https://github.com/owner/name",
    "https://user:secret@github.com/owner/name.git": "https://github.com/owner/name",
    "git@github.com:owner/name.git": "https://github.com/owner/name",
    "ssh://git@gitlab.example.org:2222/group/part/name.git": "https://gitlab.example.org/group/part/name",
    "https://github.com/owner/na.me/": "https://github.com/owner/na.me",
    "/srv/git/name.git": None,
    "../name": None,
    "file:///srv/git/name": None,
    "http://localhost:3000/owner/name": None,
    "https://github.com/owner": None,
    "": None,
}


@pytest.mark.parametrize(("remote", "expected"), PUBLIC.items())
def test_a_remote_becomes_a_public_address_without_secrets(remote, expected):
    assert address.public(remote) == expected


def test_the_environment_comes_before_the_remote(tmp_path):
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    assert address.repository({}, tmp_path) is None
    assert address.site({}, tmp_path) is None
    subprocess.run([*git, "remote", "add", "origin", "git@github.com:Owner/name.git"], check=True)
    assert address.repository({}, tmp_path) == "https://github.com/Owner/name"
    assert address.site({}, tmp_path) == "https://owner.github.io/name/"
    of_github = {"GITHUB_REPOSITORY": "them/book", "GITHUB_SERVER_URL": "https://git.example.org"}
    assert address.repository(of_github, tmp_path) == "https://git.example.org/them/book"
    ours = of_github | {"BOOK_REPOSITORY": "https://example.org/we/book", "BOOK_SITE": "https://example.org/book"}
    assert address.repository(ours, tmp_path) == "https://example.org/we/book"
    assert address.site(ours, tmp_path) == "https://example.org/book/"


def test_a_wrong_address_is_refused_by_name():
    with pytest.raises(ValueError, match=r"BOOK_REPOSITORY must look like .*, got 'owner/name'"):
        address.repository({"BOOK_REPOSITORY": "owner/name"})


def test_the_sitemap_lists_pages_under_the_address():
    text = address.sitemap("https://example.org/b/", ["book/2.html", "", "book/a&b.html"])
    places = ["https://example.org/b/", "https://example.org/b/book/2.html", "https://example.org/b/book/a&amp;b.html"]
    assert re.findall("<loc>(.*?)</loc>", text) == places


SMALL = """
format: jb-book
root: index
chapters: [{file: page}]
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds a book of two pages, one of them a notebook, with our extensions; gives its folder."""

    def build(name, **environment):
        folder = tmp_path_factory.mktemp(name)
        (folder / "_toc.yml").write_text(SMALL)
        (folder / "_config.yml").write_text(
            "title: A book\nexecute: {execute_notebooks: 'off'}\n"
            "launch_buttons: {colab_url: 'https://colab.research.google.com', binderhub_url: 'https://mybinder.org'}\n"
            f"sphinx: {{recursive_update: true, local_extensions: {{address: {ROOT}/book/_ext}}}}\n"
        )
        (folder / "index.md").write_text("# A book\n\n```{on-colab}\n```\n")
        notebook = '{"cells": [{"cell_type": "markdown", "metadata": {}, "source": "# A page"}], "metadata": {}, '
        (folder / "page.ipynb").write_text(notebook + '"nbformat": 4, "nbformat_minor": 4}')
        command = [Path(sys.executable).with_name("jupyter-book"), "build", folder]
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
        subprocess.run(command, env=clean | environment, check=True, capture_output=True)
        return folder / "_build" / "html"

    return build


def test_with_an_address_the_buttons_lead_there(build):
    html = build("known", BOOK_REPOSITORY="https://github.com/owner/name")
    page, cover = (html / "page.html").read_text(), (html / "index.html").read_text()
    for link in ("https://colab.research.google.com/github/owner/name/blob/colab/page.ipynb",
                 "https://mybinder.org/v2/gh/owner/name/main", "https://github.com/owner/name/issues/new",
                 'href="https://owner.github.io/name/page.html"'):  # fmt: skip
        assert link in page, link
    assert "git+https://github.com/owner/name" in re.sub("<.*?>", "", cover)
    assert "https://owner.github.io/name/page.html" in (html / "sitemap.xml").read_text()
    assert "Sitemap: https://owner.github.io/name/sitemap.xml" in (html / "robots.txt").read_text()


def test_without_one_there_are_none(build):
    html = build("unknown", GIT_DIR="/nowhere")
    for page in ("page.html", "index.html"):
        text = (html / page).read_text()
        assert not re.findall(r'href="(https?://(?!jupyter)[^"]*)"', text)
        assert "git+" not in text
    assert not (html / "sitemap.xml").exists()
    assert (html / "robots.txt").read_text() == "User-agent: *\nAllow: /\n"


@pytest.mark.parametrize(
    "name", ["_config.yml", "pyproject.toml", "CITATION.cff", "README.md", "index.md", "CONTRIBUTING.md"]
)
def test_no_file_names_an_address_of_its_own(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.findall(
        r"https?://(?:[\w-]+\.github\.io|github\.com)/[\w./-]+", re.sub("https://github.com/owner/name", "", text)
    )
