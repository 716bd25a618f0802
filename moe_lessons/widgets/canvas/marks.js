// The marks of plots/marks.py: how each is drawn, its stops, what it has in a legend, and the margin that it wants at
// the right.

import { clamp, isNumber, nearest, percent, range, short, valueText } from "./numbers.js";
import { css, hex, inkOf, inkOn, lineStyle, mix, ruleStyle, swatch, twoWays } from "./colors.js";
import { colorOf, hasRoute, paleness, strength } from "./view.js";
import { grid, points } from "./stops.js";
import {
  drawCells,
  drawField,
  drawHeat,
  drawOverHeat,
  stopsOfCells,
  stopsOfField,
  stopsOfHeat,
} from "./fields.js";
import { drawDrawn, stopsOfDrawn } from "./drawing.js";
import { drawRoute, stopsOfRoute } from "./route.js";
import { NAME_OVER } from "./labels.js";

const END_HIGH = 12; // pixels that the name at the end of a line takes
const PALE = 0.3; // of the full colour, as in still.py: at most, where not all digits of an answer are right

/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */
/** @typedef {import("./stops.js").Stops} Stops  What can be pointed at. */
/** @typedef {import("./view.js").View} View  One display of the widget. */
/** @typedef {import("./view.js").Mark} Mark  With its arrays. */

/**
 * @typedef {object} MarkKind  What can be done with a kind of mark; a `Text` or `Table` is drawn by its card.
 * @property {(card: Chart, mark: Mark) => void} [draw] it
 * @property {(card: Chart, mark: Mark) => void} [over] what is drawn of it over all marks
 * @property {(card: Chart, mark: Mark) => Stops | undefined} [stops] that it has
 * @property {(view: View, mark: Mark) => [string, Partial<CSSStyleDeclaration>][]} [legend] texts and swatches
 * @property {(card: Chart, mark: Mark) => number} [right] the margin, in pixels
 */

/**
 * @param {Chart} card with marks
 * @returns {Stops[]} those of its marks, the uppermost last
 */
export function stopsOf(card) {
  return card.marks.map((mark) => MARKS[mark.mark].stops?.(card, mark)).filter((stops) => stops?.count);
}

const circle = (x, y, radius) => {
  const half = (side) => `a${radius} ${radius} 0 1 0 ${side * 2 * radius} 0`;
  return `M${x - radius} ${y}${half(1)}${half(-1)}`;
};
const cross = (x, y) => `M${x - 3.2} ${y - 3.2}l6.4 6.4m0-6.4l-6.4 6.4`;
const rectangle = (left, top, wide, high) => new Path2D(`M${left} ${top}h${wide}v${high}h${-wide}z`);

// --- Bars ---

function legendOfBars({ ink }, { second, second_name: name }) {
  return second && name ? [[name, { background: css(ink), height: "3px" }]] : [];
}

function drawBars(card, { y, limit = Infinity, second }) {
  const half = 0.38 * Math.abs(card.x(1) - card.x(0));
  y.forEach((value, expert) => {
    const left = card.x(expert) - half;
    drawBar(card, expert, left, 2 * half, value, limit);
    if (second) drawTick(card, left, 2 * half, second[expert]);
    if (card.view.fades.expert.to === expert) nameBar(card, left + half, value, second?.[expert]);
  });
}

function drawBar({ pen, y }, expert, left, wide, value, limit) {
  const cut = y(Math.min(value, limit));
  pen.fillExpert(rectangle(left, cut, wide, y(0) - cut), expert);
  pen.context.globalAlpha = 0.4;
  pen.fillExpert(rectangle(left, y(value), wide, cut - y(value)), expert);
  pen.context.globalAlpha = 1;
}

function drawTick({ pen, view, y }, left, wide, value) {
  const tick = new Path2D(`M${left} ${Math.round(y(value))}h${wide}`);
  pen.stroke(tick, { color: css(view.paper), width: 5, lineCap: "butt" });
  pen.stroke(tick, { color: css(view.ink), width: 3, lineCap: "butt" });
}

