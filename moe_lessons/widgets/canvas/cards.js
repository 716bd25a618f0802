// A panel in the page: title, legend, picture and caption.

import { NOTHING, clamp, isNumber, percent, quietly, range, short } from "./numbers.js";
import { css, lineStyle, swatch, twoWays } from "./colors.js";
import { make, set, styled } from "./elements.js";
import { Pen } from "./pen.js";
import { cloth } from "./view.js";
import { drawAxes, layOut } from "./axes.js";
import { MARKS } from "./marks.js";
import { tell } from "./pointer.js";

/** @typedef {import("./view.js").View} View  One display of the widget. */
/** @typedef {import("./view.js").Panel} Panel  The header of a panel. */
/** @typedef {import("./view.js").Mark} Mark  One of its marks. */

const LOW = 250; // pixels: a plane is at least so high, ...
const HIGH = 300; // ... and at most, to be square, if there is room
const LETTERS = { "\n": "↵", " ": "\u00a0" };

/** A panel, of which a subclass draws the content. */
export class Card {
  /**
   * @param {View} view which will have it
   * @param {number} place of the panel
   * @param {HTMLElement} content what a subclass draws in
   */
  constructor(view, place, content) {
    this.view = view;
    this.content = content;
    this.dirty = true;
    this.title = make("b");
    this.legend = make("div", "moe-legend");
    this.caption = make("div", "moe-caption");
    const top = make("figcaption", "", this.title, this.legend);
    this.figure = make("figure", "", top, content, this.caption);
    this.figure.style.order = place;
    const { grid } = view.parts; // in its order also for those who come by keyboard
    grid.insertBefore(this.figure, [...grid.children].find(({ style }) => style.order > place) ?? null);
  }

  /** @param {Panel} header what is to be seen; its arrays are those of the view */
  show(header) {
    const isNew = this.isNew || this.header !== header;
    this.dirty = false;
    this.isNew = false;
    this.header = header;
    if (isNew) this.describe(header);
    const known = header.marks.filter(({ mark }) => Object.hasOwn(MARKS, mark));
    this.marks = known.map((mark) => this.filled(mark));
    this.draw(isNew);
  }

  /**
   * @param {Mark} mark of a header
   * @returns {Mark} with its arrays
   */
  filled(mark) {
    const arrayOf = (value) => (value?.slot ? (this.view.arrays.get(value.slot) ?? NOTHING) : value);
    return Object.fromEntries(Object.entries(mark).map(([name, value]) => [name, arrayOf(value)]));
  }

  /** @param {Panel} header whose words are to be seen */
  describe(header) {
    const { title, caption, width, model, selected } = header;
    const { figure } = this;
    this.title.textContent = title;
    figure.style.setProperty("--wide", width); // of twelve columns; and where there is little room:
    figure.style.setProperty("--half", width <= 6 ? 6 : 12);
    figure.classList.toggle("moe-chosen", selected);
    figure.toggleAttribute("data-model", isNumber(model));
    if (isNumber(model)) figure.dataset.model = model;
    const item = ([text, style]) => make("span", "", styled(make("i"), style), text);
    this.legend.replaceChildren(...legendOf(this.view, header).map(item));
    const bars = header.marks.filter(({ even }) => isNumber(even)).map((mark) => colorBar(this.view, mark));
    this.caption.replaceChildren(...bars, caption);
  }
}

// Texts, and the styles of their swatches.
function legendOf(view, { marks }) {
  const order = ({ ink = 99 }) => (ink < 0 ? 98 : ink);
  const sorted = [...marks].sort((one, other) => order(one) - order(other));
  return sorted.flatMap((mark) => MARKS[mark.mark]?.legend?.(view, mark) ?? []);
}

// What the colours of cells mean that go in two directions.
function colorBar(view, mark) {
  const { even, most, numbers } = mark;
  const text = (value) => (numbers ? percent(value) : `${short(value)} ×`);
  const half = (from, to) => {
    const colors = [from, to].map((value) => css(twoWays(view, mark, value)));
    return styled(make("i"), { background: `linear-gradient(to right, ${colors})` });
  };
  return make("div", "moe-scale", text(0), half(0, even), `${text(even)} even`, half(even, most), text(most));
}

/** Each letter in a box of its expert's colour, with the expert's number under it; each further byte in a narrow box. */
class TextCard extends Card {
  constructor(view, place) {
    super(view, place, make("div", "moe-text"));
  }

