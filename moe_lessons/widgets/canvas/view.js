// What the modules share: a view, which is one display of the widget, and what it has at hand for those that draw.

import { isNumber, range } from "./numbers.js";
import { css, hatchOf, inkOn, mix, tile } from "./colors.js";

/** @typedef {import("./colors.js").Color} Color  Red, green and blue. */
/** @typedef {import("./cards.js").Card} Card  A panel in the page. */
/** @typedef {import("./numbers.js").Values} Values  An array of a panel. */

/**
 * @typedef {object} Axis  As plots/marks.py has it.
 * @property {number} low where it begins
 * @property {number} high where it ends; it may be less
 * @property {string} label what it shows
 * @property {[number, string][]} [ticks] values and their texts; none: round numbers
 * @property {string} link axes with the same one show the same vertical line
 */

/**
 * @typedef {{mark: string} & Record<string, any>} Mark  As plots/marks.py has it; in a header an array is {slot}.
 */

/**
 * @typedef {object} Panel  The header of a panel, as plots/marks.py has it.
 * @property {string} title over it
 * @property {Mark[]} marks in the order in which they are drawn
 * @property {Axis} x from left to right
 * @property {Axis} y upwards
 * @property {number} width of twelve columns
 * @property {number} least_width in pixels
 * @property {number} height in pixels
 * @property {string} caption under it
 * @property {number} [model] that a click selects
 * @property {boolean} selected whether it is
 */

/**
 * @typedef {object} Hit  What lies at a place, and what is said of it.
 * @property {number} [expert] whose place it is
 * @property {number} [model] whose place it is
 * @property {number} [token] that is selected by a click
 * @property {number} [layer] that is selected by a click
 * @property {string} [link] of the axes on which the value is shown
 * @property {number} [value] on the x axis
 * @property {string} [title] of the tip
 * @property {[number | string | null, string, string][]} [rows] of the tip: an expert or a colour, a name, a value
 */

/** @typedef {{card: Card, x: number, y: number, stop?: number}} Place  In a picture, in pixels; stop: which it is. */
/** @typedef {{from: ?number, to: ?number, start: number, part: number}} Fade  From what was strong to what is. */

/**
 * @typedef {object} View  One display of the widget.
 * @property {HTMLElement} el in which it is
 * @property {Record<string, HTMLElement>} parts of it, by name
 * @property {Map<number, Panel>} panels by place
 * @property {Map<string, Values>} arrays by slot
 * @property {Map<number, Card>} cards by place
 * @property {Record<string, any>} words that came with the panels: step, state, …
 * @property {{palette: string[], red: string, light: string[], dark: string[]}} colors as canvas.py has it
 * @property {Color[]} palette of the experts
 * @property {Color[]} inks of the theme
 * @property {Color} paper its ground
 * @property {Color} ink its text
 * @property {Color} quiet the text of axes
 * @property {Color} faint the lines of a grid
 * @property {boolean} isDark whether the theme is
 * @property {string} font its letters
 * @property {number} size of them, in pixels
 * @property {Map<string, number>} widths of texts, in pixels
 * @property {number} wide how wide it is, in pixels
 * @property {number} frame the number of the last picture that came
 * @property {number} shown of the one that is seen
 * @property {number} frames how many were drawn
 * @property {number} [freshAt] when it last started afresh
 * @property {number} asked the picture whose drawing is to be answered; 0: none
 * @property {number} received how many came since the last answer
 * @property {number} drawn how many of them were drawn
 * @property {number} request of the next animation frame
 * @property {Hit} pointed what is pointed at
 * @property {number} [followed] the token that was selected last by pointing at it
 * @property {?{canvas: Element, pointerId: ?number, text: string, last: ?number[]}} [stroke] of points that are drawn
 * @property {boolean} [isTouched] whether a finger has pointed
 * @property {?number} pinned the expert that is kept
 * @property {?Place} at where the pointer is
 * @property {{expert: Fade, model: Fade}} fades what is strong
 * @property {boolean} isSeen whether it is on the screen
 * @property {boolean} isOfKernel whether a kernel answers, and not a page
 * @property {boolean} isStale whether its kernel has ended
 * @property {?Set<string>} waiting what was asked and is not answered
 * @property {(message: object) => void} send to the kernel
 * @property {(now: number) => void} draw what is to be drawn
 * @property {ResizeObserver} sizes of pictures
 * @property {AbortSignal} ended tells those that listen for it
 */

/**
 * @param {HTMLElement} el in which it will be
 * @returns {Partial<View>} a view that has got nothing yet
 */
export function newView(el) {
  const fade = () => ({ from: null, to: null, start: 0, part: 1 });
  return {
    el,
    parts: {},
    panels: new Map(),
    arrays: new Map(),
    cards: new Map(),
    words: {},
    widths: new Map(),
    frame: 0,
    shown: 0,
    frames: 0,
    asked: 0,
    received: 0,
    drawn: 0,
    request: 0,
    pointed: {},
    pinned: null,
    at: null,
    fades: { expert: fade(), model: fade() },
  };
}

/**
 * Have cards drawn in the next animation frame.
 * @param {View} view which has them
 * @param {Set<number>} [places] of the cards; none: all
 */
export function touch(view, places) {
  for (const [place, card] of view.cards) card.dirty ||= !places || places.has(place);
  view.request ||= requestAnimationFrame((now) => view.draw(now));
}

/**
 * @param {View} view which has cards
 * @param {Node} element anywhere
 * @returns {Card | undefined} in which it lies
 */
export const cardOf = (view, element) =>
  [...view.cards.values()].find(({ figure }) => figure.contains(element));

/**
 * @param {View} view which has panels
 * @returns {boolean} whether the way of a token through the block is drawn in one
 */
export const hasRoute = ({ panels }) =>
  [...panels.values()].some(({ marks }) => marks.some(({ mark }) => mark === "Route"));

/**
 * @param {View} view in which something is pointed at
 * @param {"expert" | "model"} kind of what may be strong
 * @param {number} index which one
 * @returns {number} how strong it is, from 0 to 1; while it fades, between before and after
 */
export function strength(view, kind, index) {
  const { from, to, part } = view.fades[kind];
  const level = (hot) => (hot === null || hot === index ? 1 : 0);
  return part * level(to) + (1 - part) * level(from);
}

/**
 * @param {View} view in which something is pointed at
 * @param {number} [model] whose mark it is; none: of no model
 * @returns {number} the alpha of the mark
 */
export const paleness = (view, model) => (isNumber(model) ? 0.2 + 0.8 * strength(view, "model", model) : 1);

/**
 * @param {View} view in which something is pointed at
 * @param {number} expert whose colour it is
 * @returns {Color} as strong as it is now
 */
export function colorOf(view, expert) {
  return mix(view.paper, view.palette[expert % 8], 0.16 + 0.84 * strength(view, "expert", expert));
}

/**
 * @param {View} view whose palette it is
 * @param {number} expert whose colour it is
 * @returns {Partial<CSSStyleDeclaration>} of an element, in full colour; a shadow keeps letters apart from stripes
 */
export function cloth(view, expert) {
  const color = view.palette[expert % 8];
  const hatch = hatchOf(expert);
  const full = css(color);
  const shadows = range(hatch ? 4 : 0).map(() => `0 0 2px ${full}`);
  return {
    background: `${hatch ? tile(hatch, color).url : ""} ${full}`,
    color: css(inkOn(color)),
    textShadow: shadows.join(),
  };
}