function nameBar({ pen, view, box, wide, yAxis, y }, middle, value, second) {
  const text = valueText(yAxis, value);
  const need = pen.measure(text) / 2 + 2;
  const top = Math.min(y(value), second === undefined ? Infinity : y(second) - 2); // above the tick too
  const x = clamp(middle, box.left + need, wide - need);
  pen.write(text, x, Math.max(top - 8, 7), { halo: css(view.paper), weight: 700 });
}

function stopsOfBars(card, { y, second, second_name: name }) {
  const { yAxis, header } = card;
  const tell = (expert) => {
    const reading = [expert, yAxis.label || header.title, valueText(yAxis, y[expert])];
    const other = second && [null, name || "other reading", valueText(yAxis, second[expert])];
    return { expert, title: `E${expert}`, rows: other ? [reading, other] : [reading] };
  };
  return { ...points(card, range(y.length), y, Math.abs), tell };
}

// --- Stack ---

function drawStack(card, { x, y, second }) {
  const [, count] = y.shape;
  const { left, width } = card.box;
  const right = left + width;
  const strip = (from, to) => [from, to].map(card.xAt);
  if (x.length === 1)
    drawBands(card, strip(card.x(x[0]) - 2, card.x(x[0]) + 2), count, (_, expert) => y[expert]);
  else drawBands(card, [...x], count, (i, expert) => y[i * count + expert]);
  if (second) drawBands(card, strip(right + 7, right + 21), count, (_, expert) => second[expert]);
}

function drawBands(card, x, count, part) {
  const { pen, view } = card;
  let low = x.map(() => 0);
  for (let expert = 0; expert < count; expert++) {
    const high = low.map((sum, i) => sum + part(i, expert));
    pen.fillExpert(card.between(x, low, high), expert);
    if (expert < count - 1) pen.stroke(card.path(x, high), { color: css(view.paper), width: 0.8 });
    low = high;
  }
}

function stopsOfStack(card, { x, y }) {
  const steps = x.length;
  const [, count] = y.shape;
  const { label, link } = card.xAxis;
  const share = card.yAxis.label || "share of assignments";
  const stepAndExpert = (i) => [i % steps, count - 1 - Math.floor(i / steps)]; // a row for each expert, the last one on top
  const under = (step, expert) =>
    y.subarray(step * count, step * count + expert).reduce((sum, part) => sum + part, 0);
  const place = (i) => {
    const [step, expert] = stepAndExpert(i);
    return [card.x(x[step]), card.y((under(step, expert) + under(step, expert + 1)) / 2)];
  };
  const at = (px, py) => {
    const step = nearest(steps, (i) => Math.abs(card.x(x[i]) - px));
    const above = range(count).filter((expert) => under(step, expert) > card.yAt(py)).length;
    return Math.min(above, count - 1) * steps + step;
  };
  const tell = (i) => {
    const [step, expert] = stepAndExpert(i);
    const row = [expert, `E${expert}, ${share}`, percent(y[step * count + expert])];
    return { expert, title: `${label || link} ${short(x[step])}`, rows: [row], link, value: x[step] };
  };
  return { columns: steps, count: steps * count, isHistory: true, place, at, tell };
}

// --- Line ---

function legendOfLine(view, { name, ink, strong, end }) {
  const isNamed = ink < 0 && end; // an earlier run, at its end
  return name && !isNamed ? [[name, swatch(lineStyle(view, ink, strong))]] : [];
}

function drawLine(card, { x, y, ink, strong, model, low, high }) {
  const { pen, view } = card;
  const path = card.path(x, y);
  if (low) pen.fill(card.between(x, low, high), css(inkOf(view, ink), 0.2));
  if (x.length === 1) path.arc(card.x(x[0]), card.y(y[0]), 1, 0, 7);
  pen.context.globalAlpha = paleness(view, model);
  pen.stroke(path, lineStyle(view, ink, strong));
}

const marginOfLine = ({ pen }, { end }) => (end ? pen.measure(end) + 8 : 0);

