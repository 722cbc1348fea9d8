"""`tools/race.py`: equal time for each, and a loss on unseen images that is the same question for everybody."""

import json
from dataclasses import replace

import pytest
import race
import torch
from helpers import randn

from ddimlib import NoiseSchedule
from ddimlib.training import TrainingConfig, stratified_timesteps

SCHEDULE = NoiseSchedule.linear(100)


class Answers(torch.nn.Module):
    """Predicts `share` of the noise that is in x_t when the image is zero."""

    def __init__(self, share):
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(share))

    def forward(self, x, t):
        return self.share * x / (1 - SCHEDULE.alpha_bar[t]).sqrt()[:, None, None, None]


@pytest.mark.parametrize("loss", ["noise", "balanced"])
def test_the_loss_is_that_of_training_at_fixed_times_and_noise(loss):
    images = torch.zeros(600, 1, 4, 4)
    found = [race.validation_losses(Answers(share), SCHEDULE, images, None)[loss] for share in (1.0, 0.5, 0.0)]
    generator = torch.Generator().manual_seed(0)
    t = stratified_timesteps(100, 600, generator)
    noise = torch.randn(600, 1, 4, 4, generator=generator)
    ab = SCHEDULE.alpha_bar[t]
    weight = 2 * ((1 - ab) / ab).sqrt() if loss == "balanced" else torch.ones_like(ab)
    whole = float((weight * noise.square().mean((1, 2, 3))).mean())
    assert found == pytest.approx([0, whole / 4, whole], rel=1e-4, abs=1e-6)


class Runner:
    """A trainer in a time of its own, whose machine becomes slower after a hundred steps, or faster."""

    def __init__(self, later):
        self.config, self.step, self.now, self.later = TrainingConfig(steps=1), 0, 0.0, later

    def fit(self, seconds):
        self.config = replace(self.config, steps=round(0.95 * seconds))  # a step a second, as it is at first

    def run(self, progress, stop_after):
        stop = self.now + stop_after
        while self.step < self.config.steps and self.now <= stop:
            self.step += 1
            self.now += 1 if self.step < 100 else self.later
        return self.step == self.config.steps


@pytest.mark.parametrize("later", [0.7, 1, 2])
def test_a_run_takes_its_time_whatever_the_machine_does_meanwhile(later, monkeypatch):
    runner = Runner(later)
    monkeypatch.setattr(race.time, "monotonic", lambda: runner.now)
    race.fit_to_the_end(runner, 1200)
    assert runner.now == pytest.approx(1200, rel=0.03)
    assert runner.step == pytest.approx(100 + 1100 / later, rel=0.03)


def test_each_entry_gets_a_row_once(tmp_path, monkeypatch, capsys):
    def load_dataset(name, root, train=True):
        images = (randn(64 if train else 10, 1, 8, 8) * 40 + 128).clamp(0, 255).byte()
        return images, torch.arange(len(images)) % 10

    small = {"widths": (8, 8), "blocks": (1, 1), "attention": (False, False)}
    entries = {"muon": (small, {}), "AdamW": (small, {"optimizer": "adamw", "batch_size": 8})}
    monkeypatch.setattr(race, "load_dataset", load_dataset)
    monkeypatch.setattr(race, "ENTRIES", entries)
    given = []

    def fit(trainer, seconds):  # how it fits is tested with the trainer
        given.append(seconds)
        trainer.config = replace(trainer.config, steps=3)

    monkeypatch.setattr(race.Trainer, "fit", fit)
    command = ["mnist", "--minutes", "10", "--n", "10", "--no-compile", "--no-bf16", "--quiet", "--device", "cpu"]
    command += ["--out", str(tmp_path / "race.json"), "--entries"]
    assert race.main([*command, "muon"]) == 0
    first = json.loads((tmp_path / "race.json").read_text())["rows"]
    assert race.main([*command, "muon", "AdamW"]) == 0
    rows = json.loads((tmp_path / "race.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["muon", "AdamW"]
    assert rows[:1] == first
    assert [row["images_seen"] for row in rows] == [3 * 64, 3 * 8]
    assert all(0 < row["noise"] < 2 for row in rows)
    assert all(540 < seconds < 600 for seconds in given)
    assert rows[1]["training"] == entries["AdamW"][1]
    assert race.main([*command, "nobody"]) == 2
    assert "no entry nobody; there are: muon, AdamW" in capsys.readouterr().err
