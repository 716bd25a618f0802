// What is saved with a notebook: what was received, and a still of what was drawn.

import { css } from "./colors.js";
import { make, styled } from "./elements.js";
import { STALE } from "./keep.js";

/** @typedef {import("./view.js").View} View  One display of the widget. */

const PNG = "image/png";

/**
 * Put into a model what its view shows.
 * @param {View} view which has got pictures
 * @param {{set: (name: string, value: unknown) => void}} model of the widget
 */
export function save(view, model) {
  const { panels, words, colors, still } = view;
  if (!colors || !panels.size) return;
  const { slots, data } = packArrays(view.arrays);
  const state = words.state === "training" ? "paused" : words.state;
  const content = { frame: 0, panels: Object.fromEntries(panels), slots, colors, words: { ...words, state } };
  model.set("last", { content, data });
  if (still) model.set("still", still);
}

function packArrays(arrays) {
  const slots = [];
  let size = 0;
  for (const [slot, { type, shape, bytes }] of arrays) {
    slots.push([slot, type, shape, size]);
    size += 8 * Math.ceil(bytes.length / 8); // every array begins at a multiple of 8
  }
  const data = new Uint8Array(size);
  for (const [slot, , , start] of slots) data.set(arrays.get(slot).bytes, start);
  return { slots, data: new DataView(data.buffer) };
}

/**
 * Keep a picture in a pause, once nothing changes any more.
 * @param {View} view which is seen
 * @param {string} style of its elements
 */
export function keepStill(view, style) {
  const { shown, before, photographed, isOfKernel, isSeen, words } = view;
  view.before = shown;
  if (!shown || shown !== before || shown === photographed) return;
  if (isOfKernel && isSeen && words.state !== "training") photograph(view, style).catch(console.debug);
}

// All that is seen as one PNG: the browser draws the elements, with the canvases as images, as part of an SVG.
async function photograph(view, style) {
  const { el, wide, shown } = view;
  const high = el.scrollHeight + 24;
  const alt = altOf(view.words);
  const xml = new XMLSerializer().serializeToString(
    make("div", "", make("style", "", style), copyOf(view, high)),
  );
  const image = new Image();
  image.src = `data:image/svg+xml,${encodeURIComponent(svgOf(xml, wide, high))}`;
  await image.decode();
  const canvas = Object.assign(make("canvas"), { width: wide, height: high });
  canvas.getContext("2d").drawImage(image, 0, 0);
  const data = { [PNG]: canvas.toDataURL().split(",")[1] };
  view.still = { data, metadata: { [PNG]: { alt, is_dark: view.isDark } }, isAnswered: true };
  view.photographed = shown;
}

const altOf = ({ step, words }) => `${step === undefined ? "" : `Step ${step}. `}${words ?? ""}`;

function svgOf(xml, wide, high) {
  const foreign = `<foreignObject width="100%" height="100%">${xml}</foreignObject>`;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${wide}" height="${high}">${foreign}</svg>`;
}

// The elements of a view, with images in the place of canvases, and without what belongs to the pointer.
function copyOf({ el, ink, paper, font }, high) {
  const copy = el.cloneNode(true);
  const canvases = [...el.querySelectorAll("canvas")];
  const images = canvases.map((canvas) => {
    const image = Object.assign(make("img"), { src: canvas.toDataURL() });
    return styled(image, { display: "block", width: "100%", height: canvas.style.height });
  });
  copy.querySelectorAll("canvas").forEach((canvas, i) => canvas.replaceWith(images[i]));
  copy.querySelectorAll(".moe-tip, .moe-live").forEach((part) => part.remove());
  copy.append(make("div", "moe-words", STALE));
  return styled(copy, { background: css(paper), color: css(ink), fontFamily: font, height: `${high}px` });
}
