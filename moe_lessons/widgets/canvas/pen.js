// Draws on one canvas.

import { css, hatchOf, tile } from "./colors.js";
import { colorOf } from "./view.js";

/** @typedef {import("./view.js").View} View  One display of the widget. */
/** @typedef {{left: number, top: number, width: number, height: number}} Box  Where marks are, in pixels. */

/** Lines, shapes and letters in the colours of a view. */
export class Pen {
  /**
   * @param {View} view whose theme it is
   * @param {CanvasRenderingContext2D} context of the canvas
   */
  constructor(view, context) {
    this.view = view;
    this.context = context;
  }

  /**
   * @param {Path2D} path a line
   * @param {import("./colors.js").LineStyle} style how it is drawn
   */
  stroke(path, { color, width, dash = [], lineCap }) {
    const { context } = this;
    context.strokeStyle = color;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.lineCap = lineCap ?? (dash.length ? "butt" : "round");
    context.setLineDash(dash);
    context.stroke(path);
  }

  /**
   * @param {Path2D} path a shape
   * @param {string | CanvasPattern} style what fills it
   */
  fill(path, style) {
    this.context.fillStyle = style;
    this.context.fill(path);
  }

  /**
   * @param {Path2D} path a shape
   * @param {number} expert whose colour and hatch fill it
   * @param {import("./colors.js").Color} [color] none: as strong as it is now
   */
  fillExpert(path, expert, color = colorOf(this.view, expert)) {
    this.fill(path, css(color));
    if (expert >= 8) this.fill(path, tile(hatchOf(expert), this.view.palette[expert % 8]).pattern);
  }

  /**
   * Draw a line across a panel, on whole pixels, so it is sharp.
   * @param {Box} box of the panel
   * @param {?number} x where it is upright, in pixels; null: it is level
   * @param {?number} y where it is level, in pixels
   * @param {import("./colors.js").LineStyle} style how it is drawn
   */
  rule({ left, top, width, height }, x, y, style) {
    const at = Math.round(x ?? y) + 0.5;
    this.stroke(new Path2D(x === null ? `M${left} ${at}h${width}` : `M${at} ${top}v${height}`), style);
  }

  /**
   * @param {string} text a line of it
   * @param {number} x in pixels
   * @param {number} y of its middle
   * @param {{align?: string, color?: string, weight?: number, size?: number, halo?: string}} style how it is written
   */
  write(text, x, y, { align = "center", color, weight = 400, size, halo } = {}) {
    const { context, view } = this;
    context.font = `${weight} ${size ?? view.size}px ${view.font}`;
    context.textAlign = align;
    context.textBaseline = "middle";
    if (halo) {
      context.strokeStyle = halo;
      context.lineWidth = 3.5;
      context.lineJoin = "round";
      context.strokeText(text, x, y);
    }
    context.fillStyle = color ?? css(view.ink);
    context.fillText(text, x, y);
  }

  /**
   * @param {string} text a line of it
   * @returns {number} how wide it is, in pixels; the same texts come again in each picture
   */
  measure(text) {
    const { widths, font, size } = this.view;
    if (!widths.has(text)) {
      if (widths.size > 1000) widths.clear();
      this.context.font = `${size}px ${font}`;
      widths.set(text, this.context.measureText(text).width);
    }
    return widths.get(text);
  }

  /**
   * @param {string} text a line of it
   * @param {number} room in pixels
   * @returns {string} without letters at its end for which there is none
   */
  shorten(text, room) {
    if (text.length < 2 || this.measure(text) <= room) return text;
    return this.shorten(text.replace(/.…?$/su, "…"), room);
  }
}
