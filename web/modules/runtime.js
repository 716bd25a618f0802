// Runs what torch has exported, by onnxruntime in one thread of WebAssembly, and draws random numbers for it.

import * as ort from "./onnxruntime.js";
import { damaged, once, unpacked } from "./parts.js";

export const numbers = (name) => once(name, async () => new Float32Array((await unpacked(name)).buffer));
export const graph = (name) =>
  once(name, async () => {
    const [bytes] = await Promise.all([
      unpacked(name),
      once("onnxruntime", async () => {
        Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: await unpacked("onnxruntime.z") });
      }),
    ]);
    return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] }).catch(damaged(name));
  });

/**
 * The random numbers of a `torch.Generator` on a CPU (MT19937, of Matsumoto and Nishimura, 1998): the page then draws the
 * data and the noise of a run with this seed.
 * @param {number} seed of which the lower 32 bits count
 * @returns {(() => number) & {below: (end: number) => number, double: () => number}} from 0 to 1, as `torch.rand` has
 *   them; below an end, as `torch.randint`; from 0 to 1 in 53 bits, as `torch.multinomial` takes them
 */
export function randomOf(seed) {
  const state = new Uint32Array(624);
  const [size, half] = [state.length, 397];
  state[0] = seed;
  for (let i = 1; i < size; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let next = size;
  const twist = () => {
    for (let i = 0; i < size; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % size] & 0x7fffffff);
      state[i] = state[(i + half) % size] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    next = 0;
  };
  const bits = () => {
    if (next === size) twist();
    let y = state[next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
  const double = () => ((bits() & 0x1fffff) * 2 ** 32 + bits()) / 2 ** 53;
  return Object.assign(() => (bits() & 0xffffff) / 2 ** 24, { below: (end) => bits() % end, double });
}
/** Normal random numbers, 16 at a time as `torch.randn` makes them (Box and Muller). */
export function fillNormal(array, random) {
  fillEven(array, random);
  for (let block = 0; block < array.length; block += 16)
    for (let i = block; i < block + 8; i++) {
      const size = Math.sqrt(-2 * Math.log(1 - array[i]));
      const angle = 2 * Math.PI * array[i + 8];
      array[i] = size * Math.cos(angle);
      array[i + 8] = size * Math.sin(angle);
    }
  return array;
}
export function fillEven(array, random) {
  for (let i = 0; i < array.length; i++) array[i] = random();
  return array;
}

export const floats = (data, ...shape) => new ort.Tensor("float32", data, shape);
export const halves = (data, ...shape) => new ort.Tensor("float16", new Uint16Array(data), shape);
export const whole = (data, ...shape) => new ort.Tensor("int32", data, shape);