// What lines are called at their ends, all at once: from below each makes room for the next one.
function nameEnds({ pen, box, view, marks, x: toX, y: toY }, mark) {
  const lines = marks.filter(({ end, x }) => end && x.length);
  const reach = Math.max(...lines.map(({ x }) => x.at(-1)));
  const ended = lines.filter(({ ink, x }) => ink >= 0 || x.at(-1) >= reach); // an earlier run, until it is overtaken
  if (mark.x !== ended[0]?.x) return;
  const last = ({ x, y, end, ink }) => ({ end, ink, x: toX(x.at(-1)), y: toY(y.at(-1)) });
  let free = box.top + box.height;
  for (const { end, ink, x, y } of ended.map(last).sort((one, other) => other.y - one.y)) {
    const at = Math.min(y, free);
    free = at - END_HIGH;
    const { color } = lineStyle(view, ink);
    pen.write(end, x + 4, at, { align: "left", color, weight: 700, halo: css(view.paper) });
  }
}

function stopsOfLine(card, { x, y, name, ink, model }) {
  if (card.marks.some(({ mark }) => mark === "Heat")) return undefined; // its places say more
  const { xAxis, yAxis, header, view } = card;
  const { label, link, ticks } = xAxis;
  const tell = (i, px, py) => {
    const away = Math.abs(card.y(y[i]) - py);
    const where = ticks?.find(([value]) => value === x[i])?.[1] ?? short(x[i]);
    const row = [lineStyle(view, ink).color, name || yAxis.label || header.title, valueText(yAxis, y[i])];
    const found = { title: `${label} ${where}`.trim(), rows: [row], link, value: x[i], away };
    return isNumber(model) && away < 8 ? { ...found, model } : found;
  };
  return { ...points(card, x, y, Math.abs), isHistory: true, tell };
}

// --- Points ---

function drawPoints(card, mark) {
  if (mark.fill) return drawFilled(card, mark);
  const { x, y, symbol, expert, tokens } = mark;
  const { pen, view } = card;
  const radius = tokens ? 4 : 2.4;
  const groups = new Map(); // [kind, strength, the path of all points with this symbol and strength]
  for (let i = 0; i < x.length; i++) {
    const kind = symbol?.[i] ?? 0;
    const part = expert ? strength(view, "expert", expert[i]) : 1;
    const key = `${kind} ${part}`;
    const place = [card.x(x[i]), card.y(y[i])];
    const path = kind ? cross(...place) : circle(...place, radius);
    groups.set(key, [kind, part, (groups.get(key)?.[2] ?? "") + path]);
  }
  for (const [kind, part, path] of groups.values()) {
    pen.context.globalAlpha = 0.25 + 0.75 * part;
    drawGroup(pen, kind, new Path2D(path));
  }
  pen.context.globalAlpha = 1;
  if (tokens) ringTokens(card, mark);
}

// In the colours of a `Heat`.
function drawFilled(card, { x, y, fill, most }) {
  const { pen, view } = card;
  x.forEach((across, i) => {
    const path = new Path2D(circle(card.x(across), card.y(y[i]), 5));
    pen.fill(path, css(twoWays(view, { even: most, most: 2 * most }, fill[i] + most)));
    pen.stroke(path, { color: css(view.ink), width: 1.2 });
  });
}

function drawGroup(pen, kind, path) {
  if (kind) pen.stroke(path, { color: "#fff", width: 4.6 });
  else pen.fill(path, "#fff");
  pen.stroke(path, { color: kind === 2 ? "#d00000" : "#000", width: kind ? 2.4 : 1 });
}

function ringTokens(card, { x, y, selected }) {
  const { pen, view } = card;
  const ring = (token, color) => {
    if (!(token < x.length)) return;
    const path = new Path2D(circle(card.x(x[token]), card.y(y[token]), 8.5));
    pen.stroke(path, { color: "#fff", width: 5 });
    pen.stroke(path, { color, width: 2.6 });
  };
  ring(selected, view.colors.red);
  ring(view.pointed.token, "#000");
}

function stopsOfPoints(card, { x, y, symbol, tokens, named, selected }) {
  if (!tokens) return undefined;
  const tell = (token) => {
    const name = named[symbol?.[token] ? 1 : 0];
    return { token, title: `Token ${token}`, rows: name ? [[null, name, ""]] : [] };
  };
  const most = hasRoute(card.view) ? Infinity : 12; // the block is of the nearest one, wherever one points
  return { ...points(card, x, y, Math.hypot, most), noun: "tokens", isExact: true, tell, start: selected };
}

// --- Spots ---

