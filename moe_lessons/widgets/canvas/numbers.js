// Numbers: arrays out of a message, and values as texts.

/** @typedef {Float32Array & {shape: number[], type?: string, bytes?: Uint8Array}} Values  An array of a panel, by rows. */

const ARRAYS = {
  u1: Uint8Array,
  i1: Int8Array,
  u2: Uint16Array,
  i2: Int16Array,
  i4: Int32Array,
  f4: Float32Array,
};
const UNITS = [
  [1e15, 0, ""], // beyond these names: 1e15
  [1e12, 1e12, " T"],
  [1e9, 1e9, " B"],
  [1e6, 1e6, " M"],
  [1e4, 1e3, " K"],
];

/** In the place of an array that is missing. */
export const NOTHING = Object.assign(new Float32Array(0), { shape: [0, 0, 0] });

let halfTable = null; // float16 by a table of all its values: Float16Array is too young to rely on

/**
 * Do what must not stop the others where a message or a mark is wrong, nor fill the console of a course.
 * @template T
 * @param {() => T} action what is tried
 * @returns {T | undefined} what it gives; nothing where it failed
 */
export function quietly(action) {
  try {
    return action();
  } catch (error) {
    console.debug("moe_lessons:", error);
  }
}

/**
 * Read an array out of the buffer of a message.
 * @param {DataView} data the buffer
 * @param {string} type as numpy has it: 'f2', 'i4', …
 * @param {number[]} shape the length of each axis
 * @param {number} start where it begins, in bytes
 * @returns {Values} a copy: ours, and aligned
 */
export function readArray({ buffer, byteOffset }, type, shape, start) {
  const Kind = type === "f2" ? Uint16Array : ARRAYS[type];
  const from = byteOffset + start;
  const size = shape.reduce((product, length) => product * length, Kind.BYTES_PER_ELEMENT);
  const numbers = new Kind(buffer.slice(from, from + size));
  const values = type === "f2" ? fromHalves(numbers) : numbers;
  return Object.assign(values, { shape, type, bytes: new Uint8Array(numbers.buffer) });
}

function fromHalves(numbers) {
  halfTable ??= Float32Array.from({ length: 65536 }, (_, bits) => half(bits));
  return new Float32Array(numbers.length).map((_, i) => halfTable[numbers[i]]);
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const rest = bits & 1023;
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + rest) : 2 ** -24 * rest);
}

/**
 * @param {number} value of any size
 * @param {number} low the least
 * @param {number} high the most
 * @returns {number} the value, not below or above
 */
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/**
 * @param {number} count how many
 * @returns {number[]} 0, 1, …, count - 1
 */
export const range = (count) => Array.from({ length: count }, (_, i) => i);

/**
 * @param {unknown} value anything
 * @returns {boolean} whether it is a number
 */
export const isNumber = (value) => typeof value === "number";

/**
 * @param {number} part from 0 to 1
 * @returns {string} in percent: below ten, but for 0, to a tenth
 */
export const percent = (part) =>
  Number.isNaN(part) ? "–" : `${(100 * part).toFixed(part > 0 && part < 0.0995 ? 1 : 0)} %`;

/**
 * @param {number} weight of an expert that serves, from 0 to 1
 * @returns {string} its hundredths
 */
export const weightText = (weight) => (weight < 0.005 ? "<0.01" : weight.toFixed(2));

/**
 * @param {number} value a count, a loss, …
 * @returns {string} its first three digits, and what a large one is counted in
 */
export function short(value) {
  const [, unit, name] = UNITS.find(([least]) => Math.abs(value) >= least) ?? [0, 1, ""];
  if (!unit) return value.toExponential(2).replace(/\.?0*e\+/, "e");
  const text = +(value / unit).toPrecision(3) + name;
  return unit === 1 ? text.replace("-", "−") : text;
}

/**
 * @param {import("./view.js").Axis} axis along which it lies
 * @param {number} value on it
 * @returns {string} the value as its axis says it: shares in percent
 */
export function valueText({ label, ticks }, value) {
  const isShare = /share|%/.test(label) || ticks?.some(([, text]) => text.includes("%"));
  return isShare ? percent(value) : short(value);
}

/**
 * Find the nearest of some things.
 * @param {number} count how many there are
 * @param {(i: number) => number} distance how far one is
 * @param {number} most it must be nearer than this
 * @returns {number} which one; -1: none
 */
export function nearest(count, distance, most = Infinity) {
  let found = -1;
  let least = most;
  for (let i = 0; i < count; i++) {
    const away = distance(i);
    if (away < least) {
      found = i;
      least = away;
    }
  }
  return found;
}

export const CLASSES = "ABCDEFGH"; // as in plots/marks.py
export const HUNDREDTHS = 201; // in each direction of a plane

/**
 * @param {string} text points that are drawn by hand, as `read_points` in tasks/plane.py has them
 * @returns {{x: number, y: number, label: number}[]} them, and the class of each
 */
export function readPoints(text) {
  const codes = (text.match(/.{4}/g) ?? []).map((digits) => parseInt(digits, 36));
  return codes.map((code) => {
    const [column, above] = [code % HUNDREDTHS, Math.floor(code / HUNDREDTHS)];
    const [row, label] = [above % HUNDREDTHS, Math.floor(above / HUNDREDTHS)];
    return { x: column / 100 - 1, y: row / 100 - 1, label };
  });
}
