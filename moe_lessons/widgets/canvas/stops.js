// The stops of a mark: what can be pointed at and walked to.

import { clamp, nearest } from "./numbers.js";

/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */
/** @typedef {import("./view.js").Hit} Hit  What lies at a place. */

/**
 * @typedef {object} Stops  What can be pointed at and walked to.
 * @property {number} count how many there are
 * @property {number} columns in a row; the arrows up and down go so far
 * @property {number} [start] from which the first key goes; without it to the first or last one
 * @property {(i: number) => [number, number]} place where one is, in pixels
 * @property {(x: number, y: number) => number} at which one is at a place, in pixels; -1: none
 * @property {(i: number, x: number, y: number) => Hit} tell what is said of one; away: how far off, in pixels
 * @property {boolean} [isHistory] whether the last of each row are the latest
 * @property {boolean} [isExact] whether what lies under one is told of its own place, not of the pointer's
 * @property {string} [noun] what they are, where they are too many to be told
 */

/**
 * @param {Chart} card in which they are
 * @param {number} columns of cells
 * @param {number} rows of them
 * @returns {Partial<Stops>} the cells, from the top left
 */
export function grid({ box: { left, top, width, height } }, columns, rows) {
  const wide = width / columns;
  const high = height / rows;
  const cell = (at, count) => clamp(Math.floor(at), 0, count - 1);
  return {
    columns,
    count: columns * rows,
    place: (i) => [left + ((i % columns) + 0.5) * wide, top + (Math.floor(i / columns) + 0.5) * high],
    at: (x, y) => cell((y - top) / high, rows) * columns + cell((x - left) / wide, columns),
  };
}

/**
 * @param {Chart} card in which they are
 * @param {ArrayLike<number>} xs values
 * @param {ArrayLike<number>} ys values
 * @param {(dx: number, dy: number) => number} distance of a place from one of them
 * @param {number} [most] one is found where it is nearer than this
 * @returns {Partial<Stops>} a row of points
 */
export function points(card, xs, ys, distance, most) {
  const count = xs.length;
  const place = (i) => [card.x(xs[i]), card.y(ys[i])];
  const at = (x, y) => nearest(count, (i) => distance(card.x(xs[i]) - x, card.y(ys[i]) - y), most);
  return { columns: count, count, place, at };
}
