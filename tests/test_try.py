"""The page "Try it": its sampler draws what ddimlib draws, and a person can use it, by finger, mouse or keyboard."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import SPACINGS
from test_site import LAPTOP, PHONE, ROOT, SITE, Visitor, browser, origin  # noqa: F401, browser and origin are fixtures

from ddimlib import (
    GuidedDenoiser,
    LabelledDenoiser,
    NoiseSchedule,
    SeededNoise,
    ddim,
    invert,
    last,
    lerp,
    load_pretrained,
    sample_seeds,
    slerp,
    timesteps,
)

PAGE = "book/try.html"
NARROW = {"width": 320, "height": 640}

# The modules of the page, and what turns their arrays into something that travels.
MODULES = """async () => {
  const folder = new URL("../_static/try/", location);
  const [library, noise, network] =
    await Promise.all(["ddimlib", "noise", "network"].map((name) => import(new URL(`${name}.mjs`, folder))));
  window.d = { ...library, ...noise, load: network.load_pretrained, nets: {} };
  d.last = async (states) => { let end; for await (end of states); return Array.from(end.x); };
  d.pretrained = async (name) => (d.nets[name] ??= await d.load(name));
}"""


@pytest.fixture(scope="module")
def modules(browser, origin):  # noqa: F811
    """A tab with the page's modules at hand, as window.d."""
    visitor = Visitor(browser, origin, LAPTOP)
    tab = visitor.open(PAGE)
    tab.evaluate(MODULES)
    yield tab
    assert not visitor.strangers + visitor.errors
    visitor.context.close()


@pytest.fixture(scope="module")
def networks():
    return {name: load_pretrained(name) for name in ("mnist", "fashion")}


def numbers(x):
    return x.flatten().tolist()


def largest_difference(ours, theirs):
    return np.abs(np.asarray(ours) - theirs.flatten().numpy()).max()


def test_the_schedule_is_the_librarys(modules, networks):
    _, schedule = networks["mnist"]
    ours = modules.evaluate("async () => (await d.pretrained('mnist')).schedule.alpha_bar")
    assert np.abs(np.asarray(ours) - schedule.alpha_bar.numpy()).max() < 1e-14


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_timesteps_are_the_librarys_(modules, spacing):
    for T, counts in [(T, range(1, T + 1)) for T in (1, 2, 10, 97)] + [
        (1000, [*range(1, 101), 250, 501, 750, 999, 1000])
    ]:
        ours = modules.evaluate(
            "([T, counts, spacing]) => counts.map((S) => d.timesteps(T, S, spacing))", [T, list(counts), spacing]
        )
        assert ours == [timesteps(T, S, spacing) for S in counts]


def test_the_seeds_and_their_noise_are_the_librarys(modules):
    for seed in (0, 3, 2**32 - 1):
        seeds = sample_seeds(seed, 4, start=5)
        assert modules.evaluate("(seed) => d.sample_seeds(seed, 4, 5)", seed) == [s % 2**32 for s in seeds]
        source = SeededNoise(seeds)
        theirs = torch.cat([source.draw((1, 28, 28)) for _ in range(3)])
        ours = modules.evaluate(
            "(seeds) => { const s = new d.SeededNoise(seeds); return [1, 2, 3].flatMap(() => Array.from(s.draw(784))) }",
            [s % 2**32 for s in seeds],
        )
        assert largest_difference(ours, theirs) < 1e-5


def test_paths_between_latents_are_the_librarys(modules):
    a, b = SeededNoise([1, 2]).draw((1, 28, 28)).split(1)
    for name, path in (("slerp", slerp), ("lerp", lerp)):
        for weight in (0, 0.3, 1):
            ours = modules.evaluate(
                "([name, a, b, w]) => Array.from(d[name](Float32Array.from(a), Float32Array.from(b), w))",
                [name, numbers(a), numbers(b), weight],
            )
            assert largest_difference(ours, path(a, b, weight)) < 1e-6


