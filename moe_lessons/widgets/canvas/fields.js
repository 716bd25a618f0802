// Planes and cells in the colours of the experts: who is asked where, and how much.

import { CLASSES, clamp, isNumber, nearest, percent, range, short } from "./numbers.js";
import { css, hatchOf, inkOn, isHatched, mix, packed, tile, twoWays } from "./colors.js";
import { make } from "./elements.js";
import { colorOf, strength } from "./view.js";
import { grid, points } from "./stops.js";
import { placeLabels } from "./labels.js";

/** @typedef {import("./stops.js").Stops} Stops  What can be pointed at. */
/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */
/** @typedef {import("./view.js").Mark} Mark  With its arrays. */

const AROUND = [-1, 0, 1, 2]; // the points of a grid around one of its cells
const LEAST_PART = 0.008; // of a plane: a smaller territory has no number
const EDGE = 0.04; // of a plane: so far from its edges numbers stay
const STAYS = 6; // in how many rows and columns of a plane the keyboard walks

// --- a plane divided among the experts ---

/**
 * Draw a `Field`: its territories, its classes, and the number of each expert.
 * @param {Chart} card in which it lies
 * @param {Mark} mark its scores and classes
 */
export function drawField(card, { z, classes }) {
  const [rows, columns, count] = z.shape;
  if (rows < 2 || columns < 2 || !count) return;
  const { pen, view, box, cache } = card;
  const colors = range(count).map((expert) => colorOf(view, expert));
  updateImage(card, z, colors);
  pen.context.drawImage(cache.image, box.left, box.top, box.width, box.height);
  if (classes?.length) {
    if (cache.paper !== view.paper || cache.classes !== classes) paintClasses(cache, classes, view.paper);
    pen.context.drawImage(cache.pale, box.left, box.top, box.width, box.height);
  }
  for (const [expert, across, up] of cache.middles) {
    const color = colors[expert];
    const style = { color: css(inkOn(color)), halo: css(color), weight: 700, size: 14 };
    pen.write(expert, box.left + across * box.width, box.top + (1 - up) * box.height, style);
  }
  const { to } = view.fades.expert; // all is pale
  if (to === null || cache.middles.some(([expert]) => expert === to)) return;
  const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
  pen.write(`E${to}: hardly a first choice`, x, y, {
    color: css(view.ink),
    halo: css(view.paper),
    weight: 700,
  });
}

function updateImage(card, z, colors) {
  const { view, box, cache, across, wide } = card;
  const isTraining = view.words.state === "training";
  const scale = isTraining ? 1 : Math.min(across / wide, 2); // it costs by the pixel
  const width = Math.round(box.width * scale);
  const height = Math.round(box.height * scale);
  const key = [width, height, view.paper, ...colors].join();
  if (cache.z === z && cache.key === key) return;
  const owners = ownersOf(z);
  cache.image ??= make("canvas");
  cache.image.width = width;
  cache.image.height = height;
  cache.z = z;
  cache.key = key;
  cache.middles = middlesOf(z, owners, underTokens(card, z));
  paintField(cache.image, z, owners, colors, view, scale);
}

// Whose each point of the grid is.
function ownersOf(z) {
  const [rows, columns, count] = z.shape;
  return Uint8Array.from({ length: rows * columns }, (_, i) => {
    let best = 0;
    for (let e = 1; e < count; e++) if (z[i * count + e] > z[i * count + best]) best = e;
    return best;
  });
}

// Scores are bilinear in each cell of the grid, so who is the first at all its corners is it all over the cell; there,
// and where the points around say the same, no pixel need ask.
function wholeCells(owners, rows, columns) {
  const ownerAt = (r, c) => owners[clamp(r, 0, rows - 1) * columns + clamp(c, 0, columns - 1)];
  return Array.from(owners, (owner, i) => {
    const r = Math.floor(i / columns);
    const c = i % columns;
    return AROUND.every((down) => AROUND.every((right) => ownerAt(r + down, c + right) === owner));
  });
}

