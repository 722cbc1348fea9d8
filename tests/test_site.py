"""The built site in a real browser, with every other origin out of reach: what a reader on a laptop or a phone meets."""

import gzip
import re
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import axe_playwright_python
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

RULES = [  # for authors (CONTRIBUTING.md, "Pages")
    "formulas too wide for a phone",
    "code beyond 88 columns",
    "figures without a dark twin",
    "figures without a caption",
    "folds without a name",
]

LOOK = (Path(__file__).parent / "look.js").read_text()  # what there is to see on a page, in one visit

VISIBLE = """selector => [...document.querySelectorAll(selector)]
  .filter(e => e.checkVisibility({visibilityProperty: true})).map(e => e.outerHTML.slice(0, 80))"""

# What is far from the screen is laid out, too (book.css), and what scrolls is marked (book.js).
LAY_OUT = """async () => {
  const style = Object.assign(document.createElement('style'), {textContent: '* {content-visibility: visible !important}'});
  document.head.append(style);
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
}"""

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
# A formula is seen as one thing: its letters have the colour of the text around it, and there are thousands.
JUDGE = """rules => axe.run({include: [['html']], exclude: [['.katex']]}, {resultTypes: ['violations'], ...rules})
  .then(result => result.violations.flatMap(fault => fault.nodes.map(node => `${fault.id}: ${node.html.slice(0, 120)}`)))"""

# The colours of code come from one style sheet: one word of each kind is enough, and there are thousands.
ONE_OF_EACH = """() => {
  const seen = new Set();
  const words = [...document.querySelectorAll('.highlight span')].filter(word => word.checkVisibility());  // not in folds
  for (const word of words) {
    const kind = word.closest('div[class*=cell], .highlight').className + '|' + word.className;
    if (seen.has(kind)) word.replaceWith(...word.childNodes);
    seen.add(kind);
  }
}"""


class QuietHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def origin():
    """The address of the site on localhost; it is built first if a source is newer."""
    sources = [
        ROOT / "_config.yml",
        ROOT / "_toc.yml",
        ROOT / "index.md",
        *ROOT.glob("ddimlib/*.py"),
        *ROOT.glob("book/**/*.*"),
    ]
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
        self.errors.append(text)

    def open(self, page):
        self.tab.goto(f"{self.origin}/{page}", wait_until="load")
        return self.tab

    def lay_out(self, page):
        """Open a page, all of which is to be looked at."""
        self.open(page).evaluate(LAY_OUT)
        return self.tab


