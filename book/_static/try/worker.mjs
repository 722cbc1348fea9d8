// The network's thread: the page stays responsive while this one computes. One job at a time; a new one ends the one before.
// In:  {job, task, ...arguments}, or {job: null} to stop.
// Out: {job, kind: "progress" | "state" | "done" | "stopped" | "error", ...}.

import { GuidedDenoiser, LabelledDenoiser, ddim, invert, timesteps } from "./ddimlib.mjs";
import { load_pretrained } from "./network.mjs";

const networks = {};
let current = null;

// load: the network `name`; tells its classes
async function load({ name }, tell) {
  networks[name] ??= await load_pretrained(name, (share, bytes) => tell("progress", { share, bytes }));
  const { classes, schedule } = networks[name];
  return { classes, T: schedule.T };
}

// What predicts the noise, and counts the time it takes.
function timed_denoiser(network, labels, guidance) {
  const counted = { milliseconds: 0, evaluations: 0 };
  const timed = async (x, t, labels) => {
    const before = performance.now();
    const eps = await network(x, t, labels);
    counted.milliseconds += performance.now() - before;
    counted.evaluations += labels.length;
    return eps;
  };
  const guided = guidance !== 1 && labels.every((label) => label !== null);
  return [guided ? GuidedDenoiser(timed, labels, guidance) : LabelledDenoiser(timed, labels), counted];
}

// sample: from x_T to x_0; tells, after each step, the state and the x̂_0 behind it
async function* sample({ name, x_T, labels, guidance = 1, S, spacing, eta = 0, noise = [] }) {
  const { network, schedule } = networks[name];
  const [model, counted] = timed_denoiser(network, labels, guidance);
  const steps = timesteps(schedule.T, S, spacing);
  let x_t = x_T;
  for await (const { t, prev, eps, x } of ddim(model, schedule, x_T, steps, eta, (i) => noise[i])) {
    yield { t, prev, x, x0: schedule.predict_x0(x_t, t, eps), ...counted };
    x_t = x;
  }
}

// encode: from x_0 to its code
async function* encode({ name, x_0, labels, S, spacing, iterations = 0 }) {
  const { network, schedule } = networks[name];
  const [model, counted] = timed_denoiser(network, labels, 1);
  for await (const { prev, x } of invert(model, schedule, x_0, timesteps(schedule.T, S, spacing), iterations)) {
    yield { t: prev, x, ...counted };
  }
}

// Let the messages in: a new job, or a stop.
const breathe = () => new Promise((resolve) => setTimeout(resolve));

async function work({ job, task, ...args }) {
  const tell = (kind, facts = {}) => postMessage({ job, kind, ...facts });
  try {
    if (task === "load") return tell("done", await load(args, tell));
    if (current !== job) return tell("stopped");
    for await (const state of { sample, encode }[task](args)) {
      await breathe();
      if (current !== job) return tell("stopped");
      tell("state", state);
    }
    tell("done");
  } catch (error) {
    tell("error", { message: error.message });
  }
}

let queue = Promise.resolve();
onmessage = ({ data }) => {
  if (data.task !== "load") current = data.job;
  if (data.job !== null) queue = queue.then(() => work(data)); // the one before ends at its next breath
};
