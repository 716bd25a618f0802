// Trains one model of the wall of facts, in a worker of its own. What it knows: to draw entries of the book by their
// numbers, and to run the graphs of a step and of a reading that torch has exported (see graphs.py).

import { unpacked } from "./parts.js";
import { floats, graph, randomOf, whole } from "./runtime.js";

let model = null;

const entries = (count, choose) => {
  // (N, T + 1) bytes
  const { book, length } = model;
  const found = new Int32Array(count * length);
  for (let i = 0, at; i < count; i++)
    ((at = choose(i) * length), found.set(book.subarray(at, at + length), i * length));
  return whole(found, count, length);
};
const HEARD = {
  async start(asked) {
    // the same seed draws the same entries for all models
    const { graph: name, start, seed, size } = asked;
    const state = new Float32Array(size); // Adam's averages begin at zero
    const [stepping, reading, weights] = await Promise.all([
      graph(`${name}.step.z`),
      graph(`${name}.read.z`),
      unpacked(`${start}-${seed}.z`),
    ]);
    const bits = new Uint32Array(state.buffer); // a bfloat16 is the upper half of a float32
    new Uint16Array(weights.buffer).forEach((half, i) => (bits[i] = half << 16));
    model = { ...asked, stepping, reading, count: 0, random: randomOf(seed + 1), state: floats(state, size) };
  },
  async step({ rate }) {
    // or not: where it diverges
    const { num_entries: N, batch, random, state, count, knobs } = model;
    const turned = floats(
      Float32Array.from(knobs, (value, i) => (i === model.rateAt ? rate : value)),
      knobs.length,
    );
    const given = { state, count: floats([count + 1]), knobs: turned };
    const out = await model.stepping.run({
      ...given,
      entries: entries(batch, () => Math.floor(N * random())),
    });
    const loss = out.losses.data[0];
    const isGood = Number.isFinite(loss) && Number.isFinite(out.norm.data[0]);
    if (isGood) Object.assign(model, { before: state, state: out.next, count: count + 1 });
    return { loss, isGood };
  },
  back() {
    // to the weights that the last step began with; Adam forgets its averages
    const { size, state, before = state } = model;
    const kept = new Float32Array(size);
    kept.set(before.data.subarray(0, size / 3));
    Object.assign(model, { state: floats(kept, size), before: undefined, count: 0 });
  },
  async read() {
    // part by part, as `Facts.known` does
    const { num_entries: N, read, reading, state, book, length, digits } = model;
    const answers = new Uint8Array(N * digits);
    const right = new Uint8Array(N); // how many digits of each
    let loss = 0;
    for (let from = 0; from < N; from += read) {
      const out = await reading.run({ state, entries: entries(read, (i) => from + i) });
      answers.set(out.answers.data, from * digits);
      loss += (out.loss.data[0] * read) / N;
    }
    const digitAt = (i) => book[(Math.floor(i / digits) + 1) * length - digits + (i % digits)];
    answers.forEach((answer, i) => (right[Math.floor(i / digits)] += answer === digitAt(i)));
    const accuracy = right.reduce((sum, count) => sum + count, 0) / answers.length;
    return { answers, right, loss, accuracy, count: right.filter((count) => count === digits).length };
  },
};
onmessage = async ({ data: { kind, ...more } }) => {
  try {
    postMessage({ answer: await HEARD[kind](more) });
  } catch (error) {
    postMessage({ refused: error.message });
  }
};
