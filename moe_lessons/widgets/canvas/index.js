// Draws panels of marks (see plots/marks.py) in the page: ES modules, no build step, no library, no network. anywidget
// gets them joined (see canvas.py), a page of one's own imports this one.

import { quietly } from "./numbers.js";
import { make, set } from "./elements.js";
import { newView, touch } from "./view.js";
import { drawCards, dress, receive, resize } from "./frames.js";
import { named, pick, point, tell, under } from "./pointer.js";
import { drawn } from "./drawing.js";
import { keyPressed } from "./keyboard.js";
import { GIVEN, copyOrSave } from "./copy.js";
import { answered, hearControls, homeOf, isCellRunning, makeSkip, nameControls } from "./controls.js";
import { keepStill, save } from "./stills.js";
import { keep } from "./keep.js";

/** @typedef {import("./view.js").View} View  One display of the widget. */

const BELOW = 150; // pixels below the top of a notebook where most of a view is seen
const TIDYING = 500; // milliseconds between two looks at what is around the pictures
const LOADING = 300; // milliseconds after which the style of a new theme is loaded
const scheme = matchMedia("(prefers-color-scheme: dark)");

const widget = { initialize: keep, render };
globalThis.moeCanvas = widget; // for the other canvases of a saved notebook: see keep.js
export default widget;

/**
 * Show a widget in an element.
 * @param {{model: object, el: HTMLElement}} its model, as anywidget has it, and the element
 * @returns {() => void} ends it
 */
function render({ model, el }) {
  const view = newView(el);
  const ended = new AbortController();
  Object.assign(view, {
    ended: ended.signal,
    isOfKernel: Boolean(model.widget_manager),
    send: (message) => quietly(() => model.send(message)),
    draw: (now) => drawCards(view, now),
  });
  furnish(view);
  const observers = observe(view);
  listen(view);
  const forget = connect(view, model);
  return () => {
    for (const observer of observers) observer.disconnect();
    ended.abort();
    answered(view);
    cancelAnimationFrame(view.request);
    forget();
  };
}

function furnish({ el, parts }) {
  const part = (name, attributes = {}) => {
    parts[name] = set(make("div", `moe-${name}`), attributes);
    return parts[name];
  };
  const top = make(
    "div",
    "moe-top",
    part("chips", { role: "toolbar", "aria-label": "Experts" }),
    part("status"),
    part("trouble", { role: "status" }),
  );
  const below = [part("given", { role: "status" }), part("words"), part("reading")];
  el.replaceChildren(top, part("grid"), ...below, part("tip"), part("live", { "aria-live": "polite" }));
  el.classList.add("moe-canvas");
  parts.tip.hidden = true;
}

// Sizes, whether it is seen, and the theme of the page.
function observe(view) {
  const dressTwice = () => {
    dress(view);
    setTimeout(() => dress(view), LOADING);
  };
  const themes = new MutationObserver(dressTwice);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  const near = { rootMargin: view.isOfKernel ? "0px" : "1200px" }; // a page is drawn before one scrolls there
  const sight = new IntersectionObserver((entries) => {
    view.isSeen = entries.at(-1).isIntersecting;
    if (view.isSeen) dress(view);
  }, near);
  view.sizes = new ResizeObserver((entries) => entries.forEach((entry) => resize(view, entry)));
  for (const observer of [view.sizes, sight]) observer.observe(view.el);
  return [view.sizes, sight, themes];
}