function drawSpots(card, { x, y, ink, names }) {
  const { pen, view } = card;
  const count = names.length;
  for (let i = 0; i < count; i++) {
    const { color } = lineStyle(view, ink[i]);
    const width = view.fades.model.to === i ? 2.4 : 1.6;
    const [px, left, right] = [0, 1, 2].map((end) => card.x(x[i + end * count]));
    const [py, bottom, top] = [0, 1, 2].map((end) => card.y(y[i + end * count]));
    const spot = new Path2D(circle(px, py, 2.5 * width));
    pen.context.globalAlpha = paleness(view, i);
    pen.stroke(new Path2D(`M${left} ${py}H${right}M${px} ${top}V${bottom}`), { color, width });
    pen.fill(spot, color);
    pen.stroke(spot, { color: css(view.paper), width: 1.2 });
  }
}

function stopsOfSpots(card, { x, y, ink, names }) {
  const { xAxis, view } = card;
  const tell = (model) => {
    const row = [lineStyle(view, ink[model]).color, xAxis.label, valueText(xAxis, x[model])];
    return { model, title: names[model], rows: [row] };
  };
  return { ...points(card, x.subarray(0, names.length), y, Math.hypot, 16), tell };
}

// --- Parts ---

function legendOfParts(_, { names, colors }) {
  if (names.length < 2) return [];
  return names.map((name, i) => [name, { background: colors[i], height: "10px", width: "10px" }]);
}

const marginOfParts = ({ pen }, { texts }) => 14 + Math.max(0, ...texts.map((text) => pen.measure(text) + 4));

function drawParts(card, { rows, names, values, colors, texts }) {
  const { pen } = card;
  const high = Math.min(0.68 * Math.abs(card.y(1) - card.y(0)), 34);
  rows.forEach((_, row) => {
    const middle = card.y(row) + 0.5;
    let sum = 0;
    names.forEach((name, i) => {
      const left = card.x(sum);
      sum += values[row * names.length + i] || 0;
      const wide = card.x(sum) - left;
      pen.context.fillStyle = colors[i];
      pen.context.fillRect(left, middle - high / 2, wide > 2 ? wide - 1 : wide, high);
      const hasRoom = names.length > 1 && pen.measure(name) < wide - 8 && high > 13;
      if (hasRoom) pen.write(name, left + wide / 2, middle, { color: css(inkOn(hex(colors[i]))) });
    });
    pen.write(texts[row] ?? "", card.x(sum) + 6, middle, { align: "left" });
  });
}

function stopsOfParts({ box, xAxis, y, yAt }, { rows, names, values, colors, texts }) {
  const unit = xAxis.label ? ` ${xAxis.label}` : "";
  const tell = (row) => {
    const parts = names.map((name, i) => [
      colors[i],
      name,
      valueText(xAxis, values[row * names.length + i]) + unit,
    ]);
    return { title: rows[row], rows: texts[row] ? [...parts, [null, "in all", texts[row]]] : parts };
  };
  const place = (row) => [box.left + 8, y(row)];
  const at = (_, py) => clamp(Math.round(yAt(py)), 0, rows.length - 1);
  return { columns: 1, count: rows.length, place, at, tell };
}

// --- Heat ---

function legendOfHeat(view, { most, legend }) {
  const color = (value) => css(twoWays(view, { even: most, most: 2 * most }, value + most));
  return legend.map(([text, value]) => [
    text,
    { background: color(value), height: "10px", outline: "1px solid #8888" },
  ]);
}

// --- Rule ---

function legendOfRule(view, { name, kind }) {
  return name && kind !== "end" && kind !== "mark" ? [[name, swatch(ruleStyle(view, kind))]] : [];
}

function drawRule({ pen, box, view, x: toX, y: toY }, { x, y, kind }) {
  if (kind === "end")
    pen.fill(rectangle(box.left, box.top, box.width, toY(y) - box.top), css(view.paper, 0.6));
  pen.rule(box, isNumber(x) ? toX(x) : null, toY(y), ruleStyle(view, kind));
}

