"""Training: the loss, the average, the batches, and above all that a run can be stopped anywhere and continued."""

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Operators, randn, short_schedule
from safetensors.torch import save_file

import ddimlib
from ddimlib.pretrained import build_model, save_model
from ddimlib.storage import read_tensors
from ddimlib.training import (
    RECIPES,
    Trainer,
    TrainingConfig,
    learning_rate_factor,
    loss_weight,
    noise_loss,
    stratified_timesteps,
)

SCHEDULE = short_schedule()
NETWORK = {
    "widths": (8, 8), "blocks": (1, 1), "attention": (False, True), "image_size": 8, "num_classes": 3, "dropout": 0.1,
}  # fmt: skip
CONFIG = TrainingConfig(steps=16, batch_size=8, learning_rate=5e-3, warmup=4, ema=0.9, flip=True)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Thirty 8×8 images of three kinds: a bright left, middle or right third on noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (30, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(30) % 3
    for i, k in enumerate(labels.tolist()):
        images[i, :, :, 3 * k : 3 * k + 2] += 180
    return images, labels


def make(config: TrainingConfig = CONFIG, checkpoint=None, network=NETWORK, labels: bool = True, **options) -> Trainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(network, SCHEDULE)
    images, classes = data()
    return Trainer(model, SCHEDULE, images, classes if labels else None, config, checkpoint, **options)


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that has to be the same to the bit: weights, their average, the optimiser's moments."""
    moments = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
    return (
        {f"model {k}": v for k, v in trainer.model.state_dict().items()}
        | {f"average {k}": v for k, v in trainer.averaged_model.state_dict().items()}
        | {
            f"moment {o} {i} {k}": v
            for o, m in enumerate(moments)
            for i, values in m.items()
            for k, v in values.items()
        }
    )


def assert_identical(a: Trainer, b: Trainer) -> None:
    assert a.step == b.step
    ours, theirs = state(a), state(b)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def uninterrupted() -> Trainer:
    trainer = make()
    trainer.run(progress=False)
    return trainer


# --- loss and learning rate ------------------------------------------------------------------------------------------


def test_noise_loss_is_the_mean_square_weighted_by_sample():
    eps, noise = randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    per_sample = [((eps[i] - noise[i]) ** 2).mean().item() for i in range(3)]
    assert noise_loss(eps, noise).item() == pytest.approx(sum(per_sample) / 3)
    weighted = noise_loss(eps, noise, torch.tensor([1.0, 2.0, 4.0])).item()
    assert weighted == pytest.approx((per_sample[0] + 2 * per_sample[1] + 4 * per_sample[2]) / 3)


def test_the_velocity_weight_makes_the_noise_loss_the_velocitys_own():
    x_0, noise, v = randn(3, 40, 1, 2, 2).unbind(0)
    t = torch.arange(1, 41)
    ab = SCHEDULE.alpha_bar[t][:, None, None, None]
    true_v = ab.sqrt() * noise - (1 - ab).sqrt() * x_0
    eps = (1 - ab).sqrt() * SCHEDULE.add_noise(x_0, t, noise) + ab.sqrt() * v
    weight = loss_weight(SCHEDULE, t, "velocity")
    assert noise_loss(eps, noise, weight).item() == pytest.approx((v - true_v).square().mean().item(), rel=1e-5)
    assert loss_weight(SCHEDULE, t, "noise").tolist() == [1] * 40


def test_the_balanced_weight_peaks_where_signal_and_noise_are_equal():
    t = torch.arange(1, SCHEDULE.T + 1)
    share = loss_weight(SCHEDULE, t, "balanced") / loss_weight(SCHEDULE, t, "velocity")
    ab = SCHEDULE.alpha_bar[t]
    assert share.max() <= 1 + 1e-6
    assert (share.argmax() - (ab - 0.5).abs().argmin()).abs() <= 1
    torch.testing.assert_close(share.double() ** 2, 1 - (2 * ab - 1) ** 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n", [1, 7, 128])
def test_timesteps_of_a_batch_cover_the_range_evenly(n):
    draws = [stratified_timesteps(1000, n, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert all(d.min() >= 1 and d.max() <= 1000 for d in draws)
    # every stretch of 1000/n timesteps is hit once, but for rounding
    assert all((torch.histc(d.float(), 10, 1, 1000) - n / 10).abs().max() <= 1.1 for d in draws)
    mean = torch.stack(draws).double().mean(0)  # of a uniform draw: 500.5, with deviation 288.7/√200
    assert ((mean - 500.5).abs() < 5 * 288.7 / 200**0.5).all()


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="'image'"):
        loss_weight(SCHEDULE, torch.tensor([1]), "image")


def test_the_learning_rate_warms_up_and_falls_as_half_a_cosine():
    config = TrainingConfig(steps=110, warmup=10)
    assert [learning_rate_factor(k, config) for k in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [learning_rate_factor(k, config) for k in (10, 60, 110)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-12)


@pytest.mark.parametrize("loss", ["noise", "velocity", "balanced"])
def test_training_lowers_the_loss(loss):
    trainer = make(replace(CONFIG, steps=40, loss=loss, label_dropout=0.0, flip=False))
    losses = [trainer.train_step().item() for _ in range(40)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step_alone():
    a, b = make(), make()
    for step in (5, 0, 15, 5):  # in any order
        torch.rand(step + 1)  # whatever else was drawn in between
        assert all(torch.equal(x, y) for x, y in zip(a.batch(step), make().batch(step), strict=True))
    other = make(replace(CONFIG, seed=1))
    assert not torch.equal(b.batch(3)[3], other.batch(3)[3])
    assert not torch.equal(b.batch(3)[3], b.batch(4)[3])


def test_an_epoch_shows_each_image_at_most_once_and_epochs_differ():
    trainer = make(replace(CONFIG, flip=False))
    images = ((data()[0].float() / 127.5) - 1).flatten(1)

    def shown(epoch):
        x = torch.cat([trainer.batch(3 * epoch + i)[0] for i in range(3)]).flatten(1)  # 30 images fill 3 batches of 8
        distance = torch.cdist(x, images)
        assert distance.min(1).values.max() < 1e-2
        return distance.argmin(1).tolist()

    assert len(set(shown(0))) == 24
    assert shown(0) != shown(1)


def test_a_batch_holds_what_it_says():
    trainer = make(replace(CONFIG, batch_size=30, flip=False, label_dropout=0.0))
    x_0, labels, t, noise = (torch.cat(parts) for parts in zip(*(trainer.batch(k) for k in range(40)), strict=True))
    assert x_0.dtype == torch.float32
    assert (x_0.min() >= -1) & (x_0.max() <= 1)
    assert (t.min(), t.max(), t.dtype) == (1, 40, torch.int64)
    assert abs(noise.mean()) < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    brightest_third = torch.stack([x_0[..., 3 * k : 3 * k + 2].mean((1, 2, 3)) for k in range(3)]).argmax(0)
    assert torch.equal(labels, brightest_third)


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0.0, 0.0), (0.25, 0.2, 0.3), (1.0, 1.0, 1.0)])
def test_labels_are_dropped_as_often_as_asked(dropout, low, high):
    trainer = make(replace(CONFIG, batch_size=30, label_dropout=dropout))
    labels = torch.cat([trainer.batch(k)[1] for k in range(50)])
    assert low <= (labels == 3).double().mean().item() <= high


def test_half_of_the_images_are_mirrored_when_asked():
    plain, flipped = (make(replace(CONFIG, flip=flip)) for flip in (False, True))
    mirrored = 0
    for k in range(30):
        a, b = plain.batch(k)[0], flipped.batch(k)[0]
        same, turned = (b == a).flatten(1).all(1), (b == a.flip(-1)).flatten(1).all(1)
        assert (same ^ turned).all()
        mirrored += turned.sum().item()
    assert 0.35 < mirrored / 240 < 0.65


def test_all_images_are_warped_at_first_and_none_at_last():
    plain, bent = (make(replace(CONFIG, flip=False, steps=400, warp=warp)) for warp in (False, True))

    def share(steps):
        changed = [(plain.batch(k)[0] != bent.batch(k)[0]).flatten(1).any(1) for k in steps]
        return torch.cat(changed).double().mean().item()

    assert share(range(0, 200, 10)) == 1
    assert 0.4 < share(range(280, 320)) < 0.6
    assert share([399]) <= 1 / 8
    assert share([400]) == 0


def test_without_labels_none_are_given():
    trainer = make(network=NETWORK | {"num_classes": None}, labels=False)
    assert trainer.batch(0)[1] is None
    assert math.isfinite(trainer.train_step())


# --- the average -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_follows_its_recursion(decay):
    """a ← d a + (1-d) w with d = min(decay, (1+n)/(10+n)), begun with the weights after the first step."""
    trainer = make(replace(CONFIG, ema=decay, steps=100))
    average = None
    for n in range(12):
        trainer.train_step()
        weights = [p.detach().double() for p in trainer.model.parameters()]
        d = min(decay, (1 + n) / (10 + n))
        average = weights if n == 0 else [d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)]
        for a, found in zip(average, trainer.averaged_model.parameters(), strict=True):
            assert found.double().allclose(a, atol=1e-6)
    different = zip(average, weights, strict=True)
    assert max((a - w).abs().max().item() for a, w in different) > 1e-3


def test_the_average_asks_the_device_for_nothing():
    """A stand-in for a GPU: the host, which would wait for it, reads no number of a tensor."""
    trainer = make()
    for _ in range(2):
        trainer.train_step()
    with Operators() as ran:
        trainer._update_average()
    assert ran.calls
    assert ran.reads_by_host() == []
    averages = list(trainer.averaged_model.parameters())
    with Operators() as ran:
        trainer._average(averages, averages, torch.tensor(3))  # as torch's AveragedModel counts
    assert ran.reads_by_host()


# --- precision -------------------------------------------------------------------------------------------------------


def test_bfloat16_is_for_the_network_only():
    exact, rough = make(), make(bf16=True)
    assert (exact.bf16, rough.bf16, make(bf16=False).bf16) == (False, True, False)  # on a CPU it has to be asked for
    seen = []
    rough.model.network.stem.register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    _, losses = [
        [trainer.train_step() for trainer in (exact, rough)] for _ in range(2)
    ]  # a fresh network answers 0 in both
    assert seen == [torch.bfloat16] * 2
    assert all(value.dtype in (torch.float32, torch.int64) for value in state(rough).values())
    assert losses[1].dtype == torch.float32
    assert 0 < abs(losses[0] - losses[1]) < 0.02 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_gpu_the_host_never_waits_and_the_batches_are_those_of_the_cpu():
    images, labels = data()
    model = build_model(NETWORK, SCHEDULE)
    trainer = Trainer(model, SCHEDULE, images, labels, CONFIG, device="cuda")
    assert {value.device.type for value in state(trainer).values() if value.ndim} == {"cuda"}
    for ours, theirs in zip(trainer.batch(5), make().batch(5), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)
    trainer.train_step()  # sets up the optimiser
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


# --- stop and continue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 9])
def test_a_run_stopped_by_the_keyboard_continues_to_the_same_bits(stop_at, tmp_path, uninterrupted):
    first = make(checkpoint=tmp_path / "c.safetensors")
    step = first.train_step

    def interrupted_step():
        if first.step == stop_at:
            raise KeyboardInterrupt
        return step()

    first.train_step = interrupted_step
    with pytest.raises(KeyboardInterrupt):
        first.run(progress=False)
    second = make(checkpoint=tmp_path / "c.safetensors")
    assert second.step == stop_at
    second.run(progress=False)
    assert_identical(second, uninterrupted)


def test_a_run_stopped_by_the_clock_continues_to_the_same_bits(tmp_path, uninterrupted, monkeypatch):
    path = tmp_path / "c.safetensors"
    first = make(checkpoint=path)
    now = iter(range(1000))  # every look at the clock finds it a second later
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    assert first.run(progress=False, stop_after=8) is False
    monkeypatch.undo()
    second = make(checkpoint=path)
    assert 1 < second.step == first.step < CONFIG.steps
    assert second.run(progress=False, stop_after=3600) is True
    assert_identical(second, uninterrupted)


def test_a_run_without_time_still_makes_one_step(tmp_path):
    path = tmp_path / "c.safetensors"
    assert make(checkpoint=path).run(progress=False, stop_after=-1.0) is False
    assert make(checkpoint=path).step == 1


def test_half_a_step_is_never_stored(tmp_path, uninterrupted):
    """Stopped after the weights changed and before the average did: the last whole state must stay."""
    path = tmp_path / "c.safetensors"
    first = make(checkpoint=path)
    for _ in range(5):
        first.train_step()
    first.save()

    def interrupt():
        raise KeyboardInterrupt

    first._update_average = interrupt
    with pytest.raises(KeyboardInterrupt):
        first.run(progress=False)
    second = make(checkpoint=path)
    assert second.step == 5
    second.run(progress=False)
    assert_identical(second, uninterrupted)


CHILD = """
import sys, time
sys.path[:0] = sys.argv[2:]
import torch
from test_training import make
torch.set_num_threads(int(sys.argv[1]))
trainer = make(checkpoint="c.safetensors")
step = trainer.train_step
trainer.train_step = lambda: (time.sleep(0.1), step())[1]  # slow enough to be caught
trainer.run(progress=False, save_every=0)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_outright_continues_to_the_same_bits(tmp_path, uninterrupted):
    paths = [str(Path(ddimlib.__file__).parents[1]), str(Path(__file__).parent)]
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(torch.get_num_threads()), *paths], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 400
        while not (tmp_path / "c.safetensors").exists():
            assert child.poll() is None, "the run ended before it wrote a checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(int.from_bytes(os.urandom(1)) / 1000)  # any moment within the next quarter of a second
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    resumed = make(checkpoint=tmp_path / "c.safetensors")
    assert 0 < resumed.step < CONFIG.steps
    resumed.run(progress=False)
    assert_identical(resumed, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("during", ["the batch", "the update", "the average"])
def test_a_signal_lets_the_step_end_and_the_checkpoint_be_written(number, during, tmp_path, uninterrupted):
    path = tmp_path / "c.safetensors"
    first = make(checkpoint=path)
    owner, name = {
        "the batch": (first, "batch"), "the update": (first.optimizers[0], "step"), "the average": (first, "_update_average"),
    }[during]  # fmt: skip
    original = getattr(owner, name)

    def interrupted(*args):
        if first.step == 5:
            os.kill(os.getpid(), number)
        return original(*args)

    setattr(owner, name, interrupted)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as interruption:
        first.run(progress=False)
    assert interruption.value.args == (number,)
    assert signal.getsignal(number) is before
    second = make(checkpoint=path)
    assert second.step == 6
    second.run(progress=False)
    assert_identical(second, uninterrupted)


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    first = make(checkpoint=tmp_path / "c.safetensors")

    def impatient():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it went on")

    first.train_step = impatient
    with pytest.raises(KeyboardInterrupt):
        first.run(progress=False)


def test_the_final_loss_does_not_depend_on_when_checkpoints_were_saved(tmp_path):
    config = replace(CONFIG, steps=45)
    losses = []
    for save_every in (0.0, 1e9):
        trainer = make(config, tmp_path / f"{save_every}.safetensors")
        trainer.run(progress=False, save_every=save_every)
        losses.append(trainer.loss)
    stopped = make(config, tmp_path / "stopped.safetensors")
    for _ in range(33):
        stopped.run(progress=False, stop_after=-1.0)
    resumed = make(config, tmp_path / "stopped.safetensors")
    resumed.run(progress=False)
    assert losses == [resumed.loss] * 2


def test_two_runs_do_not_write_one_checkpoint(tmp_path):
    path = tmp_path / "c.safetensors"
    first, second = make(checkpoint=path), make(checkpoint=path)
    step = first.train_step

    def meanwhile():
        with pytest.raises(OSError, match="another process is at work"):
            second.run(progress=False)
        return step()

    first.train_step = meanwhile
    first.run(progress=False, stop_after=-1.0)
    with pytest.raises(OSError, match="written by another run since it was read"):
        second.run(progress=False)


class Own(torch.nn.Module):
    """A network of one's own: no classes, and no weights for Muon."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return self.scale * x


def test_a_network_of_ones_own_is_trained_and_continued(tmp_path):
    def own():
        return Trainer(Own(), SCHEDULE, data()[0], None, replace(CONFIG, steps=4), tmp_path / "c.safetensors")

    own().run(progress=False, stop_after=-1.0)
    trainer = own()
    assert trainer.step == 1
    trainer.run(progress=False)
    assert trainer.averaged_model.scale.item() != 0


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    config = replace(CONFIG, steps=3)
    make(config, tmp_path / "c.safetensors").run(progress=False)
    again = make(config, tmp_path / "c.safetensors")
    assert again.step == 3
    again.train_step = lambda: pytest.fail("trained on")
    again.run(progress=False)


def test_training_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    make(replace(CONFIG, steps=2)).run(progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "c.safetensors"
    trainer = make(checkpoint=path)
    trainer.train_step()
    trainer.save()
    before = path.read_bytes()
    next(trainer.model.parameters()).data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="NaN or infinity at step 2"):
        trainer.run(progress=False, save_every=0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_shown_when_asked_and_silent_otherwise(progress, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    make(replace(CONFIG, steps=2)).run(progress=progress)
    assert ("2/2" in capsys.readouterr().err) == progress


# --- checkpoints that do not fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 0.1}, r"learning_rate = 0\.005, not 0\.1"),
        ({"seed": 1, "steps": 30}, "steps = 16, .*seed = 0"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(change, named, tmp_path):
    trainer = make(checkpoint=tmp_path / "c.safetensors")
    trainer.train_step()
    trainer.save()
    with pytest.raises(ValueError, match=f"other settings.*{named}"):
        make(replace(CONFIG, **change), tmp_path / "c.safetensors")


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    trainer = make(checkpoint=tmp_path / "c.safetensors")
    trainer.train_step()
    trainer.save()
    with pytest.raises(ValueError, match=r"network.widths = \[8, 8\]"):
        make(checkpoint=tmp_path / "c.safetensors", network=NETWORK | {"widths": (8, 16)})


def write_truncated(path):
    trainer = make(checkpoint=path)
    trainer.train_step()
    trainer.save()
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (write_truncated, "not a whole safetensors file"),
        (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
        (lambda path: path.write_text("step: 12\n"), "not a whole safetensors file"),
        (lambda path: path.write_bytes(pickle.dumps({"step": 12})), "not a whole safetensors file"),
        (lambda path: torch.save({"step": 12}, path), "not a whole safetensors file"),
        (lambda path: save_file({"a": torch.ones(2)}, path), "not written by ddimlib"),
        (lambda path: save_model(path, make().model, SCHEDULE, NETWORK), "does not say with what settings"),
    ],
    ids=["truncated", "empty", "text", "pickle", "torch.save", "foreign safetensors", "a model, not a checkpoint"],
)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(write, named, tmp_path):
    path = tmp_path / "c.safetensors"
    write(path)
    with pytest.raises(ValueError, match=named) as error:
        make(checkpoint=path)
    assert str(path) in str(error.value)


def test_a_checkpoint_says_where_it_stands(tmp_path):
    trainer = make(checkpoint=tmp_path / "c.safetensors")
    trainer.train_step()
    trainer.save()
    assert read_tensors(tmp_path / "c.safetensors")[1]["step"] == 1


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="30 images do not fill one batch of 31"):
        make(replace(CONFIG, batch_size=31))


@pytest.mark.parametrize(("name", "limit"), [("mnist", 4e6), ("fashion", 4e6), ("cifar10", 20e6)])
def test_every_recipe_builds_a_network_that_is_small_when_stored(name, limit):
    recipe = RECIPES[name]
    model = build_model(
        recipe.network | {"channels": 3, "image_size": 32, "num_classes": 10}, ddimlib.NoiseSchedule.linear()
    )
    assert (2 if recipe.half else 4) * sum(p.numel() for p in model.parameters()) <= limit


def test_the_network_for_colour_is_small_enough_to_ship_and_to_draw_with_on_a_laptop():
    recipe = RECIPES["cifar10"]
    network = build_model(recipe.network | {"channels": 3, "image_size": 32, "num_classes": 10}, SCHEDULE)
    assert 2 * sum(p.numel() for p in network.parameters()) < 14e6  # bytes, as float16
    attends = [size for size, yes in zip((32, 16, 8), recipe.network["attention"], strict=True) if yes]
    assert attends == [8]
    assert recipe.training.flip


def test_weights_that_are_not_finite_are_never_stored(tmp_path):
    trainer = make(checkpoint=tmp_path / "checkpoint.safetensors")
    trainer.save()
    before = trainer.checkpoint.read_bytes()
    with torch.no_grad():
        next(trainer.model.parameters())[0] = math.nan
    with pytest.raises(FloatingPointError, match="step 0"):
        trainer.save()
    assert trainer.checkpoint.read_bytes() == before


def test_as_many_labels_as_images_are_needed():
    images, labels = data()
    with pytest.raises(ValueError, match="29 labels for a batch of 30"):
        Trainer(build_model(NETWORK, SCHEDULE), SCHEDULE, images, labels[:-1], CONFIG)


# --- a run that must end in time ---------------------------------------------------------------------------------------


def test_a_fitted_run_is_the_run_of_that_many_steps():
    """The steps that were timed leave nothing behind."""
    fitted = make(replace(CONFIG, steps=10**9))
    fitted.fit(seconds=3.0, measured=0.2)
    assert 1 <= fitted.config.steps < 10**6
    assert fitted.step == 0
    steps = min(8, fitted.config.steps)
    plain = make(fitted.config)
    for _ in range(steps):
        fitted.train_step()
        plain.train_step()
    assert_identical(fitted, plain)


def test_a_fitted_run_fits(monkeypatch):
    """With steps of 20 ms by the clock, 0.95 · 50 · (time left) of them are asked for."""
    trainer = make(replace(CONFIG, steps=10**9))
    now = [0.0]
    monkeypatch.setattr("ddimlib.training.time.monotonic", lambda: now[0])
    step = trainer.train_step

    def of_20_ms():
        now[0] += 0.02
        return step()

    monkeypatch.setattr(trainer, "train_step", of_20_ms)
    trainer.fit(seconds=60.0, measured=1.0)
    assert trainer.config.steps == pytest.approx(0.95 * 50 * (60 - 1.1), rel=0.01)


def test_too_little_time_and_a_run_under_way_are_refused():
    trainer = make(replace(CONFIG, steps=10**9))
    with pytest.raises(ValueError, match="not one step"):
        trainer.fit(seconds=-1.0)
    trainer.train_step()
    with pytest.raises(ValueError, match="at step 1"):
        trainer.fit(seconds=60.0)


@pytest.mark.parametrize(("decay", "expected"), [(0.1, 1.0), (0.5, 1.0), (1.0, 0.5)])
def test_the_rate_is_kept_until_the_decay(decay, expected):
    config = replace(CONFIG, steps=1000, warmup=0, decay=decay)
    assert learning_rate_factor(500, config) == pytest.approx(expected)
    assert learning_rate_factor(1000, config) == pytest.approx(0.0)
    middle = round(1000 * (1 - decay / 2))
    assert learning_rate_factor(middle, config) == pytest.approx(0.5)
