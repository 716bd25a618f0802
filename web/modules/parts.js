// What the views of a page share: how files arrive, and elements, buttons and controls. Workers import it as well.

import { sayOn } from "./canvas/copy.js";

export const calm = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)") ?? { matches: false };
export const hasMouse = globalThis.matchMedia?.("(hover: hover)") ?? { matches: true }; // a worker has none
const SIDEWAYS = 8; // pixels that a finger goes before it moves a slider
export const KEPT = "Your previous setting stays.";
const kept = new Map(); // everything is asked for once, and again where it did not arrive
export function once(name, load) {
  if (!kept.has(name))
    kept.set(
      name,
      load().catch((error) => {
        kept.delete(name);
        throw error;
      }),
    );
  return kept.get(name);
}
async function fetched(name) {
  const answer = await fetch(new URL(name, import.meta.url)).catch(() => ({ status: "no answer" }));
  if (!answer.ok && !navigator.onLine)
    throw new Error("This browser is offline: what that needs is not here.");
  const isPage = answer.ok && answer.headers.get("content-type")?.includes("html"); // so some say that there is none
  if (!answer.ok || isPage) throw new Error(`${name} did not arrive (${isPage ? "a page" : answer.status}).`);
  return answer;
}
export const damaged = (name) => () => {
  throw new Error(`${name} is damaged.`);
};
export async function unpacked(name) {
  // unless the server has done it
  const bytes = new Uint8Array(await (await fetched(name)).arrayBuffer().catch(damaged(name)));
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer().catch(damaged(name)));
}
export const json = (name) => once(name, async () => (await fetched(name)).json().catch(damaged(name)));

// Arrays as the canvas takes them: {slot: [type, shape, values]} -> where each lies, and all of them in one buffer.
const ARRAYS = { u1: Uint8Array, i4: Int32Array, f4: Float32Array };
export function pack(arrays) {
  const slots = [];
  const parts = [];
  let size = 0;
  for (const [slot, [type, shape, values]] of Object.entries(arrays)) {
    slots.push([slot, type, shape, size]);
    parts.push([size, new Uint8Array(ARRAYS[type].from(values).buffer)]);
    size += 8 * Math.ceil(parts.at(-1)[1].length / 8);
  }
  const data = new Uint8Array(size);
  for (const [at, part] of parts) data.set(part, at);
  return { slots, data: data.buffer };
}

