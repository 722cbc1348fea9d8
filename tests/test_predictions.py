"""Networks that predict ε, x_0 or v, schedules that end in pure noise, learned variances, and limits of x̂_0."""

import copy
import math

import pytest
import torch
from helpers import last, randn, short_schedule, smooth_mixture
from torch import nn

from ddimlib import (
    DiffusersDenoiser,
    GuidedDenoiser,
    LabelledDenoiser,
    NoiseSchedule,
    PredictionDenoiser,
    VelocityDenoiser,
    accelerate,
    ddim,
    ddim_ab2,
    ddim_step,
    ddpm,
    gaussian,
    invert,
    sample,
    timesteps,
)
from ddimlib.samplers import ddpm_step

SHORT = short_schedule()
PURE = SHORT.zero_terminal_snr()
DATA = smooth_mixture()


class Exact(nn.Module):
    """The best network of its kind for DATA, in float64; label k adds k/10 to the image it sees."""

    num_classes = 2

    def __init__(self, prediction: str, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.prediction_of_output, self.schedule_of_data = prediction, schedule

    def forward(self, x, t, labels=None):
        t = int(t[0])
        ab = self.schedule_of_data.ab[t]
        if ab == 0:
            x_0 = torch.tensordot(DATA.weights, DATA.means, dims=1).expand_as(x)
            eps = x
        else:
            eps = DATA.expected_noise(x, ab)
            x_0 = (x - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
        if labels is not None:
            x_0 = x_0 + 0.1 * (labels % 2)[:, None, None, None]
            eps = (x - math.sqrt(ab) * x_0) / math.sqrt(1 - ab)
        v = math.sqrt(ab) * eps - math.sqrt(1 - ab) * x_0
        return {"eps": eps, "x0": x_0, "v": v}[self.prediction_of_output]


def read(prediction: str, schedule: NoiseSchedule) -> PredictionDenoiser:
    return PredictionDenoiser(Exact(prediction, schedule), schedule, prediction)


# --- what a network predicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_whatever_a_network_predicts_the_images_are_the_same(prediction):
    x_T = randn(3, 1, 2, 2)
    expected = list(ddim(DATA.denoiser(SHORT), SHORT, x_T, 12))
    found = list(ddim(read(prediction, SHORT), SHORT, x_T, 12))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(found, expected, strict=True))  # the tables are float32


def test_reading_it_as_something_else_is_not_the_same():
    """The mistake that the argument is there to prevent."""
    x_T = randn(3, 1, 2, 2)
    wrong = last(ddim(PredictionDenoiser(Exact("v", SHORT), SHORT, "eps"), SHORT, x_T, 12))
    assert (wrong - last(ddim(read("v", SHORT), SHORT, x_T, 12))).abs().max() > 0.1


def test_a_velocity_denoiser_is_one_that_predicts_v():
    x, t = randn(3, 1, 2, 2), torch.full((3,), 7)
    ours = VelocityDenoiser(Exact("v", SHORT), SHORT)
    assert ours.prediction == "v"
    assert torch.equal(ours(x, t), read("v", SHORT)(x, t))


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")])
def test_a_network_of_diffusers_is_read_as_its_scheduler_says(theirs, ours):
    """Against their scheduler, which turns each kind of output into the step of DDIM."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        trained_betas=SHORT.beta[1:].tolist(), clip_sample=False, set_alpha_to_one=True, prediction_type=theirs,
        num_train_timesteps=40, timestep_spacing="leading",
    )  # fmt: skip
    scheduler.alphas_cumprod = SHORT.alpha_bar[1:]
    scheduler.set_timesteps(10)

    class UNet2DModel(nn.Module):
        config = type("Config", (), {"num_class_embeds": None})
        plain = Exact(ours, SHORT)

        def forward(self, x, t, class_labels=None):
            return type("UNet2DOutput", (), {"sample": self.plain(x, t + 1)})

    unet = UNet2DModel()
    model = DiffusersDenoiser(unet, prediction=scheduler.config.prediction_type, schedule=SHORT)
    x = x_T = randn(2, 1, 2, 2)
    for t, state in zip(scheduler.timesteps, ddim(model, SHORT, x_T, timesteps(40, 10, "leading")), strict=True):
        x = scheduler.step(unet(x, torch.full((2,), int(t))).sample, t, x).prev_sample
        assert (x - state).abs().max() < (1e-12 if ours == "eps" else 1e-5)


def test_a_learned_variance_is_dropped_and_that_is_said():
    class WithVariance(nn.Module):
        def forward(self, x, t):
            return torch.cat([0.1 * x, 100 + x], dim=1)

    x_T = randn(2, 1, 2, 2)
    with pytest.warns(UserWarning, match="also predicts a variance"):
        found = last(ddim(PredictionDenoiser(WithVariance(), SHORT, "eps"), SHORT, x_T, 5))
    assert torch.equal(found, last(ddim(lambda x, t: 0.1 * x, SHORT, x_T, 5)))
    with pytest.raises(ValueError, match="PredictionDenoiser"):
        last(ddim(WithVariance(), SHORT, x_T, 5))


@pytest.mark.parametrize("answer", [lambda x: (x,), lambda x: None, lambda x: type("Output", (), {"sample": x})()])
def test_an_answer_that_is_no_tensor_is_refused_with_the_way_to_wrap_it(answer):
    with pytest.raises(TypeError, match="wrap it"):
        last(ddim(lambda x, t: answer(x), SHORT, randn(2, 1, 2, 2), 5))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64])
def test_an_answer_that_is_not_floating_point_is_refused(dtype):
    with pytest.raises(ValueError, match="floating-point"):
        last(ddim(lambda x, t: x.to(dtype), SHORT, randn(2, 1, 2, 2), 5))


def test_a_model_is_held_to_the_schedule_it_was_made_for():
    model, x = read("v", SHORT), randn(2, 1, 2, 2)
    labelled = LabelledDenoiser(model, [0, 1])
    for other in (NoiseSchedule.linear(), NoiseSchedule.cosine(40), PURE):
        for wrapped in (model, labelled, nn.DataParallel(copy.deepcopy(model)), DATA.denoiser(SHORT)):
            for walk in (ddim, ddim_ab2, invert):
                with pytest.raises(ValueError, match=r"made for NoiseSchedule\(T=40.*pass model.schedule"):
                    walk(wrapped, other, x.tanh(), [9, 1])
    again = NoiseSchedule(SHORT.beta[1:].float().double())  # as it comes back from a file
    assert last(ddim(model, NoiseSchedule(SHORT.beta[1:].tolist()), x, [9, 1])).isfinite().all()
    assert not SHORT.same_as(again)


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [[1, 0, 1], (1, 0, 1), torch.tensor([1, 0, 1]), torch.tensor([1, 0, 1], dtype=torch.uint8)]
)
def test_labels_may_be_any_sequence(labels):
    model, x, t = read("x0", SHORT), randn(3, 1, 2, 2), torch.full((3,), 7)
    expected = model(x, t, torch.tensor([1, 0, 1]))
    assert torch.equal(LabelledDenoiser(model, labels)(x, t), expected)


def test_one_int_is_the_label_of_all_and_a_list_of_one_is_not():
    model, x, t = read("x0", SHORT), randn(3, 1, 2, 2), torch.full((3,), 7)
    assert torch.equal(LabelledDenoiser(model, 1)(x, t), LabelledDenoiser(model, [1, 1, 1])(x, t))
    with pytest.raises(ValueError, match="1 labels for a batch of 3"):
        LabelledDenoiser(model, [1])(x, t)


def test_the_classes_of_a_network_inside_data_parallel_are_found():
    model = nn.DataParallel(read("x0", SHORT))
    assert LabelledDenoiser(model, [1, 0]).labels.tolist() == [1, 0]
    assert GuidedDenoiser(model, 1, 2.0).none == 2


# --- a schedule that ends in pure noise ------------------------------------------------------------------------------


def test_the_rescaled_schedule_is_the_papers():
    """Lin et al. 2024, algorithm 1, in the words of diffusers."""
    utils = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    for schedule in (SHORT, NoiseSchedule.linear()):
        pure = schedule.zero_terminal_snr()
        assert pure.ab[-1] == 0
        assert pure.alpha_bar[1].item() == pytest.approx(schedule.alpha_bar[1].item(), rel=1e-12)
        theirs = utils.rescale_zero_terminal_snr(schedule.beta[1:].clone())
        assert pure.beta[1:].allclose(theirs, rtol=1e-9)
    assert PURE.snr(PURE.T) == 0
    assert torch.equal(PURE.add_noise(randn(2, 1, 2, 2), 40, randn(2, 1, 2, 2, seed=1)), randn(2, 1, 2, 2, seed=1))


@pytest.mark.parametrize("clip", [None, 3.0, "dynamic"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, "hat"])
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_a_step_out_of_pure_noise_is_equation_12_with_the_networks_own_x0(prediction, eta, clip):
    """ε is x_T, x̂_0 what the network says: all three terms written out."""
    model, x_T, z = read(prediction, PURE), randn(3, 1, 2, 2), randn(1, 3, 1, 2, 2, seed=1)
    x_0 = torch.tensordot(DATA.weights, DATA.means, dims=1).expand_as(x_T)
    ab_prev = PURE.ab[30]
    first = next(ddim(model, PURE, x_T, [40, 30], eta, torch.cat([z, z]), clip))
    one = math.sqrt(1 - ab_prev)  # σ of η = 1, where ᾱ_t = 0
    sigma = 1.0 if eta == "hat" else eta * one
    direction = math.sqrt(max(1 - ab_prev - (one if eta == "hat" else sigma) ** 2, 0))
    expected = math.sqrt(ab_prev) * x_0 + direction * x_T + sigma * z[0]
    assert first.allclose(expected, atol=1e-6)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_from_pure_noise_to_the_data(prediction):
    """Wrappers, guidance, acceleration and DDPM: everything passes the network's x̂_0 on."""
    x_T = randn(500, 1, 2, 2)
    model = read(prediction, PURE)
    images = last(ddim(model, PURE, x_T, 40))
    assert images.isfinite().all()
    mean = torch.tensordot(DATA.weights, DATA.means, dims=1)
    assert (images.mean(0) - mean).abs().max() < 0.15
    assert (last(ddim(DATA.denoiser(PURE), PURE, x_T, 40)) - images).abs().max() < 1e-4
    guided = GuidedDenoiser(model, 1, 1.0)
    labelled = LabelledDenoiser(model, 1)
    assert torch.allclose(last(ddim(guided, PURE, x_T, 40)), last(ddim(labelled, PURE, x_T, 40)))
    assert (last(ddim(labelled, PURE, x_T, 1)) - 0.1 - last(ddim(model, PURE, x_T, 1))).abs().max() < 1e-6
    assert sample(accelerate(model), PURE, (2, 1, 2, 2), 5, seed=0).isfinite().all()
    z = randn(40, 500, 1, 2, 2, seed=2)
    a, b = last(ddpm(model, PURE, x_T, z)), last(ddim(model, PURE, x_T, range(40, 0, -1), 1.0, z))
    assert (a - b).abs().max() < 1e-10


def test_ddpm_step_out_of_pure_noise_draws_from_the_posterior():
    x_T, x_0, z = randn(3, 2, 1, 2, 2).unbind(0)
    mean, variance = PURE.posterior(x_0, x_T, 40)
    assert ddpm_step(PURE, x_T, -x_0, 40, z).allclose(mean + variance.sqrt() * z, atol=1e-12)


def test_where_eps_says_nothing_samplers_refuse_to_begin():
    x = randn(2, 1, 2, 2).tanh()
    for model in (lambda x, t: x, read("eps", PURE)):
        with pytest.raises(ValueError, match=r"pure noise.*predicts v or x_0"):
            ddim(model, PURE, x, [40, 3])
        with pytest.raises(ValueError, match="pure noise"):
            ddpm(model, PURE, x)
        assert last(ddim(model, PURE, x, [39, 3])).isfinite().all()
    for walk in (ddim_ab2, invert):
        with pytest.raises(ValueError, match="pure noise"):
            walk(read("v", PURE), PURE, x, [40, 3])
        assert last(walk(read("v", PURE), PURE, x, [39, 3])).isfinite().all()
    with pytest.raises(ValueError, match="pure noise"):
        PURE.predict_x0(x, 40, x)


# --- limits of x̂_0 ---------------------------------------------------------------------------------------------------


def test_dynamic_thresholding_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        trained_betas=SHORT.beta[1:].tolist(), num_train_timesteps=40, clip_sample=False, set_alpha_to_one=True,
        thresholding=True, dynamic_thresholding_ratio=0.995, sample_max_value=1e9,
    )  # fmt: skip
    scheduler.alphas_cumprod = SHORT.alpha_bar[1:]
    scheduler.set_timesteps(4)
    x, eps = 3 * randn(3, 1, 20, 20), randn(3, 1, 20, 20, seed=1)
    t = int(scheduler.timesteps[1]) + 1
    theirs = scheduler.step(eps, t - 1, x, use_clipped_model_output=True).prev_sample
    ours = ddim_step(SHORT, x, eps, t, t - 10, clip="dynamic")
    assert (ours - theirs).abs().max() < 1e-12
    assert (ours - ddim_step(SHORT, x, eps, t, t - 10, clip=1.0)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dynamic_limits_leave_images_within_the_range_alone_and_the_others_in_it(dtype):
    x_T = randn(2, 1, 4, 4).to(dtype)
    inside = gaussian(0.2, 0.0).denoiser(SHORT)
    assert torch.allclose(
        last(ddim(inside, SHORT, x_T, 5, clip="dynamic")), last(ddim(inside, SHORT, x_T, 5)), atol=0.01
    )
    assert last(ddim(lambda x, t: -x, SHORT, x_T, 5, clip="dynamic")).abs().max() <= 1.01