// Each pixel asks who is the first there and by how much: where the second is nearer than half a border's width, there
// is the border.
function paintField(image, z, owners, colors, { paper, palette }, scale) {
  const { width, height } = image;
  const [rows, columns, count] = z.shape;
  const size = columns * count;
  const context = image.getContext("2d");
  const pixels = context.createImageData(width, height);
  const out = new Uint32Array(pixels.data.buffer);
  const ground = packed(paper);
  const hatches = colors.map((_, e) => hatchOf(e));
  const plain = colors.map(packed);
  const inked = colors.map((color, e) => packed(mix(color, ...tile(1, palette[e % 8]).ink)));
  const wide = width / (columns - 1);
  const tall = height / (rows - 1);
  const isWhole = wholeCells(owners, rows, columns);
  const scores = new Float64Array(size); // along a row of pixels, at the columns of the grid
  const rise = new Float64Array(size);
  for (let y = 0; y < height; y++) {
    const v = (height - 0.5 - y) / tall;
    const r = Math.floor(v);
    for (let i = 0; i < size; i++) {
      const at = r * size + i;
      rise[i] = z[at + size] - z[at];
      scores[i] = z[at] + (v - r) * rise[i];
    }
    for (let x = 0; x < width; x++) {
      const u = (x + 0.5) / wide;
      const c = Math.floor(u);
      let first = owners[r * columns + c];
      let cover = 0; // of the border
      if (!isWhole[r * columns + c]) {
        const at = c * count;
        const up = at + count;
        let second = first;
        let best = -Infinity;
        let next = -Infinity;
        for (let e = 0; e < count; e++) {
          const score = scores[at + e] + (u - c) * (scores[up + e] - scores[at + e]);
          if (score > best) {
            next = best;
            second = first;
            best = score;
            first = e;
          } else if (score > next) {
            next = score;
            second = e;
          }
        }
        const slope =
          (scores[up + first] - scores[up + second] - scores[at + first] + scores[at + second]) / wide;
        const steep = Math.hypot(slope, (rise[at + first] - rise[at + second]) / tall); // how fast the two part
        cover = clamp(0.75 * scale + 0.5 - (best - next) / (steep + 1e-12), 0, 1);
      }
      const hasInk = hatches[first] && isHatched(hatches[first], x / scale, y / scale);
      const color = (hasInk ? inked : plain)[first];
      out[y * width + x] = cover ? blended(color, ground, cover) : color;
    }
  }
  context.putImageData(pixels, 0, 0);
}

// Packed colours, without an array for each pixel.
function blended(one, other, part) {
  const channel = (at) => Math.round(((one >> at) & 255) * (1 - part) + ((other >> at) & 255) * part) << at;
  return ((255 << 24) | channel(0) | channel(8) | channel(16)) >>> 0;
}

// The classes as shades of the page's own colour: neighbours in number, and those three apart, differ clearly.
function paintClasses(cache, classes, paper) {
  const [rows, columns] = classes.shape;
  const pixels = new ImageData(columns, rows);
  const out = new Uint32Array(pixels.data.buffer);
  const shades = range(8).map((c) => (packed(paper) & 0xffffff) | ((13 * ((c % 2) * 4 + (c >> 1))) << 24));
  classes.forEach((c, i) => {
    out[(rows - 1 - Math.floor(i / columns)) * columns + (i % columns)] = shades[c % 8];
  });
  const pale = Object.assign(make("canvas"), { width: columns, height: rows });
  pale.getContext("2d").putImageData(pixels, 0, 0);
  Object.assign(cache, { pale, classes, paper });
}

// The points of the grid on and around tokens: a number there could not be read.
function underTokens({ marks, xAxis, yAxis }, { shape: [rows, columns] }) {
  const { x = [], y } = marks.find(({ tokens }) => tokens) ?? {};
  const at = (value, { low, high }, count) => Math.round(((value - low) / (high - low)) * (count - 1));
  const around = (place) => [place - 1, place, place + 1];
  const pairs = [...x].flatMap((value, i) =>
    around(at(y[i], yAxis, rows)).flatMap((r) =>
      around(at(value, xAxis, columns)).map((c) => r * columns + c),
    ),
  );
  return new Set(pairs);
}

// For each expert with a territory that point of it which is nearest to its middle, beside tokens where there is one, in
// parts of the width and height.
function middlesOf({ shape: [rows, columns, count] }, owners, taken) {
  const part = (at, length) => clamp(at / (length - 1), EDGE, 1 - EDGE);
  const mean = (places, axis) => places.reduce((sum, place) => sum + place[axis], 0) / places.length;
  const territories = range(count).map(() => []);
  owners.forEach((expert, i) => territories[expert].push([i % columns, Math.floor(i / columns)]));
  return territories.flatMap((places, expert) => {
    if (places.length < LEAST_PART * owners.length) return [];
    const x = mean(places, 0);
    const y = mean(places, 1);
    const away = ([column, row]) =>
      Math.hypot(column - x, row - y) + (taken.has(row * columns + column) ? columns : 0);
    const [column, row] = places[nearest(places.length, (i) => away(places[i]))];
    return [[expert, part(column, columns), part(row, rows)]];
  });
}

/**
 * @param {Chart} card in which it lies
 * @param {Mark} mark its scores and classes
 * @returns {Stops | 0} places of a `Field`, anywhere
 */