  draw() {
    const [mark] = this.marks;
    const { texts, names = [], experts, selected } = mark;
    const key = [selected, ...texts, ...names].join("\0");
    if (this.key === key && this.experts === experts) return;
    this.key = key;
    this.experts = experts;
    const boxes = experts ? this.boxesOf(mark) : texts.map((text) => [text]);
    const passages = texts.map((text, i) => passage(text, names[i], boxes[i], experts));
    this.content.replaceChildren(...passages.flat());
  }

  // Of each text the boxes of its bytes; letters and bytes are counted through all texts.
  boxesOf({ texts, sizes, ...mark }) {
    let letter = 0;
    let byte = 0;
    const boxes = (sign) => {
      const bytes = range(sizes?.[letter++] ?? 1).map((i) =>
        this.box(mark, i ? "" : (LETTERS[sign] ?? sign), byte++),
      );
      return sign === "\n" ? [...bytes, sign] : bytes;
    };
    const isSpace = (part) => !part.trim();
    const wordOf = (letters) => [make("div", "moe-word", ...letters)]; // in one line, where it has room
    return texts.map((text) =>
      text.split(/(\s)/).flatMap((part) => {
        const letters = [...part].flatMap(boxes);
        return isSpace(part) ? letters : wordOf(letters);
      }),
    );
  }

  box({ experts, says = [], selected }, sign, byte) {
    const expert = experts[byte];
    const span = make("span", sign ? "" : "moe-rest", sign);
    if (says[byte]) span.title = says[byte];
    if (isNumber(selected)) span.dataset.byte = byte;
    span.classList.toggle("moe-picked", byte === selected);
    return expert >= 0 ? set(styled(span, cloth(this.view, expert)), { "data-expert": expert }) : span;
  }
}

function passage(text, name, boxes, experts) {
  const type = make("div", "moe-type", ...boxes);
  const label = `${name ?? "Text"}, each letter with its expert: ${text}`; // or it would be spelt
  if (experts) set(type, { role: "img", "aria-label": label });
  return name ? [make("div", "moe-name", name), type] : [type];
}

/** A table: a column for each model. */
class TableCard extends Card {
  constructor(view, place) {
    super(view, place, make("table", "moe-table"));
  }

  draw(isNew) {
    if (!isNew) return;
    const [{ columns, rows, cells, inks = [] }] = this.marks;
    const line = (i) => styled(make("i"), swatch(lineStyle(this.view, inks[i] ?? i)));
    const isModel = (i) => !inks.length || i < inks.length;
    const ofModel = (i, element) => (isModel(i) ? set(element, { "data-model": i }) : element);
    const head = (scope, ...content) => set(make("th", "", ...content), { scope });
    const values = (row) => row.map((text, model) => ofModel(model, make("td", "", text)));
    const top = columns.map((name, i) => ofModel(i, head("col", isModel(i) ? line(i) : "", name)));
    const body = rows.map((name, i) => make("tr", "", head("row", name), ...values(cells[i])));
    this.content.replaceChildren(
      make("thead", "", make("tr", "", make("td"), ...top)),
      make("tbody", "", ...body),
    );
  }
}

/** A picture with two axes. */
export class Chart extends Card {
  /**
   * @param {View} view which will have it
   * @param {number} place of the panel
   */
  constructor(view, place) {
    const canvas = make("canvas");
    const keys = "chart: arrow keys read values, Enter selects";
    super(view, place, set(canvas, { tabindex: 0, role: "application", "aria-roledescription": keys }));
    this.canvas = canvas;
    this.pen = new Pen(view, canvas.getContext("2d", { alpha: false }));
    this.axes = make("canvas");
    this.cache = {}; // of a field
    canvas.style.visibility = "hidden"; // black, until it is drawn
    view.sizes.observe(canvas);
    quietly(() => view.sizes.observe(canvas, { box: "device-pixel-content-box" })); // not every browser has it
  }

