"""The figures' pixels, where they can be told; how figures look is for eyes."""

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from ddimlib.data import to_bytes
from ddimlib.plotting import COLORS, image_grid, show_images, show_rows, use_book_style


@pytest.fixture(autouse=True)
def no_window_and_no_leftovers():
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    with mpl.rc_context():
        yield
    plt.close("all")
    plt.switch_backend(backend)


def test_a_grid_is_filled_row_by_row():
    values = torch.tensor([-1.0, 1.0, 0.5])
    grid = image_grid(values.reshape(3, 1, 1, 1).expand(3, 1, 4, 4), columns=2)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 2 + 2 * 6, 2 + 2 * 6)  # images of 4 and borders of 2
    assert (grid[:, 2:6, 2:6] == 0).all()
    assert (grid[:, 2:6, 8:12] == 255).all()
    assert (grid[:, 8:12, 2:6] == 191).all()


def test_colours_keep_their_channels():
    image = torch.stack([torch.full((4, 4), v) for v in (-1.0, 0.0, 1.0)])[None]
    assert image_grid(image, 1)[:, 3, 3].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("shape", "columns", "named"),
    [((4, 4), 2, r"got shape \(4, 4\)"), ((1, 4, 4), 2, r"\(1, 4, 4\)"), ((1, 1, 4, 4), 0, "columns .* got 0")],
)
def test_a_grid_of_nothing_sensible_is_refused(shape, columns, named):
    with pytest.raises(ValueError, match=named):
        image_grid(torch.zeros(shape), columns)


def test_show_images_draws_the_grid_under_its_title():
    images = torch.rand(6, 1, 4, 4) * 2 - 1
    figure = show_images(images, columns=3, title="six")
    assert isinstance(figure, Figure)
    (axis,) = figure.axes
    assert axis.get_title() == "six"
    assert (torch.as_tensor(axis.images[0].get_array()) == image_grid(images, 3).permute(1, 2, 0)).all()


def test_show_rows_names_every_row_and_takes_rows_of_any_length():
    figure = show_rows({"S = 50": torch.zeros(3, 1, 4, 4), "S = 10": torch.zeros(2, 1, 4, 4)}, title="rows")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["S = 50", "S = 10"]
    assert axis.get_title() == "rows"


def test_show_rows_needs_a_row():
    with pytest.raises(ValueError, match="at least one row"):
        show_rows({})


def test_the_style_tells_lines_apart_by_colour_and_by_dash():
    use_book_style()
    cycle = list(plt.rcParams["axes.prop_cycle"])
    assert plt.rcParams["figure.facecolor"] == "white"
    assert len({entry["color"] for entry in cycle}) == len({str(entry["linestyle"]) for entry in cycle}) == len(cycle)
    assert {entry["color"] for entry in cycle} <= set(COLORS.values())


@pytest.mark.parametrize(("n", "columns"), [(2, 1), (5, 3), (6, 3), (3, 8)])
def test_a_grid_is_torchvisions(n, columns):
    images = torch.rand(n, 1, 5, 4) * 2 - 1
    expected = make_grid(to_bytes(images), nrow=columns, padding=2, pad_value=128)
    assert torch.equal(image_grid(images, columns), expected)
