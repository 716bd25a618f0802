// Draws panels of marks (see ../plots/marks.py) in the page. One ES module: no build step, no library, no network.
//
// A `View` is one display of the widget. It keeps what the kernel sends (see canvas.py): the description of each panel,
// arrays, words. A message marks `Card`s as dirty, the next animation frame draws those, and then the kernel is
// answered, if it asked: a page that is hidden or slow answers late or never, and the kernel sends less. Pointing stays
// in the page; only what a click selects is told the kernel.

const ARRAYS = { u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };
const NOTHING = Object.assign(new Float32Array(0), { shape: [0, 0, 0] }); // in the place of an array that is missing
const MOST_LINES = 6; // of several curves in a tip: those nearest to the pointer
const ROOF = 90; // pixels: what JupyterLab's own bars take of the window; a tip lies under them
const calm = matchMedia("(prefers-reduced-motion: reduce)"), scheme = matchMedia("(prefers-color-scheme: dark)");
const widget = { initialize: keep, render: ({ model, el }) => new View(model, el).end }; // keep: see keep.js
globalThis.moeCanvas = widget; // for the other canvases of a saved notebook
export default widget;

// What is wrong with one message or one mark must not stop the others, nor fill the console of a course.
function quietly(action) {
  try { return action(); } catch (error) { console.debug("moe_lessons:", error); }
}

// --- numbers -----------------------------------------------------------------------------------------------------

function decode({ buffer, byteOffset }, type, shape, start) {
  const kind = type === "f2" ? Uint16Array : ARRAYS[type], from = byteOffset + start;
  const length = shape.reduce((a, b) => a * b, 1) * kind.BYTES_PER_ELEMENT;
  const numbers = new kind(buffer.slice(from, from + length)); // a copy: ours, and aligned
  const values = type === "f2" ? new Float32Array(numbers.length).map((_, i) => half(numbers[i])) : numbers;
  return Object.assign(values, { shape, type, bytes: new Uint8Array(numbers.buffer) });
}

// float16 by a table of all its values: Float16Array is too young to rely on.
function half(bits) {
  half.table ??= Float32Array.from({ length: 65536 }, (_, i) => {
    const sign = i & 0x8000 ? -1 : 1, exponent = (i >> 10) & 31, rest = i & 1023;
    if (exponent === 31) return rest ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 25) * (1024 + rest) : 2 ** -24 * rest);
  });
  return half.table[bits];
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const range = (count) => Array.from({ length: count }, (_, i) => i);
const isNumber = (value) => typeof value === "number";
const percent = (part) => (Number.isNaN(part) ? "–" : +(100 * part).toFixed(part < 0.0995 ? 1 : 0) + " %");
function short(value) {
  for (const [least, unit, name] of [[1e12, 1e12, " T"], [1e9, 1e9, " B"], [1e6, 1e6, " M"], [1e4, 1e3, " K"]])
    if (Math.abs(value) >= least) return +(value / unit).toPrecision(3) + name;
  return String(+value.toPrecision(3)).replace("-", "−");
}
// A value as its axis says it: shares in percent.
const said = ({ label, ticks }, value) =>
  /share|%/.test(label) || ticks?.some(([, text]) => text.includes("%")) ? percent(value) : short(value);

// The ticks of an axis, values and their texts; where none are given, about `room` round numbers.
function ticksOf({ low, high, ticks }, room) {
  if (ticks) return ticks;
  const first = Math.min(low, high), last = Math.max(low, high), rough = (last - first) / Math.max(room, 1);
  const ten = 10 ** Math.floor(Math.log10(rough)), step = ten * [1, 2, 2.5, 5, 10].find((n) => n * ten > 0.999 * rough);
  const from = Math.ceil(first / step - 1e-9), count = Math.floor(last / step + 1e-9) - from + 1;
  return range(count).map((i) => [(from + i) * step, short((from + i) * step)]);
}

// All ticks, or every second, fourth, …: as many as do not touch. place, size: of a tick, in pixels.
function apart(ticks, place, size, every = 1) {
  const kept = ticks.filter((_, i) => i % every === 0), [places, sizes] = [kept.map(place), kept.map(size)];
  const touch = (i) => i > 0 && Math.abs(places[i] - places[i - 1]) < (sizes[i] + sizes[i - 1]) / 2;
  return kept.some((_, i) => touch(i)) ? apart(ticks, place, size, 2 * every) : kept;
}
// Which of `count` things is the nearest, and nearer than `most`; -1: none.
function nearest(count, distance, most = Infinity) {
  let found = -1;
  for (let i = 0, away; i < count; i++) if ((away = distance(i)) < most) [found, most] = [i, away];
  return found;
}

// --- colours, as [red, green, blue], and elements -------------------------------------------------------------------

const hex = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
const css = ([r, g, b], alpha = 1) => `rgba(${r},${g},${b},${alpha})`;
const mix = (one, other, part) => one.map((value, i) => Math.round(value + (other[i] - value) * part));
const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // as an ImageData has it
// Black or white, whichever is read better on a colour (WCAG's relative luminance).
function inkOn(color) {
  const [r, g, b] = color.map((value) => (value <= 10 ? value / 3294 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? [0, 0, 0] : [255, 255, 255];
}

// Colours repeat after eight experts. Stripes tell 8 to 15, dots 16 to 23, crossed stripes 24 to 31.
const hatchOf = (expert) => Math.floor(expert / 8) % 4;
const isHatched = (hatch, x, y) => hatch === 2 ? ((x % 6) - 3) ** 2 + ((y % 6) - 3) ** 2 < 2.6
  : (x + y) % 6 < 1.7 || (hatch === 3 && (x - y + 6000) % 6 < 1.7);

// A tile of the hatching, 6 pixels wide, drawn in double size; its ink is not that of text on the colour.
function tile(hatch, color) {
  const isLight = inkOn(color)[0] === 0, key = `${hatch} ${isLight}`;
  if (tile[key]) return tile[key];
  const canvas = Object.assign(make("canvas"), { width: 12, height: 12 }), context = canvas.getContext("2d");
  const ink = isLight ? [[255, 255, 255], 0.62] : [[0, 0, 0], 0.38];
  context.fillStyle = css(...ink);
  for (const [x, y] of range(144).map((i) => [i % 12, Math.floor(i / 12)]))
    if (isHatched(hatch, (x + 0.5) / 2, (y + 0.5) / 2)) context.fillRect(x, y, 1, 1);
  const pattern = context.createPattern(canvas, "repeat");
  pattern.setTransform(new DOMMatrix().scale(0.5));
  return (tile[key] = { ink, pattern, url: `url(${canvas.toDataURL()}) 0 0 / 6px 6px` });
}

// How the line of a model looks, and a rule.
const inkOf = ({ inks, quiet }, ink) => (ink < 0 ? quiet : inks[ink % inks.length]);
function lineLook(view, ink, strong = true) {
  const dash = ink < 0 ? [] : [[], [7, 4], [1.5, 3.5], [9, 3, 2, 3], [4, 2], [14, 4], [], []][ink % 8];
  return { color: css(inkOf(view, ink), ink < 0 ? 0.4 : 1), width: ink < 0 ? 4 : strong ? (ink ? 1.9 : 2.3) : 1.3, dash };
}
const ruleLook = ({ ink, look }, kind) => kind === "limit" ? { color: look.red, width: 1.8, dash: [] }
  : { color: css(ink, kind === "mark" ? 0.5 : 0.75), width: 1.1, dash: { mark: [], even: [2, 3] }[kind] ?? [5, 4] };
// The same line in a legend: a row of dashes.
function swatch({ color, width, dash }, at = 0) {
  const stops = dash.map((length, i) => `${i % 2 ? "transparent" : color} ${at}px ${(at += length)}px`).join(", ");
  const height = `${Math.max(Math.round(width), 2)}px`;
  return { height, background: stops ? `repeating-linear-gradient(to right, ${stops})` : color };
}

// The colour of a cell whose values go in two directions, told apart by all kinds of sight: purple below, brown above.
function twoWays({ paper, isDark }, { even, most }, value) {
  const [purple, brown] = isDark ? ["#b2abd2", "#fdb863"] : ["#5e3c99", "#b35806"], isBelow = value < even;
  const part = isBelow ? (even - value) / even : (value - even) / (most - even);
  return mix(paper, hex(isBelow ? purple : brown), clamp(part, 0, 1) || 0);
}

function make(tag, name, ...children) { // an element; texts become text nodes, never HTML
  const element = Object.assign(document.createElement(tag), name && { className: name });
  element.append(...children);
  return element;
}
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes))
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  return element;
}
const styled = (element, style) => Object.assign(element.style, style) && element;
// What an element is named for: a chip or letter for an expert, a letter for a token, a column or panel for a model.
function named(element) {
  const kinds = { expert: "expert", model: "model", token: "byte" };
  const found = Object.entries(kinds).map(([kind, name]) => [kind, element.closest(`[data-${name}]`)?.dataset[name]]);
  return Object.fromEntries(found.filter(([, index]) => index).map(([kind, index]) => [kind, Number(index)]));
}

// --- one display of the widget -----------------------------------------------------------------------------------