@pytest.fixture(scope="module")
def pages(origin):
    """Every page, except redirects and the theme's templates."""
    found = (p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html"))
    return sorted(page for page in found if page not in MOVED and not page.startswith("_static/"))


@pytest.fixture(scope="module")
def chapters(pages):
    """The pages that people wrote."""
    return [page for page in pages if page.startswith(("book/", "index."))]


@pytest.fixture(scope="module")
def on_phone(browser, origin, pages):
    """What a visitor with a phone saw on every page, and the visitor."""
    visitor = Visitor(browser, origin, PHONE)
    yield {page: visitor.lay_out(page).evaluate(LOOK) for page in pages}, visitor
    visitor.context.close()


@pytest.fixture(scope="module")
def narrow(browser, origin, pages):
    """By how many pixels each page is too wide for the smallest phone, 320 pixels."""
    visitor = Visitor(browser, origin, {"width": 320, "height": 600})
    yield {page: visitor.lay_out(page).evaluate(LOOK)["overflow"] for page in pages}
    visitor.context.close()


def offenders(seen, key):
    return {page: facts[key] for page, facts in seen.items() if facts[key]}


def test_no_errors_and_no_other_origin(on_phone):
    _, visitor = on_phone
    assert not visitor.strangers
    assert not visitor.errors


def test_all_maths_and_tables_are_rendered(on_phone, chapters):
    seen, _ = on_phone
    assert not offenders({page: seen[page] for page in chapters}, "raw")
    for page, facts in seen.items():
        assert facts["rendered"] == facts["formulas"] == facts["mathml"], page
    assert sum(facts["rendered"] for facts in seen.values()) > 1000


@pytest.mark.parametrize("fault", ["clipped", "orphans", "collisions", "uncued"])
def test_formulas_are_whole(on_phone, fault):
    """No inline formula runs out of its column, the comma after one stands on its last line, no number lies on a formula, and
    whatever has to be scrolled shows it and can be scrolled by keyboard."""
    seen, _ = on_phone
    assert not offenders(seen, fault)


def test_formulas_are_no_stops_of_the_tab_key(on_phone):
    seen, _ = on_phone
    assert not offenders(seen, "tab_stops")


@pytest.mark.parametrize("fault", RULES)
def test_rules_for_authors(on_phone, chapters, fault):
    seen, _ = on_phone
    assert not offenders({page: seen[page] for page in chapters}, fault), f"{fault}; see CONTRIBUTING.md"


def test_nothing_is_wider_than_a_phone(on_phone, narrow):
    seen, _ = on_phone
    assert not {page: facts["overflow"] for page, facts in seen.items() if facts["overflow"] > 0}
    assert not {page: overflow for page, overflow in narrow.items() if overflow > 0}


def test_every_picture_shows_and_is_described(on_phone):
    seen, _ = on_phone
    assert not offenders(seen, "squeezed")
    assert not offenders(seen, "hidden captions")
    assert sum(facts["captions"] for facts in seen.values()) > 100
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


def test_no_two_places_of_a_page_have_the_same_name(on_phone):
    seen, _ = on_phone
    twice = {page: [name for name, n in Counter(facts["ids"]).items() if n > 1] for page, facts in seen.items()}
    assert not {page: names for page, names in twice.items() if names}


def test_no_list_of_references_is_empty(chapters):
    for page in chapters:
        html = (SITE / page).read_text(encoding="utf-8")
        assert ('id="references"' in html) == ('class="citation"' in html), page


def test_folds_are_called_what_is_in_them(on_phone):
    """No name for screen readers hides the words on the fold, and what is folded takes no room."""
    seen, _ = on_phone
    assert not offenders(seen, "misnamed folds")
    assert not offenders(seen, "folds in a row")
    assert not offenders(seen, "folds with a gap")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, origin, pages, scheme):
    """Every rule in light; in dark only that about contrast, on which nothing else depends."""
    visitor, faults = Visitor(browser, origin, LAPTOP, scheme), {}
    for page in pages:
        tab = visitor.lay_out(page)
        tab.evaluate(ONE_OF_EACH)
        tab.evaluate(AXE)
        if found := tab.evaluate(JUDGE, {} if scheme == "light" else {"runOnly": ["color-contrast"]}):
            faults[page] = found
    assert visitor.tab.evaluate("document.documentElement.dataset.theme") == scheme
    visitor.context.close()
    assert not faults


