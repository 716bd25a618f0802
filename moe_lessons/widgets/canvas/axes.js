// The axes of a chart: how it is laid out, its ground, ticks and labels.

import { clamp, range, short } from "./numbers.js";
import { css } from "./colors.js";
import { Pen } from "./pen.js";

/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */
/** @typedef {import("./view.js").Axis} Axis  From a low to a high value. */

const TOP = 8; // pixels over the box of a chart
const ROUND = [1, 2, 2.5, 5, 10];

/**
 * @param {Axis} axis with ticks of its own, or none
 * @param {number} room for about so many
 * @returns {[number, string][]} values and their texts: its own, or round numbers
 */
function ticksOf({ low, high, ticks }, room) {
  if (ticks) return ticks;
  const first = Math.min(low, high);
  const last = Math.max(low, high);
  const rough = (last - first) / Math.max(room, 1);
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = ten * ROUND.find((n) => n * ten > 0.999 * rough);
  const from = Math.ceil(first / step - 1e-9);
  const count = Math.floor(last / step + 1e-9) - from + 1;
  return range(count).map((i) => [(from + i) * step, short((from + i) * step)]);
}

// All ticks, or every second, fourth, …: as many as do not touch. place, size: of a tick, in pixels.
function apart(ticks, place, size) {
  const touch = (tick, i, all) =>
    i > 0 && Math.abs(place(tick) - place(all[i - 1])) < (size(tick) + size(all[i - 1])) / 2;
  if (!ticks.some(touch)) return ticks;
  const half = ticks.filter((_, i) => i % 2 === 0);
  return apart(half, place, size);
}

/**
 * Lay a chart out: the box of its marks, its ticks, and the ways from values to pixels and back.
 * @param {Chart} chart whose size is known
 * @param {number} right the margin that its marks want, in pixels
 * @returns {Partial<Chart>} what it then has
 */
export function layOut({ pen, wide, high, xAxis, yAxis, isSquare }, right) {
  const foot = (xAxis.ticks?.length === 0 ? 4 : 21) + (xAxis.label ? 16 : 0);
  const marked = ticksOf(yAxis, (high - foot) / 42);
  const widest = Math.max(5, ...marked.map(([, text]) => pen.measure(text) + 8));
  const left = Math.min(Math.ceil(widest) + roomOfLabel(yAxis), Math.floor(wide / 2));
  const across = Math.max(wide - left - right, 10);
  const down = Math.max(high - foot - TOP, 10);
  const [columns, rows] = [xAxis, yAxis].map((axis) => Math.abs(axis.high - axis.low));
  const unit = isSquare && Math.min(across / columns, down / rows); // one is as wide as high
  const [width, height] = isSquare ? [columns * unit, rows * unit] : [across, down];
  return {
    box: { left, top: TOP, width, height },
    ticks: [ticksOf(xAxis, width / 64), marked],
    x: toPixels(xAxis, left, width),
    y: toPixels(yAxis, TOP + height, -height),
    xAt: toValues(xAxis, left, width),
    yAt: toValues(yAxis, TOP + height, -height),
  };
}

const roomOfLabel = (axis) => (axis.label ? 17 : 0);
const toPixels = (axis, from, size) => (value) => from + ((value - axis.low) / (axis.high - axis.low)) * size;
const toValues = (axis, from, size) => (pixel) => axis.low + ((pixel - from) / size) * (axis.high - axis.low);

/**
 * Draw the ground, ticks and labels of a chart that is laid out. It is done once, and copied into each picture until the
 * panel, its size or the theme changes.
 * @param {Chart} chart that has a canvas for them
 */
export function drawAxes(chart) {
  const { axes, wide, across, down, view } = chart;
  axes.width = across;
  axes.height = down;
  const pen = new Pen(view, axes.getContext("2d", { alpha: false }));
  pen.context.fillStyle = css(view.paper);
  pen.context.fillRect(0, 0, across, down);
  pen.context.scale(across / wide, across / wide);
  drawRows(chart, pen);
  drawColumns(chart, pen);
  drawLabels(chart, pen);
}

const gridOf = (view) => ({ color: css(view.faint), width: 1 });
const toLeft = (view) => ({ color: css(view.quiet), align: "right" });

function drawRows({ view, box, yAxis, y, ticks: [, ticks] }, pen) {
  const room = box.left - 8 - roomOfLabel(yAxis);
  const place = ([value]) => y(value);
  for (const [value, text] of apart(ticks, place, () => 13)) {
    if (!yAxis.ticks) pen.rule(box, null, y(value), gridOf(view));
    pen.write(pen.shorten(text, room), box.left - 6, y(value) + 0.5, toLeft(view));
  }
}

function drawColumns({ view, box, wide, xAxis, x, ticks: [ticks] }, pen) {
  const size = ([, text]) => pen.measure(text) + 8;
  const place = ([value]) => x(value);
  for (const [value, text] of apart(ticks, place, size)) {
    if (!xAxis.ticks) pen.rule(box, x(value), null, gridOf(view));
    const half = pen.measure(text) / 2;
    const at = clamp(x(value), half, wide - half);
    pen.write(text, at, box.top + box.height + 12, { color: css(view.quiet) });
  }
}

function drawLabels({ view, box, high, xAxis, yAxis }, pen) {
  const { left, top, width, height } = box;
  pen.write(pen.shorten(xAxis.label, width), left + width, high - 8, toLeft(view));
  pen.context.transform(0, -1, 1, 0, 9, top); // upwards
  pen.write(pen.shorten(yAxis.label, height), 0, 0, toLeft(view));
}
