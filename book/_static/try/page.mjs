// The page "Try it": reads its controls, asks the worker, draws what comes back.

import { lerp, slerp } from "./ddimlib.mjs";
import { SeededNoise, sample_seeds } from "./noise.mjs";
import { Pad } from "./pad.mjs";

const SIDE = 28;
const SIZE = SIDE * SIDE;
const STEPS = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200]; // the stops of the slider S
const CALM = matchMedia("(prefers-reduced-motion: reduce)"); // then only finished pictures are shown

const $ = (selector, inside = document) => inside.querySelector(selector);
const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// ---- the worker -----------------------------------------------------------------------------------------------------------

let worker = null;
let jobs = 0;
let listener = {}; // of the job that is running

function connect() {
  worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => data.job === listener.job && listener.hear(data);
  worker.onerror = (event) => listener.hear?.({ kind: "error", message: event.message ?? "it did not load" });
}

// Give the worker a job, which ends the one before. state(facts) is told each of its states. Resolves to {kind, ...facts} of
// the last message: "done", "stopped" or "error".
function ask(task, args, state = () => {}) {
  listener.hear?.({ kind: "stopped" });
  const job = ++jobs;
  return new Promise((resolve) => {
    const hear = (facts) => {
      if (facts.kind === "state" || facts.kind === "progress") return state(facts);
      listener = {};
      resolve(facts);
    };
    listener = { job, hear };
    worker.postMessage({ job, task, ...args });
  });
}

function stop() {
  worker?.postMessage({ job: null });
  listener.hear?.({ kind: "stopped" });
}

// ---- drawing --------------------------------------------------------------------------------------------------------------

// Draw images, side by side in rows of `columns`, into a canvas of as many pixels: [-1, 1] to black and white, clipped.
function show(canvas, images, columns = images.length, gap = 0) {
  const rows = Math.ceil(images.length / columns);
  canvas.width = columns * (SIDE + gap) - gap;
  canvas.height = rows * (SIDE + gap) - gap;
  const context = canvas.getContext("2d");
  images.forEach((image, i) => {
    const picture = new ImageData(SIDE, SIDE);
    for (let p = 0; p < SIZE; p++) picture.data.fill(127.5 * (image[p] + 1), 4 * p, 4 * p + 3); // clipped to bytes
    for (let p = 0; p < SIZE; p++) picture.data[4 * p + 3] = 255;
    context.putImageData(picture, (i % columns) * (SIDE + gap), Math.floor(i / columns) * (SIDE + gap));
  });
}

const image = (batch, i) => batch.subarray(i * SIZE, (i + 1) * SIZE);
const rms = (x) => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length);
const speed = ({ milliseconds, evaluations }) => `${(milliseconds / evaluations).toFixed(0)} ms an evaluation`;
const latent = (seed) => new SeededNoise(sample_seeds(seed, 1)).draw(SIZE);
const random_seed = () => Math.floor(Math.random() * 10000);

// ---- what all sections share ----------------------------------------------------------------------------------------------

let name = "mnist"; // the network
let classes = []; // what its classes are called

// A section of the page: a form that runs `draw` when something in it changes, if it is lively, or when its button is pressed.
class Section {
  constructor(id, { lively }) {
    this.root = document.getElementById(id);
    this.form = $("form", this.root);
    this.status = $(".try-status", this.root);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.form.addEventListener("input", () => this.label());
    if (lively) this.form.addEventListener("change", () => this.form.reportValidity() && this.run());
    $(".try-stop", this.root).addEventListener("click", stop);
    this.scrub = $(".try-scrub", this.root);
    this.scrub?.addEventListener("input", () => this.look());
    this.label();
  }

  // The value of a control, as a number where it is one.
  value(name) {
    const value = new FormData(this.form).get(name);
    return value === null || value === "" || Number.isNaN(Number(value)) ? value : Number(value);
  }

  // What the sliders stand at.
  label() {
    for (const input of $$("input[type=range]", this.form)) {
      const text = input.name === "S" ? STEPS[input.value] : input.value;
      input.nextElementSibling.textContent = text;
      input.setAttribute("aria-valuetext", text);
    }
  }

  // The chosen class, or null for any.
  get chosen() {
    const value = this.value("class");
    return value === "any" ? null : value;
  }

  // The chips of the network's classes; what was chosen stays chosen.
  name_classes() {
    const place = $(".try-classes", this.form);
    const chosen = this.value("class") ?? this.first_class;
    const chips = classes.map((text, value) => ({ text, value }));
    if (place.dataset.none) chips.unshift({ text: place.dataset.none, value: "any" });
    place.replaceChildren(
      ...chips.map(({ text, value }) => {
        const input = Object.assign(document.createElement("input"), { type: "radio", name: "class", value });
        input.defaultChecked = input.checked = value === chosen;
        const label = document.createElement("label");
        label.append(input, Object.assign(document.createElement("span"), { textContent: text }));
        return label;
      }),
    );
  }