def test_forward_and_its_estimates_are_the_librarys(modules):
    schedule = NoiseSchedule.cosine(50)
    x, eps = SeededNoise([1, 2]).draw((1, 4, 4)).split(1)
    for t in (1, 25, 50):
        for name in ("add_noise", "predict_x0"):
            ours = modules.evaluate(
                "([betas, name, x, t, e]) => "
                "Array.from(new d.NoiseSchedule(betas)[name](Float32Array.from(x), t, Float32Array.from(e)))",
                [numbers(schedule.beta[1:]), name, numbers(x), t, numbers(eps)],
            )
            theirs = getattr(schedule, name)(x.double(), t, eps.double())
            assert largest_difference(ours, theirs) < 1e-6 * float(theirs.abs().max())


# (S, spacing, η, guidance): four S, three η, four spacings, with and without guidance
RUNS = [
    (1, "linspace", 0.0, 1.0),
    (5, "leading", 0.0, 1.0),
    (5, "trailing", 1.0, 1.0),
    (10, "quadratic", 0.5, 1.0),
    (10, "linspace", 0.0, 3.0),
    (20, "linspace", 0.0, 1.0),
    (20, "trailing", 1.0, 2.0),
    (20, "quadratic", 0.5, 0.0),
]

SAMPLE = """async ([name, S, spacing, eta, guidance, labels, x_T, noise]) => {
  const { network, schedule } = await d.pretrained(name);
  const model = guidance === null ? d.LabelledDenoiser(network, labels) : d.GuidedDenoiser(network, labels, guidance);
  const z = noise.map((values) => Float32Array.from(values));
  const steps = d.timesteps(schedule.T, S, spacing);
  return d.last(d.ddim(model, schedule, Float32Array.from(x_T), steps, eta, (i) => z[i]));
}"""


def both(tab, networks, name, S, spacing, eta, guidance, labels):
    """x_0 by the page's sampler and by the library's, from the same x_T and step noise."""
    model, schedule = networks[name]
    n = len(labels)
    source = SeededNoise.from_seed(S, n)
    x_T = source.draw((1, 28, 28))
    noise = torch.stack([source.draw((1, 28, 28)) for _ in range(S)])
    arguments = [name, S, spacing, eta, guidance, labels, numbers(x_T), [numbers(z) for z in noise]]
    ours = tab.evaluate(SAMPLE, arguments)
    denoiser = model
    if guidance is not None:
        denoiser = GuidedDenoiser(model, labels, guidance)
    elif labels[0] is not None:
        denoiser = LabelledDenoiser(model, labels)
    return ours, last(ddim(denoiser, schedule, x_T, timesteps(schedule.T, S, spacing), eta, noise))


@pytest.mark.parametrize(("S", "spacing", "eta", "guidance"), RUNS)
def test_the_same_noise_becomes_the_same_picture(modules, networks, S, spacing, eta, guidance):
    ours, theirs = both(modules, networks, "mnist", S, spacing, eta, guidance, [7, 2])
    assert largest_difference(ours, theirs) < 1e-4


def test_the_same_without_a_class_and_with_the_other_network(modules, networks):
    ours, theirs = both(modules, networks, "mnist", 5, "linspace", 0.0, None, [None])
    assert largest_difference(ours, theirs) < 1e-4
    ours, theirs = both(modules, networks, "fashion", 5, "linspace", 0.5, None, [8])
    assert largest_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("iterations", [0, 2])
