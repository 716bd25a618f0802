// Pointing: what lies under the pointer, its tip, and what a click selects. It stays in the page; only what a click
// selects is told the kernel.

import { clamp, isNumber, quietly, range } from "./numbers.js";
import { make, set, styled } from "./elements.js";
import { cardOf, cloth, hasRoute, touch } from "./view.js";
import { stopsOf } from "./marks.js";
import { wait } from "./controls.js";

/** @typedef {import("./view.js").View} View  One display of the widget. */
/** @typedef {import("./view.js").Hit} Hit  What lies at a place. */
/** @typedef {import("./view.js").Place} Place  In a picture. */
/** @typedef {import("./cards.js").Card} Card  A panel in the page. */
/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */

const MOST_LINES = 6; // of several curves in a tip: those nearest to the pointer
const MOST_SPOKEN = 40; // stops that the words for a picture name
const FAR = 12; // pixels from the pointer to what is pointed at
const ROOF = 90; // pixels: what JupyterLab's own bars take of the window; a tip lies under them
const NAMES = { expert: "expert", model: "model", token: "byte" }; // of what an element may be named for
const PICKED = ["token", "layer", "model", "place"];

/**
 * What an element is named for: a chip or letter for an expert, a letter for a token, a column or panel for a model.
 * @param {Element} element anywhere in a view
 * @returns {Hit} without words
 */
export function named(element) {
  const found = {};
  for (const [kind, name] of Object.entries(NAMES)) {
    const index = element.closest(`[data-${name}]`)?.dataset[name];
    if (index) found[kind] = Number(index);
  }
  return found;
}

/**
 * @param {View} view which hears of the event
 * @param {PointerEvent} event over it
 * @returns {{card?: Card, at?: Place, hit?: Hit}} a place of a picture, or what an element is named for
 */
export function under(view, { target, offsetX, offsetY, pointerType }) {
  const card = cardOf(view, target);
  const isTouched = pointerType === "touch";
  const isPicture = card?.canvas === target;
  return {
    card,
    isTouched,
    ...(isPicture ? { at: { card, x: offsetX, y: offsetY } } : { hit: named(target) }),
  };
}

/**
 * Show what lies at a place, or is given, in all panels; and a tip beside the place.
 * @param {View} view in which it lies
 * @param {{at?: Place, hit?: Hit, isTouched?: boolean}} where the place, or what is pointed at; whether by a finger
 * @param {boolean} [isNew] whether the place is: to put a tip there needs a layout
 */
export function point(view, where, isNew = false) {
  const hit = where.at ? quietly(() => hitAt(where.at)) : where.hit;
  const { title, rows, isFar, ...links } = hit ?? {};
  if (JSON.stringify(links) !== JSON.stringify(view.pointed)) {
    view.pointed = links;
    touch(view);
  }
  follow(view, links.token);
  view.at = where.at ?? null;
  const isSaid = links.token !== undefined || where.at?.card.isPlane; // by the block, and a tip would hide more
  if (isNew) view.isTouched = where.isTouched;
  const isShown = rows && !isFar && !(view.isTouched && isSaid && hasRoute(view));
  view.parts.tip.hidden = !isShown;
  if (rows) fillTip(view, { title, rows });
  if (isShown && view.at && isNew) placeTip(view);
}

// A token that is pointed at is selected where its way through the block is drawn.
function follow(view, token) {
  const { until } = view.words; // what does not train is asked by a click alone
  if (
    token === undefined ||
    token === view.followed ||
    until === undefined ||
    view.isStale ||
    !hasRoute(view)
  )
    return;
  view.followed = token;
  view.send({ pick: "token", index: token });
}

function fillTip(view, hit) {
  const { tip } = view.parts;
  const text = spoken(hit);
  if (tip.text === text) return;
  tip.text = text;
  const mark = (color) => styled(make("i"), color >= 0 ? cloth(view, color) : { background: color });
  const line = ([color, name, value]) => {
    const cells = [color === null ? "" : mark(color), name, value];
    return make("tr", "", ...cells.map((content) => make("td", "", content)));
  };
  tip.replaceChildren(make("b", "", hit.title), make("table", "", ...hit.rows.map(line)));
}

