// What the kernel sends, and when it is drawn. A message marks cards as dirty, the next animation frame draws those, and
// then the kernel is answered, if it asked: a page that is hidden or slow answers late or never, and the kernel sends
// less.

import { clamp, quietly, range, readArray } from "./numbers.js";
import { hex, inkOn, mix } from "./colors.js";
import { make, say, set, styled } from "./elements.js";
import { cardOf, cloth, touch } from "./view.js";
import { kindOf } from "./cards.js";
import { answered } from "./controls.js";
import { point } from "./pointer.js";

/** @typedef {import("./view.js").View} View  One display of the widget. */

/**
 * @typedef {object} Message  What has changed since the last one: see canvas.py.
 * @property {number} frame its number
 * @property {boolean} [answer] whether the page is to answer when it has drawn it
 * @property {View["colors"]} [colors] of the course
 * @property {Record<string, import("./view.js").Panel>} [panels] by place
 * @property {[string, string, number[], number][]} [slots] arrays: name, type, shape, where it begins
 * @property {Record<string, any>} [words] step, state, count (of panels), …
 */

const FADE = 140; // milliseconds
const FRESH = 4000; // milliseconds for which it is said that it has started afresh
const STATUS = 100; // milliseconds: to count in each picture costs a layout
const SOUND = [1000, 2]; // milliseconds and steps from which on the time left is estimated
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// --- receive ---

/**
 * Take a message. What is wrong with a part of it does not stop the others, nor later messages.
 * @param {View} view which gets it
 * @param {Message} message what has changed
 * @param {DataView[]} buffers with all its arrays
 */
export function receive(view, message, buffers) {
  const { frame, colors, panels, slots, words } = message;
  if (!Number.isInteger(frame)) return;
  view.frame = frame;
  view.received += 1;
  if (message.answer) view.asked = frame;
  answered(view);
  if (colors) quietly(() => takeColors(view, colors));
  const isNewState = words?.state && words.state !== view.words.state;
  if (words) takeWords(view, words);
  const touched = new Set();
  quietly(() => takePanels(view, panels ?? {}, touched));
  quietly(() => takeArrays(view, slots ?? [], buffers, touched));
  touch(view, isNewState ? undefined : touched);
}

function takeColors(view, colors) {
  view.palette = colors.palette.map(hex);
  view.colors = colors;
  dress(view);
}

function takeWords(view, words) {
  const isFresh = words.step < view.words.step;
  if (isFresh || words.isOther) view.pinned = null; // who is held is another
  if (isFresh) {
    view.began = null;
    view.freshAt = performance.now();
    setTimeout(() => touch(view, new Set()), FRESH);
  }
  Object.assign(view.words, words);
}

function takePanels(view, panels, touched) {
  for (const [name, header] of Object.entries(panels)) {
    const place = Number(name);
    if (!(place >= 0) || !Array.isArray(header?.marks)) continue;
    view.panels.set(place, header);
    touched.add(place);
  }
  for (const place of view.panels.keys()) if (place >= view.words.count) view.panels.delete(place);
  for (const slot of view.arrays.keys()) if (!view.panels.has(parseInt(slot))) view.arrays.delete(slot);
}

function takeArrays(view, slots, [data], touched) {
  for (const [slot, type, shape, start] of slots) {
    const place = parseInt(slot);
    if (!view.panels.has(place)) continue; // of a panel that is gone
    quietly(() => view.arrays.set(slot, readArray(data, type, shape, start)));
    touched.add(place);
  }
}

/**
 * Take the colours of the page around a view; the kernel need not know them.
 * @param {View} view which is in the page
 */
export function dress(view) {
  const { el, colors } = view;
  const style = getComputedStyle(el);
  const [paper, full] = [style.backgroundColor, style.color].map((text) =>
    (text.match(/[\d.]+/g) ?? []).map(Number),
  );
  if (!colors || !paper.length) return; // not yet in the page
  view.isDark = inkOn(paper)[0] === 255;
  view.paper = paper;
  view.ink = mix(paper, full.slice(0, 3), full[3] ?? 1);
  view.quiet = mix(view.ink, paper, 0.25);
  view.faint = mix(view.ink, paper, 0.86);
  view.font = style.fontFamily;
  view.size = parseFloat(style.getPropertyValue("--moe-letters")) || 11; // pixels
  view.inks = colors[view.isDark ? "dark" : "light"].map(hex);
  view.widths.clear();
  el.classList.toggle("moe-dark", view.isDark);
  for (const card of view.cards.values()) card.isNew = true; // legends and axes are drawn anew
  touch(view);
}

/**
 * Take the size of an element from the observer.
 * @param {View} view which has it
 * @param {ResizeObserverEntry} entry of the view, or of a picture
 */
export function resize(view, { target, contentRect, devicePixelContentBoxSize }) {
  if (target === view.el) view.wide = contentRect.width;
  cardOf(view, target)?.resize(contentRect, devicePixelContentBoxSize?.[0]);
  touch(view, new Set());
}

// --- draw ---

/**
 * Draw what is dirty, and answer; not where it is not seen, and the kernel soon sends hardly anything.
 * @param {View} view which is asked to
 * @param {number} now in milliseconds
 */
