"""Find a Chromium or Chrome for the tests of the site; install one when there is none. Run by `make test`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge"]
MAC = [f"/Applications/{name}.app/Contents/MacOS/{name}" for name in ("Google Chrome", "Chromium", "Microsoft Edge")]


def find_browser() -> str | None:
    """The path of a browser: one on PATH, a Mac application, or playwright's own download."""
    on_path = next(filter(None, map(shutil.which, [*NAMES, *MAC])), None)
    if on_path:
        return on_path
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def install() -> None:
    """First by apt-get, when we may, because it brings the system libraries along; then by playwright."""
    if getattr(os, "geteuid", lambda: 1)() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-q"], check=False)
        subprocess.run(["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium"], check=False)
    if not find_browser():
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


if __name__ == "__main__":
    if not find_browser():
        install()
    if not find_browser():
        sys.exit("The tests of the site need Chromium or Chrome: install one so that it is on PATH, and try again.")