export const filled = (text, words) => text.replace(/\{(\w+)\}/g, (_, name) => words[name]);
export function make(tag, attributes = {}, ...children) {
  // texts become text nodes, never HTML
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
export const bar = (...content) => make("div", { class: "moe-page-bar" }, ...content);
export function button(text, tip, action) {
  const made = make("button", { type: "button", title: tip }, text);
  made.addEventListener("click", action);
  return made;
}

const BY_HAND = "Copy this by hand:";

// Where a view stands: its element, the line in which it says what went wrong, its state (in data-state, else in the
// address of the document), and whether it is in sight.
let places = 0;
export class Place {
  constructor(home) {
    Object.assign(this, {
      home,
      view: home.dataset.moe,
      isOwn: "state" in home.dataset,
      id: `moe${places++ || ""}`,
    });
    this.said = make("div", { class: "moe-said", role: "status" });
    this.say = (text) => {
      const short = text.length > 600 ? `${text.slice(0, 600)} …` : text; // an address may be long
      if (this.said.textContent !== short) this.said.textContent = short;
    };
  }
  get state() {
    return this.isOwn ? this.home.dataset.state : location.hash.slice(1);
  }
  keep(state) {
    if (this.isOwn) this.home.dataset.state = state;
    else
      try {
        history.replaceState(null, "", `#${state}`);
      } catch {
        /* too often for this browser */
      }
  }
  get address() {
    return new URL(`view.html?view=${this.view}#${this.state}`, import.meta.url).href;
  }
  get link() {
    return this.isOwn ? this.address : location.href;
  }
  get frame() {
    const address = this.address.replaceAll("&", "&amp;");
    return `<iframe src="${address}" title="moe_lessons: ${this.view}" width="100%" height="900"></iframe>`;
  }
  shares() {
    const copying = (name, tip, give) => {
      const made = button(name, tip, () => {
        const text = give();
        const copied = navigator.clipboard?.writeText(text) ?? Promise.reject(new Error("no clipboard"));
        if (this.said.textContent.startsWith(BY_HAND)) this.say(""); // what was copied before
        copied.then(
          () => sayOn(made, "Copied"),
          () => this.say(`${BY_HAND} ${text}`),
        );
      });
      return made;
    };
    return [
      copying("Copy link", "The address of what is set here", () => this.link),
      copying("Embed", "One line of HTML that shows this state in a page of yours", () => this.frame),
    ];
  }
  // Calls seen(isSeen), and opened() where a link is opened in the address.
  watch(seen, opened = () => {}) {
    let isInside = true;
    const tell = () => seen(isInside && !document.hidden);
    const most = { rootMargin: "0px 0px -25%" }; // what has just come up from below is not looked at yet
    new IntersectionObserver((entries) => tell((isInside = entries.at(-1).isIntersecting)), most).observe(
      this.home,
    );
    document.addEventListener("visibilitychange", tell);
    if (this.isOwn) return;
    addEventListener("hashchange", () => {
      opened();
      this.home.scrollIntoView();
    });
  }
}

/**
 * Show hints, one at a time, each at what it is about: it goes when it or a later one is followed, and all go when they
 * are closed.
 * @param {Element} place in which they stand
 * @param {{element: Element, text: () => string}[]} hints what is waited for, and what each says
 * @param {string} last what is said after all of them
 * @returns {(at: number) => void} goes back to one, or says anew what the one that is shown says
 */
export function guide(place, hints, last) {
  const hint = make("div", { class: "moe-hint", role: "note" });
  const close = button("×", "No more hints", () => hint.remove());
  const pointed = hasMouse.matches ? "pointerover" : "click"; // a finger that scrolls has not tapped
  let next = 0;
  const show = (at) => {
    next = at;
    const said = at === hints.length ? last : hints[at].text();
    const text = hasMouse.matches ? said : said.replace("Point at", "Tap");
    if (hint.lastChild?.data === text) return;
    hint.replaceChildren(close, text);
    place.append(hint);
  };
  hints.forEach(({ element }, at) => {
    const event = { BUTTON: "click", INPUT: "input" }[element.tagName] ?? pointed;
    const done = () => hint.isConnected && at >= next && show(at + 1);
    element.addEventListener(event, done);
    if (event === pointed) element.addEventListener("keydown", ({ key }) => /^Arrow/.test(key) && done());
  });
  show(0);
  return (at = next) => hint.isConnected && at <= next && show(at);
}

/** A label, a slider or a list of stops, and what it says. */
export class Control {
  /**
   * @param {string} id of its element
   * @param {{label: string, tip: string, is_list?: boolean, off?: number}} said as the manifest has it
   * @param {(value: number | string) => void} moved is told of each new value
   */
  constructor(id, { label, tip, is_list: isList, off }, moved) {
    Object.assign(this, { tip, isList, off });
    this.input = make(isList ? "select" : "input", isList ? { id } : { id, type: "range" });
    this.output = make("output", { for: id });
    this.why = make("div", { class: "moe-off" });
    const parts = [make("label", { for: id }, label), this.input, ...(isList ? [] : [this.output]), this.why];
    this.element = make("div", { class: "moe-control" }, ...parts);
    const move = () => moved(this.stops[isList ? this.input.selectedIndex : this.input.value][1]);
    this.input.addEventListener("input", () => this.touched || move());
    if (!isList) this.waitForFinger(move);
  }

  // A finger that scrolls the page may begin on a slider: what it moves counts once it goes sideways, or is let go.
  waitForFinger(move) {
    const { input } = this;
    input.addEventListener("pointerdown", ({ pointerType, clientX }) => {
      if (pointerType === "touch") this.touched = { value: input.value, at: clientX };
    });
    const go = () => {
      const isMoved = this.touched && this.touched.value !== input.value;
      this.touched = null;
      if (isMoved) move();
    };
    input.addEventListener("pointermove", ({ clientX }) => {
      if (this.touched && Math.abs(clientX - this.touched.at) > SIDEWAYS) go();
    });
    input.addEventListener("change", go); // when it is let go
    input.addEventListener("pointercancel", () => {
      if (this.touched) input.value = this.touched.value;
      this.touched = null;
    });
  }

  /**
   * @param {number | string} value where it stands
   * @param {[string, number | string][]} stops texts and values to choose from
   * @param {string} [why] it is off
   */
  show(value, stops, why, lacking = []) {
    const { input } = this;
    this.stops = stops.slice();
    if (!stops.some(([, stop]) => stop === value)) {
      this.stops.push([value === this.off ? "off" : String(value), value]);
      this.stops.sort(([, one], [, other]) => one - other);
    }
    const at = this.stops.findIndex(([, stop]) => stop === value);
    const texts = this.stops.map(([text]) => text);
    if (this.isList) {
      if (input.options.length !== texts.length)
        input.replaceChildren(...texts.map((text) => make("option", {}, text)));
      input.selectedIndex = at;
      [...input.options].forEach((option, i) => (option.disabled = Boolean(lacking[i]) && i !== at));
    } else {
      Object.assign(input, { min: 0, max: texts.length - 1, step: 1 });
      input.value = at; // after its ends
      this.output.textContent = texts[at];
      input.setAttribute("aria-valuetext", texts[at]);
    }
    input.disabled = Boolean(why) || stops.length < 2;
    const always = stops.length < 2 && Number(stops[0][0]) ? `Always ${stops[0][0]} with one expert.` : "";
    this.why.textContent = why ? `Off: ${why}.` : always;
    this.element.title = why ? `${this.tip}. Off: ${why}` : this.tip;
    input.setAttribute("aria-description", this.element.title);
  }
}