export function drawCards(view, now) {
  view.request = 0;
  if (!view.isSeen || !view.inks) return;
  for (const part of [fitCards, fade, showCards, showWords, showChips, showPointed])
    quietly(() => part(view, now));
  noteDrawn(view);
  if (view.asked) answer(view);
}

function fitCards(view) {
  const { cards, panels } = view;
  for (const [place, card] of cards) {
    if (card.constructor === kindOf(panels.get(place))) continue;
    card.figure.remove();
    cards.delete(place);
  }
  for (const [place, panel] of panels) {
    if (!cards.has(place)) cards.set(place, new (kindOf(panel))(view, place));
  }
}

// What is pointed at is strong, the others step back.
function fade(view, now) {
  const wasFading = view.isFading;
  view.isFading = false;
  for (const [kind, state] of Object.entries(view.fades)) {
    const hot = view.pointed[kind] ?? (kind === "expert" ? view.pinned : null);
    const isNew = hot !== state.to;
    if (isNew) Object.assign(state, { from: state.to, to: hot, start: now });
    state.part = calm.matches ? 1 : clamp((now - state.start) / FADE, 0, 1);
    view.isFading ||= state.part < 1;
    if (isNew || hot !== null) stepBack(view, kind, hot);
  }
  if (view.isFading || wasFading) for (const card of view.cards.values()) card.dirty = true;
  if (view.isFading) touch(view);
}

// Also those that are new: chips, letters, columns, whole panels.
function stepBack({ el }, kind, hot) {
  for (const element of el.querySelectorAll(`[data-${kind}]`)) {
    element.classList.toggle("moe-back", hot !== null && element.dataset[kind] !== String(hot));
  }
}

function showCards({ cards, panels }) {
  for (const [place, card] of cards) if (card.dirty) quietly(() => card.show(panels.get(place)));
}

function showWords(view, now) {
  const { parts, words } = view;
  for (const name of ["trouble", "words", "reading"]) say(parts[name], words[name] ?? "");
  if (words.state === "training" && now - view.statusAt < STATUS) return;
  view.statusAt = now;
  const { status } = parts;
  if (!status.childElementCount) status.append(make("span"), make("b"), make("span"));
  statusOf(view).forEach((text, i) => say(status.children[i], text));
  set(status.children[1], { title: words.words ?? "" });
  status.classList.toggle("moe-bad", words.dead?.length > 0);
  status.hidden = words.until === undefined; // nothing trains
}

// What is done, what came of it, and how long it will train yet, at the speed it has had.
function statusOf(view) {
  const { step, until, verdict = "", sizes } = view.words;
  if (until === undefined) return ["", "", ""];
  const fresh = sizes && performance.now() - view.freshAt < FRESH ? `Started afresh: ${sizes}\u00a0· ` : "";
  const now = doing(view);
  return [`${fresh}step ${step}${verdict && "\u00a0· "}`, verdict, now && `\u00a0· ${now}`];
}

function doing(view) {
  const { step, state, until } = view.words;
  if (state !== "training") {
    view.began = null;
    return until && step >= until ? "ended" : state; // Play goes on
  }
  if (view.isStale) return ""; // its kernel has ended
  const now = performance.now();
  if (view.began?.until !== until) view.began = { until, step, at: now };
  const [time, steps] = [now - view.began.at, step - view.began.step];
  const left = ((until - step) * time) / steps / 1000;
  const isSound = time >= SOUND[0] && steps >= SOUND[1];
  return `training${isSound && left >= 2 ? `, ${left.toFixed()} s left` : ""}`;
}

function showChips(view) {
  const { pinned, words, parts } = view;
  const { chips } = parts;
  const count = words.experts ?? 0;
  const { dead = [] } = words;
  const key = `${count} ${pinned} ${dead}`;
  if (view.chips === key) return;
  view.chips = key;
  if (chips.childElementCount !== count)
    chips.replaceChildren(...range(count).map((expert) => newChip(view, expert)));
  chips.hidden = !count;
  [...chips.children].forEach((chip, expert) => {
    const isDead = dead.includes(expert);
    chip.classList.toggle("moe-gone", isDead);
    const title = `Expert ${expert}${isDead ? " is dead" : ""}: point to see it, click to keep it`;
    set(chip, { "aria-pressed": expert === pinned, title });
  });
}

function newChip(view, expert) {
  const button = make("button", "", styled(make("i"), cloth(view, expert)), `E${expert}`);
  return set(button, { type: "button", "data-expert": expert, tabindex: expert ? -1 : 0 }); // then arrows
}

// What lies now where the pointer is.
function showPointed(view) {
  if (view.at) point(view, { at: view.at });
}

function noteDrawn(view) {
  const { step = 0, state = "", token } = view.words;
  if (view.shown !== view.frame) {
    view.frames += 1;
    view.drawn += 1;
  }
  view.shown = view.frame;
  const data = {
    "data-step": step,
    "data-state": state,
    "data-token": token ?? "",
    "data-frames": view.frames,
  };
  set(view.el, data);
}

function answer(view) {
  view.send({ drawn: view.asked, behind: Math.max(view.received / Math.max(view.drawn, 1), 1) });
  view.asked = 0;
  view.received = 0;
  view.drawn = 0;
}
