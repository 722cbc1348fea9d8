// DDIM in the browser: the parts of the Python library `ddimlib` that the page needs, under the same names, one function an
// equation. A state is a Float32Array of B·C·H·W numbers; coefficients are in float64, as all of JavaScript's numbers are.
// A denoiser is a function eps = await model(x, t), with one time t in 1..T for the whole batch.

// The noise schedule (Ho et al. 2020, equations 2 and 4). beta[t] and alpha_bar[t] are indexed by t itself; ᾱ_0 = 1.
export class NoiseSchedule {
  constructor(betas) {
    this.T = betas.length;
    this.beta = [0, ...betas];
    let product = 1;
    this.alpha_bar = this.beta.map((beta) => (product *= 1 - beta));
  }

  // x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (Ho et al. 2020, equation 4)
  add_noise(x_0, t, eps) {
    const ab = this.alpha_bar[t];
    return combine(Math.sqrt(ab), x_0, Math.sqrt(1 - ab), eps);
  }

  // x̂_0 = (x_t - √(1-ᾱ_t) ε) / √ᾱ_t (Song et al. 2021, equation 9)
  predict_x0(x_t, t, eps) {
    const ab = this.alpha_bar[t];
    return combine(1 / Math.sqrt(ab), x_t, -Math.sqrt(1 - ab) / Math.sqrt(ab), eps);
  }

  // β̃ = (1-ᾱ_prev)/(1-ᾱ_t) · (1 - ᾱ_t/ᾱ_prev) (Song et al. 2021, equation 16 with η = 1)
  posterior_variance(t, prev = t - 1) {
    const [ab, ab_prev] = [this.alpha_bar[t], this.alpha_bar[prev]];
    return ((1 - ab_prev) / (1 - ab)) * (1 - ab / ab_prev);
  }
}

// The timesteps τ_S > … > τ_1 to visit (Song et al. 2021, appendix D.2).
export function timesteps(T, S, spacing = "linspace") {
  if (!(Number.isInteger(S) && 1 <= S && S <= T)) throw new RangeError(`the number of steps must lie in 1..${T}, got ${S}`);
  const from_1_to_S = Array.from({ length: S }, (_, i) => i + 1);
  const rules = {
    leading: (i) => 1 + (i - 1) * Math.floor(T / S),
    linspace: (i) => (S > 1 ? 1 + rounded_ratio((i - 1) * (T - 1), S - 1) : T),
    trailing: (i) => rounded_ratio(i * T, S),
    quadratic: (i) => (S > 1 ? 1 + rounded_ratio((i - 1) ** 2 * (T - 1), (S - 1) ** 2) : T),
  };
  if (!(spacing in rules)) throw new RangeError(`unknown spacing ${spacing}; use one of ${Object.keys(rules).join(", ")}`);
  const ascending = from_1_to_S.map(rules[spacing]);
  for (let i = 1; i < S; i++) ascending[i] = Math.max(ascending[i], ascending[i - 1] + 1); // a repeated one: the next free
  return ascending.reverse();
}

// σ = η √β̃ (Song et al. 2021, equation 16)
export function ddim_sigma(schedule, t, prev, eta) {
  if (!(0 <= eta && eta <= 1)) throw new RangeError(`eta must lie in [0, 1], got ${eta}; 0 is DDIM, 1 is DDPM`);
  return eta > 0 ? eta * Math.sqrt(schedule.posterior_variance(t, prev)) : 0;
}

// x_prev = √ᾱ_prev x̂_0 + √(1-ᾱ_prev-σ²) ε + σ z (Song et al. 2021, equation 12)
export function ddim_step(schedule, x_t, eps, t, prev, eta = 0, z = null) {
  const sigma = ddim_sigma(schedule, t, prev, eta);
  const [ab, ab_prev] = [schedule.alpha_bar[t], schedule.alpha_bar[prev]];
  const direction = Math.sqrt(1 - ab_prev - sigma ** 2);
  // x̂_0 put into the sum: one multiple of x_t, one of ε
  const a = Math.sqrt(ab_prev / ab);
  const b = direction - a * Math.sqrt(1 - ab);
  return sigma > 0 ? combine(a, x_t, b, eps, sigma, z) : combine(a, x_t, b, eps);
}