function nameRule({ pen, box, view, x: toX, y: toY }, { x, y, kind, name }) {
  if (kind === "mark" && name) {
    const isLeft = toX(x) < box.left + box.width / 2;
    const style = { align: isLeft ? "left" : "right", halo: css(view.paper) };
    pen.write(name, toX(x) + (isLeft ? 4 : -4), box.top + 7, style);
  }
  if (kind !== "end") return;
  pen.write(name, box.left + 6, toY(y) - NAME_OVER, { align: "left", halo: css(view.paper) });
}

// --- Boxes ---

// The middle of a box, or where its text begins, and its size.
function boxAt({ x: toX, y: toY }, places, i) {
  const [x, y, wide, high] = places.subarray(4 * i, 4 * i + 4);
  return { x: toX(x), y: toY(y), wide: Math.abs(toX(wide) - toX(0)), high: Math.abs(toY(high) - toY(0)) };
}

function drawBoxes(card, mark) {
  mark.texts.forEach((text, i) => {
    const box = boxAt(card, mark.places, i);
    const color = colorOfBox(card.view, mark.fill[i], mark.expert[i]);
    drawBox(card, mark, box, color, i);
    writeInBox(card, mark, box, color, i);
  });
}

function colorOfBox(view, fill, expert) {
  if (fill > 3) return inkOf(view, fill - 4);
  return fill === 3 ? colorOf(view, expert) : mix(view.paper, view.ink, 0.1);
}

function drawBox({ pen, view }, { fill, texts, expert, token, selected }, { x, y, wide, high }, color, i) {
  const path = rectangle(x - wide / 2, y - high / 2, wide, high);
  if (fill[i] === 3) pen.fillExpert(path, expert[i]);
  else if (fill[i] > 1) pen.fill(path, css(color));
  else if (fill[i]) pen.stroke(path, { color: css(mix(view.paper, view.ink, 0.4)), width: 1 });
  if (!texts[i]) return;
  if (token[i] === selected) pen.stroke(path, { color: view.colors.red, width: 2 });
  if (token[i] === view.pointed.token) pen.stroke(path, { color: css(view.ink), width: 2 });
}

function writeInBox({ pen, view }, { fill, texts, strong }, { x, y, wide }, ground, i) {
  const kind = fill[i];
  const room = wide ? wide - 2 : Infinity;
  if (room <= 24 && pen.measure(texts[i]) >= room) return;
  const onFill = kind === 2 ? view.quiet : inkOn(ground);
  const color = css(kind < 2 ? view.ink : onFill);
  const onLines = strong && !kind ? css(view.paper) : "";
  const halo = kind === 3 ? css(ground) : onLines;
  const letters = { color, halo, weight: strong ? 600 : 400, align: wide ? "center" : "left" };
  pen.write(pen.shorten(texts[i], room), x, y, letters);
}

function stopsOfBoxes(card, { places, texts, expert, token, says }) {
  const isLinked = (i) => expert[i] >= 0 || token[i] >= 0;
  const pointed = range(texts.length).filter((i) => isLinked(i) || says[i]);
  const parts = pointed.map((i) => ({ ...boxAt(card, places, i), i }));
  const at = (px, py) =>
    parts.findIndex(({ x, y, wide, high }) => 2 * Math.abs(x - px) < wide && 2 * Math.abs(y - py) < high);
  const tell = (part) => {
    const { i } = parts[part];
    const e = expert[i] < 0 ? undefined : expert[i];
    if (!isLinked(i)) return { title: says[i], rows: [] };
    if (token[i] < 0) return { expert: e, title: `E${e}`, rows: [[e, says[i], texts[i]]] };
    return { expert: e, token: token[i], title: `Token ${token[i]}`, rows: [[e ?? null, says[i], ""]] };
  };
  const place = (part) => [parts[part].x, parts[part].y];
  return { columns: parts.length, count: parts.length, place, at, tell };
}

// --- Arrows ---

function drawArrows(card, { ends, expert, token, selected }) {
  const { view } = card;
  const isStrong = (i) => token[i] < 0 || token[i] === (view.pointed.token ?? selected);
  const order = range(token.length).sort((one, other) => isStrong(one) - isStrong(other));
  for (const i of order) {
    const color = css(expert[i] < 0 ? view.ink : colorOf(view, expert[i]), isStrong(i) ? 1 : 0.4);
    drawArrow(card, ends.subarray(4 * i, 4 * i + 4), color, isStrong(i));
  }
}