def test_axe_would_find_something(browser, origin):
    visitor = Visitor(browser, origin, LAPTOP)
    tab = visitor.open("search.html")
    tab.evaluate(AXE)
    bad = '<img src=""><p style="color: #ccc">Hard to see.</p>'
    tab.evaluate("html => document.querySelector('main').insertAdjacentHTML('beforeend', html)", bad)
    assert {found.split(":")[0] for found in tab.evaluate(JUDGE, {})} >= {"image-alt", "color-contrast"}
    visitor.context.close()


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_the_menus_work(browser, origin, chapters, width):
    """By clicking: the book's menu opens a chapter, the page's own a section."""
    visitor = Visitor(browser, origin, {"width": width, "height": 900})
    tab = visitor.open(chapters[1])
    menu = tab.locator("#pst-primary-sidebar" if width >= 992 else "#pst-primary-sidebar-modal")
    if width >= 992:
        for visible in (False, True):
            tab.locator(".bd-header-article .primary-toggle").click()
            tab.wait_for_function(
                "(v) => (getComputedStyle(document.querySelector('#pst-primary-sidebar')).visibility == 'visible') == v",
                arg=visible,
            )
    else:
        assert not menu.is_visible()
        tab.locator(".bd-header-article .primary-toggle").click()
    assert menu.is_visible()
    menu.locator("a[href$='05-few-steps.html']").click()
    tab.wait_for_url("**/05-few-steps.html")

    contents = tab.locator("#pst-secondary-sidebar" if width >= 1200 else "#pst-secondary-sidebar-modal")
    if width < 1200:
        assert not contents.is_visible()
        tab.locator(".bd-header-article .secondary-toggle").click()
        assert contents.is_visible()
        tab.keyboard.press("Escape")
        tab.locator(".bd-header-article .dropdown-toggle").click()  # not under the other button's tooltip
        assert tab.locator(".bd-header-article .dropdown-menu").first.is_visible()
        tab.locator(".bd-header-article .secondary-toggle").click()
    assert contents.is_visible()
    contents.locator("a[href='#summary']").click()
    tab.wait_for_function("location.hash == '#summary'")
    tab.keyboard.press("Escape")
    tab.wait_for_function(
        "Math.abs(document.querySelector('#summary h2').getBoundingClientRect().top) < innerHeight / 2"
    )
    assert not visitor.errors
    visitor.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_are_right_before_anything_is_drawn(browser, origin, chapters, scheme):
    """With no script but those in the page itself: what the head has set when the body begins."""
    visitor = Visitor(browser, origin, LAPTOP, scheme)
    visitor.tab.route("**/*.js*", lambda route: route.fulfill(body=""))
    tab = visitor.open(chapters[1])
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    head = (SITE / chapters[1]).read_text(encoding="utf-8").split("<body")[0]
    assert head.index("dataset.theme") < head.index("stylesheet")
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 24)"
    assert dark == (scheme == "dark")
    visitor.context.close()


def test_without_scripts_a_page_is_light_in_the_books_colours(browser, origin, chapters):
    context = browser.new_context(java_script_enabled=False, color_scheme="dark")
    tab = context.new_page()
    tab.goto(f"{origin}/{chapters[1]}")
    link = tab.locator("article a.reference").first
    assert link.evaluate("e => getComputedStyle(e).color") == "rgb(0, 98, 155)"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    context.close()


def test_a_chosen_colour_stays(browser, origin, chapters):
    visitor = Visitor(browser, origin, LAPTOP, "light")
    tab = visitor.open(chapters[1])
    tab.locator(".theme-switch-button").first.click()
    assert visitor.open(chapters[2]).evaluate("document.documentElement.dataset.theme") == "dark"
    visitor.context.close()


def test_focus_is_seen_on_every_control(browser, origin, chapters):
    visitor, seen = Visitor(browser, origin, LAPTOP), []
    tab = visitor.open(chapters[1])
    for _ in range(60):
        tab.keyboard.press("Tab")
        seen.append(
            tab.evaluate("""() => {
          const e = document.activeElement, style = getComputedStyle(e);
          return [e.outerHTML.slice(0, 80), style.outlineStyle != 'none' && parseFloat(style.outlineWidth) >= 2];
        }""")
        )
    visitor.context.close()
    assert len({html for html, _ in seen}) > 30
    assert not [html for html, visible in seen if not visible]