// From x_T to x_0 along `steps`. Yields {t, prev, eps, x}: the step from t to prev was taken with eps, and led to x.
// noise(i, x) gives the i-th step its z.
export async function* ddim(model, schedule, x_T, steps, eta = 0, noise = null) {
  let x = x_T;
  for (const [i, t] of steps.entries()) {
    const prev = steps[i + 1] ?? 0;
    const eps = await model(x, t);
    const z = ddim_sigma(schedule, t, prev, eta) > 0 ? noise(i, x) : null;
    x = ddim_step(schedule, x, eps, t, prev, eta, z);
    yield { t, prev, eps, x };
  }
}

// From x_0 to its code x_T: the same pairs in reverse. Each step from s to t needs ε(x_t, t) at the x_t that it leads to. It is
// first asked at x_s (explicit), then `iterations` times at the x_t just found (implicit; Pan et al. 2023).
export async function* invert(model, schedule, x_0, steps, iterations = 0) {
  let x_s = x_0;
  let s = 0;
  for (const t of [...steps].reverse()) {
    let eps = await model(x_s, t);
    let x_t = ddim_step(schedule, x_s, eps, s, t);
    for (let i = 0; i < iterations; i++) {
      eps = await model(x_t, t);
      x_t = ddim_step(schedule, x_s, eps, s, t);
    }
    yield { t: s, prev: t, eps, x: x_t };
    [x_s, s] = [x_t, t];
  }
}

// ε(x, t) with one label for each image; `null` stands for none.
export function LabelledDenoiser(network, labels) {
  return (x, t) => network(x, t, labels);
}

// Classifier-free guidance: ε̃ = ε(x, t) + scale · (ε(x, t, label) - ε(x, t)) (Ho & Salimans 2022, equation 6; scale = 1 + w)
export function GuidedDenoiser(network, labels, scale) {
  if (!(scale >= 0)) throw new RangeError(`the guidance scale must be at least 0, got ${scale}; 1 means no guidance`);
  return async (x, t) => {
    const both = await network(concatenate([x, x]), t, [...labels.map(() => null), ...labels]);
    return combine(1 - scale, both.subarray(0, x.length), scale, both.subarray(x.length));
  };
}

// The straight line (1-w) a + w b
export function lerp(a, b, weight) {
  return combine(1 - weight, a, weight, b);
}

// The great circle sin((1-w)ω)/sin ω · a + sin(wω)/sin ω · b, ω the angle between a and b (Shoemake 1985). a and b are one
// latent each.
export function slerp(a, b, weight) {
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  if (Number.isNaN(cosine)) throw new RangeError("a or b is zero, so there is no angle between them");
  const omega = Math.acos(Math.min(1, Math.max(-1, cosine)));
  if (omega > Math.PI - 1e-4) throw new RangeError("a and b point in opposite directions: no great circle is shortest");
  if (omega < 1e-4) return lerp(a, b, weight);
  return combine(Math.sin((1 - weight) * omega) / Math.sin(omega), a, Math.sin(weight * omega) / Math.sin(omega), b);
}

export function concatenate(states) {
  const all = new Float32Array(states.reduce((length, x) => length + x.length, 0));
  let start = 0;
  for (const x of states) {
    all.set(x, start);
    start += x.length;
  }
  return all;
}

// a x + b y + c z, pixel by pixel: summed in float64, kept in float32
function combine(a, x, b, y, c = 0, z = null) {
  return z ? x.map((value, i) => a * value + b * y[i] + c * z[i]) : x.map((value, i) => a * value + b * y[i]);
}

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

// a / b to the nearest integer, halves up
function rounded_ratio(a, b) {
  return Math.floor((2 * a + b) / (2 * b));
}