export function stopsOfField(card, { z, classes }) {
  const tell = (_, x, y) => {
    const scores = scoresAt(card.box, z, x, y);
    const best = Math.max(...scores);
    const parts = scores.map((score) => Math.exp(score - best));
    const sum = parts.reduce((total, part) => total + part, 0);
    const order = range(parts.length).sort((one, other) => parts[other] - parts[one]);
    const rows = order.slice(0, 3).map((e) => [e, `E${e}`, percent(parts[e] / sum)]);
    const place = [card.xAt(x), card.yAt(y)].map((value) => value.toFixed(2).replace("-", "−"));
    const where = `E${order[0]} at (${place.join(", ")})`;
    const title = classes?.length ? `${where}: class ${CLASSES[classAt(card.box, classes, x, y)]}` : where;
    return { expert: order[0], title, rows };
  };
  return z.length && { ...grid(card, STAYS, STAYS), tell };
}

// The scores at a place in pixels, between the points of the grid.
function scoresAt({ left, top, width, height }, z, x, y) {
  const [rows, columns, count] = z.shape;
  const between = (one, other, part) => one + part * (other - one);
  const u = clamp((x - left) / width, 0, 1) * (columns - 1);
  const v = clamp(1 - (y - top) / height, 0, 1) * (rows - 1);
  const c = Math.min(Math.floor(u), columns - 2);
  const r = Math.min(Math.floor(v), rows - 2);
  const at = (r * columns + c) * count;
  const above = at + columns * count;
  const along = (from, e) => between(z[from + e], z[from + count + e], u - c);
  return range(count).map((e) => between(along(at, e), along(above, e), v - r));
}

function classAt({ left, top, width, height }, classes, x, y) {
  const [rows, columns] = classes.shape;
  const at = (part, count) => Math.round(clamp(part, 0, 1) * (count - 1));
  return classes[at(1 - (y - top) / height, rows) * columns + at((x - left) / width, columns)];
}

// --- a heatmap ---

/**
 * Draw `Cells`: a column for each expert.
 * @param {Chart} card in which they lie
 * @param {Mark} mark their values
 */
export function drawCells(card, mark) {
  const { z, numbers, rows: kind, selected } = mark;
  const { pen, view, box } = card;
  const [rows, columns] = z.shape;
  const wide = box.width / columns;
  const high = box.height / rows;
  const hasRoom = numbers && wide > pen.measure("100") + 3 && high > 12;
  const colorAt = cellColors(view, mark, columns);
  z.forEach((value, i) => {
    const expert = i % columns;
    const row = Math.floor(i / columns);
    if (Number.isNaN(value)) return frame(card, z, row, [expert, expert + 1], css(view.faint), 1);
    const color = colorAt(value, expert);
    const x = box.left + expert * wide;
    const y = box.top + row * high;
    fillCell(pen.context, [x, y, wide, high], css(color));
    if (!hasRoom) return;
    pen.write(Math.round(100 * value), x + wide / 2 - 1, y + high / 2, { color: css(inkOn(color)) });
  });
  const frames = [
    [selected, view.colors.red],
    [view.pointed[kind], css(view.ink)],
  ];
  for (const [row, color] of frames) if (row >= 0 && row < rows) frame(card, z, row, [0, columns], color, 2);
}

// (value, expert) -> the colour of a cell.
function cellColors(view, mark, columns) {
  const ground = mix(view.ink, view.paper, 0.93);
  const colors = range(columns).map((expert) => colorOf(view, expert));
  const parts = range(columns).map((expert) => 0.25 + 0.75 * strength(view, "expert", expert));
  if (isNumber(mark.even)) return (value, e) => mix(view.paper, twoWays(view, mark, value), parts[e]);
  return (value, e) => mix(ground, colors[e], Math.sqrt(clamp(value, 0, 1)) * parts[e]);
}

// On whole pixels, with a gap on the right and below where there is room.
function fillCell(context, [x, y, wide, high], color) {
  const left = Math.round(x);
  const top = Math.round(y);
  const right = Math.round(x + wide) - (wide > 8 ? 2 : 0);
  const bottom = Math.round(y + high) - (high > 4 ? 1 : 0);
  context.fillStyle = color;
  context.fillRect(left, top, right - left, bottom - top);
}

function frame({ pen, box }, z, row, [from, to], color, width) {
  const [rows, columns] = z.shape;
  const wide = box.width / columns;
  const high = box.height / rows;
  pen.context.strokeStyle = color;
  pen.context.lineWidth = width;
  pen.context.strokeRect(
    box.left + from * wide + 0.5,
    box.top + row * high + 0.5,
    (to - from) * wide - 3,
    high - 2,
  );
}

