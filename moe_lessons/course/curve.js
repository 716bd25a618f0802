// A curve drawn by hand, with the pointer, a finger or the keyboard; the measured one is drawn over it. An SVG is sharp
// at any size, and its colours are those of the page. See question.py for what the model holds.

import { make, set } from "../widgets/canvas/elements.js";
import { keep, keepKey, keepWords } from "../widgets/canvas/keep.js";
import { clamp } from "../widgets/canvas/numbers.js";

/** @typedef {import("../widgets/canvas/keep.js").Model} Model  As question.py has it. */

/**
 * @typedef {object} Sketch  What is drawn.
 * @property {Model} model which is told
 * @property {number[]} places along the x axis, at which the curve has a height
 * @property {(number | null)[]} heights at each place a part of the y axis; null: not drawn
 * @property {number} cursor the place of the keyboard
 * @property {?[number, number]} from where the pointer was: a place, a height
 * @property {boolean} isDraft whether the answer is another one, or none
 * @property {Record<string, SVGElement | HTMLElement>} parts of the picture
 */

const WIDTH = 600;
const HEIGHT = 290;
const BOX = { left: 66, right: 586, top: 26, bottom: 240 };
const SVG = "http://www.w3.org/2000/svg";
const HEARD = ["measured", "note"]; // what of the model may change, beside the answer
const STEPS = { ArrowUp: 0.025, ArrowDown: -0.025, PageUp: 0.1, PageDown: -0.1 };
const HINT =
  "Draw with the mouse or a finger. By keyboard: ← → choose the place, ↑ ↓ the height. Then press Done.";

export default { initialize: keep, render };

/**
 * Ask for the curve of a model in an element.
 * @param {{model: Model, el: HTMLElement}} its as anywidget has them
 * @returns {() => void} ends it
 */
function render({ model, el }) {
  const places = model.get("places");
  const sketch = {
    model,
    places,
    heights: places.map(() => null),
    cursor: 0,
    from: null,
    isDraft: false,
    parts: {},
  };
  const picture = newPicture(sketch);
  el.replaceChildren(newQuestion(sketch, picture));
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    picture.focus({ preventScroll: true });
    event.preventDefault();
    sketch.from = null;
    extend(sketch, event);
  });
  picture.addEventListener("pointermove", (event) => {
    if (picture.hasPointerCapture(event.pointerId)) extend(sketch, event);
  });
  picture.addEventListener("keydown", (event) => keyPressed(sketch, event));
  const takeAnswer = () => take(sketch);
  const show = () => redraw(sketch);
  model.on("change:answer", takeAnswer);
  for (const name of HEARD) model.on(`change:${name}`, show);
  takeAnswer();
  keepWords({ model, el });
  return () => {
    model.off("change:answer", takeAnswer);
    HEARD.forEach((name) => model.off(`change:${name}`, show));
  };
}

// --- the picture ---

const rounded = (value) => String(+value.toPrecision(3));
const across = (part) => BOX.left + part * (BOX.right - BOX.left);
const down = (part) => BOX.bottom - part * (BOX.bottom - BOX.top);

function svg(tag, attributes, text = "") {
  const element = set(document.createElementNS(SVG, tag), attributes);
  element.textContent = text;
  return element;
}