  // Run `draw`, with the stop button on, and say how it ended.
  async run() {
    if (!this.form.reportValidity()) return;
    const button = $(".try-stop", this.root);
    button.disabled = false;
    this.status.ariaBusy = "true"; // a screen reader waits for how it ends
    const token = (this.token = {});
    const end = await this.draw();
    if (token !== this.token) return; // this section is at the next run already
    button.disabled = true;
    this.status.ariaBusy = "false";
    if (end.kind === "stopped") this.status.textContent = "Stopped.";
    if (end.kind === "error") this.status.textContent = `The network could not go on: ${end.message}`;
    if (end.kind === "done") this.status.textContent = end.text;
  }
}

// ---- from noise to a picture ----------------------------------------------------------------------------------------------

class Sample extends Section {
  first_class = 7;
  history = [];

  constructor() {
    super("try-sample", { lively: true });
    $(".try-other", this.root).addEventListener("click", () => {
      this.form.elements.seed.value = random_seed();
      this.run();
    });
  }

  settings() {
    const label = this.chosen;
    const [S, spacing, eta, seed] = [STEPS[this.value("S")], this.value("spacing"), this.value("eta"), this.value("seed")];
    return { class: label, S, eta, guidance: label === null ? 1 : this.value("guidance"), spacing, seed };
  }

  async draw() {
    const settings = this.settings();
    this.form.elements.guidance.disabled = settings.class === null;
    this.tell_python(settings);
    const source = new SeededNoise(sample_seeds(settings.seed, 1));
    const x_T = source.draw(SIZE);
    const noise = settings.eta > 0 ? Array.from({ length: settings.S }, () => source.draw(SIZE)) : [];
    this.path = [];
    const { S, spacing, eta, guidance } = settings;
    const args = { name, x_T, labels: [settings.class], guidance, S, spacing, eta, noise };
    let before = x_T;
    let facts;
    const end = await ask("sample", args, (state) => {
      facts = state;
      this.path.push({ t: state.t, x: before, guess: state.x0 });
      if (state.prev === 0) this.path.push({ t: 0, x: state.x, guess: state.x });
      before = state.x;
      this.scrub.max = S;
      this.scrub.value = this.path.length - 1;
      this.status.textContent = `Step ${Math.min(this.path.length, S)} of ${S}, ${speed(state)}`;
      if (!CALM.matches || state.prev === 0) this.look();
    });
    if (end.kind !== "done") return end;
    this.remember(settings, facts.x);
    const evaluations = facts.evaluations === 1 ? "1 evaluation" : `${facts.evaluations} evaluations`;
    return { ...end, text: `${evaluations} in ${(facts.milliseconds / 1000).toFixed(1)} s: ${speed(facts)} on your device.` };
  }

  // Show the step where the slider stands, and the whole run, at most twelve steps of it, below.
  look() {
    const { t, x, guess } = this.path[Math.min(this.scrub.value, this.path.length - 1)];
    show($(".try-state", this.root), [x]);
    show($(".try-guess", this.root), [guess]);
    this.scrub.nextElementSibling.textContent = t;
    this.scrub.setAttribute("aria-valuetext", `time ${t}`);
    const columns = Math.min(12, this.path.length);
    const shown = Array.from({ length: columns }, (_, i) => {
      return this.path[columns > 1 ? Math.round((i * (this.path.length - 1)) / (columns - 1)) : 0];
    });
    show($(".try-film", this.root), [...shown.map((step) => step.x), ...shown.map((step) => step.guess)], columns, 1);
  }

  tell_python({ class: label, S, eta, guidance, spacing, seed }) {
    const extras = [`steps=${S}`, `eta=${eta}`, `spacing="${spacing}"`, `seed=${seed}`];
    if (label !== null) extras.push(`labels=[${label}]`);
    if (guidance !== 1) extras.push(`guidance=${guidance}`);
    $(".try-python", this.root).textContent = [
      "from ddimlib import load_pretrained, sample",
      "",
      `model, schedule = load_pretrained("${name}")`,
      `image = sample(model, schedule, shape=(1, 1, 28, 28), ${extras.slice(0, 2).join(", ")},`,
      `               ${extras.slice(2).join(", ")})`,
    ].join("\n");
  }

