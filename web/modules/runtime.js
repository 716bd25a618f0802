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

export function randomOf(seed) {
  // mulberry32: from 0 to 1
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
export function fillNormal(array, random) {
  // Box and Muller
  for (let i = 0; i < array.length; i += 2) {
    const size = Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    array[i] = size * Math.cos(angle);
    array[i + 1] = size * Math.sin(angle);
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