/**
 * @param {Chart} card in which they lie
 * @param {Mark} mark their values
 * @returns {Stops} the cells of `Cells`
 */
export function stopsOfCells(card, { z, rows: kind, even, numbers }) {
  const [rows, columns] = z.shape;
  const isTimes = isNumber(even) && !numbers;
  const share = numbers ? "share of its tokens" : "router probability";
  const titleOf = (row) => {
    if (kind !== "group") return `${kind[0].toUpperCase()}${kind.slice(1)} ${row}`;
    return card.yAxis.ticks?.find(([value]) => value === row)?.[1] ?? "";
  };
  const tell = (i) => {
    const expert = i % columns;
    const row = Math.floor(i / columns);
    const text = isTimes ? `${short(z[i])} × the uniform load` : percent(z[i]);
    const ofExpert = [expert, `E${expert}, ${isTimes ? "load" : share}`, text];
    const links = kind === "group" ? { expert } : { expert, [kind]: row };
    return {
      ...links,
      title: titleOf(row),
      rows: numbers ? [ofExpert, [null, "uniform load", percent(even)]] : [ofExpert],
    };
  };
  return { ...grid(card, columns, rows), tell };
}

// --- values all over a panel ---

/**
 * Draw a `Heat`: its colours and its contours.
 * @param {Chart} card in which it lies
 * @param {Mark} mark its values and lines
 */
export function drawHeat(card, mark) {
  const { pen, view, box, cache } = card;
  const { z, contours } = mark;
  const [rows] = z.shape;
  if (cache.z !== z || cache.paper !== view.paper) paintHeat(cache, mark, view);
  pen.context.save();
  pen.context.clip(new Path2D(`M${box.left} ${box.top}h${box.width}v${box.height}h${-box.width}z`));
  pen.context.drawImage(cache.image, box.left, box.top, box.width, box.height);
  const across = range(rows).map((row) => box.top + box.height * (1 - row / (rows - 1)));
  for (const line of range(contours.shape[0])) {
    const path = new Path2D();
    across.forEach((y, row) => path.lineTo(card.x(contours[line * rows + row]), y));
    pen.stroke(path, { color: css(view.ink), width: 0.8 });
  }
  pen.context.restore();
}

/**
 * Draw what lies over all lines of a `Heat`: its words, and a ring around the place that is selected.
 * @param {Chart} card in which it lies
 * @param {Mark} mark its values and lines
 */
export function drawOverHeat(card, mark) {
  const { pen, view, box, cache } = card;
  const { z, places, selected } = mark;
  if ([z, box, selected].some((part, i) => part !== cache.labelled?.[i])) {
    Object.assign(cache, { labelled: [z, box, selected], labels: placeLabels(card, mark) });
  }
  for (const { text, x, y, isRegion } of cache.labels)
    pen.write(text, x, y, { halo: css(view.paper), weight: isRegion ? 600 : 400 });
  const { place } = view.pointed;
  if (isNumber(place)) ring(card, places.subarray(2 * place), css(view.ink));
  if (selected) ring(card, selected, view.colors.red);
}

function ring({ pen, view, x, y }, [across, up], color) {
  const path = new Path2D();
  path.arc(x(across), y(up), 7, 0, 7);
  pen.stroke(path, { color: css(view.paper), width: 4 });
  pen.stroke(path, { color, width: 2.2 });
}

function paintHeat(cache, { z, most }, view) {
  const [height, width] = z.shape;
  const pixels = new ImageData(width, height);
  const out = new Uint32Array(pixels.data.buffer);
  const shades = { even: most, most: 2 * most };
  z.forEach((value, i) => {
    const row = height - 1 - Math.floor(i / width);
    out[row * width + (i % width)] = packed(twoWays(view, shades, value + most));
  });
  cache.image = Object.assign(make("canvas"), { width, height });
  cache.image.getContext("2d").putImageData(pixels, 0, 0);
  Object.assign(cache, { z, paper: view.paper });
}

/**
 * @param {Chart} card in which it lies
 * @param {Mark} mark its places, and what is said of each
 * @returns {Stops} the places of a `Heat`
 */
export function stopsOfHeat(card, { places, columns, titles, selected }) {
  const [xs, ys] = [0, 1].map((axis) => range(titles.length).map((i) => places[2 * i + axis]));
  const tell = (place) => ({ place, title: titles[place], rows: [] });
  const away = selected && xs.map((x, i) => Math.hypot(x - selected[0], ys[i] - selected[1]));
  const start = away?.indexOf(Math.min(...away));
  return { ...points(card, xs, ys, Math.hypot), columns, noun: "places", tell, start };
}