  remember(settings, x) {
    const same = (entry) => JSON.stringify([entry.name, entry.settings]) === JSON.stringify([name, settings]);
    this.history = [{ name, settings, x }, ...this.history.filter((entry) => !same(entry))].slice(0, 10);
    $(".try-history-title", this.root).hidden = this.history.length < 2;
    $(".try-history", this.root).replaceChildren(
      ...this.history.slice(1).map(({ name: network, settings, x }) => {
        const canvas = document.createElement("canvas");
        show(canvas, [x]);
        const note = document.createElement("span");
        note.textContent = `S = ${settings.S}, η = ${settings.eta}`;
        const button = Object.assign(document.createElement("button"), { type: "button" });
        const label = settings.class === null ? "any class" : `class ${settings.class}`;
        const more = `${label}, guidance ${settings.guidance}, ${settings.spacing}, seed ${settings.seed}`;
        button.setAttribute("aria-label", `${note.textContent}, ${more}`);
        button.title = more;
        button.append(canvas, note);
        button.disabled = network !== name;
        button.addEventListener("click", () => this.restore(settings));
        return button;
      }),
    );
  }

  restore(settings) {
    const { elements } = this.form;
    const stops = STEPS.map((S) => Math.abs(S - settings.S));
    elements.S.value = stops.indexOf(Math.min(...stops));
    elements.class.value = settings.class ?? "any";
    for (const key of ["eta", "spacing", "seed"]) elements[key].value = settings[key];
    if (settings.class !== null) elements.guidance.value = settings.guidance;
    this.label();
    this.run();
  }
}

// ---- between two latents --------------------------------------------------------------------------------------------------

class Between extends Section {
  first_class = 3;
  S = 10;

  constructor() {
    super("try-between", { lively: true });
    $(".try-other", this.root).addEventListener("click", () => {
      for (const key of ["a", "b"]) this.form.elements[key].value = random_seed();
      this.run();
    });
  }

  // All stops of the slider at once, in one batch, so that dragging it never waits.
  async draw() {
    const [a, b] = [latent(this.value("a")), latent(this.value("b"))];
    const path = { slerp, lerp }[this.value("path")];
    const n = Number(this.scrub.max) + 1;
    this.latents = Array.from({ length: n }, (_, i) => path(a, b, i / (n - 1)));
    this.decoded = null;
    this.look();
    const x_T = new Float32Array(n * SIZE);
    this.latents.forEach((x, i) => x_T.set(x, i * SIZE));
    const args = { name, x_T, labels: Array(n).fill(this.chosen), S: this.S, spacing: "linspace" };
    let facts;
    const end = await ask("sample", args, (state) => {
      facts = state;
      this.decoded = state.x0;
      this.status.textContent = `${n} pictures at once, time ${state.prev}, ${speed(state)}`;
      if (!CALM.matches || state.prev === 0) this.look();
    });
    return { ...end, text: facts && `${n} pictures, ${this.S} steps each, ${speed(facts)}. Drag the slider.` };
  }

  look() {
    const i = Number(this.scrub.value);
    const w = (i / this.scrub.max).toFixed(2);
    this.scrub.nextElementSibling.textContent = w;
    this.scrub.setAttribute("aria-valuetext", `weight ${w}`);
    if (!this.latents) return;
    show($(".try-state", this.root), [this.latents[i]]);
    $("figcaption", this.root).textContent = `the latent, of length ${rms(this.latents[i]).toFixed(2)}`;
    if (!this.decoded) return;
    show($(".try-guess", this.root), [image(this.decoded, i)]);
    const all = this.latents.map((_, k) => image(this.decoded, k));
    show($(".try-film", this.root), all, Math.ceil(all.length / (innerWidth < 600 ? 3 : 1)), 1);
  }
}

// ---- draw one yourself ----------------------------------------------------------------------------------------------------

class Draw extends Section {
  first_class = 3;
  S = 20;

  constructor(sample) {
    super("try-draw", { lively: false });
    this.sample = sample;
    this.pad = new Pad($(".try-pad", this.root), () => this.form.elements.pen.value);
    this.pad.onchange = () => show($(".try-seen", this.root), [this.pad.image(name === "mnist")]);
    this.pad.onchange();
    $(".try-clear", this.root).addEventListener("click", () => this.pad.clear());
    $(".try-borrow", this.root).addEventListener("click", () => {
      const last = this.sample.history[0];
      if (!last) return;
      this.pad.set(last.x);
      if (last.settings.class !== null) this.form.elements.class.value = last.settings.class;
    });
  }