def test_paper_is_white_and_complete(browser, origin, chapters):
    """Printed from the dark page: light, solutions open, no dead buttons and bars."""
    visitor = Visitor(browser, origin, LAPTOP, "dark")
    for page in chapters[1:4]:
        tab = visitor.open(page)
        tab.emulate_media(media="print")
        tab.wait_for_function("document.documentElement.dataset.theme == 'light'")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        useless = "button, details.hide > summary, .sd-summary-state-marker, .toggle-button, .copybtn, a.headerlink"
        assert not tab.evaluate(VISIBLE, f"{useless}, .bd-sidebar-primary, .bd-header-article")
        folded = ":is(.solution, details.sd-card) :is(p, .cell_input, img:not(.only-dark))"  # of a quiz, the answers
        assert len(tab.evaluate(VISIBLE, folded)) == tab.locator(folded).count()
        beyond = "all => all.filter(e => e.getBoundingClientRect().right > e.closest('article').getBoundingClientRect().right)"
        assert not tab.locator("article aside.margin").evaluate_all(f"{beyond}.length")
        tab.emulate_media(media="screen")
        tab.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    visitor.context.close()


@pytest.mark.parametrize("address", ["#equation-", r'[^"#]+\.html#equation-'], ids=["this page", "another page"])
def test_links_show_the_equation_they_lead_to(browser, origin, chapters, address):
    link = re.compile(f'<a class="reference internal" href="({address}[^"]*)"')
    found = ((page, link.search((SITE / page).read_text(encoding="utf-8"))) for page in chapters)
    page, target = next((page, match[1]) for page, match in found if match)
    visitor = Visitor(browser, origin, LAPTOP)
    tab = visitor.open(page)
    tab.locator(f"article a.internal[href='{target}']").first.focus()
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Tab")
    tab.wait_for_selector("#preview .katex", state="visible")
    tab.keyboard.press("Escape")
    assert not tab.locator("#preview").is_visible()
    assert not visitor.strangers + visitor.errors
    visitor.context.close()


def test_figures_for_dark_pages_lie_on_the_page(browser, origin, chapters):
    """No light frame around what was drawn for a dark page, and none around what a cell put out as HTML."""
    visitor = Visitor(browser, origin, LAPTOP, "dark")
    for page in chapters[:4]:
        drawn = visitor.open(page).locator(
            "article .cell_output :is(img.only-dark, .text_html:not(:has(table.dataframe)))"
        )
        grounds = drawn.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
        assert grounds, page
        assert set(grounds) == {"rgba(0, 0, 0, 0)"}, page
    visitor.context.close()


def test_the_words_to_search_for_are_not_under_the_glass(browser, origin):
    visitor = Visitor(browser, origin, LAPTOP)
    field = visitor.open("search.html?q=eta").locator("main .bd-search input")
    words = field.evaluate("e => e.getBoundingClientRect().left + parseFloat(getComputedStyle(e).paddingLeft)")
    glass = visitor.tab.locator("main .bd-search i").evaluate("e => e.getBoundingClientRect().right")
    assert glass < words
    visitor.context.close()


def test_a_picture_is_enlarged_and_put_back(browser, origin, chapters):
    visitor = Visitor(browser, origin, PHONE)
    tab = visitor.open(chapters[1])
    picture = tab.locator("article .cell_output img.enlarges:visible").first
    width = picture.bounding_box()["width"]
    picture.click()
    assert tab.locator("#enlarged img").bounding_box()["width"] > 1.5 * width
    tab.keyboard.press("Escape")
    assert not tab.locator("#enlarged").is_visible()
    visitor.context.close()