function placeTip({ el, wide, at, parts: { tip } }) {
  const left = at.card.canvas.offsetLeft + at.x - at.card.figure.scrollLeft;
  const top = at.card.canvas.offsetTop + at.y;
  const { offsetLeft, offsetWidth } = at.card.figure;
  const beside = left > wide / 2 ? left - 14 - tip.offsetWidth : left + 14;
  // in its own panel, if it has room there, else in the view
  const [from, room] = offsetWidth > tip.offsetWidth ? [offsetLeft, offsetWidth] : [0, wide];
  const x = clamp(beside, from, from + room - tip.offsetWidth);
  const has = (kind) => at.card.header.marks.some(({ mark }) => mark === kind);
  const over = has("Route") ? at.card.canvas.offsetTop : top - 10; // its numbers stand around the place
  const hasRoom = !has("Lamps") && el.getBoundingClientRect().top + over - ROOF > tip.offsetHeight;
  const y = hasRoom ? `calc(${over}px - 100%)` : `${top + 16}px`;
  tip.style.transform = `translate(${x}px, ${y})`;
}

/**
 * Select in the kernel what was clicked; an expert is pinned here, until it or what is no expert is clicked.
 * @param {View} view in which it lies
 * @param {{card?: Card, at?: Place, hit?: Hit}} where the click was
 */
export function pick(view, { card, at, hit }) {
  const model = card?.header?.model;
  const there = (at ? quietly(() => hitAt(at)) : hit) ?? {};
  const found = isNumber(model) ? { model } : there;
  const kind = card && PICKED.find((name) => found[name] !== undefined);
  if (kind) select(view, kind, found[kind]);
  else pin(view, found.expert ?? null);
}

function select(view, kind, index) {
  if (view.isStale) return;
  view.send({ pick: kind, index });
  if (view.words.until !== undefined) wait(view, `${kind} ${index}`); // what does not train has no answer
}

function pin(view, expert) {
  view.pinned = view.pinned === expert ? null : expert;
  touch(view);
}

/**
 * @param {Hit} hit with words
 * @returns {string} them, in one line
 */
export function spoken({ title, rows }) {
  return [title, ...rows.map(([, name, value]) => `${name} ${value}`.trim())].join(", ");
}

/**
 * @param {Place} place in a picture
 * @returns {?Hit} what lies there, with the words of all marks that are near
 */
function hitAt({ card, x, y, stop }) {
  const { model } = card.header;
  const link = isNumber(model) ? { model } : {};
  const found = isInside(card.box, x, y) ? marksAt(card, x, y, stop) : [];
  if (found.length) return { ...link, ...merged(found) };
  return isNumber(model) ? link : null;
}

function isInside({ left, top, width, height }, x, y) {
  return x > left - 5 && x < left + width + 5 && y > top - 5 && y < top + height + 5;
}

// What each mark says of the place, or the uppermost of its stop; away: how far it is from there, in pixels.
function marksAt(card, x, y, stop) {
  const found = stopsOf(card).map((stops) => ({ stops, place: stops.at(x, y) }));
  if (stop !== undefined) found.at(-1).place = stop; // what has no height lies where its neighbour does
  const near = found.filter(({ place }) => place >= 0);
  const exact = near.find(({ stops }) => stops.isExact);
  const there = exact ? exact.stops.place(exact.place) : [x, y];
  const isFar = Math.hypot(there[0] - x, there[1] - y) > FAR; // a tip at the pointer would hide it
  return near.map(({ stops, place }, order) => ({ away: 0, order, isFar, ...stops.tell(place, ...there) }));
}

function merged(hits) {
  const near = [...hits].sort((one, other) => other.away - one.away).slice(-MOST_LINES); // the nearest last
  const { away, order, ...found } = Object.assign({}, ...near);
  near.sort((one, other) => one.order - other.order);
  const more = hits.length - near.length;
  const rows = near.flatMap((one) => one.rows);
  return { ...found, rows: more ? [...rows, [null, `and ${more} more`, ""]] : rows };
}

/**
 * Tell a picture in words: what is at its stops; of a history, at the last ones.
 * @param {Chart} card that may have been drawn anew
 */
export function tell(card) {
  if (!card.isNews || !card.header) return; // it is to be drawn anew, once it is seen
  card.isNews = false;
  const { title, selected, caption } = card.header;
  const parts = [title, selected && "selected", caption, wordsOf(card, stopsOf(card).at(-1))];
  set(card.canvas, { "aria-label": parts.filter(Boolean).join(". ") });
}

function wordsOf(card, stops) {
  if (!stops) return "0 values";
  const { columns, count, place, isHistory, noun } = stops;
  if (noun) return `${count} ${noun}`;
  const spots = range(count).filter((i) => !isHistory || i % columns === columns - 1);
  const places = spots.length > MOST_SPOKEN ? [] : spots.map((stop) => [stop, ...place(stop)]);
  const hits = places.map(([stop, x, y]) => hitAt({ card, x, y, stop })).filter((hit) => hit?.rows);
  return hits.map(spoken).join("; ") || `${count} values`;
}
