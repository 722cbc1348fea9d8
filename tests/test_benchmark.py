"""The benchmark: that all samplers draw the same images, that a table is whole and goes on, and what it says when it cannot."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sampler as benchmark
import torch
from helpers import last, randn
from sampler import main
from torch import nn

from ddimlib import NoiseSchedule, UNet, VelocityDenoiser, ddim, timesteps
from ddimlib.plotting import plot_benchmark
from ddimlib.pretrained import save_model

SCHEDULE = NoiseSchedule.linear()
NETWORK = {"widths": (8, 8), "blocks": (1, 1), "attention": (False, False), "image_size": 8, "num_classes": 2}
INSTALLED = ["tutorial"] + [
    name for name, module in [("diffusers", "diffusers"), ("denoising-diffusion-pytorch", "denoising_diffusion_pytorch")]
    if importlib.util.find_spec(module)
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """A small random network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VelocityDenoiser(UNet(**NETWORK), SCHEDULE)
        for p in model.parameters():  # some start at zero, and would hide what they multiply
            nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.fixture
def path(model, tmp_path):
    save_model(tmp_path / "tiny.safetensors", model, SCHEDULE, NETWORK)
    return tmp_path / "tiny.safetensors"


def command(path, out, *options):
    """Arguments of a benchmark of one row that takes no time; of an option given twice, the last counts."""
    base = ["--batch", "2", "--steps", "5", "--peers", "tutorial", "--repeats", "2", "--seconds", "0"]
    return [
        "--model",
        str(path),
        "--device",
        "cpu",
        "--no-compile",
        "--quiet",
        *base,
        "--out",
        str(out),
        *options,
    ]


@pytest.mark.parametrize("S", [1, 5, 50])
@pytest.mark.parametrize("peer", INSTALLED)
def test_a_peer_draws_the_image_of_ours(model, peer, S):
    x_T = randn(2, 1, 8, 8, dtype=torch.float32)
    steps = timesteps(1000, S, "trailing")
    expected = last(ddim(model, SCHEDULE, x_T, steps))
    image = benchmark.PEERS[peer](model, SCHEDULE, steps)(x_T)
    assert (image - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("peer", INSTALLED)
def test_a_peer_evaluates_the_network_as_often_as_we_do(model, peer):
    times = []

    def counting(x, t):
        times.append(t.tolist())
        return model(x, t)

    steps = timesteps(1000, 10, "trailing")
    benchmark.PEERS[peer](counting, SCHEDULE, steps)(randn(2, 1, 8, 8, dtype=torch.float32))
    assert times == [[t, t] for t in steps]


def test_the_floor_evaluates_the_network_and_does_nothing_else(model):
    times = []

    def counting(x, t):
        times.append(int(t[0]))
        return model(x, t)

    benchmark.forward_passes(counting, [30, 20, 10])(randn(2, 1, 8, 8, dtype=torch.float32))
    assert times == [30, 20, 10]


def test_a_table(path, tmp_path, capsys):
    out, figure = tmp_path / "table.json", tmp_path / "figure.png"
    assert main(command(path, out, "--batch", "1", "2", "--figure", str(figure), "--peers", *INSTALLED)) == 0
    table = json.loads(out.read_text())
    assert [(row["batch"], row["steps"]) for row in table["rows"]] == [(1, 5), (2, 5)]
    assert table["provenance"][0]["device"].startswith("CPU")
    for row in table["rows"]:
        ours = row["samplers"]["ddimlib"]
        assert ours["ratio"] == 1
        assert {"ddimlib", "ddimlib, accelerated", "forward passes", "forward passes, accelerated", *INSTALLED} == set(
            row["samplers"]
        )
        assert (
            set(row["rms_difference"])
            == set(row["largest_difference"])
            == {"ddimlib", "ddimlib, accelerated", *INSTALLED}
        )
        assert all(e["quartiles"][0] <= e["seconds"] <= e["quartiles"][1] for e in row["samplers"].values())
        assert ours["overhead"] > -1
        assert set(row["own_cost"]) == {"ddimlib", *INSTALLED}
        assert 0 < row["own_cost"]["ddimlib"] < 1
        assert row["repeats"] >= 2
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "denoising" in capsys.readouterr().out or "denoising-diffusion-pytorch" not in INSTALLED


def test_rows_that_are_there_are_not_measured_again(path, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert main(command(path, out)) == 0
    first = json.loads(out.read_text())["rows"]
    assert main(command(path, out, "--steps", "5", "10")) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[:1] == first
    assert [row["steps"] for row in rows] == [5, 10]


def test_an_interruption_keeps_the_rows_before_it(path, tmp_path, monkeypatch, capsys):
    out, measure = tmp_path / "table.json", benchmark.measure

    def interrupted(candidates, x_T, *args):
        if len(x_T) == 2:
            raise KeyboardInterrupt
        return measure(candidates, x_T, *args)

    monkeypatch.setattr(benchmark, "measure", interrupted)
    assert main(command(path, out, "--batch", "1", "2")) == 130
    assert [row["batch"] for row in json.loads(out.read_text())["rows"]] == [1]
    assert "the same command again continues" in capsys.readouterr().err
    monkeypatch.setattr(benchmark, "measure", measure)
    assert main(command(path, out, "--batch", "1", "2")) == 0
    assert [row["batch"] for row in json.loads(out.read_text())["rows"]] == [1, 2]


def test_a_table_of_another_seed_is_not_continued(path, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert main(command(path, out)) == 0
    assert main(command(path, out, "--seed", "1")) == 2
    assert "choose another output" in capsys.readouterr().err


def test_a_sampler_that_draws_other_images_is_refused(path, tmp_path, monkeypatch, capsys):
    def wrong(model, schedule, steps):
        loop = benchmark.tutorial_loop(model, schedule, steps)
        return lambda x_T: loop(x_T) + 0.01

    monkeypatch.setitem(benchmark.PEERS, "tutorial", wrong)
    assert main(command(path, tmp_path / "table.json")) == 2
    assert "tutorial draws other images: a pixel differs by 0.01" in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "300"], "S divides T = 1000; 300 does not"),
        (["--batch", "0"], "must be at least 1"),
        (["--repeats", "0"], "must be at least 1"),
    ],
)
def test_a_bad_option_is_one_clear_line(path, tmp_path, capsys, options, message):
    assert main(command(path, tmp_path / "table.json", *options)) == 2
    assert message in capsys.readouterr().err


