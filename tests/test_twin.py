"""The dark twin of a figure: the same figure, legible on a dark page, with nothing left behind in the light one."""

import base64
import io

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb, to_rgba
from nbclient import NotebookClient
from PIL import Image
from twin import DARK_GROUND, KERNEL_ARGUMENTS, dark_color, darkened, pictures, png

from ddimlib.plotting import COLORS, use_book_style


@pytest.fixture(autouse=True)
def no_window_and_no_leftovers():
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    with mpl.rc_context():
        use_book_style()
        yield
    plt.close("all")
    plt.switch_backend(backend)


def luminance(color):
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(color, ground):
    dark, light = sorted([luminance(color), luminance(ground)])
    return (light + 0.05) / (dark + 0.05)


def busy_figure():
    """One of everything that has a colour."""
    figure, (left, right) = plt.subplots(1, 2)
    for k in range(5):
        left.plot([0, 1], [0, k], marker="o", label=f"k = {k}")
    left.fill_between([0, 1], [0, 1], alpha=0.3)
    left.scatter([0, 1], [1, 0], c=[0.1, 0.9], cmap="viridis")
    left.bar([0.5], [1], color="black", edgecolor="white")
    left.text(0.1, 0.2, "words", bbox={"facecolor": "white", "edgecolor": "black"})
    left.legend()
    mappable = right.imshow(np.linspace(-1, 1, 16).reshape(4, 4), cmap="RdBu")
    figure.colorbar(mappable)
    figure.suptitle("everything")
    return figure


def test_a_ground_that_means_something_is_seen_on_the_dark_page_too():
    figure, (plain, grey) = plt.subplots(1, 2)
    grey.set_facecolor("#9a9a9a")
    with darkened(figure):
        assert plain.get_facecolor()[3] == 0
        assert contrast(grey.get_facecolor()[:3], DARK_GROUND) > 1.5
    assert to_rgb(grey.get_facecolor()) == to_rgb("#9a9a9a")


@pytest.mark.parametrize("color", [*COLORS.values(), "black", "#555555", "C0", "red", "navy"])
def test_every_colour_is_seen_on_the_dark_ground(color):
    assert contrast(dark_color(to_rgba(color))[:3], DARK_GROUND) >= 3
    assert dark_color(to_rgba(color, 0.25))[3] == 0.25


def test_greys_change_places():
    assert dark_color(to_rgba("white")) == pytest.approx(to_rgba(DARK_GROUND))
    assert contrast(dark_color(to_rgba("black"))[:3], DARK_GROUND) > 12
    levels = [luminance(dark_color((grey, grey, grey, 1.0))[:3]) for grey in np.linspace(0, 1, 11)]
    assert levels == sorted(levels, reverse=True)


def test_the_light_figure_is_left_as_it_was():
    figure = busy_figure()
    before = png(figure)
    with darkened(figure):
        assert png(figure) != before
    assert png(figure) == before


def test_it_is_left_so_even_after_an_error():
    figure = busy_figure()
    before = png(figure)
    with pytest.raises(RuntimeError), darkened(figure):
        raise RuntimeError
    assert png(figure) == before


def test_twins_are_of_one_size_at_twice_the_pixels_and_each_on_its_ground():
    figure = busy_figure()
    light, about = pictures(figure)
    light, dark = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (light, base64.b64decode(about["dark"]))
    )
    assert light.shape == dark.shape
    assert light.shape[:2] == pytest.approx((2 * about["height"], 2 * about["width"]), abs=1)
    assert about["width"] == pytest.approx(figure.get_figwidth() * figure.dpi, rel=0.05)
    assert (light[0, 0] == 255).all()
    assert dark[0, 0] / 255 == pytest.approx(np.array(to_rgb(DARK_GROUND)), abs=0.01)
    assert np.mean(dark > 200) < 0.1, "a light box in the dark picture"


def test_photographs_keep_their_colours():
    figure = plt.figure(figsize=(2, 2))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(np.linspace(0, 1, 64).reshape(8, 8), cmap="gray")
    axis.set_axis_off()
    light, about = pictures(figure)
    light, dark = (Image.open(io.BytesIO(data)).convert("RGB") for data in (light, base64.b64decode(about["dark"])))
    inner = (40, 40, light.width - 40, light.height - 40)
    assert np.array_equal(light.crop(inner), dark.crop(inner))


def test_notebooks_store_both():
    source = "import matplotlib.pyplot as plt\nfrom ddimlib.plotting import use_book_style\nuse_book_style()"
    cells = [nbformat.v4.new_code_cell(text) for text in (source, "plt.plot([1, 2])\nplt.show()")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", extra_arguments=KERNEL_ARGUMENTS).execute()
    (output,) = notebook.cells[1].outputs
    about = output.metadata["image/png"]
    assert Image.open(io.BytesIO(base64.b64decode(about["dark"]))).size[0] == pytest.approx(2 * about["width"], abs=1)