function drawArrow({ pen, x, y }, [fromX, fromY, toX, toY], color, isStrong) {
  const [left, top, right, low] = [x(fromX), y(fromY), x(toX), y(toY)];
  const angle = Math.atan2(low - top, right - left);
  const dx = Math.cos(angle);
  const dy = Math.sin(angle);
  const line = new Path2D(`M${left} ${top}L${right - 5 * dx} ${low - 5 * dy}`);
  pen.stroke(line, { color, width: isStrong ? 1.8 : 0.8, lineCap: "butt" });
  if (!isStrong) return;
  const sides = `l${-7 * dx - 3 * dy} ${3 * dx - 7 * dy}l${6 * dy} ${-6 * dx}z`;
  pen.fill(new Path2D(`M${right} ${low}${sides}`), color);
}

// --- Lamps ---

function drawLamps({ pen, view, box }, { right, columns, ink, answers }) {
  const wide = box.width / columns;
  const high = box.height / Math.ceil(right.length / columns);
  const gap = Math.min(wide, high) > 5 ? 1 : 0.5;
  const place = (i) => [box.left + (i % columns) * wide, box.top + Math.floor(i / columns) * high];
  const [, digits] = answers.shape;
  const part = (count) => (count < digits ? (PALE * count) / digits : 1);
  const dark = mix(view.paper, view.ink, 0.1);
  for (const state of range(digits + 1)) {
    pen.context.fillStyle = css(mix(dark, inkOf(view, ink), part(state)));
    right.forEach((value, i) => value === state && pen.context.fillRect(...place(i), wide - gap, high - gap));
  }
  if (!(view.pointed.token < right.length)) return;
  const [left, top] = place(view.pointed.token);
  pen.stroke(rectangle(left - 2, top - 2, wide + 3, high + 3), { color: view.colors.red, width: 2 });
}

function stopsOfLamps(card, { right, columns, entries }) {
  const { view } = card;
  const cells = grid(card, columns, Math.ceil(right.length / columns));
  const rowOf = (texts, i) => {
    const [, length] = texts.shape;
    return String.fromCharCode(...texts.subarray(i * length, (i + 1) * length));
  };
  const at = (x, y) => {
    const i = cells.at(x, y);
    return i < right.length ? i : -1;
  };
  // what each model answers, in whichever grid one points
  const tell = (token) => {
    const models = [...view.cards.values()].flatMap(({ marks }) => marks).filter(({ answers }) => answers);
    const rows = models.map(({ name, ink, answers, right: ofModel }) => {
      const answer = rowOf(answers, token);
      const verdict = ofModel[token] === answer.length ? "right" : "wrong";
      return [lineStyle(view, ink).color, name, `${answer} ${verdict}`];
    });
    return { token, title: rowOf(entries, token), rows };
  };
  return { ...cells, count: right.length, noun: "entries", at, tell };
}

/** @type {Record<string, MarkKind>} */
export const MARKS = {
  Text: {},
  Table: {},
  Field: { draw: drawField, stops: stopsOfField },
  Cells: { draw: drawCells, stops: stopsOfCells },
  Bars: { draw: drawBars, stops: stopsOfBars, legend: legendOfBars },
  Stack: { draw: drawStack, stops: stopsOfStack, right: (_, { second }) => (second ? 26 : 0) },
  Heat: { draw: drawHeat, over: drawOverHeat, stops: stopsOfHeat, legend: legendOfHeat },
  Line: { draw: drawLine, over: nameEnds, stops: stopsOfLine, legend: legendOfLine, right: marginOfLine },
  Points: { draw: drawPoints, stops: stopsOfPoints },
  Drawn: { draw: drawDrawn, stops: stopsOfDrawn },
  Spots: { draw: drawSpots, stops: stopsOfSpots },
  Parts: { draw: drawParts, stops: stopsOfParts, legend: legendOfParts, right: marginOfParts },
  Rule: { draw: drawRule, over: nameRule, legend: legendOfRule },
  Boxes: { draw: drawBoxes, stops: stopsOfBoxes },
  Arrows: { draw: drawArrows },
  Lamps: { draw: drawLamps, stops: stopsOfLamps },
  Route: { draw: drawRoute, stops: stopsOfRoute },
};