// A line through [x, y], as parts of the axes.
function pathOf(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${across(x).toFixed(1)} ${down(y).toFixed(1)}`).join("");
}
const level = (part) => `M${BOX.left} ${down(part).toFixed(1)}H${BOX.right}`;

function newPicture({ model, parts }) {
  const [[xName], [yName, low, high]] = [model.get("x"), model.get("y")];
  const range = { "aria-valuemin": low, "aria-valuemax": high, "aria-orientation": "vertical" };
  const label = `${yName} over ${xName}, to be drawn`;
  const role = { class: "moe-curve", tabindex: 0, role: "slider", "aria-label": label, ...range };
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, ...role });
  parts.drawn = svg("path", { class: "moe-drawn" });
  parts.measured = svg("path", { class: "moe-measured" });
  parts.dot = svg("circle", { class: "moe-dot", r: 5 });
  parts.key = newKey();
  parts.picture = picture;
  picture.append(...newAxes(model), ...newGiven(model), parts.drawn, parts.measured, parts.dot, parts.key);
  return picture;
}

function newKey() {
  const key = svg("g", {});
  key.append(
    svg("path", { class: "moe-drawn", d: "M426 12h18" }),
    svg("text", { x: 448, y: 16 }, "yours"),
    svg("path", { class: "moe-measured", d: "M496 12h18" }),
    svg("text", { x: 518, y: 16 }, "measured"),
  );
  return key;
}

function newAxes(model) {
  const [xTicks, yTicks] = model.get("ticks");
  const [[xName], [yName]] = [model.get("x"), model.get("y")];
  const { left, right, top, bottom } = BOX;
  const middle = { "text-anchor": "middle" };
  const end = { "text-anchor": "end" };
  return [
    svg("rect", { x: left, y: top, width: right - left, height: bottom - top }),
    ...xTicks.map(([part, text]) => svg("text", { x: across(part), y: bottom + 18, ...middle }, text)),
    ...yTicks.map(([part, text]) => svg("text", { x: left - 7, y: down(part) + 4, ...end }, text)),
    ...yTicks.map(([part]) => svg("path", { class: "moe-grid-line", d: level(part) })),
    svg("text", { x: (left + right) / 2, y: HEIGHT - 10, ...middle }, xName),
    svg("text", { x: left, y: top - 10 }, yName),
  ];
}

// The value that the question names.
function newGiven(model) {
  const value = model.get("given");
  if (value === null) return [];
  const [, low, high] = model.get("y");
  const part = (value - low) / (high - low);
  const place = { x: BOX.right - 4, y: down(part) - 5, "text-anchor": "end" };
  return [
    svg("path", { class: "moe-given", d: level(part) }),
    svg("text", place, `given: ${rounded(value)}`),
  ];
}

function newQuestion(sketch, picture) {
  const { model, parts } = sketch;
  const title = make("div", "moe-words", make("b", "", model.get("kind")), ` ${model.get("text")}`);
  const done = set(make("button", "moe-done", "Done"), { type: "button" });
  done.addEventListener("click", () => giveAnswer(sketch));
  const clear = set(make("button", "", "Clear"), { type: "button" });
  clear.addEventListener("click", () => {
    sketch.heights = sketch.places.map(() => null);
    changed(sketch);
  });
  parts.why = set(make("p", "moe-why"), { role: "status" });
  parts.note = set(make("p", "moe-note"), { role: "status" });
  const below = make("div", "", done, " ", clear, " ", make("small", "", HINT));
  const question = make("div", "moe-question", title, picture, below, parts.why, parts.note);
  question.addEventListener("keydown", keepKey);
  return question;
}

function redraw(sketch) {
  const { model, places, heights, cursor, parts } = sketch;
  const last = places.length - 1;
  const [[xName], [yName, low, high]] = [model.get("x"), model.get("y")];
  const points = heights.flatMap((height, i) => (height === null ? [] : [[i / last, height]]));
  const measured = model.get("measured").map(([x, y]) => [clamp(x, 0, 1), clamp(y, 0, 1)]);
  const value = rounded(low + heightAt(sketch) * (high - low));
  const isDrawn = heights[cursor] !== null;
  const text = `${xName} ${rounded(places[cursor])}: ${yName} ${value}${isDrawn ? "" : ", not drawn here"}`;
  parts.drawn.setAttribute("d", pathOf(points));
  parts.measured.setAttribute("d", pathOf(measured));
  parts.key.style.display = measured.length ? "" : "none";
  set(parts.dot, { cx: across(cursor / last), cy: down(heightAt(sketch)) });
  set(parts.picture, { "aria-valuenow": value, "aria-valuetext": text });
  parts.note.textContent = model.get("note");
  const said = sketch.isDraft ? "Press Done when this is your prediction." : "This is your prediction.";
  parts.why.textContent = ["Nothing is drawn yet.", "One point is no curve yet."][points.length] ?? said;
}

// --- drawing ---

// From where the pointer was to where it is.
function extend(sketch, { clientX, clientY }) {
  const { heights, parts } = sketch;
  const box = parts.picture.getBoundingClientRect();
  const scale = WIDTH / box.width;
  const part = clamp(((clientX - box.left) * scale - BOX.left) / (BOX.right - BOX.left), 0, 1);
  const place = Math.round(part * (heights.length - 1));
  const height = clamp((BOX.bottom - (clientY - box.top) * scale) / (BOX.bottom - BOX.top), 0, 1);
  const [start, old] = sketch.from ?? [place, height];
  const steps = Math.max(Math.abs(place - start), 1);
  for (let i = 0; i <= steps; i++) {
    heights[Math.round(start + ((place - start) * i) / steps)] = old + ((height - old) * i) / steps;
  }
  sketch.from = [place, height];
  sketch.cursor = place;
  changed(sketch);
}

function keyPressed(sketch, event) {
  const last = sketch.heights.length - 1;
  const { cursor } = sketch;
  const go = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1, Home: 0, End: last }[event.key];
  const up = STEPS[event.key];
  if (go === undefined && up === undefined) return;
  event.preventDefault();
  event.stopPropagation(); // the notebook would move to another cell
  if (go === undefined) {
    sketch.heights[cursor] = clamp(heightAt(sketch) + up, 0, 1);
    changed(sketch);
  } else {
    sketch.cursor = clamp(go, 0, last);
    redraw(sketch);
  }
}

// The height at the cursor; where nothing is drawn, that of the nearest place, or the middle.
function heightAt({ heights, cursor }) {
  const near = heights
    .map((height, i) => [Math.abs(i - cursor), height])
    .filter(([, height]) => height !== null);
  return near.length ? near.sort(([one], [other]) => one - other)[0][1] : 0.5;
}

function changed(sketch) {
  sketch.isDraft = true;
  redraw(sketch);
}

function giveAnswer(sketch) {
  const { model, places, heights } = sketch;
  const [, low, high] = model.get("y");
  const value = (part) => clamp(+(low + part * (high - low)).toPrecision(5), low, high);
  const answer = heights.flatMap((part, i) => (part === null ? [] : [[places[i], value(part)]]));
  if (answer.length < 2) return;
  model.set("answer", answer);
  model.save_changes();
  sketch.isDraft = false;
  redraw(sketch); // also where it is the same again
}

// Take what the kernel has.
function take(sketch) {
  const { model, places } = sketch;
  const [, low, high] = model.get("y");
  const given = new Map(model.get("answer") ?? []);
  sketch.heights = places.map((x) => (given.has(x) ? (given.get(x) - low) / (high - low) : null));
  sketch.isDraft = false;
  redraw(sketch);
}