def test_the_same_picture_has_the_same_code(modules, networks, iterations):
    model, schedule = networks["mnist"]
    x_0 = last(ddim(LabelledDenoiser(model, [4]), schedule, SeededNoise([0]).draw((1, 28, 28)), [1000, 500]))
    ours = modules.evaluate(
        """async ([x_0, iterations]) => {
          const { network, schedule } = await d.pretrained("mnist");
          const steps = d.timesteps(schedule.T, 10, "linspace");
          return d.last(d.invert(d.LabelledDenoiser(network, [4]), schedule, Float32Array.from(x_0), steps, iterations));
        }""",
        [numbers(x_0), iterations],
    )
    denoiser = LabelledDenoiser(model, [4])
    theirs = last(invert(denoiser, schedule, x_0, 10, iterations))
    assert largest_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("1 - ab_prev - sigma ** 2", "1 - ab_prev"),
        ("direction - a * Math.sqrt(1 - ab)", "direction - a * Math.sqrt(1 - ab_prev)"),
        ("steps[i + 1] ?? 0", "steps[i + 1] ?? 1"),
        ("combine(1 - scale, both", "combine(-scale, both"),
    ],
)
def test_a_wrong_formula_is_found(browser, origin, networks, right, wrong):  # noqa: F811
    source = (ROOT / "book" / "_static" / "try" / "ddimlib.mjs").read_text(encoding="utf-8")
    assert right in source
    visitor = Visitor(browser, origin, LAPTOP)
    mutant = source.replace(right, wrong)
    visitor.tab.route(
        "**/try/ddimlib.mjs", lambda route: route.fulfill(body=mutant, content_type="text/javascript; charset=utf-8")
    )
    tab = visitor.open(PAGE)
    tab.evaluate(MODULES)
    ours, theirs = both(tab, networks, "mnist", 3, "linspace", 0.5, 2.0, [7])
    assert largest_difference(ours, theirs) > 1e-3
    visitor.context.close()


# ---- the page, as a person uses it ----


def says(tab, section, text):
    """Wait until the status of a section says something with this text in it."""
    tab.wait_for_function(
        "([section, text]) => document.querySelector(`${section} .try-status`).textContent.includes(text)",
        arg=[section, text],
    )


def started(visitor, page=PAGE):
    tab = visitor.open(page)
    tab.locator("#try-start").click()
    says(tab, "#try-sample", "on your device")
    return tab


def pixels(tab, canvas):
    """The grey values of a canvas."""
    values = tab.evaluate(
        """(selector) => { const c = document.querySelector(selector);
        return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data).filter((_, i) => i % 4 === 0) }""",
        canvas,
    )
    return np.asarray(values)


def bytes_of(x):
    return (x.flatten().clamp(-1, 1) * 127.5 + 127.5).round().numpy()


@pytest.fixture(scope="module")
def laptop(browser, origin):  # noqa: F811
    visitor = Visitor(browser, origin, LAPTOP)
    fetched = []
    visitor.tab.on("request", lambda request: fetched.append(request.url))
    tab = visitor.open(PAGE)
    before = [url for url in fetched if "/engine/" in url]
    tab.locator("#try-start").click()
    says(tab, "#try-sample", "on your device")
    yield tab, before, fetched
    assert not visitor.strangers + visitor.errors
    visitor.context.close()


def test_the_network_comes_only_when_it_is_asked_for(laptop):
    _, before, fetched = laptop
    assert not before
    assert any(url.endswith("mnist.onnx") for url in fetched)
    assert not any(url.endswith("fashion.onnx") for url in fetched)
    text = (ROOT / "book" / "try.md").read_text(encoding="utf-8")
    sizes = json.loads((SITE / "_static" / "try" / "engine" / "sizes.json").read_text())
    needed = sizes["mnist.onnx"] + sizes["ort-wasm-simd-threaded.wasm"]
    assert int(re.search(r"(\d+)&nbsp;MB, once", text)[1]) == round(needed / 1e6)


def test_the_page_draws_the_picture_that_its_python_line_draws(laptop, networks):
    tab, *_ = laptop
    code = tab.locator(".try-python").text_content()
    names = {}
    exec(compile(code, "page", "exec"), names)
    assert np.abs(pixels(tab, "#try-sample .try-state") - bytes_of(names["image"])).max() <= 1


