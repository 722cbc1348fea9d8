"""The whole book as one PDF, printed by the browser that the tests use: `make paper`.

python tools/paper.py _build/singlehtml/index.html _build/paper/ddim-book.pdf
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from ensure_browser import find_browser

FOOT = '<div style="width: 100%; text-align: center; font: 8pt serif"><span class="pageNumber"></span></div>'
MARGIN = {"top": "18mm", "bottom": "20mm", "left": "20mm", "right": "20mm"}


def print_page(page: Path, pdf: Path) -> None:
    """Print one HTML page, with an outline of its headings and with tags for screen readers."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(color_scheme="light")
        tab.set_default_timeout(600_000)
        tab.goto(page.resolve().as_uri(), wait_until="load")
        tab.evaluate("for (const image of document.images) image.loading = 'eager'")
        tab.wait_for_function("[...document.images].every(image => image.complete)")
        tab.emulate_media(media="print")
        pdf.parent.mkdir(parents=True, exist_ok=True)
        tab.pdf(path=pdf, format="A4", margin=MARGIN, outline=True, tagged=True, print_background=True,
                display_header_footer=True, header_template="<span></span>", footer_template=FOOT)  # fmt: skip
        browser.close()


if __name__ == "__main__":
    page, pdf = map(Path, sys.argv[1:])
    print_page(page, pdf)
    print(f"{pdf}: {pdf.stat().st_size / 1e6:.1f} MB")
