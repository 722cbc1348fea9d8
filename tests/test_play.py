"""The figures to play with: their files are what the command draws; in a browser, their sliders move them."""

import io
import json
import subprocess
import sys
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_site import LAPTOP, QuietHandler, Visitor, browser  # noqa: F401, browser is a fixture

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "book" / "_static" / "play"
sys.path.insert(0, str(ROOT / "tools"))

import play  # noqa: E402

NAMES = list(play.FIGURES)


def strip_of(name, folder=FOLDER):
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return facts, np.asarray(Image.open(folder / f"{name}.webp").convert("L"), dtype=float)


def frame(facts, strip, number):
    width, height = facts["frame"]
    columns = len(facts["sliders"][-1]["stops"])
    row, column = divmod(number, columns)
    return strip[row * height : (row + 1) * height, column * width : (column + 1) * width]


def rmse(a, b):
    return np.sqrt(np.mean((np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) ** 2)) / 255


@pytest.mark.parametrize("name", NAMES)
def test_the_files_fit_together(name):
    facts, strip = strip_of(name)
    stops = [len(slider["stops"]) for slider in facts["sliders"]]
    width, height = facts["frame"]
    assert len(facts["remarks"]) == np.prod(stops)
    assert strip.shape == (height * (stops[0] if len(stops) == 2 else 1), width * stops[-1])
    assert all(0 <= slider["start"] < len(slider["stops"]) for slider in facts["sliders"])
    first = int(np.ravel_multi_index([slider["start"] for slider in facts["sliders"]], stops))
    still = Image.open(FOLDER / f"{name}.png").resize((width, height), Image.Resampling.NEAREST)
    assert rmse(still, frame(facts, strip, first)) == 0
    assert (FOLDER / f"{name}.webp").stat().st_size < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_drawn_again_is_the_stored_one(name):
    facts, strip = strip_of(name)
    figure = play.FIGURES[name]()
    place = (1,) * len(figure.sliders)
    images, remark = figure.draw(*place)
    number = int(np.ravel_multi_index(place, [len(slider.stops) for slider in figure.sliders]))
    assert [vars(slider) for slider in figure.sliders] == facts["sliders"]
    assert remark == facts["remarks"][number]
    assert rmse(play.picture(images), frame(facts, strip, number)) < 0.02
    assert rmse(play.picture(images), frame(facts, strip, number + 1)) > 0.02  # so the test can tell frames apart


def test_the_command_refuses_a_name_it_does_not_know():
    result = subprocess.run([sys.executable, ROOT / "tools" / "play.py", "stairs"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no figure stairs; there are forward" in result.stderr


FIGURE = """
```{{play}} {name}
:name: fig-{name}
:alt: What can be seen

The caption.
```
"""


def build(folder, text):
    """A site of one page with {play}, without the book's theme."""
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['myst_parser', 'play']\nhtml_static_path = ['book/_static']\n"
        "html_favicon = 'book/_static/favicon.svg'\nnumfig = True\n"
    )
    if not (folder / "book").exists():
        (folder / "book").symlink_to(ROOT / "book")
    (folder / "index.md").write_text(f"# A page\n{text}")
    command = [sys.executable, "-m", "sphinx", "-W", "-b", "html", "-D", "exclude_patterns=book/*,book/**"]
    return subprocess.run([*command, folder, folder / "site"], capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play")
    result = build(folder, "".join(FIGURE.format(name=name) for name in NAMES))
    assert result.returncode == 0, result.stderr
    return folder / "site"


@pytest.fixture(params=["from a server", "from the disk"])
def visitor(request, browser, site):  # noqa: F811
    if request.param == "from the disk":
        visitor = Visitor(browser, site.as_uri(), LAPTOP)
        yield visitor
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=site))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        visitor = Visitor(browser, f"http://127.0.0.1:{server.server_port}", LAPTOP)
        yield visitor
        server.shutdown()
    visitor.context.close()


def shown(figure, facts):
    """What the figure's picture shows, as grey values of a frame's size."""
    picture = Image.open(io.BytesIO(figure.locator("canvas").screenshot())).convert("L")
    return np.asarray(picture.resize(facts["frame"], Image.Resampling.BOX), dtype=float)


@pytest.mark.parametrize("name", NAMES)
def test_the_keyboard_moves_every_slider_and_the_picture_follows(visitor, name):
    tab = visitor.open("index.html")
    figure = tab.locator(f"figure#fig-{name}")
    figure.scroll_into_view_if_needed()
    figure.locator("input").first.wait_for()
    facts, strip = strip_of(name)
    stops = [len(slider["stops"]) for slider in facts["sliders"]]
    place = [slider["start"] for slider in facts["sliders"]]
    for i, slider in enumerate(facts["sliders"]):
        for key, stop in [("End", stops[i] - 1), ("ArrowLeft", stops[i] - 2)]:
            figure.locator("input").nth(i).press(key)
            place[i] = stop
            number = int(np.ravel_multi_index(place, stops))
            assert figure.locator("output").nth(i).inner_text() == slider["stops"][stop]
            assert figure.locator(".play-remark").inner_text() == facts["remarks"][number]
            assert slider["stops"][stop] in figure.locator("input").nth(i).get_attribute("aria-valuetext")
            seen = shown(figure, facts)
            distances = [rmse(seen, frame(facts, strip, i)) for i in range(len(facts["remarks"]))]
            assert distances[number] < min(distances) + 0.001  # of all frames, this one
    assert figure.locator("canvas").get_attribute("aria-label") == "What can be seen"
    assert not visitor.strangers + visitor.errors


def test_the_strip_is_fetched_only_when_the_reader_comes_near(browser, site):  # noqa: F811
    visitor = Visitor(browser, site.as_uri(), {"width": 600, "height": 300})
    fetched = []
    visitor.tab.on("request", lambda request: fetched.append(request.url))
    tab = visitor.open("index.html")
    tab.locator("figure").first.locator("input").first.wait_for()
    assert not any(url.endswith(f"{NAMES[-1]}.webp") for url in fetched)
    tab.locator("figure").last.scroll_into_view_if_needed()
    tab.locator("figure").last.locator("input").first.wait_for()
    assert any(url.endswith(f"{NAMES[-1]}.webp") for url in fetched)
    visitor.context.close()


def test_without_scripts_the_still_picture_and_the_text_stand(browser, site):  # noqa: F811
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{site.as_uri()}/index.html")
    for figure in tab.locator("figure").all():
        assert figure.locator("img").get_attribute("alt") == "What can be seen"
        assert figure.locator("img").evaluate("image => image.complete && image.naturalWidth > 0")
        assert "The caption." in figure.inner_text()
        assert figure.locator("input").count() == 0
    context.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps", "stairs"), "there is no figure 'stairs' to play with; there are eta"),
        ((":alt:", ":class:"), "needs :alt:"),
    ],
)
def test_an_authors_mistake_fails_the_build(tmp_path, change, message):
    result = build(tmp_path, FIGURE.format(name="steps").replace(*change))
    assert result.returncode != 0
    assert message in result.stderr