def test_every_control_of_the_sampler_is_heard(laptop):
    tab, *_ = laptop
    section = tab.locator("#try-sample")
    seen = {pixels(tab, "#try-sample .try-state").tobytes()}
    actions = [
        lambda: section.locator("[name=S]").press("ArrowLeft"),
        lambda: section.locator("[name=eta]").press("End"),
        lambda: section.locator("[name=guidance]").press("End"),
        lambda: section.locator("[name=class]:checked").press("ArrowRight"),
        lambda: section.locator("[name=spacing]").select_option("trailing"),
        lambda: section.locator(".try-other").click(),
    ]
    for i, act in enumerate(actions):
        tab.evaluate("document.querySelector('#try-sample .try-status').textContent = ''")
        act()
        says(tab, "#try-sample", "on your device")
        seen.add(pixels(tab, "#try-sample .try-state").tobytes())
        assert len(seen) == i + 2, f"action {i} changed nothing"
    assert section.locator(".try-history button").count() == len(actions)
    scrub = section.locator(".try-scrub")
    scrub.press("Home")
    assert section.locator(".try-scrub + output").inner_text() == "1000"
    assert pixels(tab, "#try-sample .try-state").std() > 80  # noise


def test_a_run_can_be_stopped(laptop):
    tab, *_ = laptop
    section = tab.locator("#try-sample")
    section.locator("[name=S]").press("End")
    tab.wait_for_function("document.querySelector('#try-sample .try-status').textContent.startsWith('Step')")
    section.locator(".try-stop").click()
    says(tab, "#try-sample", "Stopped")
    assert section.locator(".try-stop").is_disabled()
    section.locator("[name=S]").press("Home")
    says(tab, "#try-sample", "on your device")


def test_latents_between_two(laptop):
    tab, *_ = laptop
    tab.locator("#try-between .try-go").click()
    says(tab, "#try-between", "Drag the slider")
    scrub = tab.locator("#try-between .try-scrub")
    pictures = []
    for key in ("Home", "End"):
        scrub.press(key)
        pictures.append(pixels(tab, "#try-between .try-guess").tobytes())
    assert len(set(pictures)) == 2
    assert tab.locator("#try-between .try-scrub + output").inner_text() == "1.00"


STROKE = [(90, 60), (190, 60), (150, 140), (120, 230)]  # a seven


def test_a_digit_drawn_with_the_mouse_is_inverted_and_redrawn(laptop):
    tab, *_ = laptop
    pad = tab.locator(".try-pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    scale = box["width"] / 280
    places = [(box["x"] + x * scale, box["y"] + y * scale) for x, y in STROKE]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=5)
    tab.mouse.up()
    tab.locator("#try-draw [name=class][value='7']").check(force=True)
    tab.locator("#try-draw .try-go").click()
    says(tab, "#try-draw", "true noise")
    seen, decoded = (pixels(tab, f"#try-draw .try-{name}") for name in ("seen", "guess"))
    assert seen.max() == 255
    assert np.sqrt(np.mean((seen - decoded) ** 2.0)) < 25  # of 255
    others = tab.locator("#try-draw .try-others canvas")
    assert others.count() == 10


def test_the_pad_obeys_the_keyboard(laptop):
    tab, *_ = laptop
    tab.locator(".try-clear").click()
    assert pixels(tab, "#try-draw .try-seen").max() == 0
    pad = tab.locator(".try-pad")
    pad.focus()
    for key in ["Space", *["ArrowDown"] * 12, "Space", "ArrowRight"]:
        pad.press(key)
    seen = pixels(tab, "#try-draw .try-seen").reshape(28, 28)
    assert seen.max() > 200
    assert np.ptp(np.nonzero(seen.max(1))) > 2 * np.ptp(np.nonzero(seen.max(0)))  # an upright stroke
    pad.press("Backspace")
    assert pixels(tab, "#try-draw .try-seen").max() == 0


def test_clothes_are_the_second_network(laptop):
    tab, *_ = laptop
    tab.locator("[name=network][value=fashion]").check(force=True)
    tab.wait_for_function("document.querySelector('#try-sample .try-python').textContent.includes('fashion')")
    says(tab, "#try-sample", "on your device")
    assert "sneaker" in tab.locator("#try-sample .try-classes").inner_text()