class View {
  constructor(model, el) {
    Object.assign(this, { el, panels: new Map(), arrays: new Map(), cards: new Map(), words: {}, parts: {} });
    Object.assign(this, { frame: 0, shown: 0, frames: 0, asked: 0, received: 0, drawn: 0 }); // pictures
    Object.assign(this, { pointed: {}, pinned: null, at: null, turn: 0, told: 0, widths: new Map() });
    this.fades = { expert: { from: null, to: null, start: 0 }, model: { from: null, to: null, start: 0 } };
    const part = (name, attributes = {}) => (this.parts[name] = set(make("div", `moe-${name}`), attributes));
    const top = make("div", "moe-top", part("chips", { role: "toolbar", "aria-label": "Experts" }), part("status"));
    const below = [part("trouble", { role: "status" }), part("words"), part("reading")];
    el.replaceChildren(top, part("grid"), ...below, part("tip"), part("live", { "aria-live": "polite" }));
    el.classList.add("moe-canvas");
    this.parts.tip.hidden = true;
    this.listen(model);
    const last = model.get("last"); // as it was saved
    if (last) quietly(() => this.receive(last.content, [last.data]));
    this.send({ hello: true }); // what was sent before is lost: the kernel sends all again
  }
  listen(model) {
    const { el } = this, ended = (this.ended = new AbortController()), dress = () => this.dress();
    const on = (target, name, action) => target.addEventListener(name, action, ended);
    on(el, "pointermove", (event) => this.point(this.under(event), true));
    on(el, "click", (event) => this.pick(this.under(event)));
    on(el, "keydown", (event) => this.keyPressed(event));
    on(el, "focusin", ({ target }) => target.matches("button") && this.point({ hit: named(target) }));
    for (const name of ["pointerleave", "focusout"]) on(el, name, () => this.point({}));
    on(scheme, "change", dress);
    const themes = new MutationObserver(() => dress(setTimeout(dress, 300))); // and when the theme's style is loaded
    const sight = new IntersectionObserver((entries) => (this.isSeen = entries.at(-1).isIntersecting) && dress());
    this.sizes = new ResizeObserver((entries) => entries.forEach((entry) => this.resize(entry)));
    themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
    for (const observer of [this.sizes, sight]) observer.observe(el);
    const receive = (message, buffers) => quietly(() => this.receive(message, buffers));
    const timer = setInterval(() => this.tidy(model.get("_css")), 500);
    this.isOfKernel = Boolean(model.widget_manager);
    model.on("msg:custom", receive);
    const note = () => this.save(model);
    model.widget_manager?.moeNotes?.add(note);
    this.send = (message) => quietly(() => model.send(message));
    this.end = () => {
      for (const observer of [this.sizes, sight, themes]) observer.disconnect();
      ended.abort(clearInterval(timer));
      this.answered();
      cancelAnimationFrame(this.request);
      model.off("msg:custom", receive);
      model.widget_manager?.moeNotes?.delete(note);
    };
  }
  receive({ frame, answer, look, panels, slots, words }, buffers) {
    if (!Number.isInteger(frame)) return;
    Object.assign(this, { frame, received: this.received + 1, asked: answer ? frame : this.asked });
    this.answered(); // whatever was asked
    if (look) Object.assign(this, { look, palette: look.palette.map(hex) }).dress();
    const touched = new Set(), isNewState = words?.state && words.state !== this.words.state;
    if (words?.step === 0 && this.words.step > 0) this.pinned = null; // it starts afresh: who is held is another
    Object.assign(this.words, words);
    for (const [place, header] of Object.entries(panels ?? {}))
      if (Array.isArray(header?.marks)) touched.add(Number(place)), this.panels.set(Number(place), header);
    for (const place of this.panels.keys()) if (place >= this.words.count) this.panels.delete(place);
    for (const slot of this.arrays.keys()) if (!this.panels.has(parseInt(slot))) this.arrays.delete(slot);
    for (const [slot, type, shape, start] of slots ?? []) {
      if (!this.panels.has(parseInt(slot))) continue; // of a panel that is gone
      quietly(() => this.arrays.set(slot, decode(buffers[0], type, shape, start)));
      touched.add(parseInt(slot));
    }
    this.touch(isNewState ? undefined : touched);
  }
  save(model) { // with the notebook: what was received, and a still of what was drawn
    const { panels, arrays, words, look, still } = this, slots = [], parts = [];
    let size = 0;
    if (!look || !panels.size) return;
    for (const [slot, { type, shape, bytes }] of arrays) {
      slots.push([slot, type, shape, size]);
      parts.push([bytes, size]);
      size += 8 * Math.ceil(bytes.length / 8);
    }
    const data = new Uint8Array(size), content = { frame: 0, panels: Object.fromEntries(panels), slots, look };
    for (const [bytes, at] of parts) data.set(bytes, at);
    const state = words.state === "training" ? "paused" : words.state;
    model.set("last", { content: { ...content, words: { ...words, state } }, data: new DataView(data.buffer) });
    if (still) model.set("still", still);
  }
  // All that is seen as one PNG: the browser draws the elements, with the canvases as images, as part of an SVG.
  async photograph(style) {
    const { el, wide, ink, paper, font, words: { step, words } } = this, frame = this.shown, copy = el.cloneNode(true);
    const canvases = [...el.querySelectorAll("canvas")], high = el.scrollHeight + 24, mime = "image/png";
    const images = canvases.map((canvas) => Object.assign(make("img"), { src: canvas.toDataURL() }));
    images.forEach((image, i) => styled(image, { display: "block", width: "100%", height: canvases[i].style.height }));
    copy.querySelectorAll("canvas").forEach((canvas, i) => canvas.replaceWith(images[i]));
    copy.querySelectorAll(".moe-tip, .moe-live").forEach((part) => part.remove());
    copy.append(make("div", "moe-words", "Run this cell to go on."));
    styled(copy, { background: css(paper), color: css(ink), fontFamily: font, height: `${high}px` });
    const xml = new XMLSerializer().serializeToString(make("div", "", make("style", "", style), copy));
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${wide}" height="${high}"><foreignObject width="100%"
      height="100%">${xml}</foreignObject></svg>`, image = new Image(), canvas = make("canvas");
    image.src = `data:image/svg+xml,${encodeURIComponent(svg)}`;
    await image.decode();
    Object.assign(canvas, { width: wide, height: high }).getContext("2d").drawImage(image, 0, 0);
    const alt = `${step === undefined ? "" : `Step ${step}. `}${words ?? ""}`;
    const data = { [mime]: canvas.toDataURL().split(",")[1] }, metadata = { [mime]: { alt } };
    Object.assign(this, { still: { data, metadata, isAnswered: true }, photographed: frame });
  }
  dress() { // take the colours of the page around the view; the kernel need not know them
    const { el, look } = this, { backgroundColor, color, fontFamily: font } = getComputedStyle(el);
    const [paper, full] = [backgroundColor, color].map((text) => (text.match(/[\d.]+/g) ?? []).map(Number));
    if (!look || !paper.length) return; // not yet in the page
    const isDark = inkOn(paper)[0] === 255, ink = mix(paper, full.slice(0, 3), full[3] ?? 1);
    const [quiet, faint] = [0.25, 0.86].map((part) => mix(ink, paper, part));
    Object.assign(this, { isDark, paper, ink, quiet, faint, font, inks: look[isDark ? "dark" : "light"].map(hex) });
    this.widths.clear();
    el.classList.toggle("moe-dark", isDark);
    for (const card of this.cards.values()) card.isNew = true; // legends and axes are drawn anew
    this.touch();
  }
  touch(places) { // draw in the next animation frame: the cards of these places, or all
    for (const [place, card] of this.cards) card.dirty ||= !places || places.has(place);
    this.request ||= requestAnimationFrame((now) => this.draw(now));
  }
  draw(now) {
    const { cards, panels, parts, words: { step = 0, state = "", token, experts = 0 } } = this;
    const words = { ...this.words, status: this.status() };
    this.request = 0;
    if (!this.isSeen || !this.inks) return; // and so without an answer: the kernel soon sends hardly anything
    for (const [place, card] of cards)
      if (card.constructor !== kindOf(panels.get(place))) card.figure.remove(), cards.delete(place);
    for (const [place, panel] of panels) if (!cards.has(place)) cards.set(place, new (kindOf(panel))(this, place));
    this.fade(now);
    for (const [place, card] of cards) if (card.dirty) quietly(() => card.show(panels.get(place)));
    const isSoon = state === "training" && now - this.told < 100; // to count in each picture costs a layout
    for (const name of [...(isSoon ? [] : ["status"]), "trouble", "words", "reading"])
      if (parts[name].textContent !== (words[name] ?? "")) parts[name].textContent = words[name] ?? "";
    if (!isSoon) this.told = now;
    this.showChips(experts);
    if (this.at) this.point({ at: this.at }); // what lies there now
    if (this.shown !== this.frame) this.frames++, this.drawn++;
    this.shown = this.frame;
    set(this.el, { "data-step": step, "data-state": state, "data-token": token ?? "", "data-frames": this.frames });
    if (!this.asked) return;
    this.send({ drawn: this.asked, behind: Math.max(this.received / Math.max(this.drawn, 1), 1) });
    Object.assign(this, { asked: 0, received: 0, drawn: 0 });
  }
  status({ step, state, budget, until } = this.words) { // and how long it will train yet, at the speed it has had
    if (until === undefined) return "";
    const isOver = budget && until && step >= until, steps = `${budget} step${budget > 1 ? "s" : ""}`;
    const ended = isOver ? ` after ${steps}, press Play for more` : "";
    if (state !== "training") return (this.began = null) ?? `step ${step} · ${state}${ended}`;
    if (this.began?.until !== until || step < this.began.step) this.began = { until, step, at: performance.now() };
    const left = ((until - step) * (performance.now() - this.began.at)) / (step - this.began.step) / 1000;
    return `step ${step} · training${left >= 2 && left < 1e5 ? `, ${left.toFixed()} s left` : ""}`;
  }
  // Sizes come from the observer: to ask an element for its size would have the page laid out in every frame.
  resize({ target, contentRect: { width, height }, devicePixelContentBoxSize: [size] = [] }) {
    if (target === this.el) this.wide = width;
    const card = this.cardOf(target), ratio = devicePixelRatio; // exact: in whole pixels of the screen, so no blur
    const pixels = (value, exact) => (Math.abs(exact - value * ratio) < 1 ? exact : Math.round(value * ratio));
    if (!card || !width) return;
    if (card.isPlane) card.canvas.style.height = `${clamp(width, 250, 300)}px`; // to be square, if there is room
    const across = pixels(width, size?.inlineSize), down = pixels(height, size?.blockSize);
    Object.assign(card, { wide: width, high: height, across, down, dirty: true, old: true });
    this.touch(new Set());
  }
  cardOf(element) { return [...this.cards.values()].find(({ figure }) => figure.contains(element)); }
  // --- what is pointed at is strong, the others step back ---
  fade(now) {
    const wasFading = this.isFading;
    this.isFading = false;
    for (const [kind, fade] of Object.entries(this.fades)) {
      const hot = this.pointed[kind] ?? (kind === "expert" ? this.pinned : null);
      const isNew = hot !== fade.to;
      if (isNew) Object.assign(fade, { from: fade.to, to: hot, start: now });
      fade.part = calm.matches ? 1 : clamp((now - fade.start) / 140, 0, 1); // of 140 milliseconds
      this.isFading ||= fade.part < 1;
      if (isNew || hot !== null) // those that are new, too: chips, letters, columns, whole panels
        for (const element of this.el.querySelectorAll(`[data-${kind}]`))
          element.classList.toggle("moe-back", hot !== null && element.dataset[kind] !== String(hot));
    }
    if (this.isFading || wasFading) for (const card of this.cards.values()) card.dirty = true;
    if (this.isFading) this.touch();
  }
  strength(kind, index) { // from 0 to 1; while it fades, between before and after
    const { from, to, part } = this.fades[kind], level = (hot) => (hot === null || hot === index ? 1 : 0);
    return part * level(to) + (1 - part) * level(from);
  }
  color(expert) { return mix(this.paper, this.palette[expert % 8], 0.16 + 0.84 * this.strength("expert", expert)); }
  cloth(expert) { // the style of an element, in full colour; a shadow keeps letters apart from stripes
    const color = this.palette[expert % 8], hatch = hatchOf(expert), full = css(color);
    const textShadow = hatch ? range(4).map(() => `0 0 2px ${full}`).join() : "";
    return { background: `${hatch ? tile(hatch, color).url : ""} ${full}`, color: css(inkOn(color)), textShadow };
  }
  showChips(count) {
    const { pinned, parts: { chips } } = this, chip = (expert) => {
      const title = `Expert ${expert}: point to see it, click to keep it`, tabindex = expert ? -1 : 0; // then arrows
      const button = make("button", "", styled(make("i"), this.cloth(expert)), `E${expert}`);
      return set(button, { type: "button", "data-expert": expert, title, tabindex });
    };
    if (this.chips === `${count} ${pinned}`) return;
    this.chips = `${count} ${pinned}`;
    if (chips.childElementCount !== count) chips.replaceChildren(...range(count).map(chip));
    chips.hidden = !count;
    for (const chip of chips.children) set(chip, { "aria-pressed": Number(chip.dataset.expert) === pinned });
  }
  under({ target, offsetX: x, offsetY: y }) { // a place of a picture, or an element that is named
    const card = this.cardOf(target);
    return card?.canvas === target ? { card, at: { card, x, y } } : { card, hit: named(target) };
  }
  // Show what lies at a place, or is given, in all panels; and a tip beside the place.
  point({ at = null, hit = at && quietly(() => at.card.hit(at.x, at.y)) }, isNew) {
    const { title, rows, ...links } = hit ?? {}, text = rows && spoken(hit), { tip } = this.parts;
    if (JSON.stringify(links) !== JSON.stringify(this.pointed)) Object.assign(this, { pointed: links }).touch();
    [this.at, tip.hidden] = [at, !rows];
    if (rows && tip.text !== text) {
      tip.text = text;
      const lines = rows.map(([color, name, value]) => {
        const mark = color === null ? "" : styled(make("i"), color >= 0 ? this.cloth(color) : { background: color });
        return make("tr", "", ...[mark, name, value].map((content) => make("td", "", content)));
      });
      tip.replaceChildren(make("b", "", title), make("table", "", ...lines));
    }
    if (!rows || !at || !isNew) return; // sizes need a layout: only when the place is new
    const { canvas: { offsetLeft, offsetTop }, figure: { scrollLeft } } = at.card;
    const left = offsetLeft + at.x - scrollLeft, top = offsetTop + at.y;
    const { offsetWidth, offsetHeight } = tip, room = this.el.getBoundingClientRect().top + top - ROOF;
    const x = clamp(left > this.wide / 2 ? left - 14 - offsetWidth : left + 14, 0, this.wide - offsetWidth);
    tip.style.transform = `translate(${x}px, ${room > offsetHeight ? `calc(${top - 10}px - 100%)` : `${top + 16}px`})`;
  }
  pick({ card, at, hit = at && quietly(() => card.hit(at.x, at.y)) }) { // in the kernel; an expert is pinned here
    const model = card?.header?.model, found = isNumber(model) ? { model } : hit ?? {};
    const kind = card && ["token", "layer", "model"].find((name) => found[name] !== undefined);
    if (kind && !this.isStale) {
      this.send({ pick: kind, index: found[kind] });
      if (this.words.until !== undefined) this.wait(`${kind} ${found[kind]}`); // what does not train has no answer
    }
    if (kind || !isNumber(found.expert)) return;
    this.pinned = this.pinned === found.expert ? null : found.expert;
    this.touch();
  }
  keyPressed(event) {
    const { target, key } = event, { at, parts: { chips } } = this, card = this.cardOf(target);
    if (key === "Escape") (this.pinned = null), this.point({}), this.touch();
    else if (target.parentNode === chips) {
      const goal = { ArrowLeft: target.previousSibling, ArrowRight: target.nextSibling }[key];
      if (!goal) return;
      set(target, { tabindex: -1 }); // one stop for Tab
      set(goal, { tabindex: 0 }).focus();
    } else if (key === "Enter" && card && at?.card === card) this.pick({ card, at });
    else if (!card?.walk?.(key)) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would move to another cell
  }
  // --- what a control has asked, until the kernel sends a picture ---
  hearControls(home) {
    const { signal } = this.ended, asks = (event) => this.ask(event);
    home.addEventListener("keydown", keepKeys, { signal });
    for (const kind of ["click", "change", "keydown", "pointerdown"])
      home.addEventListener(kind, asks, { capture: true, signal });
  }
  ask(event) { // called before the control itself hears of it
    const control = event.target.closest("button, select, input, .noUi-target");
    if (!control || this.el.contains(control) || control.closest("[inert], [disabled], .moe-stale, .moe-skip")) return;
    const isButton = control.matches("button"), name = isButton ? control.textContent.trim() : labelOf(control);
    if (isButton && event.type === "click") {
      if (this.waiting?.has(name)) return event.stopImmediatePropagation(); // it is asked once
      this.wait(name);
    } else if (event.type === "change") this.wait(name);
    const handle = control.querySelector(".noUi-handle"), now = () => handle?.getAttribute("aria-valuenow");
    let before = now();
    const watch = () => now() !== before && this.wait(name, (before = now()));
    if (handle && event.type === "keydown") setTimeout(watch, 50);
    if (!handle || event.type !== "pointerdown") return;
    const timer = setInterval(watch, 100); // while it is dragged
    addEventListener("pointerup", () => setTimeout(() => clearInterval(timer, watch()), 50), { once: true });
  }
  wait(name) { // for a kernel: a page answers at once
    if (!this.isOfKernel) return;
    this.waiting ??= new Set();
    this.waiting.add(name);
    this.late ??= setTimeout(() => this.sayWhy(), 500);
  }
  answered() {
    clearTimeout(this.late);
    this.notice?.remove();
    [this.waiting, this.late, this.notice] = [];
  }
  sayWhy() {
    const isBusy = [...document.querySelectorAll(".jp-InputPrompt")].some((prompt) => prompt.textContent.includes("*"));
    const own = this.words.state === "training" ? "it trains a step" : "no answer yet";
    const why = isBusy ? "another cell is running" : own;
    const back = make("button", "", "Take back"), home = this.el.closest(".moe-view") ?? this.el;
    const text = `Waiting for the kernel: ${why}. Asked: ${[...this.waiting].join(", ")}. `;
    back.addEventListener("click", () => (this.send({ pick: "take back", index: 0 }), this.answered()));
    this.notice = set(make("div", "moe-stale moe-wait", text, back), { role: "status" });
    home.append(this.notice); // at its end: what is above must not jump
  }
  makeSkip(first) { // from the first button to the pictures by two keys, past all that stands between
    const skip = set(make("button", "moe-skip", "To the pictures"), { type: "button", title: "Move the focus there" });
    skip.addEventListener("click", () => this.el.querySelector("canvas")?.focus());
    first?.after(skip);
    return skip;
  }
  tidy(style) { // twice a second: what the page has to do for the view around the pictures
    const home = this.el.closest(".moe-view") ?? this.el, { tips = {} } = this.words;
    this.isStale = this.el.closest(".jupyter-widgets-disconnected") !== null; // so says JupyterLab
    if (++this.turn % 4 === 0) for (const card of this.cards.values()) card.tell?.();
    const isCalm = this.shown && this.shown === this.before && this.shown !== this.photographed;
    if (isCalm && this.isOfKernel && this.isSeen && this.words.state !== "training") this.photograph(style).catch(console.debug);
    this.before = this.shown;
    if (home !== this.home) this.hearControls((this.home = home));
    if (this.isStale) this.answered();
    this.skip ??= this.makeSkip(home.querySelector(".moe-bar button"));
    for (const row of home.querySelectorAll(".widget-inline-hbox")) {
      const names = [".noUi-handle", ".widget-readout", "select, input"];
      const [handle, readout, input] = names.map((name) => row.querySelector(name));
      const label = labelOf(row);
      // ipywidgets leave the handles of sliders without names, and their stops without words
      if (handle && label) set(handle, { "aria-label": label, "aria-valuetext": readout?.textContent ?? "" });
      if (readout && label) set(readout, { "aria-label": `${label} value`, role: "textbox", tabindex: -1 }); // by mouse
      const tip = tips[input?.type === "checkbox" ? `☐ ${label}` : label]; // a slider may have the same name
      if (!tip) continue;
      for (const element of [handle, input].filter(Boolean)) set(element, { "aria-description": tip });
      set(row, { title: tip });
    }
  }
}

// What the row of a control is called; a checkbox has its name beside the label.
function labelOf(control) {
  const row = control.closest(".widget-inline-hbox");
  return (row?.querySelector(".widget-label-basic") ?? row?.querySelector(".widget-label"))?.textContent ?? "";
}
// Arrows move in a list or on a slider: the notebook would take them to go to another cell.
function keepKeys(event) {
  if (event.target.matches("select, .noUi-handle") && /^(Arrow|Page|Home|End)/.test(event.key)) event.stopPropagation();
}

const spoken = ({ title, rows }) => [title, ...rows.map(([, name, value]) => `${name} ${value}`.trim())].join(", ");

// --- a panel: title, legend, picture, caption --------------------------------------------------------------------

const kindOf = (panel) => panel && ({ Text: TextCard, Table: TableCard }[panel.marks[0]?.mark] ?? Chart);
class Card {
  constructor(view, place, content) {
    Object.assign(this, { view, content, dirty: true });
    [this.title, this.legend, this.caption] = [make("b"), make("div", "moe-legend"), make("div", "moe-caption")];
    this.figure = make("figure", "", make("figcaption", "", this.title, this.legend), content, this.caption);
    this.figure.style.order = place;
    view.parts.grid.append(this.figure);
  }
  show(header) {
    const isNew = this.isNew || this.header !== header, arrayOf = ({ slot }) => this.view.arrays.get(slot) ?? NOTHING;
    Object.assign(this, { dirty: false, isNew: false, header });
    if (isNew) this.describe(header);
    const filled = (mark) => Object.entries(mark).map(([name, value]) => [name, value?.slot ? arrayOf(value) : value]);
    this.marks = header.marks.filter(({ mark }) => MARKS[mark]).map((mark) => Object.fromEntries(filled(mark)));
    this.draw(isNew);
  }
  describe({ title, caption, width, model, selected, legend, marks }) {
    const { figure, view } = this, order = ({ ink = 99 }) => (ink < 0 ? 98 : ink);
    this.title.textContent = title;
    figure.style.setProperty("--wide", width); // of twelve columns; and where there is little room:
    figure.style.setProperty("--half", width <= 6 ? 6 : 12);
    figure.classList.toggle("moe-chosen", selected);
    figure.toggleAttribute("data-model", isNumber(model));
    if (isNumber(model)) figure.dataset.model = model;
    const sorted = [...marks].sort((one, other) => order(one) - order(other));
    const items = legend.length ? legend.map(([ink, text]) => [text, swatch(lineLook(view, ink))])
      : sorted.flatMap((mark) => MARKS[mark.mark]?.legend?.(view, mark) ?? []);
    this.legend.replaceChildren(...items.map(([text, style]) => make("span", "", styled(make("i"), style), text)));
    const bars = marks.filter(({ even }) => isNumber(even)).map((mark) => colorBar(view, mark));
    this.caption.replaceChildren(...bars, caption);
  }
}

// What the colours of cells mean that go in two directions.
function colorBar(view, { even, most, numbers }) {
  const say = (value) => (numbers ? percent(value) : `${short(value)} ×`);
  const colors = (...ends) => ends.map((value) => css(twoWays(view, { even, most }, value)));
  const half = (...ends) => styled(make("i"), { background: `linear-gradient(to right, ${colors(...ends)})` });
  return make("div", "moe-scale", say(0), half(0, even), `${say(even)} even`, half(even, most), say(most));
}

// Each letter in a box of its expert's colour, with the expert's number under it; each further byte in a narrow box.
class TextCard extends Card {
  constructor(view, place) { super(view, place, make("div", "moe-text")); }
  draw() {
    const [{ texts, names = [], experts, sizes, says = [], selected }] = this.marks;
    const key = [selected, ...texts, ...names].join("\0");
    if (this.key === key && this.experts === experts) return;
    Object.assign(this, { key, experts });
    let letter = 0, byte = 0;
    const box = (sign, i, expert = experts[byte++]) => {
      const span = make("span", i ? "moe-rest" : "", i ? "" : { "\n": "↵", " ": "\u00a0" }[sign] ?? sign);
      if (says[byte - 1]) span.title = says[byte - 1];
      if (isNumber(selected)) set(span, { "data-byte": byte - 1 });
      span.classList.toggle("moe-picked", byte - 1 === selected);
      return expert >= 0 ? set(styled(span, this.view.cloth(expert)), { "data-expert": expert }) : span;
    };
    const boxes = (sign) => [...range(sizes?.[letter++] ?? 1).map((i) => box(sign, i)), sign === "\n" ? sign : ""];
    this.content.replaceChildren(...texts.flatMap((text, i) => {
      const passage = make("div", "moe-type", ...(experts ? [...text].flatMap(boxes) : [text]));
      const label = `${names[i] ?? "Text"}, each letter with its expert: ${text}`; // or it would be spelt
      if (experts) set(passage, { role: "img", "aria-label": label });
      return names[i] ? [make("div", "moe-name", names[i]), passage] : passage;
    }));
  }
}

class TableCard extends Card {
  constructor(view, place) { super(view, place, make("table", "moe-table")); }
  draw(isNew) {
    const [{ columns, rows, cells, inks = [] }] = this.marks;
    const line = (i) => styled(make("i"), swatch(lineLook(this.view, inks[i] ?? i)));
    if (!isNew) return;
    const of = (model, element) => set(element, { "data-model": model });
    const head = (scope, ...content) => set(make("th", "", ...content), { scope });
    const top = make("tr", "", make("td"), ...columns.map((name, i) => of(i, head("col", line(i), name))));
    const values = (row) => row.map((text, model) => of(model, make("td", "", text)));
    const body = rows.map((name, i) => make("tr", "", head("row", name), ...values(cells[i])));
    this.content.replaceChildren(make("thead", "", top), make("tbody", "", ...body));
  }
}

class Chart extends Card {
  constructor(view, place) {
    const canvas = make("canvas"), keys = "chart: arrow keys read values, Enter selects";
    super(view, place, set(canvas, { tabindex: 0, role: "application", "aria-roledescription": keys }));
    Object.assign(this, { canvas, context: canvas.getContext("2d", { alpha: false }), axes: make("canvas"), cache: {} });
    view.sizes.observe(canvas);
    quietly(() => view.sizes.observe(canvas, { box: "device-pixel-content-box" })); // not every browser has it
  }
  describe(header) {
    super.describe(header);
    const rows = header.marks.find(({ mark }) => mark === "Parts")?.rows; // they name the y axis
    const named = rows && { low: rows.length - 0.5, high: -0.5, ticks: rows.map((name, i) => [i, name]) };
    const isPlane = header.marks.some(({ mark }) => mark === "Field");
    const height = `${isPlane && this.wide ? clamp(this.wide, 250, 300) : header.height}px`;
    Object.assign(this, { xAxis: header.x, yAxis: { ...header.y, ...named }, old: true, isPlane });
    Object.assign(this.canvas.style, { height, minWidth: `${header.least_width}px` });
    this.figure.classList.toggle("moe-sideways", header.least_width > 0);
  }
  draw() {
    const { canvas, context, wide, across, down, marks, xAxis } = this, { link, value } = this.view.pointed;
    if (!wide) return; // not laid out yet: the observer of sizes will call
    if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
    if (this.old) this.drawAxes();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.axes, 0, 0);
    context.scale(across / wide, across / wide);
    context.save();
    context.clip(new Path2D(`M${this.box.left - 9} 0h${wide}V${this.box.top + this.box.height + 9}h${-wide}z`));
    for (const mark of marks) {
      context.globalAlpha = 1;
      quietly(() => MARKS[mark.mark].draw(this, mark));
    }
    if (this.header.legend.length) this.nameEnds();
    context.restore();
    if (link && link === xAxis.link) this.rule(this.x(value), null, { color: css(this.view.ink, 0.6), width: 1 });
    this.isNews = true;
    if (!canvas.ariaLabel) this.tell();
  }
  path(x, y, path = new Path2D()) {
    x.forEach((value, i) => path.lineTo(this.x(value), this.y(y[i])));
    return path;
  }
  nameEnds() { // of lines, each beside its end, so far apart that they can be read
    const { box: { top, height }, marks, view } = this, high = 12, lines = marks.filter(isTold).map((line) =>
      ({ ...line, px: this.x(line.x.at(-1)), py: this.y(line.y.at(-1)) })).sort((one, other) => other.py - one.py);
    let floor = Infinity;
    lines.forEach(({ name, ink, model, strong, px, py }, i) => { // from the lowest up
      floor = Math.max(Math.min(py, floor - high), top + high * (lines.length - 1 - i));
      this.context.globalAlpha = paleness(view, model);
      const look = { color: css(inkOf(view, ink)), weight: strong ? 700 : 400, halo: css(view.paper) };
      this.write(name, px + 7, floor, { align: "left", ...look });
    });
  }
  between(x, low, high) { return this.path([...x].reverse(), [...low].reverse(), this.path(x, high)); }
  stroke(path, { color, width, dash = [], lineCap = dash.length ? "butt" : "round" }) {
    Object.assign(this.context, { strokeStyle: color, lineWidth: width, lineJoin: "round", lineCap }).setLineDash(dash);
    this.context.stroke(path);
  }
  fill(path, fillStyle) { Object.assign(this.context, { fillStyle }).fill(path); }
  fillExpert(path, expert) {
    this.fill(path, css(this.view.color(expert)));
    if (expert >= 8) this.fill(path, tile(hatchOf(expert), this.view.palette[expert % 8])?.pattern);
  }
  rule(x, y, look) { // a line across the panel, at x or at y in pixels; on whole pixels, so it is sharp
    const { left, top, width, height } = this.box, at = Math.round(x ?? y) + 0.5;
    this.stroke(new Path2D(x === null ? `M${left} ${at}h${width}` : `M${at} ${top}v${height}`), look);
  }
  write(text, x, y, { align = "center", color = css(this.view.ink), weight = 400, size = 11, halo } = {}) {
    const { context } = this, font = `${weight} ${size}px ${this.view.font}`;
    Object.assign(context, { font, textAlign: align, textBaseline: "middle", fillStyle: color, strokeStyle: halo });
    if (halo) Object.assign(context, { lineWidth: 3.5, lineJoin: "round" }).strokeText(text, x, y);
    context.fillText(text, x, y);
  }
  measure(text) { // in pixels; the same texts come again in each picture
    const { widths, font } = this.view, width = widths.get(text);
    if (width !== undefined) return width;
    if (widths.size > 1000) widths.clear();
    const measured = Object.assign(this.context, { font: `11px ${font}` }).measureText(text).width;
    return widths.set(text, measured) && measured;
  }
  shorten(text, room) { // by letters at its end, to a width in pixels
    return text.length < 2 || this.measure(text) <= room ? text : this.shorten(text.replace(/.…?$/su, "…"), room);
  }
  // The ground, ticks and labels: drawn once, and copied into each picture until the panel, its size or theme changes.
  drawAxes() {
    const { axes, wide, high, across, down, view, marks, xAxis, yAxis, context: shown } = this;
    const foot = (xAxis.ticks?.length === 0 ? 4 : 21) + (xAxis.label ? 16 : 0), room = yAxis.label ? 17 : 0, top = 8;
    const rows = ticksOf(yAxis, (high - foot) / 42), size = ([, text]) => this.measure(text) + 8;
    const left = Math.min(Math.ceil(Math.max(5, ...rows.map(size))) + room, Math.floor(wide / 2));
    const right = Math.max(12, ...marks.map((mark) => MARKS[mark.mark].right?.(this, mark) ?? 0));
    let width = Math.max(wide - left - right, 10), height = Math.max(high - foot - top, 10);
    if (this.isPlane) width = height = Math.min(width, height);
    const scaled = ({ low, high }, from, size) => (value) => from + ((value - low) / (high - low)) * size;
    const back = ({ low, high }, from, size) => (pixel) => low + ((pixel - from) / size) * (high - low);
    [this.x, this.y] = [scaled(xAxis, left, width), scaled(yAxis, top + height, -height)]; // from values to pixels ...
    [this.xAt, this.yAt] = [back(xAxis, left, width), back(yAxis, top + height, -height)]; // ... and back
    const context = Object.assign(axes, { width: across, height: down }).getContext("2d", { alpha: false });
    Object.assign(this, { old: false, box: { left, top, width, height }, context }); // what follows is drawn there
    Object.assign(context, { fillStyle: css(view.paper) }).fillRect(0, 0, across, down);
    context.scale(across / wide, across / wide);
    const pen = { color: css(view.quiet) }, toLeft = { ...pen, align: "right" }, grid = { color: css(view.faint), width: 1 };
    for (const [value, text] of apart(rows, ([value]) => this.y(value), () => 13)) {
      if (!yAxis.ticks) this.rule(null, this.y(value), grid);
      this.write(this.shorten(text, left - 8 - room), left - 6, this.y(value) + 0.5, toLeft);
    }
    for (const [value, text] of apart(ticksOf(xAxis, width / 64), ([value]) => this.x(value), size)) {
      if (!xAxis.ticks) this.rule(this.x(value), null, grid);
      const half = this.measure(text) / 2;
      this.write(text, clamp(this.x(value), half, wide - half), top + height + 12, pen);
    }
    this.write(this.shorten(xAxis.label, width), left + width, high - 8, toLeft);
    context.transform(0, -1, 1, 0, 9, top); // upwards
    this.write(this.shorten(yAxis.label, height), 0, 0, toLeft);
    this.context = shown;
  }
  // --- pointing, keys and words ---
  stops() { return this.marks.map((mark) => MARKS[mark.mark].stops?.(this, mark)).filter((stops) => stops?.count); }
  // What lies at a place: {expert, model, token, layer, link, value}, and for the tip a title and rows.
  hit(px, py) {
    const { header: { model }, box: { left, top, width, height } } = this;
    const isInside = px > left - 5 && px < left + width + 5 && py > top - 5 && py < top + height + 5;
    const told = (isInside ? this.stops() : []).flatMap(({ at, tell }, i, _, place = at(px, py)) =>
      place >= 0 ? [{ away: 0, i, ...tell(place, px, py) }] : []);
    const near = [...told].sort((one, other) => other.away - one.away).slice(-MOST_LINES); // the nearest last
    if (!near.length) return isNumber(model) ? { model } : null;
    const { away, i, ...found } = Object.assign(isNumber(model) ? { model } : {}, ...near);
    found.rows = near.sort((one, other) => one.i - other.i).flatMap(({ rows }) => rows);
    if (told.length > near.length) found.rows.push([null, `and ${told.length - near.length} more`, ""]);
    return found;
  }
  walk(key) { // to the next bar, cell, point or step of the uppermost mark, and say what is there
    const { view } = this, { columns, count, place } = this.stops().at(-1) ?? {}, tenth = Math.ceil(columns / 10);
    const arrows = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const step = { ...arrows, PageUp: -tenth, PageDown: tenth, Home: -count, End: count }[key];
    if (!step || !count) return false;
    this.stop = clamp((this.stop ?? -step) + step, 0, count - 1);
    const [x, y] = place(this.stop);
    view.point({ at: { card: this, x, y } }, true);
    view.parts.live.textContent = view.parts.tip.text;
    return true;
  }
  tell() { // the panel in words: what is at its stops; of a history, at the last ones
    if (!this.isNews || !this.header) return; // it is to be drawn anew, once it is seen
    this.isNews = false;
    const { title, selected, caption } = this.header;
    const { columns, count = 0, place, isHistory, noun } = this.stops().at(-1) ?? {};
    const told = range(noun ? 0 : count).filter((i) => !isHistory || i % columns === columns - 1);
    const hits = told.length > 40 ? [] : told.map((i) => this.hit(...place(i))).filter((hit) => hit?.rows);
    const words = hits.map(spoken).join("; ") || `${count} ${noun ?? "values"}`;
    set(this.canvas, { "aria-label": [title, selected && "selected", caption, words].filter(Boolean).join(". ") });
  }
}

// --- marks ---------------------------------------------------------------------------------------------------------
// draw(card, mark). stops: what can be pointed at and walked to: how many, in how many columns; place(i), in pixels;
// at(px, py): which one, -1: none; tell(i): {expert, model, …, title, rows of the tip: [expert, colour or null, name,
// value]}. legend: texts and the styles of their swatches. right: the margin that it wants.

const grid = ({ box: { left, top, width, height } }, columns, rows) => {
  const [wide, high] = [width / columns, height / rows], cell = (at, count) => clamp(Math.floor(at), 0, count - 1);
  const place = (i) => [left + ((i % columns) + 0.5) * wide, top + (Math.floor(i / columns) + 0.5) * high];
  const at = (px, py) => cell((py - top) / high, rows) * columns + cell((px - left) / wide, columns);
  return { columns, count: columns * rows, place, at };
};
const points = (card, x, y, distance, most) => {
  const place = (i) => [card.x(x[i]), card.y(y[i])], count = x.length;
  const at = (px, py) => nearest(count, (i) => distance(card.x(x[i]) - px, card.y(y[i]) - py), most);
  return { columns: count, count, place, at };
};
const boxAt = ({ x: toX, y: toY }, places, i) => { // its middle, or where its text begins, and its size
  const [x, y, w, h] = places.subarray(4 * i, 4 * i + 4);
  return { px: toX(x), py: toY(y), wide: Math.abs(toX(w) - toX(0)), high: Math.abs(toY(h) - toY(0)) };
};
const arc = (radius, side) => `a${radius} ${radius} 0 1 0 ${side * 2 * radius} 0`;
const disc = (x, y, radius) => `M${x - radius} ${y}${arc(radius, 1)}${arc(radius, -1)}`;
const cross = (x, y) => `M${x - 3.2} ${y - 3.2}l6.4 6.4m0-6.4l-6.4 6.4`;
const tickText = ({ ticks }, at, other) => ticks?.find(([value]) => value === at)?.[1] ?? other;
const isTold = ({ mark, name, model, x }) => mark === "Line" && name && isNumber(model) && x.length;
const paleness = (view, model) => (isNumber(model) ? 0.2 + 0.8 * view.strength("model", model) : 1);

const MARKS = {
  Text: {}, Table: {},
  Field: {
    draw(card, { z, classes }) {
      const [rows, columns, count] = z.shape, { context, view, box, cache, across, wide } = card;
      if (rows < 2 || columns < 2 || !count) return;
      const isTraining = view.words.state === "training", scale = isTraining ? 1 : Math.min(across / wide, 2);
      const [width, height] = [box.width, box.height].map((size) => Math.round(size * scale)); // it costs by the pixel
      const colors = range(count).map((e) => view.color(e)), key = [width, height, view.paper, ...colors].join();
      if (cache.z !== z || cache.key !== key) {
        const image = Object.assign((cache.image ??= make("canvas")), { width, height });
        const whose = owners(z);
        Object.assign(cache, { z, key, middles: middlesOf(z, whose) });
        paintField(image, z, whose, colors, view, scale);
      }
      context.drawImage(cache.image, box.left, box.top, box.width, box.height);
      if (classes?.length) {
        if (cache.paper !== view.paper || cache.classes !== classes) paintClasses(cache, classes, view.paper);
        context.drawImage(cache.pale, box.left, box.top, box.width, box.height);
      }
      for (const [e, across, up] of cache.middles) {
        const look = { color: css(inkOn(colors[e])), halo: css(colors[e]), weight: 700, size: 14 };
        card.write(e, box.left + across * box.width, box.top + (1 - up) * box.height, look);
      }
    },
    stops(card, { z, classes }) {
      const tell = (_, px, py) => {
        const scores = scoresAt(card.box, z, px, py), best = Math.max(...scores);
        const parts = scores.map((score) => Math.exp(score - best)), sum = parts.reduce((a, b) => a + b, 0);
        const order = range(parts.length).sort((a, b) => parts[b] - parts[a]).slice(0, 3), [expert] = order;
        const rows = order.map((e) => [e, `E${e}`, percent(parts[e] / sum)]);
        const title = `E${expert} at ${short(card.xAt(px))}, ${short(card.yAt(py))}`;
        return { expert, title: classes?.length ? `${title}: class ${classAt(card.box, classes, px, py)}` : title, rows };
      };
      return z.length && { ...grid(card, 6, 6), tell };
    },
  },
  Cells: {
    draw(card, { z, even, most, numbers, rows: kind, selected }) {
      const [rows, columns] = z.shape, { context, view, box: { left, top, width, height } } = card;
      const ground = mix(view.ink, view.paper, 0.93), colors = range(columns).map((e) => view.color(e));
      const parts = range(columns).map((e) => 0.25 + 0.75 * view.strength("expert", e));
      const colorOf = (value, e) => isNumber(even) ? mix(view.paper, twoWays(view, { even, most }, value), parts[e])
        : mix(ground, colors[e], Math.sqrt(clamp(value, 0, 1)) * parts[e]);
      const [wide, high] = [width / columns, height / rows], gap = high > 4 ? 1 : 0;
      const hasRoom = numbers && wide > card.measure("100") + 3 && high > 12;
      const frame = (row, from, to, strokeStyle, lineWidth) => Object.assign(context, { strokeStyle, lineWidth })
        .strokeRect(left + from * wide + 0.5, top + row * high + 0.5, (to - from) * wide - 3, high - 2);
      z.forEach((value, i) => {
        const e = i % columns, row = Math.floor(i / columns), [x, y] = [left + e * wide, top + row * high];
        if (Number.isNaN(value)) return frame(row, e, e + 1, css(view.faint), 1);
        const color = colorOf(value, e), [x0, y0] = [Math.round(x), Math.round(y)];
        context.fillStyle = css(color);
        context.fillRect(x0, y0, Math.round(x + wide) - x0 - (wide > 4 ? 2 : 1), Math.round(y + high) - y0 - gap);
        if (hasRoom) card.write(Math.round(100 * value), x + wide / 2 - 1, y + high / 2, { color: css(inkOn(color)) });
      });
      for (const [row, color] of [[selected, view.look.red], [view.pointed[kind], css(view.ink)]])
        if (row >= 0 && row < rows) frame(row, 0, columns, color, 2);
    },
    stops(card, { z, z: { shape: [rows, columns] }, rows: kind, even, numbers }) {
      const tell = (i) => {
        const expert = i % columns, row = Math.floor(i / columns), isTimes = isNumber(even) && !numbers;
        const name = isTimes ? "load" : numbers ? "share of its tokens" : "router probability";
        const found = [[expert, `E${expert}, ${name}`, isTimes ? `${short(z[i])} × the even share` : percent(z[i])]];
        if (numbers) found.push([null, "even share", percent(even)]);
        const title = kind === "group" ? tickText(card.yAxis, row, "") : `${kind[0].toUpperCase()}${kind.slice(1)} ${row}`;
        return { expert, ...(kind !== "group" && { [kind]: row }), title, rows: found };
      };
      return { ...grid(card, columns, rows), tell };
    },
  },
  Bars: {
    legend: ({ ink }, { second, second_name: name }) =>
      second && name ? [[name, { background: css(ink), height: "3px" }]] : [],
    draw(card, { y, limit = Infinity, second }) {
      const { context, view, box, wide } = card, half = 0.38 * Math.abs(card.x(1) - card.x(0));
      const hot = view.fades.expert.to, [paper, ink] = [view.paper, view.ink].map((color) => css(color));
      y.forEach((value, i) => {
        const left = card.x(i) - half, [top, cut, ground] = [value, Math.min(value, limit), 0].map(card.y);
        for (const [from, to, alpha] of [[cut, ground, 1], [top, cut, 0.4]]) {
          const bar = new Path2D(`M${left} ${from}h${2 * half}V${to}h${-2 * half}z`);
          context.globalAlpha = alpha;
          card.fillExpert(bar, i);
        }
        context.globalAlpha = 1;
        const tick = second && new Path2D(`M${left} ${Math.round(card.y(second[i]))}h${2 * half}`), lineCap = "butt";
        for (const [color, width] of tick ? [[paper, 5], [ink, 3]] : []) card.stroke(tick, { color, width, lineCap });
        if (hot !== i) return;
        const text = said(card.yAxis, value), need = card.measure(text) / 2 + 2;
        const over = second ? Math.min(top, card.y(second[i]) - 2) : top; // above the tick too
        const place = [clamp(left + half, box.left + need, wide - need), Math.max(over - 8, 7)];
        card.write(text, ...place, { halo: paper, weight: 700 });
      });
    },
    stops(card, { y, second, second_name: name }) {
      const { yAxis, header } = card, tell = (i) => {
        const rows = [[i, yAxis.label || header.title, said(yAxis, y[i])]];
        if (second) rows.push([null, name || "other reading", said(yAxis, second[i])]);
        return { expert: i, title: `E${i}`, rows };
      };
      return { ...points(card, range(y.length), y, Math.abs), tell };
    },
  },
  Stack: {
    right: (_, { second }) => (second ? 26 : 0),
    draw(card, { x, y, second }) {
      const [, count] = y.shape, { view, box } = card, right = box.left + box.width;
      const bands = (x, part) => {
        let low = x.map(() => 0);
        for (let e = 0; e < count; e++) {
          const high = low.map((sum, i) => sum + part(i, e));
          card.fillExpert(card.between(x, low, high), e);
          if (e < count - 1) card.stroke(card.path(x, high), { color: css(view.paper), width: 0.8 });
          low = high;
        }
      };
      if (x.length === 1) bands([card.x(x[0]) - 2, card.x(x[0]) + 2].map(card.xAt), (_, e) => y[e]);
      else bands([...x], (i, e) => y[i * count + e]);
      if (second) bands([right + 7, right + 21].map(card.xAt), (_, e) => second[e]);
    },
    stops(card, { x, y, y: { shape: [, count] } }) { // a row for each expert, the last one on top
      const steps = x.length, { label, link } = card.xAxis, share = card.yAxis.label || "share of assignments";
      const of = (i) => [i % steps, count - 1 - Math.floor(i / steps)];
      const under = (step, e) => y.subarray(step * count, step * count + e).reduce((a, b) => a + b, 0);
      const place = (i, [step, e] = of(i)) => [card.x(x[step]), card.y((under(step, e) + under(step, e + 1)) / 2)];
      const at = (px, py) => {
        const step = nearest(steps, (i) => Math.abs(card.x(x[i]) - px)), up = card.yAt(py);
        return Math.min(range(count).filter((e) => under(step, e) > up).length, count - 1) * steps + step;
      };
      const row = (step, expert) => [expert, `E${expert}, ${share}`, percent(y[step * count + expert])];
      const title = (step) => `${label || link} ${short(x[step])}`, tell = (i, px, py, [step, expert] = of(i)) =>
        ({ expert, title: title(step), rows: [row(step, expert)], link, value: x[step] });
      return { columns: steps, count: steps * count, isHistory: true, place, at, tell };
    },
  },
  Line: {
    legend: (view, { name, ink, strong }) => (name ? [[name, swatch(lineLook(view, ink, strong))]] : []),
    right: (card, line) => (card.header.legend.length && isTold(line) ? 14 + 1.1 * card.measure(line.name) : 0),
    draw(card, { x, y, ink, strong, model, low, high }) {
      const path = card.path(x, y);
      if (low) card.fill(card.between(x, low, high), css(inkOf(card.view, ink), 0.2));
      if (x.length === 1) path.arc(card.x(x[0]), card.y(y[0]), 1, 0, 7);
      card.context.globalAlpha = paleness(card.view, model);
      card.stroke(path, lineLook(card.view, ink, strong));
    },
    stops(card, { x, y, name, ink, model }) {
      const { xAxis, xAxis: { label, link }, yAxis, header, view } = card, tell = (i, px, py) => {
        const rows = [[lineLook(view, ink).color, name || yAxis.label || header.title, said(yAxis, y[i])]];
        const title = `${label} ${tickText(xAxis, x[i], short(x[i]))}`.trim(), away = Math.abs(card.y(y[i]) - py);
        return { title, rows, link, value: x[i], away, ...(isNumber(model) && away < 8 && { model }) };
      };
      return { ...points(card, x, y, Math.abs), isHistory: true, tell };
    },
  },
  Points: {
    draw(card, { x, y, look, expert, tokens, selected }) {
      const { context, view } = card, size = tokens ? 4 : 2.4, paths = {}; // one for each look
      for (let i = 0; i < x.length; i++) {
        const kind = look?.[i] ?? 0, part = expert ? view.strength("expert", expert[i]) : 1, key = `${kind} ${part}`;
        const [px, py] = [card.x(x[i]), card.y(y[i])];
        paths[key] = (paths[key] ?? "") + (kind ? cross(px, py) : disc(px, py, size));
      }
      for (const [key, text] of Object.entries(paths)) {
        const [kind, part] = key.split(" ").map(Number), path = new Path2D(text);
        context.globalAlpha = 0.25 + 0.75 * part;
        if (kind) card.stroke(path, { color: "#fff", width: 4.6 });
        else card.fill(path, "#fff");
        card.stroke(path, { color: kind === 2 ? "#d00000" : "#000", width: kind ? 2.4 : 1 });
      }
      context.globalAlpha = 1;
      for (const [i, color] of tokens ? [[selected, view.look.red], [view.pointed.token, "#000"]] : [])
        for (const look of i < x.length ? [{ color: "#fff", width: 5 }, { color, width: 2.6 }] : [])
          card.stroke(new Path2D(disc(card.x(x[i]), card.y(y[i]), 8.5)), look);
    },
    stops(card, { x, y, look, tokens, named }) {
      const tell = (token, px, py, name = named[look?.[token] ? 1 : 0]) =>
        ({ token, title: `Token ${token}`, rows: name ? [[null, name, ""]] : [] });
      return tokens && { ...points(card, x, y, Math.hypot, 12), noun: "tokens", tell };
    },
  },
  Spots: {
    draw(card, { x, y, ink, names }) {
      const { context, view } = card, hot = view.fades.model.to, count = names.length;
      for (let i = 0; i < count; i++) {
        const { color } = lineLook(view, ink[i]), width = i === hot ? 2.4 : 1.6;
        const [[px, left, right], [py, bottom, top]] = [[x, card.x], [y, card.y]].map(([ends, place]) =>
          [ends[i], ends[i + count], ends[i + 2 * count]].map(place)), spot = new Path2D(disc(px, py, 2.5 * width));
        context.globalAlpha = paleness(view, i);
        card.stroke(new Path2D(`M${left} ${py}H${right}M${px} ${top}V${bottom}`), { color, width });
        card.fill(spot, color);
        card.stroke(spot, { color: css(view.paper), width: 1.2 });
      }
      context.globalAlpha = 1;
    },
    stops(card, { x, y, ink, names }) {
      const { xAxis, view } = card, across = (i) => [lineLook(view, ink[i]).color, xAxis.label, said(xAxis, x[i])];
      const tell = (model) => ({ model, title: names[model], rows: [across(model)] });
      return { ...points(card, x.subarray(0, names.length), y, Math.hypot, 16), tell };
    },
  },
  Parts: {
    legend: (_, { names, colors }) =>
      names.length < 2 ? [] : names.map((name, i) => [name, { background: colors[i], height: "10px", width: "10px" }]),
    right: (card, { texts }) => 14 + Math.max(0, ...texts.map((text) => card.measure(text) + 4)),
    draw(card, { rows, names, values, colors, texts }) {
      const { context } = card, high = Math.min(0.68 * Math.abs(card.y(1) - card.y(0)), 34);
      rows.forEach((_, row) => {
        const middle = card.y(row) + 0.5;
        let sum = 0;
        names.forEach((name, i) => {
          const left = card.x(sum), wide = card.x((sum += values[row * names.length + i] || 0)) - left;
          context.fillStyle = colors[i];
          context.fillRect(left, middle - high / 2, wide > 2 ? wide - 1 : wide, high);
          const look = { color: css(inkOn(hex(colors[i]))) };
          if (names.length > 1 && card.measure(name) < wide - 8 && high > 13) card.write(name, left + wide / 2, middle, look);
        });
        card.write(texts[row] ?? "", card.x(sum) + 6, middle, { align: "left" });
      });
    },
    stops({ box: { left }, xAxis, y, yAt }, { rows, names, values, colors, texts }) {
      const at = (px, py) => clamp(Math.round(yAt(py)), 0, rows.length - 1), tell = (row) => {
        const say = (value) => (xAxis.label ? `${said(xAxis, value)} ${xAxis.label}` : said(xAxis, value));
        const found = names.map((name, i) => [colors[i], name, say(values[row * names.length + i])]);
        return { title: rows[row], rows: texts[row] ? [...found, [null, "in all", texts[row]]] : found };
      };
      return { columns: 1, count: rows.length, place: (row) => [left + 8, y(row)], at, tell };
    },
  },
  Rule: {
    legend: (view, { name, kind }) => (name ? [[name, swatch(ruleLook(view, kind))]] : []),
    draw: (card, { x, y, kind }) => card.rule(isNumber(x) ? card.x(x) : null, card.y(y), ruleLook(card.view, kind)),
  },
  Boxes: {
    draw(card, { places, look, texts, expert, token, selected, strong }) {
      const { view } = card, { ink, paper, quiet } = view;
      texts.forEach((text, i) => {
        const kind = look[i], { px, py, wide, high } = boxAt(card, places, i), room = wide ? wide - 2 : Infinity;
        const box = new Path2D(`M${px - wide / 2} ${py - high / 2}h${wide}v${high}h${-wide}z`);
        const fill = kind > 3 ? inkOf(view, kind - 4) : kind === 3 ? view.color(expert[i]) : mix(paper, ink, 0.1);
        if (kind === 3) card.fillExpert(box, expert[i]);
        else if (kind > 1) card.fill(box, css(fill));
        else if (kind) card.stroke(box, { color: css(mix(paper, ink, 0.4)), width: 1 });
        for (const [which, color] of text ? [[selected, view.look.red], [view.pointed.token, css(ink)]] : [])
          if (token[i] === which) card.stroke(box, { color, width: 2 });
        const color = css(kind < 2 ? ink : kind === 2 ? quiet : inkOn(fill)), halo = kind === 3 && css(fill);
        const letters = { color, halo, weight: strong ? 600 : 400, align: wide ? "center" : "left" };
        if (room > 24 || card.measure(text) < room) card.write(card.shorten(text, room), px, py, letters);
      });
    },
    stops(card, { places, texts, expert, token, says }) {
      const parts = range(texts.length).filter((i) => expert[i] >= 0 || token[i] >= 0)
        .map((i) => ({ ...boxAt(card, places, i), whose: [expert[i], token[i]].map((n) => (n < 0 ? undefined : n)), i }));
      const isIn = (x, y) => ({ px, py, wide, high }) => 2 * Math.abs(x - px) < wide && 2 * Math.abs(y - py) < high;
      const at = (px, py) => parts.findIndex(isIn(px, py)), place = (i) => [parts[i].px, parts[i].py];
      const tell = (part, x, y, { i, whose: [expert, token] } = parts[part]) => token === undefined
        ? { expert, title: `E${expert}`, rows: [[expert, says[i], texts[i]]] }
        : { expert, token, title: `Token ${token}`, rows: [[expert ?? null, says[i], ""]] };
      return { columns: parts.length, count: parts.length, noun: "boxes", place, at, tell };
    },
  },
  Arrows: {
    draw(card, { ends, expert, token, selected }) {
      const { view } = card, isStrong = (i) => token[i] < 0 || token[i] === (view.pointed.token ?? selected);
      for (const i of range(token.length).sort((one, other) => isStrong(one) - isStrong(other))) {
        const [left, right] = [ends[4 * i], ends[4 * i + 2]].map(card.x);
        const [top, low] = [ends[4 * i + 1], ends[4 * i + 3]].map(card.y);
        const angle = Math.atan2(low - top, right - left), [dx, dy] = [Math.cos(angle), Math.sin(angle)];
        const color = css(expert[i] < 0 ? view.ink : view.color(expert[i]), isStrong(i) ? 1 : 0.4);
        const width = isStrong(i) ? 1.8 : 0.8, line = new Path2D(`M${left} ${top}L${right - 5 * dx} ${low - 5 * dy}`);
        card.stroke(line, { color, width, lineCap: "butt" });
        const head = new Path2D(`M${right} ${low}l${-7 * dx - 3 * dy} ${3 * dx - 7 * dy}l${6 * dy} ${-6 * dx}z`);
        if (isStrong(i)) card.fill(head, color);
      }
    },
  },
  Lamps: {
    draw(card, { lit, columns, ink }) {
      const { context, view, box: { left, top, width, height } } = card, rows = Math.ceil(lit.length / columns);
      const [wide, high] = [width / columns, height / rows], gap = Math.min(wide, high) > 3.5 ? 1 : 0.5;
      const place = (i) => [left + (i % columns) * wide, top + Math.floor(i / columns) * high];
      for (const [state, color] of [[0, mix(view.paper, view.ink, 0.1)], [1, inkOf(view, ink)]]) {
        context.fillStyle = css(color);
        lit.forEach((value, i) => value === state && context.fillRect(...place(i), wide - gap, high - gap));
      }
      const { token } = view.pointed, [x, y] = place(token), [w, h] = [wide + 3, high + 3];
      const frame = new Path2D(`M${x - 2} ${y - 2}h${w}v${h}h${-w}z`);
      if (token < lit.length) card.stroke(frame, { color: view.look.red, width: 2 });
    },
    stops(card, { lit, columns, letters, says }) {
      const cells = grid(card, columns, Math.ceil(lit.length / columns)), length = letters?.shape[1];
      const text = (i) => String.fromCharCode(...letters.subarray(i * length, (i + 1) * length));
      const at = (px, py, i = cells.at(px, py)) => (i < lit.length ? i : -1);
      const tell = (token) => {
        const title = letters ? text(token) : `Lamp ${token}`, rows = [[null, says[lit[token]], ""]];
        return { token, title, rows };
      };
      return { ...cells, count: lit.length, noun: "lamps", at, tell };
    },
  },
};

// --- the field: one colour for each place, with exact borders ------------------------------------------------------

// The scores at a place in pixels, between the points of the grid.
function scoresAt({ left, top, width, height }, z, px, py) {
  const [rows, columns, count] = z.shape, between = (a, b, part) => a + part * (b - a);
  const u = clamp((px - left) / width, 0, 1) * (columns - 1), v = clamp(1 - (py - top) / height, 0, 1) * (rows - 1);
  const c = Math.min(Math.floor(u), columns - 2), r = Math.min(Math.floor(v), rows - 2);
  const at = (r * columns + c) * count, row = (from, e) => between(z[from + e], z[from + count + e], u - c);
  return range(count).map((e) => between(row(at, e), row(at + columns * count, e), v - r));
}
// Whose each point of the grid is.
const owners = (z, [rows, columns, count] = z.shape) => Uint8Array.from({ length: rows * columns }, (_, i) => {
  let best = 0;
  for (let e = 1; e < count; e++) if (z[i * count + e] > z[i * count + best]) best = e;
  return best;
});

// Each pixel asks who is the first there and by how much: where the second is nearer than half a border's width, there
// is the border. Scores are bilinear in each cell of the grid, so who is the first at all corners is it all over the
// cell; there, and where the points around say the same, no pixel need ask.
function paintField(image, z, whose, colors, { paper, palette }, scale) {
  const { width, height } = image, [rows, columns, count] = z.shape, size = columns * count;
  if (image.pixels?.width !== width || image.pixels.height !== height) image.pixels = new ImageData(width, height);
  const out = new Uint32Array(image.pixels.data.buffer), ground = packed(paper);
  const hatches = colors.map((_, e) => hatchOf(e)), inks = colors.map((_, e) => tile(1, palette[e % 8]).ink);
  const flat = [colors, colors.map((color, e) => mix(color, ...inks[e]))].map((shades) => shades.map(packed));
  const wide = width / (columns - 1), tall = height / (rows - 1), [scores, rise] = [0, 1].map(() => new Float64Array(size));
  const ownerAt = (r, c) => whose[clamp(r, 0, rows - 1) * columns + clamp(c, 0, columns - 1)], near = [-1, 0, 1, 2];
  const isOwn = (owner, r, c) => near.every((i) => near.every((j) => ownerAt(r + i, c + j) === owner));
  const isWhole = Array.from(whose, (owner, i) => isOwn(owner, Math.floor(i / columns), i % columns));
  for (let y = 0; y < height; y++) {
    const v = (height - 0.5 - y) / tall, r = Math.floor(v);
    for (let i = 0, at = r * size; i < size; i++, at++) { // along this row of pixels, at the columns of the grid
      rise[i] = z[at + size] - z[at];
      scores[i] = z[at] + (v - r) * rise[i];
    }
    for (let x = 0; x < width; x++) {
      const u = (x + 0.5) / wide, c = Math.floor(u), at = c * count, up = at + count;
      let one = whose[r * columns + c], other = one, best = -Infinity, next = -Infinity, cover = 0;
      if (!isWhole[r * columns + c]) {
        for (let e = 0; e < count; e++) {
          const score = scores[at + e] + (u - c) * (scores[up + e] - scores[at + e]);
          if (score > best) (next = best), (other = one), (best = score), (one = e);
          else if (score > next) (next = score), (other = e);
        }
        const slope = (scores[up + one] - scores[up + other] - scores[at + one] + scores[at + other]) / wide;
        const steep = Math.hypot(slope, (rise[at + one] - rise[at + other]) / tall); // how fast the two part, per pixel
        cover = clamp(0.75 * scale + 0.5 - (best - next) / (steep + 1e-12), 0, 1);
      }
      const shade = hatches[one] && isHatched(hatches[one], x / scale, y / scale) ? 1 : 0;
      out[y * width + x] = cover ? blended(flat[shade][one], ground, cover) : flat[shade][one];
    }
  }
  image.getContext("2d").putImageData(image.pixels, 0, 0);
}
function blended(one, other, part) { // packed colours, without an array for each pixel
  const channel = (at) => Math.round(((one >> at) & 255) * (1 - part) + ((other >> at) & 255) * part) << at;
  return ((255 << 24) | channel(0) | channel(8) | channel(16)) >>> 0;
}

// The classes as shades of the page's own colour: neighbours in number, and those three apart, differ clearly.
function paintClasses(cache, classes, paper) {
  const [rows, columns] = classes.shape, pixels = new ImageData(columns, rows);
  const shades = range(8).map((c) => packed(paper) & 0xffffff | (13 * ((c % 2) * 4 + (c >> 1)) << 24));
  const out = new Uint32Array(pixels.data.buffer), pale = Object.assign(make("canvas"), { width: columns, height: rows });
  classes.forEach((c, i) => (out[(rows - 1 - Math.floor(i / columns)) * columns + (i % columns)] = shades[c % 8]));
  pale.getContext("2d").putImageData(pixels, 0, 0);
  Object.assign(cache, { pale, classes, paper });
}
function classAt({ left, top, width, height }, classes, px, py) {
  const [rows, columns] = classes.shape, at = (part, count) => Math.round(clamp(part, 0, 1) * (count - 1));
  return classes[at(1 - (py - top) / height, rows) * columns + at((px - left) / width, columns)];
}

// For each expert with a territory that point of it which is nearest to its middle, in parts of the width and height.
function middlesOf({ shape: [rows, columns, count] }, whose) {
  const part = (at, count) => clamp(at / (count - 1), 0.04, 0.96);
  return range(count).flatMap((e) => {
    const own = [...whose.keys()].filter((i) => whose[i] === e).map((i) => [i % columns, Math.floor(i / columns)]);
    if (own.length < 0.004 * whose.length) return [];
    const [x, y] = [0, 1].map((axis) => own.reduce((sum, place) => sum + place[axis], 0) / own.length);
    const [column, row] = own[nearest(own.length, (i) => Math.hypot(own[i][0] - x, own[i][1] - y))];
    return [[e, part(column, columns), part(row, rows)]];
  });
}