  async draw() {
    if (this.pad.empty) return { kind: "done", text: "The pad is empty: draw something first." };
    const x_0 = this.pad.image(name === "mnist");
    const [label, guidance, S, spacing] = [this.chosen, this.value("guidance"), this.S, "linspace"];
    show($(".try-seen", this.root), [x_0]);
    let code = x_0;
    let end = await ask("encode", { name, x_0, labels: [label], S, spacing, iterations: 1 }, (state) => {
      code = state.x;
      this.status.textContent = `Up to the noise: time ${state.t}, ${speed(state)}`;
      if (!CALM.matches) show($(".try-state", this.root), [code]);
    });
    if (end.kind !== "done") return end;
    show($(".try-state", this.root), [code]);

    let decoded;
    end = await ask("sample", { name, x_T: code, labels: [label], S, spacing }, (state) => {
      decoded = state.x;
      this.status.textContent = `And back: time ${state.prev}, ${speed(state)}`;
      if (!CALM.matches) show($(".try-guess", this.root), [state.x0]);
    });
    if (end.kind !== "done") return end;
    show($(".try-guess", this.root), [decoded]);

    const x_T = new Float32Array(classes.length * SIZE);
    classes.forEach((_, i) => x_T.set(code, i * SIZE));
    const labels = classes.map((_, i) => i);
    let facts;
    end = await ask("sample", { name, x_T, labels, guidance, S, spacing }, (state) => {
      facts = state;
      this.status.textContent = `As all the classes: time ${state.prev}, ${speed(state)}`;
      if (!CALM.matches || state.prev === 0) this.show_others(state.x0, label);
    });
    const error = rms(decoded.map((value, i) => value - x_0[i]));
    const spread = rms(code);
    const verdict = `The noise found has a spread of ${spread.toFixed(2)} (true noise: 1); decoded again, a pixel is off by ${error.toFixed(2)}.`;
    return { ...end, text: facts && `${verdict} ${speed(facts)}.` };
  }

  show_others(batch, own) {
    const others = $(".try-others", this.root);
    if (others.childElementCount !== classes.length) {
      others.replaceChildren(
        ...classes.map((text) => {
          const figure = document.createElement("figure");
          const canvas = document.createElement("canvas");
          canvas.setAttribute("role", "img");
          canvas.setAttribute("aria-label", `your drawing as ${text}`);
          figure.append(canvas, Object.assign(document.createElement("figcaption"), { textContent: text }));
          return figure;
        }),
      );
    }
    $$("figure", others).forEach((figure, i) => {
      show($("canvas", figure), [image(batch, i)]);
      figure.classList.toggle("try-own", i === own);
    });
  }
}

// ---- start ----------------------------------------------------------------------------------------------------------------

const status = $("#try-status");
const STILL = "The pictures below show what it does.";
let sections = [];

async function load(wanted) {
  const bar = $("#try-progress");
  bar.value = 0;
  bar.hidden = false;
  status.textContent = "Loading.";
  const end = await ask("load", { name: wanted }, ({ share, bytes }) => {
    bar.value = share;
    if (share === 1) status.textContent = `${(bytes / 1e6).toFixed(0)} MB are here; starting the network.`;
  });
  bar.hidden = true;
  status.textContent = "";
  if (end.kind !== "done") {
    if (end.kind === "error") status.textContent = `The network could not be started: ${end.message}. ${sections.length ? "" : STILL}`;
    $(`[name=network][value=${name}]`).checked = true;
    return false;
  }
  [name, classes] = [wanted, end.classes];
  return true;
}

async function start() {
  const button = $("#try-start");
  button.disabled = true;
  connect();
  if (!(await load($("[name=network]:checked").value))) {
    button.disabled = false;
    button.textContent = "Try again";
    worker.terminate();
    return;
  }
  button.closest("p").querySelectorAll("button, .try-note").forEach((element) => element.remove());
  $$(".try-still").forEach((still) => still.remove());
  $$(".try-live").forEach((live) => (live.hidden = false));
  const sample = new Sample();
  sections = [sample, new Between(), new Draw(sample)];
  sections.forEach((section) => section.name_classes());
  const asked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (Object.keys(asked).length) open_with(sample, asked);
  else await sample.run();
}

// A link such as try.html#class=7&S=3&spacing=quadratic opens the page with these settings.
function open_with(sample, asked) {
  const settings = sample.settings();
  for (const key of Object.keys(settings)) {
    if (key in asked) settings[key] = key === "spacing" ? asked[key] : asked[key] === "any" ? null : Number(asked[key]);
  }
  sample.restore(settings);
}

if (typeof WebAssembly === "object" && typeof Worker === "function" && location.protocol !== "file:") {
  $(".try-cannot").hidden = true;
  $(".try-can").hidden = false;
  $("#try-start").addEventListener("click", start);
  $$("[name=network]").forEach((choice) =>
    choice.addEventListener("change", async () => {
      if (!sections.length || !(await load(choice.value))) return;
      sections.forEach((section) => section.name_classes());
      await sections[0].run();
    }),
  );
}
