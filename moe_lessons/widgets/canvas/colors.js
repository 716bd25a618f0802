// Colours, as [red, green, blue], hatches, and styles of lines.

import { clamp, range } from "./numbers.js";
import { make } from "./elements.js";

/** @typedef {[number, number, number]} Color  Red, green and blue, from 0 to 255. */
/** @typedef {{color: string, width: number, dash?: number[], lineCap?: string}} LineStyle  How a line is drawn. */

const DASHES = [[], [7, 4], [1.5, 3.5], [9, 3, 2, 3], [4, 2], [14, 4], [], []]; // of the inks
const RULE_DASHES = { mark: [], even: [2, 3] };
const DIRECTIONS = { light: ["#5e3c99", "#b35806"], dark: ["#a274ff", "#fdb863"] }; // told apart by all kinds of sight
const tiles = new Map();

/**
 * @param {string} text '#rrggbb'
 * @returns {Color} the same
 */
export const hex = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));

/**
 * @param {Color} color of a mark
 * @param {number} alpha how strong, from 0 to 1
 * @returns {string} the same for CSS
 */
export const css = ([r, g, b], alpha = 1) => `rgba(${r},${g},${b},${alpha})`;

/**
 * @param {Color} one where the part is 0
 * @param {Color} other where it is 1
 * @param {number} part of the other
 * @returns {Color} between them
 */
export const mix = (one, other, part) => one.map((value, i) => Math.round(value + (other[i] - value) * part));

/**
 * @param {Color} color of a mark
 * @returns {number} as an ImageData has it
 */
export const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

/**
 * @param {Color} color of the ground
 * @returns {Color} black or white, whichever is read better on it (WCAG's relative luminance)
 */
export function inkOn(color) {
  const linear = (value) => (value <= 10 ? value / 3294 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = color.map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? [0, 0, 0] : [255, 255, 255];
}

/**
 * Colours repeat after eight experts. Stripes tell 8 to 15, dots 16 to 23, crossed stripes 24 to 31.
 * @param {number} expert its number
 * @returns {number} 0: none, 1: stripes, 2: dots, 3: crossed stripes
 */
export const hatchOf = (expert) => Math.floor(expert / 8) % 4;

/**
 * @param {number} hatch which one
 * @param {number} x in pixels
 * @param {number} y in pixels
 * @returns {boolean} whether it has ink there
 */
export function isHatched(hatch, x, y) {
  if (hatch === 2) return ((x % 6) - 3) ** 2 + ((y % 6) - 3) ** 2 < 2.6;
  return (x + y) % 6 < 1.7 || (hatch === 3 && (x - y + 6000) % 6 < 1.7);
}

/**
 * Make a tile of a hatch, 6 pixels wide; its ink is not that of text on the colour.
 * @param {number} hatch which one
 * @param {Color} color of the ground
 * @returns {{ink: [Color, number], pattern: CanvasPattern, url: string}} its ink and how strong it is, and the tile
 */
export function tile(hatch, color) {
  const isLight = inkOn(color)[0] === 0;
  const key = `${hatch} ${isLight}`;
  if (!tiles.has(key)) tiles.set(key, newTile(hatch, isLight));
  return tiles.get(key);
}

function newTile(hatch, isLight) {
  const canvas = Object.assign(make("canvas"), { width: 12, height: 12 }); // drawn in double size
  const context = canvas.getContext("2d");
  const ink = isLight ? [[255, 255, 255], 0.62] : [[0, 0, 0], 0.38];
  context.fillStyle = css(...ink);
  for (const i of range(144)) {
    const x = i % 12;
    const y = Math.floor(i / 12);
    if (isHatched(hatch, (x + 0.5) / 2, (y + 0.5) / 2)) context.fillRect(x, y, 1, 1);
  }
  const pattern = context.createPattern(canvas, "repeat");
  pattern.setTransform(new DOMMatrix().scale(0.5));
  return { ink, pattern, url: `url(${canvas.toDataURL()}) 0 0 / 6px 6px` };
}

/**
 * @param {import("./view.js").View} view whose theme it is
 * @param {number} ink of a line; -1: that of a ghost
 * @returns {Color} its colour
 */
export const inkOf = ({ inks, quiet }, ink) => (ink < 0 ? quiet : inks[ink % inks.length]);

/**
 * @param {import("./view.js").View} view whose theme it is
 * @param {number} ink of the line; -1: that of a ghost
 * @param {boolean} strong whether it is thicker
 * @returns {LineStyle} of the line of a model
 */
export function lineStyle(view, ink, strong = true) {
  if (ink < 0) return { color: css(view.quiet, 0.4), width: 4, dash: [] };
  const thick = ink ? 1.9 : 2.3;
  return { color: css(inkOf(view, ink)), width: strong ? thick : 1.3, dash: DASHES[ink % 8] };
}

/**
 * @param {import("./view.js").View} view whose theme it is
 * @param {string} kind of a `Rule`
 * @returns {LineStyle} of the rule
 */
export function ruleStyle({ ink, colors }, kind) {
  if (kind === "limit" || kind === "end") return { color: colors.red, width: 1.8, dash: [] };
  return { color: css(ink, kind === "mark" ? 0.5 : 0.75), width: 1.1, dash: RULE_DASHES[kind] ?? [5, 4] };
}

/**
 * @param {LineStyle} style of a line
 * @returns {Partial<CSSStyleDeclaration>} the same in a legend: a row of dashes
 */
export function swatch({ color, width, dash }) {
  let at = 0;
  const stops = dash.map((length, i) => {
    const from = at;
    at += length;
    return `${i % 2 ? "transparent" : color} ${from}px ${at}px`;
  });
  const background = stops.length ? `repeating-linear-gradient(to right, ${stops.join(", ")})` : color;
  return { height: `${Math.max(Math.round(width), 2)}px`, background };
}

/**
 * @param {import("./view.js").View} view whose theme it is
 * @param {{even: number, most: number}} mark `Cells` whose values go in two directions
 * @param {number} value of a cell
 * @returns {Color} purple below the even value, brown above
 */
export function twoWays({ paper, ink, isDark }, { even, most }, value) {
  const [below, above] = DIRECTIONS[isDark ? "dark" : "light"];
  const middle = isDark ? mix(paper, ink, 0.16) : paper; // or it would be black
  if (value < even) return mix(middle, hex(below), clamp((even - value) / even, 0, 1) || 0);
  return mix(middle, hex(above), clamp((value - even) / (most - even), 0, 1) || 0);
}
