// Where the words of a `Heat` stand: a contour's name on it, and all in place of no others, as plots/labels.py has it for a
// still picture.

import { range } from "./numbers.js";

/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */
/** @typedef {import("./view.js").Mark} Mark  With its arrays. */
/** @typedef {[number, number, number, number]} Rectangle  Left, top, right and bottom, in pixels. */
/** @typedef {{text: string, x: number, y: number, isRegion: boolean, wide: number}} Label  A text, and its middle. */

export const NAME_OVER = 9; // pixels over a rule
const HALF_HIGH = 6; // of the height of words, in pixels, as all that follows
const WORDS_APART = 2.5; // words
const ENOUGH = 6; // from words to a line that they do not name
const CLEARLY = 0.5; // more room than elsewhere
const FINE = 4; // places of a name from row to row
const LEAST_REGION = 0.04; // of the map: what a region needs for its words
export const EVEN = 0.03; // of a speedup: about as fast, and no region
const NO_REGION = Math.log2(1 + EVEN);

/**
 * Place the words of a `Heat`, the regions' first, where other lines leave most room; if they leave enough, in the middle.
 * @param {Chart} card in which it lies
 * @param {Mark} heat whose regions and contours have names
 * @returns {Label[]} those for which there is room
 */
export function placeLabels(card, heat) {
  const { box, pen, x: toX } = card;
  const [rows] = heat.z.shape;
  const contours = heat.names.map((_, i) =>
    range(rows).map((row) => [
      toX(heat.contours[i * rows + row]),
      box.top + box.height * (1 - row / (rows - 1)),
    ]),
  );
  const over = card.marks.flatMap((mark) => linesOver(card, mark)).flatMap(partsOf);
  const taken = card.marks.flatMap((mark) => placesOfWords(card, mark));
  const { selected: ring } = heat;
  if (ring) taken.push(rectangleOf({ x: toX(ring[0]), y: card.y(ring[1]), wide: 18 }));
  const labels = [];
  const put = (places, label, lines, least) => {
    const { wide } = label;
    const words = [...taken, ...labels.map(rectangleOf)];
    let [found, most] = [undefined, least];
    for (const [x, y] of places) {
      const own = rectangleOf({ x, y, wide });
      const isInside =
        own[0] > box.left &&
        own[1] > box.top &&
        own[2] < box.left + box.width &&
        own[3] < box.top + box.height;
      if (!isInside || words.some((other) => gap(own, other) < WORDS_APART)) continue;
      const free = Math.min(ENOUGH, ...lines.map((other) => gap(own, other)));
      if (free > most + CLEARLY) [found, most] = [{ ...label, x, y }, free];
      if (free === ENOUGH) break;
    }
    if (found) labels.push(found);
  };
  const all = [...contours.flatMap(partsOf), ...over];
  for (const { text, places } of regionsOf(card, heat))
    put(places, { text, isRegion: true, wide: 1.1 * pen.measure(text) }, all, 0);
  heat.names.forEach((text, i) => {
    const others = contours.filter((line) => line !== contours[i]).flatMap(partsOf);
    const label = { text, isRegion: false, wide: pen.measure(text) };
    for (const places of runsOf(contours[i], label, box)) put(places, label, others, 0);
  });
  return labels;
}

const rectangleOf = ({ x, y, wide }) => [x - wide / 2, y - HALF_HIGH, x + wide / 2, y + HALF_HIGH];

// How far two rectangles are apart; less than 0: how far one lies over the other.
const gap = (one, other) =>
  Math.max(one[0] - other[2], other[0] - one[2], one[1] - other[3], other[1] - one[3]);

// The rectangles around the parts of a line.
const partsOf = (line) =>
  line.slice(1).map(([x, y], i) => {
    const [fromX, fromY] = line[i];
    return [Math.min(x, fromX), Math.min(y, fromY), Math.max(x, fromX), Math.max(y, fromY)];
  });

// In pixels, of the marks that are drawn over the map: their lines, and where they have points or words.
function linesOver({ box, x: toX, y: toY }, { mark, x, y }) {
  if (mark === "Line") return [[...x].map((value, i) => [toX(value), toY(y[i])])];
  if (mark !== "Rule") return [];
  const [right, bottom] = [box.left + box.width, box.top + box.height];
  const ends = Number.isFinite(x) ? [[toX(x), box.top], [toX(x), bottom]] : [[box.left, toY(y)], [right, toY(y)]]; // prettier-ignore
  return [ends];
}

function placesOfWords({ pen, box, x: toX, y: toY }, { mark, x, y, kind, name, texts, places }) {
  if (mark === "Points")
    return [...x].map((value, i) => rectangleOf({ x: toX(value), y: toY(y[i]), wide: 14 }));
  if (kind === "end") {
    const wide = pen.measure(name);
    return [rectangleOf({ x: box.left + 6 + wide / 2, y: toY(y) - NAME_OVER, wide })];
  }
  if (mark !== "Boxes") return [];
  return texts.map((text, i) => {
    const wide = pen.measure(text);
    return rectangleOf({ x: toX(places[4 * i]) + wide / 2, y: toY(places[4 * i + 1]), wide });
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
    const places = cells.map(([column, row]) => [
      box.left + (box.width * column) / (columns - 1),
      box.top + box.height * (1 - row / (rows - 1)),
    ]);
    const [x, y] = [0, 1].map((axis) => places.reduce((sum, place) => sum + place[axis], 0) / places.length);
    const away = (place) => Math.hypot(place[0] - x, place[1] - y);
    return { text, places: places.sort((one, other) => away(one) - away(other)) };
  });
}

// The places of a contour's name on each part of it where the map has room for it, from the middle of the part outwards.
function runsOf(line, { wide }, { left, width }) {
  const runs = [[]];
  line.slice(1).forEach(([x, y], i) => {
    for (const part of range(FINE)) {
      const at = line[i].map((from, axis) => from + (([x, y][axis] - from) * part) / FINE);
      if (Math.abs(at[0] - left - width / 2) < (width - wide) / 2) runs.at(-1).push(at);
      else if (runs.at(-1).length) runs.push([]);
    }
  });
  const away = (run, i) => Math.abs(2 * i - run.length + 1);
  return runs.map((run) =>
    [...run.keys()].sort((one, other) => away(run, one) - away(run, other)).map((i) => run[i]),
  );
}
