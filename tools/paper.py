"""The whole book as one PDF, printed from the site by the browser that the tests use: `make paper`.

python tools/paper.py _build/html _build/paper/ddim-book.pdf
"""

import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from ensure_browser import find_browser

PATIENCE = 900_000  # milliseconds: a thousand formulas a minute on a busy machine
FOOT = '<div style="width: 100%; text-align: center; font: 8pt serif"><span class="pageNumber"></span></div>'
MARGIN = {"top": "18mm", "bottom": "20mm", "left": "20mm", "right": "20mm"}

# On the cover: append every page of the menu, in its order. An id gets its page's name before it, for "summary" is in every
# chapter, and a link to a page of the book leads to its place in the PDF. Returns how many pages there are.
BIND = """async () => {
  const name = url => url.pathname.replace(/\\.html$/, "").replace(/\\W+/g, "-");
  const parse = async url => new DOMParser().parseFromString(await (await fetch(url)).text(), "text/html");
  const links = [...document.querySelectorAll(".bd-links a.internal")].map(link => new URL(link.href));
  const pages = [...new Set([new URL(location.href), ...links].map(url => url.origin + url.pathname))].map(url => new URL(url));
  const known = new Set(pages.map(name)), styles = new Set([...document.styleSheets].map(sheet => sheet.href));
  const articles = [];
  for (const url of pages) {
    const page = await parse(url), article = page.querySelector("article");
    for (const unwanted of article.querySelectorAll(".only-dark, script, a.headerlink, noscript")) unwanted.remove();
    for (const part of article.querySelectorAll("[id]")) part.id = `${name(url)}--${part.id}`;
    for (const image of article.querySelectorAll("img")) {
      image.src = new URL(image.getAttribute("src"), url).href;
      image.removeAttribute("loading");
    }
    for (const link of article.querySelectorAll("a[href]")) {
      const target = new URL(link.getAttribute("href"), url);
      if (target.origin !== location.origin) continue;
      if (!known.has(name(target))) link.removeAttribute("href"); // the site's source and index
      else link.setAttribute("href", `#${name(target)}` + (target.hash ? `--${decodeURIComponent(target.hash.slice(1))}` : ""));
    }
    for (const link of page.querySelectorAll("link[rel=stylesheet]")) {
      const href = new URL(link.getAttribute("href"), url).href;
      if (styles.has(href)) continue;
      styles.add(href);
      const sheet = document.createElement("link");
      const loaded = new Promise(done => { sheet.onload = done; });
      Object.assign(sheet, { rel: "stylesheet", href });
      document.head.append(sheet);
      await loaded;
    }
    article.id = name(url);
    articles.push(document.adoptNode(article));
  }
  document.querySelector("article").replaceWith(...articles);
  await document.fonts.ready;
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  return articles.length;
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def print_book(site: Path, pdf: Path) -> int:
    """Print all pages of the site as one document, with an outline of its headings and with tags for screen readers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(color_scheme="light")
        tab.set_default_timeout(PATIENCE)
        tab.goto(f"http://127.0.0.1:{server.server_port}/index.html", wait_until="load")
        count = tab.evaluate(BIND)
        tab.emulate_media(media="print")
        pdf.parent.mkdir(parents=True, exist_ok=True)
        tab.pdf(path=pdf, format="A4", margin=MARGIN, outline=True, tagged=True, print_background=True,
                display_header_footer=True, header_template="<span></span>", footer_template=FOOT)  # fmt: skip
        browser.close()
    server.shutdown()
    return count


if __name__ == "__main__":
    site, pdf = map(Path, sys.argv[1:])
    count = print_book(site, pdf)
    print(f"{pdf}: {count} pages of the site, {pdf.stat().st_size / 1e6:.1f} MB")
