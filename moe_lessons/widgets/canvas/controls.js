// The controls around the pictures: what was asked and is not answered yet is said, and they get names for readers.

import { make, set } from "./elements.js";

/** @typedef {import("./view.js").View} View  One display of the widget. */

const PATIENCE = 500; // milliseconds before it is said that an answer is late
const SETTLING = 50; // milliseconds in which a slider moves
const OUR_OWN = "[inert], [disabled], .moe-stale, .moe-skip"; // what asks the kernel nothing

/**
 * Hear what the controls of a view ask.
 * @param {View} view whose controls they are
 * @param {HTMLElement} home in which they are
 */
export function hearControls(view, home) {
  const signal = view.ended;
  home.addEventListener("keydown", keepKeys, { signal });
  for (const kind of ["click", "change", "keydown", "pointerdown"]) {
    home.addEventListener(kind, (event) => ask(view, event), { capture: true, signal });
  }
}

// Arrows move in a list or on a slider: the notebook would take them to go to another cell.
function keepKeys(event) {
  if (event.target.matches("select, .noUi-handle") && /^(Arrow|Page|Home|End)/.test(event.key))
    event.stopPropagation();
}

// It is called before the control itself hears of the event.
function ask(view, event) {
  const control = event.target.closest("button, select, input, .noUi-target");
  if (!control || view.el.contains(control) || control.closest(OUR_OWN)) return;
  const isButton = control.matches("button");
  const name = isButton ? control.textContent.trim() : labelOf(control);
  if (isButton && event.type === "click") askOnce(view, name, event);
  else if (event.type === "change") wait(view, name);
  const handle = control.querySelector(".noUi-handle");
  if (handle) watch(view, name, handle, event);
}

function askOnce(view, name, event) {
  if (view.waiting?.has(name)) event.stopImmediatePropagation();
  else wait(view, name);
}

// Of a slider, each move is asked: by a key, or while it is dragged.
function watch(view, name, handle, event) {
  if (!["keydown", "pointerdown"].includes(event.type)) return;
  const now = () => handle.getAttribute("aria-valuenow");
  let before = now();
  // it hears of a move at once: an answer may be quick, and what is noted after it would wait for ever
  const moves = new MutationObserver(() => {
    if (now() === before) return;
    before = now();
    wait(view, name);
  });
  moves.observe(handle, { attributeFilter: ["aria-valuenow"] });
  const end = () => setTimeout(() => moves.disconnect(), SETTLING);
  if (event.type === "keydown") end();
  else addEventListener("pointerup", end, { once: true });
}

/**
 * Note what was asked; where its answer is late, it is said.
 * @param {View} view which asked; a page answers at once
 * @param {string} name of what was asked
 */
export function wait(view, name) {
  if (!view.isOfKernel) return;
  view.waiting ??= new Set();
  view.waiting.add(name);
  if (view.notice) sayWhy(view);
  view.late ??= setTimeout(() => sayWhy(view), PATIENCE);
}

/** @param {View} view which has got an answer, whatever was asked */
export function answered(view) {
  clearTimeout(view.late);
  view.notice?.remove();
  view.waiting = null;
  view.late = null;
  view.notice = null;
}

/**
 * @param {Element} [but] a cell that does not count
 * @returns {boolean} whether JupyterLab says so of any cell
 */
export const isCellRunning = (but) =>
  [...document.querySelectorAll(".jp-InputPrompt")].some(
    (prompt) => prompt.textContent.includes("*") && !but?.contains(prompt),
  );

function sayWhy(view) {
  const kernelWork = view.words.state === "training" ? "it trains a step" : "no answer yet";
  const why = isCellRunning() ? "another cell is running" : kernelWork;
  const text = `Waiting for the kernel: ${why}. Asked: ${[...view.waiting].join(", ")}. `;
  const back = make("button", "", "Take back");
  back.addEventListener("click", () => {
    view.send({ pick: "take back", index: 0 });
    answered(view);
  });
  view.notice?.remove();
  view.notice = set(make("div", "moe-stale moe-wait", text, back), { role: "status" });
  homeOf(view).append(view.notice); // at its end: what is above must not jump
}

/**
 * @param {View} view of which it is a part
 * @returns {HTMLElement} the frame with controls and pictures; where there is none, the pictures
 */
export const homeOf = (view) => view.el.closest(".moe-view") ?? view.el;

/**
 * Make a button that leads past all that stands between the first button and the pictures, by two keys.
 * @param {View} view which has the pictures
 * @returns {HTMLElement} the button
 */
export function makeSkip(view) {
  const attributes = { type: "button", title: "Move the focus there" };
  const skip = set(make("button", "moe-skip", "To the pictures"), attributes);
  skip.addEventListener("click", () => view.el.querySelector("canvas")?.focus());
  homeOf(view).querySelector(".moe-bar button")?.after(skip);
  return skip;
}

/**
 * Name the controls of ipywidgets, who leave the handles of sliders without names, and their stops without words.
 * @param {HTMLElement} home in which they are
 * @param {Record<string, string>} tips what each does, by its label; of a box to tick after a ☐
 */
export function nameControls(home, tips) {
  for (const row of home.querySelectorAll(".widget-inline-hbox")) {
    const label = labelOf(row);
    const [handle, readout, input] = [".noUi-handle", ".widget-readout", "select, input"].map((name) =>
      row.querySelector(name),
    );
    if (handle && label) set(handle, { "aria-label": label, "aria-valuetext": readout?.textContent ?? "" });
    if (readout && label) set(readout, { "aria-label": `${label} value`, role: "textbox", tabindex: -1 }); // by mouse
    const tip = tips[input?.type === "checkbox" ? `☐ ${label}` : label]; // a slider may have the same name
    if (!tip) continue;
    for (const element of [handle, input]) {
      if (element) set(element, { "aria-description": tip });
    }
    set(row, { title: tip });
  }
}

// What the row of a control is called; a checkbox has its name beside the label.
function labelOf(control) {
  const row = control.closest(".widget-inline-hbox");
  return (
    (row?.querySelector(".widget-label-basic") ?? row?.querySelector(".widget-label"))?.textContent ?? ""
  );
}