  /** @param {Panel} header whose words are to be seen */
  describe(header) {
    super.describe(header);
    const rows = header.marks.find(({ mark }) => mark === "Parts")?.rows; // they name the y axis
    const named = rows && { low: rows.length - 0.5, high: -0.5, ticks: rows.map((name, i) => [i, name]) };
    this.xAxis = header.x;
    this.yAxis = { ...header.y, ...named };
    const has = (kind) => header.marks.some(({ mark }) => mark === kind);
    this.isPlane = has("Field");
    this.isSquare = this.isPlane || has("Lamps"); // one along x is as long as along y
    this.old = true; // the axes are
    this.draws = header.marks.find(({ mark }) => mark === "Drawn")?.pen;
    if (isNumber(this.draws)) this.canvas.dataset.pen = this.draws;
    else delete this.canvas.dataset.pen;
    const height = this.isPlane ? this.square() : header.height;
    styled(this.canvas, { height: `${height}px`, minWidth: `${header.least_width}px` });
    this.figure.classList.toggle("moe-sideways", header.least_width > 0);
  }

  /**
   * Take a size from the observer: to ask an element for its size would have the page laid out in every frame.
   * @param {DOMRectReadOnly} size in pixels of the page
   * @param {ResizeObserverSize} [exact] in whole pixels of the screen, so that nothing is blurred
   */
  resize({ width, height }, exact) {
    if (!width) return;
    this.wide = width;
    this.high = height;
    this.exact = exact;
    this.dirty = true;
    this.old = true;
  }

  square() {
    return clamp(this.wide ?? HIGH, LOW, HIGH);
  }

  // The pixels of the screen are counted when it draws: the observer may call before the page knows a new ratio.
  fit() {
    const { canvas, exact } = this;
    if (this.isPlane) canvas.style.height = `${this.square()}px`; // here: the observer must not resize
    const pixels = (value, whole) => {
      const wanted = value * devicePixelRatio;
      return Math.abs(whole - wanted) < 1 ? whole : Math.round(wanted);
    };
    this.across = pixels(this.wide, exact?.inlineSize);
    this.down = pixels(this.high, exact?.blockSize);
    if (canvas.width === this.across && canvas.height === this.down) return;
    canvas.width = this.across;
    canvas.height = this.down;
    this.old = true; // the axes are
  }

  draw() {
    if (!this.wide) return; // not laid out yet: the observer of sizes will call
    this.fit();
    const { wide, across, xAxis, view, pen } = this;
    const { link, value } = view.pointed;
    if (this.old) this.renew();
    pen.context.setTransform(1, 0, 0, 1, 0, 0);
    pen.context.drawImage(this.axes, 0, 0);
    pen.context.scale(across / wide, across / wide);
    this.drawMarks();
    const isLinked = link && link === xAxis.link;
    if (isLinked) pen.rule(this.box, this.x(value), null, { color: css(view.ink, 0.6), width: 1 });
    this.isNews = true;
    this.canvas.style.visibility = "";
    if (!this.canvas.ariaLabel) tell(this);
  }

  renew() {
    this.old = false;
    const margins = this.marks.map((mark) => MARKS[mark.mark].right?.(this, mark) ?? 0);
    Object.assign(this, layOut(this, Math.max(12, ...margins)));
    drawAxes(this);
  }

  drawMarks() {
    const { box, wide } = this;
    const { context } = this.pen;
    context.save();
    context.clip(new Path2D(`M${box.left - 9} 0h${wide}V${box.top + box.height + 9}h${-wide}z`));
    for (const mark of this.marks) {
      context.globalAlpha = 1;
      quietly(() => MARKS[mark.mark].draw(this, mark));
    }
    context.globalAlpha = 1;
    for (const mark of this.marks) quietly(() => MARKS[mark.mark].over?.(this, mark));
    context.restore();
  }

  /**
   * @param {ArrayLike<number>} x values
   * @param {ArrayLike<number>} y values
   * @param {Path2D} [path] which it goes on
   * @returns {Path2D} a line through them
   */
  path(x, y, path = new Path2D()) {
    x.forEach((value, i) => path.lineTo(this.x(value), this.y(y[i])));
    return path;
  }

  /**
   * @param {number[]} x values
   * @param {number[]} low of each
   * @param {number[]} high of each
   * @returns {Path2D} the band between them
   */
  between(x, low, high) {
    return this.path([...x].reverse(), [...low].reverse(), this.path(x, high));
  }
}

const KINDS = new Map([
  ["Text", TextCard],
  ["Table", TableCard],
]);

/**
 * @param {Panel} [panel] its header
 * @returns {typeof Card | undefined} the class of its card
 */
export const kindOf = (panel) => panel && (KINDS.get(panel.marks[0]?.mark) ?? Chart);