def test_a_page_is_light(browser, origin, chapters):
    """Compressed as servers do it: everything but pictures within 600 kB, and no page loads what it does not use."""
    heavy = {}
    for page in chapters:
        visitor, sizes = Visitor(browser, origin, PHONE), {}
        visitor.tab.on("response", lambda answer, sizes=sizes: sizes.setdefault(answer.url, answer))
        visitor.open(page)
        loaded = {
            url.removeprefix(origin).split("?")[0]: answer.body()
            for url, answer in list(sizes.items())
            if answer.status == 200
        }
        loaded = {url: body for url, body in loaded.items() if not url.endswith((".png", ".webp", ".jpg"))}
        if (total := sum(len(gzip.compress(body)) for body in loaded.values())) > 600_000:
            heavy[page] = total
        assert not [url for url in loaded if re.search("fontawesome|fa-solid|thebe|mathjax", url)]
        assert "searchindex.js" not in str(loaded.keys())
        visitor.context.close()
    assert not heavy


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("eta", "06-eta"),
        ("DDIM", "04-ddim-derivation"),
        ("slerp", "08-latent-space"),
        ("guidance", "03-training"),
        ("FID", "05-few-steps"),
        ("score", "02-ddpm"),
    ],
)
def test_search_finds_the_chapter_first(browser, origin, query, first):
    visitor = Visitor(browser, origin, LAPTOP)
    visitor.tab.goto(f"{origin}/search.html?q={query}")
    visitor.tab.wait_for_selector("#search-results li a")
    visitor.tab.wait_for_function("document.querySelectorAll('#search-results li p.context').length > 2")
    assert first in visitor.tab.locator("#search-results li a").first.get_attribute("href")
    excerpts = visitor.tab.locator("#search-results li p.context").all_inner_texts()
    assert not [text for text in excerpts if re.search(r"\\[a-z]+|\$", text)], "TeX in an excerpt"
    assert not [text for text in excerpts if re.search("Contents|Show the|Hide the", text)], "the page's own furniture"
    assert not visitor.strangers + visitor.errors
    visitor.context.close()


def test_found_words_are_marked_where_a_word_begins(browser, origin):
    """Sphinx would mark "eta" in "beta": among the results, and on the page that they lead to."""
    visitor = Visitor(browser, origin, LAPTOP)
    tab = visitor.open("search.html?q=eta")
    tab.wait_for_function("document.querySelectorAll('#search-results li p.context').length > 20")
    inside = """() => [...document.querySelectorAll("span.highlighted")]
      .map(e => (e.previousSibling?.data || "").slice(-1) + e.textContent)"""
    marked = tab.evaluate(inside)
    assert marked
    assert not [text for text in marked if text.lower() != "eta" and text[0].isalnum()]
    tab.locator("#search-results a[href*='04-ddim']").first.click()
    tab.wait_for_url("**/04-ddim-derivation.html*")
    tab.wait_for_selector("span.highlighted", state="attached")
    tab.wait_for_timeout(1000)
    assert not [text for text in tab.evaluate(inside) if text.lower() != "eta" and text[0].isalnum()]
    visitor.context.close()


def test_a_page_is_laid_out_as_far_as_it_is_seen(browser, origin, chapters):
    """A chapter has tens of thousands of elements; a phone that laid them all out at once would not answer for seconds."""
    visitor = Visitor(browser, origin, PHONE)
    for page in ("book/02-ddpm.html", "book/04-ddim-derivation.html"):
        tab = visitor.open(page)
        shown = "e => e.checkVisibility({contentVisibilityAuto: true})"
        formulas = tab.locator("article .math").evaluate_all(f"all => all.map({shown})")
        assert formulas.count(False) > formulas.count(True), page
        boxes = "pre, .formula, .output.text_html, .pst-scrollable-table-container"
        tab.locator(f"article :is({boxes})").last.scroll_into_view_if_needed()
        tab.wait_for_function(f"""() => [...document.querySelectorAll('article :is({boxes})')].filter({shown})
            .every(e => e.classList.contains('scrolls') == (e.scrollWidth > e.clientWidth + 1))""")
    assert not visitor.errors
    visitor.context.close()


def test_no_script_is_waited_for(chapters):
    for page in chapters:
        head = (SITE / page).read_text(encoding="utf-8").split("<body")[0]
        assert not [tag for tag in re.findall(r"<script[^>]*\bsrc=[^>]*>", head) if "defer" not in tag], page


