// Points that are drawn by hand in a plane: how they are written and seen, and made by pointer, finger or key.

import { CLASSES, HUNDREDTHS, clamp, isNumber, readPoints } from "./numbers.js";
import { make } from "./elements.js";
import { Pen } from "./pen.js";
import { cardOf, touch } from "./view.js";
import { grid } from "./stops.js";
import { wait } from "./controls.js";

/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */
/** @typedef {import("./stops.js").Stops} Stops  What can be pointed at. */
/** @typedef {import("./view.js").View} View  One display of the widget. */

const APART = 0.08; // two points of a stroke
const EDGES = 1.03; // so far from the middle a stroke still leaves points
const WALKED = 20; // rows and columns of a plane in which the keyboard draws
const SHOWN = 1000; // milliseconds for which a stroke is seen before it is answered

function written([x, y], label) {
  const [column, row] = [x, y].map((value) => Math.round(100 * (clamp(value, -1, 1) + 1)));
  return ((label * HUNDREDTHS + row) * HUNDREDTHS + column).toString(36).padStart(4, "0");
}

/**
 * Draw `Drawn` points, and those that are being drawn.
 * @param {Chart} card in which they lie
 * @param {import("./view.js").Mark} mark the points
 */
export function drawDrawn(card, { points }) {
  const { pen, cache, canvas, across, down, wide, box, view } = card;
  const key = [points, across, down, box.left, box.width].join();
  if (cache.drawn !== key) {
    cache.drawn = key; // to write hundreds takes longer than a picture may
    cache.layer ??= make("canvas");
    Object.assign(cache.layer, { width: across, height: down });
    const layer = new Pen(view, cache.layer.getContext("2d"));
    layer.context.scale(across / wide, across / wide);
    writeLabels(layer, card, points);
  }
  pen.context.drawImage(cache.layer, 0, 0, wide, (down * wide) / across);
  if (view.stroke?.canvas === canvas) writeLabels(pen, card, view.stroke.text);
}

function writeLabels(pen, card, points) {
  const style = { color: "#000", halo: "#fff", weight: 700, size: 9 };
  for (const { x, y, label } of readPoints(points)) pen.write(CLASSES[label], card.x(x), card.y(y), style);
}

/**
 * @param {Chart} card in which they lie
 * @param {import("./view.js").Mark} mark the points
 * @returns {Stops | undefined} places at which the keyboard draws, if a class is chosen
 */
export function stopsOfDrawn(card, { pen }) {
  const tell = () => ({ away: SHOWN, rows: [[null, "Press, or Enter", `a point of class ${CLASSES[pen]}`]] }); // below all else
  return isNumber(pen) ? { ...grid(card, WALKED, WALKED), noun: "places to draw at", tell } : undefined;
}

/**
 * Begin, go on with or end a stroke.
 * @param {View} view in which a pointer is
 * @param {PointerEvent} event of it
 * @returns {boolean} whether it draws: it then does nothing else
 */
export function drawn(view, event) {
  const { type, target, button, isPrimary, pointerId } = event;
  const card = cardOf(view, target);
  if (card?.canvas !== target || !isNumber(card.draws) || view.isStale) return false;
  if (type === "pointerdown" && isPrimary && button === 0) {
    target.setPointerCapture(pointerId);
    view.stroke = { canvas: target, pointerId, text: "", last: null };
  }
  const { stroke } = view;
  if (type === "click") return true;
  if (stroke?.pointerId !== pointerId) return false;
  if (type === "pointercancel") view.stroke = null;
  else addTo(stroke, [card.xAt(event.offsetX), card.yAt(event.offsetY)], card.draws);
  if (type === "pointerup") leave(view, stroke);
  touch(view);
  return true;
}

// Points as far apart as they are to be, from the last one to where the pointer is.
function addTo(stroke, goal, label) {
  const from = stroke.last ?? goal;
  const [across, up] = [0, 1].map((axis) => goal[axis] - from[axis]);
  const far = Math.hypot(across, up);
  const first = stroke.last ? 1 : 0;
  for (let i = first; i * APART <= far; i++) {
    const part = (i * APART) / (far || 1);
    stroke.last = [from[0] + part * across, from[1] + part * up];
    if (stroke.last.every((value) => Math.abs(value) < EDGES)) stroke.text += written(stroke.last, label);
  }
}

function leave(view, stroke) {
  stroke.pointerId = null;
  if (stroke.text) sendPoints(view, stroke.text);
  setTimeout(() => {
    if (view.stroke === stroke) view.stroke = null;
    touch(view);
  }, SHOWN);
}

function sendPoints(view, points) {
  view.send({ points });
  wait(view, "Draw points");
}

/**
 * Draw one point.
 * @param {View} view in which it is asked
 * @param {import("./view.js").Place} place of it
 * @returns {boolean} whether a class is chosen to draw
 */
export function drawAt(view, { card, x, y }) {
  const pen = card.draws;
  if (!isNumber(pen) || view.isStale) return false;
  sendPoints(view, written([card.xAt(x), card.yAt(y)], pen));
  return true;
}