def test_without_the_extra_the_error_names_it(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    assert main(command(path, tmp_path / "table.json", "--peers", "tutorial", "diffusers")) == 2
    error = capsys.readouterr().err
    assert "diffusers is not installed" in error
    assert "pip install -e '.[bench]'" in error
    assert not (tmp_path / "table.json").exists()


def test_memory_of_a_run_is_told_on_linux():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no such file on this system")
    big = benchmark.peak_bytes(lambda x: torch.ones(32_000_000), torch.zeros(1))
    small = benchmark.peak_bytes(lambda x: x, torch.zeros(1))
    assert big > 100e6 > 20e6 > small


def test_the_figure_has_a_panel_for_each_batch(path, tmp_path):
    out = tmp_path / "table.json"
    main(command(path, out, "--batch", "1", "2", "--steps", "5", "10"))
    figure = plot_benchmark(json.loads(out.read_text()))
    assert [axis.get_title() for axis in figure.axes] == ["batch 1", "batch 2"]


@pytest.mark.parametrize(
    ("kind", "tf32", "difference", "fits"),
    [
        ("cuda", True, 7e-3, True),
        ("cuda", True, 2e-2, False),
        ("cuda", False, 7e-3, False),
        ("cpu", True, 7e-3, False),
        ("cpu", True, 1e-4, True),
    ],
)
def test_as_much_rounding_is_allowed_as_the_convolutions_have(kind, tf32, difference, fits, monkeypatch):
    """TF32 keeps ten bits: what stands in for a GPU's noise says only that it is there."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    x_T = SimpleNamespace(device=SimpleNamespace(type=kind))
    images = randn(2, 1, 4, 4)
    candidates = {benchmark.OURS: lambda x: images, "another": lambda x: images + difference}
    if fits:
        assert benchmark.compare(candidates, x_T)["rms_difference"]["another"] == difference
    else:
        with pytest.raises(ArithmeticError, match="another draws other images"):
            benchmark.compare(candidates, x_T)


def test_the_script_says_how_it_is_used():
    script = Path(__file__).parent.parent / "benchmarks" / "sampler.py"
    result = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "python benchmarks/sampler.py" in result.stdout
