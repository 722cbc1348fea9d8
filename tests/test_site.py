"""The built site in a real browser, with every other origin out of reach: what a reader on a laptop or a phone meets."""

import re
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
import yaml
from ensure_browser import find_browser
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no network
PATIENCE = 120_000  # milliseconds, for a busy machine
LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}

# Old addresses, and where they lead.
REDIRECTS = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]["redirects"]
MOVED = {f"{old}.html": urljoin(f"{old}.html", new) for old, new in REDIRECTS.items()}

# The theme logs these on every page; they do no harm.
HARMLESS = ["THEBE_JS_URL", "invalid theme mode"]

# What there is to see on a page, in one visit.
LOOK = """() => {
  const article = document.querySelector('article') || document.body;
  const text = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  const source = /\\$\\$|\\\\\\(|\\\\\\[|\\$\\\\[a-z]|\\|[-—–]+\\|/;  // of a formula or a table that was not rendered
  let raw = [];
  for (let node = text.nextNode(); node; node = text.nextNode())
    if (!node.parentElement.closest('pre, code, script, style, mjx-container') && source.test(node.data))
      raw.push(node.data.trim().slice(0, 80));
  return {
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    formulas: article.querySelectorAll('.math').length,
    rendered: article.querySelectorAll('mjx-container').length,
    math_errors: [...article.querySelectorAll('mjx-merror, [data-mml-node="merror"]')].map(e => e.textContent),
    raw: raw,
    without_alt: [...article.querySelectorAll('img')].filter(e => !e.alt.trim()).map(e => e.src),
    broken_images: [...document.images].filter(e => e.complete && !e.naturalWidth).map(e => e.src),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href')),
  }
}"""

# Contrast (WCAG) of every piece of text in the article against the ground it stands on.
CONTRAST = """() => {
  const parse = c => { const n = c.match(/[\\d.]+/g).map(Number); return {rgb: n.slice(0, 3), a: n.length > 3 ? n[3] : 1} };
  const light = rgb => { const [r, g, b] = rgb.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const ground = e => {
    const layers = [];
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); layers.push(c); if (c.a == 1) break }
    return layers.reverse().reduce((under, c) => c.rgb.map((v, i) => c.a * v + (1 - c.a) * under[i]), [255, 255, 255]);
  };
  const weak = [], text = document.createTreeWalker(document.querySelector('article') || document.body, NodeFilter.SHOW_TEXT);
  for (let node = text.nextNode(); node; node = text.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const a = light(parse(getComputedStyle(e).color).rgb), b = light(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < LEAST) weak.push(`${ratio.toFixed(1)} ${e.tagName}.${e.className}: ${node.data.trim().slice(0, 40)}`);
  }
  return [...new Set(weak)].slice(0, 20);
}""".replace("LEAST", "4")  # a little under WCAG's 4.5, for the theme's own highlighting of code


class QuietHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def origin():
    """The address of the site on localhost; it is built first if a source is newer."""
    sources = [ROOT / "_config.yml", ROOT / "_toc.yml", *ROOT.glob("ddimlib/*.py"), *ROOT.glob("book/**/*.*")]
    built = SITE / "index.html"
    if not built.exists() or built.stat().st_mtime < max(
        p.stat().st_mtime for p in sources if "__pycache__" not in p.parts
    ):
        command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "--all", "-W", "-n", "--keep-going"]
        subprocess.run(command, cwd=ROOT, check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    assert path, "no Chromium or Chrome: run `python tests/ensure_browser.py`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """A browser tab that notes what goes wrong, and can reach nothing but the site."""

    def __init__(self, browser, origin, size, scheme="light"):
        self.origin, self.errors, self.strangers = origin, [], []
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE)
        self.tab = self.context.new_page()
        self.tab.on("request", self.watch)
        self.tab.on("console", self.hear)
        self.tab.on("pageerror", lambda error: self.note(str(error)))
        self.tab.on("requestfailed", self.miss)
        self.tab.on(
            "response", lambda answer: answer.status >= 400 and self.errors.append(f"{answer.status}: {answer.url}")
        )

    def miss(self, request):
        if request.failure != "net::ERR_ABORTED":  # the browser itself breaks off what a page left behind was loading
            self.errors.append(f"failed: {request.url} ({request.failure})")

    def watch(self, request):
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.strangers.append(request.url)

    def hear(self, message):
        if message.type == "error":
            self.note(message.text)

    def note(self, text):
        if not any(harmless in text for harmless in HARMLESS):
            self.errors.append(text)

    def open(self, page):
        self.tab.goto(f"{self.origin}/{page}", wait_until="load")
        # MathJax loads asynchronously, and says when it has finished.
        self.tab.wait_for_function(
            "!document.querySelector('script[src*=mathjax]') || (window.MathJax?.startup?.promise && "
            "MathJax.startup.promise.then(() => true))"
        )
        return self.tab


@pytest.fixture(scope="module")
def pages(origin):
    """Every page, except redirects and the theme's templates."""
    found = (p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html"))
    return sorted(page for page in found if page not in ("index.html", *MOVED) and not page.startswith("_static/"))


@pytest.fixture(scope="module")
def chapters(pages):
    """The pages that people wrote."""
    return [page for page in pages if page.startswith("book/")]


@pytest.fixture(scope="module")
def on_phone(browser, origin, pages):
    """What a visitor with a phone saw on every page, and the visitor."""
    visitor = Visitor(browser, origin, PHONE)
    yield {page: visitor.open(page).evaluate(LOOK) for page in pages}, visitor
    visitor.context.close()


def offenders(seen, key):
    return {page: facts[key] for page, facts in seen.items() if facts[key]}


def test_no_errors_and_no_other_origin(on_phone):
    _, visitor = on_phone
    assert not visitor.strangers
    assert not visitor.errors


def test_all_maths_and_tables_are_rendered(on_phone, chapters):
    seen, _ = on_phone
    assert not offenders(seen, "math_errors")
    assert not offenders({page: seen[page] for page in chapters}, "raw")
    for page, facts in seen.items():
        assert facts["rendered"] >= facts["formulas"], page
    assert sum(facts["rendered"] for facts in seen.values()) > 0


def test_nothing_is_wider_than_a_phone(on_phone):
    seen, _ = on_phone
    assert not {page: facts["overflow"] for page, facts in seen.items() if facts["overflow"] > 0}


def test_every_picture_shows_and_is_described(on_phone):
    seen, _ = on_phone
    assert not offenders(seen, "without_alt")
    assert not offenders(seen, "broken_images")


def test_every_internal_link_leads_somewhere(on_phone, origin):
    seen, _ = on_phone
    dead = set()
    for page, facts in seen.items():
        for link in facts["links"]:
            target, anchor = urldefrag(urljoin(f"{origin}/{page}", link))
            if not target.startswith(origin):
                continue
            path = unquote(urlparse(target).path).lstrip("/")
            known = seen.get(path)
            if not (SITE / path).exists() or (known and anchor and unquote(anchor) not in known["ids"]):
                dead.add(f"{page}: {link}")
    assert not dead


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(browser, origin, chapters, scheme):
    visitor = Visitor(browser, origin, LAPTOP, scheme)
    weak = {page: visitor.open(page).evaluate(CONTRAST) for page in chapters}
    assert visitor.tab.evaluate("document.documentElement.dataset.theme") == scheme
    visitor.context.close()
    assert not {page: found for page, found in weak.items() if found}


def test_the_slider_of_chapter_1_moves_label_and_picture(browser, origin):
    """On the static page, without a kernel: the notebook's script has every frame with it."""
    visitor = Visitor(browser, origin, LAPTOP)
    tab = visitor.open("book/01-forward-process.html")
    pictures = [tab.locator("#forward-strip").screenshot()]
    assert tab.locator("#forward-label").inner_text().startswith("t = 0,")
    for key, t in [("ArrowRight", 50), ("End", 1000)]:
        tab.locator("#forward-t").press(key)
        assert tab.locator("#forward-label").inner_text().startswith(f"t = {t},")
        pictures.append(tab.locator("#forward-strip").screenshot())
    assert len(set(pictures)) == 3
    assert not visitor.strangers + visitor.errors
    visitor.context.close()


def test_search_finds_a_chapter(browser, origin):
    visitor = Visitor(browser, origin, LAPTOP)
    visitor.tab.goto(f"{origin}/search.html?q=denoising")
    visitor.tab.wait_for_selector("#search-results li a")
    assert not visitor.strangers + visitor.errors
    visitor.context.close()


def test_maths_and_search_work_straight_from_the_disk(browser, chapters):
    """Opened by double-click: file:// and no network at all."""
    page = max(chapters, key=lambda page: (SITE / page).read_text(encoding="utf-8").count('class="math'))
    visitor = Visitor(browser, SITE.as_uri(), LAPTOP)
    tab = visitor.open(page)
    assert tab.locator("mjx-container").count() >= tab.locator("article .math").count() > 0
    visitor.tab.goto(f"{SITE.as_uri()}/search.html?q=denoising")
    visitor.tab.wait_for_selector("#search-results li a")
    assert not visitor.strangers
    visitor.context.close()


def test_pages_are_numbered_by_their_place(chapters):
    """In the title, in the menu, and at equations."""
    shown = re.findall(r"file: (book/\S+)", (ROOT / "_toc.yml").read_text())
    count = Counter()
    for name in shown:
        folder, page = name.rsplit("/", 1)
        html = (SITE / f"{name}.html").read_text(encoding="utf-8")
        title = re.search(r"<h1>(.*?)<a", html)[1]
        if re.match(r"\d\d-", page):
            label = str(int(page[:2]))
        elif folder in ("book/deeper", "book/appendix") and page != "index":
            count[folder] += 1
            label = folder.removeprefix("book/")[0].upper() + str(count[folder])
        else:
            assert "section-number" not in title, name
            continue
        assert f'<span class="section-number">{label}. </span>' in title, name
        assert all(number == label for number in re.findall(r'<span class="eqno">\((\w+)\.', html)), name
        assert f'href="#">{label}. ' in html, f"{name} in the menu"


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("old", MOVED)
def test_an_old_address_leads_to_the_new_page(browser, origin, pages, old, scripts):
    assert MOVED[old] in pages
    context = browser.new_context(java_script_enabled=scripts)
    tab = context.new_page()
    tab.goto(f"{origin}/{old}#exercises")
    tab.wait_for_url(f"{origin}/{MOVED[old]}{'#exercises' if scripts else ''}", timeout=PATIENCE)
    assert tab.locator("article h1").count() == 1
    context.close()


def test_a_request_to_another_origin_would_be_seen(browser, origin):
    visitor = Visitor(browser, origin, LAPTOP)
    visitor.open("search.html").evaluate("fetch('http://example.org/').catch(() => null)")
    assert visitor.strangers == ["http://example.org/"]
    visitor.context.close()


def test_the_front_page_leads_to_the_introduction():
    assert re.search(r'url=book/intro\.html"', (SITE / "index.html").read_text())