function listen(view) {
  const { el } = view;
  const on = (target, name, action) => target.addEventListener(name, action, { signal: view.ended });
  const follow = (event) => event.pointerType === "touch" || point(view, under(view, event), true);
  on(el, "pointermove", (event) => drawn(view, event) || follow(event)); // a finger that moves may scroll
  on(el, "click", (event) => drawn(view, event) || clicked(view, under(view, event)));
  on(el, "pointerdown", (event) => drawn(view, event) && point(view, {}));
  on(el, "pointerup", (event) => drawn(view, event));
  on(el, "pointercancel", (event) => drawn(view, event));
  on(el, "keydown", (event) => keyPressed(view, event));
  on(el, "focusin", ({ target }) => target.matches("button") && point(view, { hit: named(target) }));
  on(el, "pointerleave", ({ pointerType }) => pointerType === "touch" || point(view, {}));
  on(el, "focusout", () => point(view, {}));
  on(scheme, "change", () => dress(view));
  const hide = () =>
    view.isTouched && Object.assign(view, { at: null }).parts.tip.toggleAttribute("hidden", true);
  addEventListener("scroll", hide, { signal: view.ended, capture: true, passive: true }); // of whatever it lies in
}

// A finger points by a tap, and what it has pointed at stays until the next one.
function clicked(view, where) {
  point(view, where, true);
  pick(view, where);
}

// JupyterLab goes to the next cell, and Run All to the last one. A view whose cell was run alone is brought into sight, and
// of all cells the first one: this at once, the other after JupyterLab has gone on.
function bringBack(view, isLater) {
  const cell = view.el.closest(".jp-Cell");
  const book = cell?.closest(".jp-Notebook");
  const isAlone = cell && !isCellRunning(cell);
  if (!book || view.isBrought || (isAlone && !isLater)) return;
  view.isBrought = true;
  const isFirst = !("moeSeen" in book.dataset);
  book.dataset.moeSeen = "";
  const home = homeOf(view);
  const { top, bottom } = home.getBoundingClientRect();
  const isNext = [cell, cell.nextElementSibling].some((each) => each?.matches(".jp-mod-active"));
  const below = top - book.getBoundingClientRect().top;
  if (isAlone ? isNext && (below < 0 || below > BELOW) : isFirst && (bottom < 0 || top > innerHeight))
    home.scrollIntoView();
}

// What comes from the model, and what is put into it. Gives what ends that.
function connect(view, model) {
  const take = (message, buffers) => {
    quietly(() => receive(view, message, buffers));
    quietly(() => bringBack(view));
  };
  const hear = (message, buffers) => (message.copy ? give(view, message.copy) : take(message, buffers));
  const note = () => save(view, model);
  const notes = model.widget_manager?.moeNotes;
  let turn = 0;
  const timer = setInterval(() => quietly(() => tidy(view, model, ++turn)), TIDYING);
  notes?.add(note);
  model.on("msg:custom", hear);
  const last = model.get("last"); // as it was saved
  if (last) take(last.content, [last.data]);
  view.send({ hello: true }); // what was sent before is lost: the kernel sends all again
  return () => {
    clearInterval(timer);
    notes?.delete(note);
    model.off("msg:custom", hear);
  };
}

// Of several displays of a view the one gives a text that is seen.
async function give(view, { text, name }) {
  if (!view.isSeen) return;
  const { given } = view.parts;
  const button = [...homeOf(view).querySelectorAll(".moe-bar button")].find((each) =>
    /^Copy/.test(each.textContent),
  );
  given.textContent = await copyOrSave(text, name, button);
  setTimeout(() => (given.textContent = ""), GIVEN);
}

// What the page has to do for the view around the pictures, and of the pictures what takes long.
function tidy(view, model, turn) {
  const home = homeOf(view);
  const isStale = view.el.closest(".jupyter-widgets-disconnected") !== null; // so says JupyterLab
  if (isStale !== view.isStale) touch(view, new Set()); // it does not train any more
  view.isStale = isStale;
  if (turn % 4 === 0) for (const card of view.cards.values()) if (card.canvas) tell(card);
  keepStill(view, model.get("_css"));
  if (view.cards.size) bringBack(view, true);
  if (home !== view.home) hearControls(view, home);
  view.home = home;
  if (view.isStale) answered(view);
  view.skip ??= makeSkip(view);
  nameControls(home, view.words.tips ?? {});
}
