// Keys: arrows go from stop to stop of a picture and from chip to chip, Enter selects, Escape lets go.

import { clamp, quietly } from "./numbers.js";
import { set } from "./elements.js";
import { cardOf, touch } from "./view.js";
import { stopsOf } from "./marks.js";
import { pick, point } from "./pointer.js";
import { drawAt } from "./drawing.js";

/** @typedef {import("./view.js").View} View  One display of the widget. */

/**
 * @param {View} view which hears of the event
 * @param {KeyboardEvent} event in it
 */
export function keyPressed(view, event) {
  if (!isUsed(view, event)) return;
  event.preventDefault();
  event.stopPropagation(); // the notebook would move to another cell
}

function isUsed(view, { target, key }) {
  if (key === "Escape") return letGo(view);
  if (target.parentNode === view.parts.chips) return isNextChip(target, key);
  const card = cardOf(view, target);
  if (!card?.canvas) return false;
  if (/^(Enter| )$/.test(key) && view.at?.card === card) {
    if (!drawAt(view, view.at)) pick(view, { card, at: view.at });
    return true;
  }
  return isWalked(view, card, key);
}

function letGo(view) {
  view.pinned = null;
  point(view, {});
  touch(view);
  return true;
}

function isNextChip(chip, key) {
  const goal = { ArrowLeft: chip.previousSibling, ArrowRight: chip.nextSibling }[key];
  if (!goal) return false;
  set(chip, { tabindex: -1 }); // one stop for Tab
  set(goal, { tabindex: 0 }).focus();
  return true;
}

// Go to the next bar, cell, point or step of the uppermost mark, and say what is there.
function isWalked(view, card, key) {
  const stops = quietly(() => stopsOf(card).at(-1));
  const step = stops && stepOf(key, stops);
  if (!step) return false;
  const from = card.stop ?? stops.start ?? -step;
  const to = from + step;
  const isOut = /^Arrow(Up|Down)$/.test(key) && !(to >= 0 && to < stops.count); // of the first or last row
  card.stop = clamp(isOut ? from : to, 0, stops.count - 1);
  const [x, y] = stops.place(card.stop);
  point(view, { at: { card, x, y, stop: card.stop } }, true);
  view.parts.live.textContent = view.parts.tip.text;
  return true;
}

function stepOf(key, { columns, count }) {
  const tenth = Math.ceil(columns / 10);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  return { ...steps, PageUp: -tenth, PageDown: tenth, Home: -count, End: count }[key];
}