def test_maths_and_search_work_straight_from_the_disk(browser, chapters):
    """Opened by double-click: file:// and no network at all."""
    page = max(chapters, key=lambda page: (SITE / page).read_text(encoding="utf-8").count('class="math'))
    visitor = Visitor(browser, SITE.as_uri(), LAPTOP)
    tab = visitor.open(page)
    assert tab.locator("article .math .katex").count() > 100
    assert tab.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Main'))")
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


def test_the_cover_and_what_others_see(on_phone, chapters):
    seen, _ = on_phone
    assert (SITE / "404.html").exists()
    assert "User-agent" in (SITE / "robots.txt").read_text()
    assert "http-equiv" not in (SITE / "index.html").read_text()
    for page in chapters:
        head = seen[page]["head"]
        assert 40 <= len(head["description"]) <= 200, page
        assert not re.search(r"[\\\\$]|_\\{|\\^", head["description"]), page
        assert {"og:title", "og:description", "og:type", "twitter:card", "viewport"} <= set(head), page
    assert len({seen[page]["description"] for page in chapters}) == len(chapters)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_cover_has_a_card_for_every_chapter(browser, origin, scheme):
    visitor = Visitor(browser, origin, LAPTOP, scheme)
    tab = visitor.open("index.html")
    numbers = tab.locator(".chapter-cards .number").all_inner_texts()
    assert numbers == [
        f"Chapter {int(name[:2])}" for name in re.findall(r"file: book/(\d\d-\S+)", (ROOT / "_toc.yml").read_text())
    ]
    assert all("?" in question for question in tab.locator(".chapter-cards .question").all_inner_texts())
    pictures = tab.locator(f".chapter-cards .thumbnail img.only-{scheme}:visible")  # dark ones on a dark page
    assert len({picture.get_attribute("src") for picture in pictures.all()}) == len(numbers)
    assert tab.locator(".chapter-cards .thumbnail img:visible").count() == len(numbers)
    assert not visitor.errors
    visitor.context.close()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_the_cover_moves_only_for_those_who_want_it(browser, origin, motion):
    """Others do not even fetch the film; before it comes, the still picture stands there."""
    context = browser.new_context(viewport=LAPTOP, reduced_motion=motion)
    tab, asked = context.new_page(), []
    tab.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[-1].split("?")[0]))
    tab.goto(f"{origin}/index.html")
    assert "cover-still.webp" in asked
    if motion == "no-preference":
        assert "cover.webp" not in asked[: asked.index("cover-still.webp")]
        tab.wait_for_selector(".cover-picture.plays")
    tab.wait_for_timeout(500)
    moving = tab.evaluate("getComputedStyle(document.querySelector('.frames')).animationName") != "none"
    assert moving == ("cover.webp" in asked) == (motion == "no-preference")
    assert tab.locator(".cover-picture button").is_visible() == moving
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.querySelector('.frames')).animationName") == "none"
    context.close()


# Of all that moved without being asked to, by how much (https://web.dev/cls counts 0.1 as good).
SHIFTS = """window.shifted = 0;
new PerformanceObserver(list => { for (const entry of list.getEntries()) window.shifted += entry.value; })
  .observe({type: 'layout-shift', buffered: true});"""


@pytest.mark.parametrize("page", ["index.html", "book/problem_sets/ps1/ps1.html", "book/04-ddim-derivation.html"])
def test_nothing_jumps_while_a_page_loads(browser, origin, page):
    """On a phone to which the letters come late."""
    context = browser.new_context(viewport=PHONE, is_mobile=True)
    tab = context.new_page()
    tab.add_init_script(SHIFTS)
    tab.route("**/*.woff2", lambda route: (tab.wait_for_timeout(300), route.continue_()))
    tab.goto(f"{origin}/{page}", wait_until="load")
    tab.evaluate("document.fonts.ready.then(() => new Promise(requestAnimationFrame))")
    tab.wait_for_timeout(500)
    assert tab.evaluate("window.shifted") < 0.05
    context.close()