@pytest.mark.parametrize("size", [PHONE, NARROW], ids=["390", "320"])
def test_it_fits_and_works_on_a_phone(browser, origin, size):  # noqa: F811
    visitor = Visitor(browser, origin, size)
    tab = started(visitor, f"{PAGE}#class=1&S=2&seed=5&spacing=trailing")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    small = tab.evaluate(
        """() => [...document.querySelectorAll('.try :is(button, select, input)')]
        .filter((e) => e.checkVisibility() && Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height) < 24)
        .map((e) => e.outerHTML)"""
    )
    assert not small
    assert "steps=2" in tab.locator(".try-python").text_content()
    assert "seed=5, labels=[1]" in tab.locator(".try-python").text_content()
    assert not visitor.strangers + visitor.errors
    visitor.context.close()


def test_with_less_motion_only_the_finished_picture_is_shown(browser, origin):  # noqa: F811
    visitor = Visitor(browser, origin, LAPTOP)
    visitor.tab.emulate_media(reduced_motion="reduce")
    tab = started(visitor)
    tab.evaluate(
        """() => { window.drawn = 0; const put = CanvasRenderingContext2D.prototype.putImageData;
        CanvasRenderingContext2D.prototype.putImageData = function (...a) {
          if (this.canvas.matches('#try-sample .try-state')) window.drawn++; return put.apply(this, a) } }"""
    )
    tab.locator("#try-sample .try-other").click()
    tab.wait_for_function("window.drawn > 0")
    says(tab, "#try-sample", "on your device")
    assert tab.evaluate("window.drawn") == 1
    visitor.context.close()


SENTENCE = "The sampler needs scripts and WebAssembly"


def test_without_scripts_there_are_pictures_and_a_sentence(browser, origin):  # noqa: F811
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{origin}/{PAGE}")
    assert SENTENCE in tab.locator("article").inner_text()
    assert tab.locator(".try-still").evaluate_all("stills => stills.every(s => s.naturalWidth > 0 && s.alt)")
    assert not tab.locator(".try-live").first.is_visible()
    assert not tab.locator("#try-start").is_visible()
    context.close()


def test_without_webassembly_there_are_pictures_and_a_sentence(browser, origin):  # noqa: F811
    visitor = Visitor(browser, origin, LAPTOP)
    visitor.tab.add_init_script("delete window.WebAssembly")
    tab = visitor.open(PAGE)
    assert SENTENCE in tab.locator("article").inner_text()
    assert not tab.locator("#try-start").is_visible()
    visitor.context.close()


@pytest.mark.parametrize("failure", ["the file is missing", "the file is cut off", "out of memory"])
def test_what_goes_wrong_at_the_start_is_said_and_the_pictures_stay(browser, origin, failure):  # noqa: F811
    visitor = Visitor(browser, origin, LAPTOP)
    if failure == "out of memory":
        source = (ROOT / "book" / "_static" / "try" / "worker.mjs").read_text(encoding="utf-8")
        broken = "WebAssembly.instantiate = () => { throw new RangeError('out of memory') };\n" + source
        visitor.context.route("**/worker.mjs", lambda r: r.fulfill(body=broken, content_type="text/javascript"))
    else:
        answer = {"status": 404} if failure == "the file is missing" else {"body": b"short"}
        visitor.context.route("**/mnist.onnx", lambda route: route.fulfill(**answer))
    tab = visitor.open(PAGE)
    tab.locator("#try-start").click()
    tab.wait_for_function("document.querySelector('#try-status').textContent.includes('could not be started')")
    assert tab.locator(".try-still").first.is_visible()
    assert tab.locator("#try-start").is_enabled()
    visitor.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, origin, scheme):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    visitor = Visitor(browser, origin, LAPTOP, scheme)
    tab = started(visitor)
    found = Axe().run(tab, context=".try").response["violations"]
    assert not [(v["id"], [node["html"][:120] for node in v["nodes"]]) for v in found]
    visitor.context.close()
