// Where the words of a `Heat` stand: on no line and on no other words, as plots/labels.py has it for a still picture.

import { range } from "./numbers.js";

/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */
/** @typedef {import("./view.js").Mark} Mark  With its arrays. */
/** @typedef {[number, number, number, number]} Rectangle  Left, top, right and bottom, in pixels. */
/** @typedef {{text: string, x: number, y: number, isRegion: boolean, wide: number}} Label  A text, and its middle. */

const HALF_HIGH = 6; // of the height of words, in pixels, as all that follows
const AROUND_WORDS = 2; // around words
const FROM_LINE = 4; // of a contour from its name
const LEAST_REGION = 0.04; // of the map: what a region needs for its words
const NO_REGION = 0.03; // as a logarithm: no region

/**
 * Place the words of a `Heat`, the regions' first.
 * @param {Chart} card in which it lies
 * @param {Mark} heat whose regions and contours have names
 * @returns {Label[]} those for which there is room
 */
export function placeLabels(card, heat) {
  const { box, pen, x: toX } = card;
  const [rows] = heat.z.shape;
  const labels = [];
  const contours = heat.names.map((_, i) =>
    range(rows).map((row) => [
      toX(heat.contours[i * rows + row]),
      box.top + box.height * (1 - row / (rows - 1)),
    ]),
  );
  const lines = [...contours, ...card.marks.flatMap((mark) => linesOver(card, mark))];
  const taken = card.marks.flatMap((mark) => placesOfWords(card, mark));
  const { selected: ring } = heat;
  if (ring) taken.push(rectangleOf({ x: toX(ring[0]), y: card.y(ring[1]), wide: 18 }, 0));
  const sized = (label) => ({ ...label, wide: (label.isRegion ? 1.1 : 1) * pen.measure(label.text) });
  const isFree = (label) => {
    const [left, top, right, bottom] = rectangleOf(label, AROUND_WORDS);
    const isInside =
      left > box.left && top > box.top && right < box.left + box.width && bottom < box.top + box.height;
    const boxes = [...taken, ...labels.map((other) => rectangleOf(other, 0))];
    const isApart = boxes.every(
      (other) => left > other[2] + 6 || right < other[0] - 6 || top > other[3] || bottom < other[1],
    );
    return isInside && isApart && !lines.some((line) => crosses(line, [left, top, right, bottom]));
  };
  const beside = heat.names.flatMap((text, i) =>
    besideContour(sized({ text, isRegion: false }), contours[i]),
  );
  for (const options of [...regionsOf(card, heat), ...beside]) {
    const found = options.map(sized).find(isFree);
    if (found) labels.push(found);
  }
  return labels;
}

const rectangleOf = ({ x, y, wide }, free) => [
  x - wide / 2 - free,
  y - HALF_HIGH - free,
  x + wide / 2 + free,
  y + HALF_HIGH + free,
];

// In pixels, of the marks that are drawn over the map: their lines, and where they have points or words.
function linesOver({ box, x: toX, y: toY }, { mark, x, y }) {
  if (mark === "Line") return [[...x].map((value, i) => [toX(value), toY(y[i])])];
  if (mark !== "Rule") return [];
  const [right, bottom] = [box.left + box.width, box.top + box.height];
  const ends = Number.isFinite(x) ? [[toX(x), box.top], [toX(x), bottom]] : [[box.left, toY(y)], [right, toY(y)]]; // prettier-ignore
  return [ends];
}

function placesOfWords({ pen, x: toX, y: toY }, { mark, x, y, texts, places }) {
  if (mark === "Points")
    return [...x].map((value, i) => rectangleOf({ x: toX(value), y: toY(y[i]), wide: 14 }, 0));
  if (mark !== "Boxes") return [];
  return texts.map((text, i) => {
    const wide = pen.measure(text);
    return rectangleOf({ x: toX(places[4 * i]) + wide / 2, y: toY(places[4 * i + 1]), wide }, 0);
  });
}

// Whether a line goes through a rectangle: one of its parts is, at some time, between the ends of both axes.
function crosses(line, rectangle) {
  return line.some((to, i) => {
    const from = line[i - 1] ?? to;
    let [first, last] = [0, 1];
    for (const axis of [0, 1]) {
      const [low, high] = [rectangle[axis] - from[axis], rectangle[axis + 2] - from[axis]];
      const step = to[axis] - from[axis];
      const times = step ? [low / step, high / step] : [low < 0 && high > 0 ? 0 : 2, 1];
      first = Math.max(first, step ? Math.min(...times) : times[0]);
      last = Math.min(last, Math.max(...times));
    }
    return first <= last;
  });
}

// For each region the places of its words, those near its middle first: of what is below 0; of what is above, beside that,
// or under it and over it.
function regionsOf({ box }, { z, regions: [slower, faster] }) {
  const [rows, columns] = z.shape;
  const isBelow = (row, column) => z[row * columns + column] < -NO_REGION;
  const kinds = [slower, faster, faster, faster].map((text) => ({ text, cells: [] }));
  let alone = 0; // columns without it
  for (const column of range(columns)) {
    const below = range(rows).filter((row) => isBelow(row, column));
    if (!below.length) alone += 1;
    for (const row of range(rows)) {
      const side = row < below[0] ? 1 : 2;
      const kind = isBelow(row, column) ? 0 : below.length ? side : 3;
      if (Math.abs(z[row * columns + column]) > NO_REGION) kinds[kind].cells.push([column, row]);
    }
  }
  const isSlender = alone > columns / 2; // what is below 0
  const wanted = isSlender ? [kinds[0], kinds[3]] : kinds.slice(0, 3);
  const large = wanted.filter(({ cells }) => cells.length >= LEAST_REGION * rows * columns);
  return large.map(({ text, cells }) => {
    const places = cells.map(([column, row]) => ({
      text,
      isRegion: true,
      x: box.left + (box.width * column) / (columns - 1),
      y: box.top + box.height * (1 - row / (rows - 1)),
    }));
    const [x, y] = ["x", "y"].map(
      (axis) => places.reduce((sum, place) => sum + place[axis], 0) / places.length,
    );
    const away = (place) => Math.hypot(place.x - x, place.y - y);
    return places.sort((one, other) => away(one) - away(other));
  });
}

// For both halves of a contour, the upper first, the places of its name, from its end inwards.
function besideContour(label, line) {
  const middle = Math.floor(line.length / 2);
  const ways = [[FROM_LINE + label.wide / 2, 0], [-FROM_LINE - label.wide / 2, 0], [0, -FROM_LINE - HALF_HIGH], [0, FROM_LINE + HALF_HIGH]]; // prettier-ignore
  return [line.slice(middle + 1).reverse(), line.slice(0, middle + 1)].map((part) =>
    part.flatMap(([x, y]) => ways.map(([right, down]) => ({ ...label, x: x + right, y: y + down }))),
  );
}
