// A trained network in the browser: its ONNX file (`python -m ddimlib export`) run by onnxruntime-web, on one thread.

import { NoiseSchedule } from "./ddimlib.mjs";

const ENGINE = new URL("./engine/", import.meta.url);
let runtime = null; // onnxruntime-web, once it is there

// The network `name` with its schedule: {network, schedule, classes, image_size}. The network is called as
// eps = await network(x, t, labels), labels an array of classes, null for none. progress(share) is told how much has arrived.
export async function load_pretrained(name, progress = () => {}) {
  const sizes = await (await fetch(new URL("sizes.json", ENGINE))).json();
  const wanted = runtime ? [`${name}.onnx`] : [`${name}.onnx`, "ort-wasm-simd-threaded.wasm"];
  const total = wanted.reduce((sum, file) => sum + sizes[file], 0);
  let arrived = 0;
  const [onnx, wasm] = await Promise.all(
    wanted.map((file) => download(file, sizes[file], (bytes) => progress((arrived += bytes) / total, total))),
  );
  const facts = await (await fetch(new URL(`${name}.json`, ENGINE))).json();
  if (!runtime) {
    const ort = await import(new URL("ort.wasm.bundle.min.mjs", ENGINE));
    ort.env.wasm.numThreads = 1; // more would need headers that a plain web server does not send
    ort.env.wasm.wasmBinary = wasm;
    runtime = ort;
  }
  const session = await runtime.InferenceSession.create(onnx);
  const [channels, height, width] = facts.image_shape;
  const none = BigInt(facts.classes.length); // the row of the label table that stands for "no label"

  async function network(x, t, labels) {
    const n = labels.length;
    const inputs = {
      x: new runtime.Tensor("float32", x, [n, channels, height, width]),
      t: new runtime.Tensor("int64", new BigInt64Array(n).fill(BigInt(t)), [n]),
      labels: new runtime.Tensor("int64", BigInt64Array.from(labels, (label) => (label === null ? none : BigInt(label))), [n]),
    };
    const { eps } = await session.run(inputs);
    return eps.data;
  }

  return { network, schedule: new NoiseSchedule(facts.betas), classes: facts.classes, image_size: channels * height * width };
}

async function download(file, size, count) {
  const answer = await fetch(new URL(file, ENGINE));
  if (!answer.ok) throw new Error(`${file} could not be fetched (${answer.status})`);
  const content = new Uint8Array(size);
  let start = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    content.set(value, start);
    start += value.length;
    count(value.length);
  }
  if (start < size) throw new Error(`${file} was cut off; try again`);
  return content;
}
