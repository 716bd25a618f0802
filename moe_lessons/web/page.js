// The playground as a page: controls as the table of knobs has them (manifest.json), the course's own canvas, and a
// worker that trains. The state lives in the address: #preset=collapse&top_k=1&seed=3. A document shows it by
//   <div id="moe-page"></div><script type="module" src="…/page.js"></script>
// and what stands in that element is replaced when the page can train.

import canvas from "./canvas.js";

const home = document.getElementById("moe-page") ?? document.body.appendChild(document.createElement("div"));
const calm = matchMedia("(prefers-reduced-motion: reduce)");

function make(tag, attributes = {}, ...children) { // texts become text nodes, never HTML
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const said = make("div", { class: "moe-said", role: "status" });
const say = (text) => (said.textContent === text ? null : (said.textContent = text));

// --- what can be set ----------------------------------------------------------------------------------------------

class Settings {
  constructor(manifest) {
    Object.assign(this, manifest, { names: Object.values(manifest.groups).flat() });
    this.live = new Set(this.names.filter((name) => this.knobs.includes(name)));
    [this.structure, , this.look] = Object.values(manifest.groups);
  }
  // What a control has to choose from, as [text, value]; null where it slides.
  stops(name, values) {
    const { names, stops } = this.controls[name], { num_experts: E } = values;
    if (name === "mute") return ["none", ...Array.from({ length: E }, (_, e) => `E${e}`)].map((text) => [text, text]);
    if (names) return names.map((text) => [text, text]);
    return name === "top_k" ? stops.filter(([, k]) => k === E || (k < E && k <= 4)) : stops ?? null;
  }
  preset(name) {
    const { values } = this.presets[name], own = this.names.filter((each) => each in values);
    const look = { seed: 0, token: 0, mute: "none", x_axis: "steps" };
    return { ...look, ...Object.fromEntries(own.map((each) => [each, values[each]])), preset: name };
  }
  // The values that stand in an address, or an error whose message is a sentence for whoever has opened it.
  parse(address) {
    const given = new URLSearchParams(address.replace(/^#/, "")), name = given.get("preset") ?? "healthy";
    const all = Object.keys(this.presets), fail = (what) => { throw new Error(`The address cannot be read: ${what}.`); };
    if (!all.includes(name)) fail(`preset must be one of ${all.join(", ")}, got ${name}`);
    if (this.presets[name].off) fail(`the preset ${name} is ${this.presets[name].off}`);
    const values = this.preset(name), order = [...this.names].sort((one, other) => (other === "num_experts") - (one === "num_experts"));
    for (const key of given.keys()) if (key !== "preset" && !this.names.includes(key)) fail(`there is no control ${key}`);
    for (const key of order) {
      const stops = this.stops(key, values), texts = stops?.map(([, value]) => String(value));
      const text = given.get(key) ?? String(values[key]), value = typeof values[key] === "number" ? Number(text) : text;
      const isNumber = this.live.has(key) && text.trim() !== "" && value >= 0 && value <= 1e30 && (key !== "lr" || value > 0);
      const isGood = isNumber && (key !== "jitter_noise" || value <= 1);
      if (this.live.has(key) && !isGood) fail(`${key} must be a number of at least 0, got ${text}`);
      if (!this.live.has(key) && !texts.includes(text)) fail(`${key} must be one of ${texts.join(", ")}, got ${text}`);
      values[key] = value;
    }
    return this.check(values);
  }
  address(values) {
    const usual = this.preset(values.preset), moved = this.names.filter((name) => values[name] !== usual[name]);
    return `#${new URLSearchParams({ preset: values.preset, ...Object.fromEntries(moved.map((name) => [name, values[name]])) })}`;
  }
  // The same values, where fewer experts lower top-k and leave none muted that is gone; or an error: no such graph.
  check(values) {
    const fits = (name) => this.stops(name, values).map(([, value]) => value), all = fits("top_k");
    const checked = { ...values, top_k: all.findLast((k) => k <= values.top_k), mute: fits("mute").includes(values.mute) ? values.mute : "none" };
    const { router, num_experts: E, top_k: K, d_ff: F } = checked, name = `${router.replaceAll(" ", "-")}-${E}-${K}-${F}`;
    if (!this.graphs.includes(name)) throw new Error(`This site has no graph for router ${router}, E = ${E}, top-k = ${K}, F = ${F}: what stands is kept.`);
    return checked;
  }
  inForce(values) { return { ...values, ...Object.fromEntries([...this.live].filter((name) => name in this.idle[values.router]).map((name) => [name, 0])) }; }
  isSame(one, other, names = this.names) { return names.every((name) => one[name] === other[name]); }
}

// --- a control: a label, a slider or a list, and what it says --------------------------------------------------------

class Control {
  constructor(settings, name, moved) {
    const { label, tip, names } = settings.controls[name], id = `moe-${name}`, isList = names || name === "mute";
    Object.assign(this, { settings, name, tip, isList });
    this.input = make(isList ? "select" : "input", isList ? { id } : { id, type: "range" });
    this.output = make("output", { for: id });
    this.element = make("div", { class: "moe-control" }, make("label", { for: id }, label), this.input, ...(isList ? [] : [this.output]));
    this.input.addEventListener("input", () => moved(name, this.value));
  }
  get value() { return this.stops ? this.stops[this.isList ? this.input.selectedIndex : this.input.value][1] : Number(this.input.value); }
  show(values) {
    const { settings, name, input } = this, why = settings.idle[values.router][name], { low, high, step } = settings.controls[name];
    const value = settings.inForce(values)[name];
    this.stops = settings.stops(name, values)?.slice();
    if (this.stops && !this.stops.some(([, stop]) => stop === value)) this.stops.push([String(value), value]);
    if (this.stops && settings.live.has(name)) this.stops.sort(([, one], [, other]) => one - other);
    const at = this.stops?.findIndex(([, stop]) => stop === value);
    if (this.isList) {
      if (input.options.length !== this.stops.length) input.replaceChildren(...this.stops.map(([text]) => make("option", {}, text)));
      input.selectedIndex = at;
    } else {
      const [min, max, by] = this.stops ? [0, this.stops.length - 1, 1] : [Math.min(low, value), Math.max(high, value), step];
      Object.assign(input, { min, max, step: by });
      input.value = this.stops ? at : value; // after its ends
      this.output.textContent = this.stops ? this.stops[at][0] : value ? String(+value.toPrecision(3)) : "off";
      input.setAttribute("aria-valuetext", this.output.textContent);
    }
    input.disabled = Boolean(why);
    this.element.title = why ? `${this.tip}. Off: ${why}` : this.tip;
    input.setAttribute("aria-description", this.element.title);
  }
}

// --- the page -----------------------------------------------------------------------------------------------------

class Page {
  constructor(settings) {
    Object.assign(this, { settings, isPlaying: false, hear: () => {} });
    const button = (text, tip, action) => {
      const made = make("button", { type: "button", title: tip }, text);
      made.addEventListener("click", action);
      return made;
    };
    this.play = button("Play", "Start or pause the training", () => this.ask(this.isPlaying ? "pause" : "play"));
    this.steps = [1, 50].map((count) => button(count > 1 ? `+${count}` : "Step", `Train ${count > 1 ? `${count} steps` : "one step"}`, () => this.ask("steps", { count })));
    const reset = button("Reset", "Start afresh with the same settings", () => this.start(this.values));
    const link = button("Copy link", "The address of this state, to send to someone", () => this.copy());
    this.presets = Object.entries(settings.presets).map(([name, { tip, off }]) => {
      const made = button(name, off ? `${tip}. ${off}` : tip, () => this.choose(name));
      return Object.assign(made, { disabled: Boolean(off) });
    });
    this.controls = new Map(settings.names.map((name) => [name, new Control(settings, name, (...moved) => this.move(...moved))]));
    this.off = make("div", { class: "moe-off" });
    const groups = Object.entries(settings.groups).flatMap(([title, names]) => [make("div", { class: "moe-group" }, title),
      ...names.map((name) => this.controls.get(name).element), ...(names.some((name) => settings.live.has(name)) ? [this.off] : [])]);
    const view = make("div"), bar = [make("b", {}, settings.words.title), this.play, ...this.steps, reset, link];
    const body = make("div", { class: "moe-page-body" }, view, make("div", { class: "moe-page-controls" }, ...groups));
    home.className = "moe-page";
    home.replaceChildren(make("div", { class: "moe-page-bar" }, ...bar), make("div", { class: "moe-page-bar" }, "Presets:", ...this.presets), said, body);
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.answer(data);
    this.worker.onerror = () => say("The training cannot start in this browser: it has no workers that are modules.");
    canvas.render({ el: view, model: { on: (_, hear) => (this.hear = hear), off() {}, get() {}, set() {}, send: (message) => this.told(message) } });
    this.watch();
  }
  ask(kind, more) { this.worker.postMessage({ kind, ...more }); }
  // From here on `values` are what is asked for; `standing` is what trains.
  start(values) {
    this.values = values;
    this.ask("start", { values: this.settings.inForce(values) });
    this.show();
  }
  apply(values) {
    try { values = this.settings.check(values); } catch (error) { return say(error.message), this.show(); }
    const { structure, live, inForce } = this.settings, before = this.values, isSame = (names) => this.settings.isSame(values, before, names);
    say("");
    if (!isSame(structure)) return this.start(values);
    this.values = this.standing = values;
    this.ask("turn", { values: this.settings.inForce(values), isKnob: !isSame([...live]) });
    this.show();
  }
  move(name, value) { this.apply({ ...this.values, [name]: value }); }
  choose(preset) { // 'rescued' goes on with a collapsed run, if that is here
    const { settings, values } = this, { seed, token, x_axis } = values, chosen = { ...settings.preset(preset), seed, token, x_axis };
    const isCollapsed = settings.isSame(values, { ...settings.preset("collapse"), seed, token, x_axis, mute: values.mute });
    preset === "rescued" && isCollapsed ? this.apply(chosen) : (say(""), this.start(chosen));
  }
  answer({ content, data, playing, started, refused }) {
    if (started) this.standing = this.values;
    if (refused) {
      say(`${refused} ${this.standing ? "What stands is kept: choose again, or reload the page." : "Reload the page to try again."}`);
      if (this.standing) (this.values = this.standing), this.show();
    }
    if (!content) return;
    this.hear(content, [new DataView(data)]);
    if (playing === this.isPlaying) return;
    this.isPlaying = playing;
    this.play.textContent = playing ? "Pause" : "Play";
    for (const button of this.steps) button.disabled = playing;
  }
  told({ drawn, pick, index }) { // by the canvas
    if (drawn) this.ask("drawn", { number: drawn });
    if (pick === "token") this.move("token", index);
  }
  show() {
    const { settings, values } = this, shown = settings.inForce(values);
    for (const control of this.controls.values()) control.show(values);
    const why = new Set([...settings.live].map((name) => settings.idle[values.router][name]).filter(Boolean));
    this.off.textContent = why.size ? `Off: ${[...why].join("; ")}.` : "";
    Object.keys(settings.presets).forEach((name, i) => {
      const isIt = settings.isSame(shown, settings.preset(name), settings.names.filter((each) => each in settings.presets[name].values));
      this.presets[i].setAttribute("aria-pressed", isIt);
    });
    history.replaceState(null, "", settings.address(values));
  }
  async copy() {
    try { say(`Copied: ${(await navigator.clipboard.writeText(location.href), location.href)}`); } catch { say(`The address of this state: ${location.href}`); }
  }
  watch() { // it pauses when it is not in sight; a link may be opened in it; the canvas takes the theme around it
    let isInside = true;
    const tell = () => this.ask("seen", { isSeen: isInside && !document.hidden });
    new IntersectionObserver((entries) => tell((isInside = entries.at(-1).isIntersecting))).observe(home);
    document.addEventListener("visibilitychange", tell);
    addEventListener("hashchange", () => this.open(location.hash));
    const dress = () => document.body.classList.toggle("moe-dressed"); // of this the canvas hears
    new MutationObserver(dress).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }
  open(address) {
    try { this.start(this.settings.parse(address)); say(""); } catch (error) {
      say(`${error.message} ${this.standing ? "What stands is kept." : "Here is the preset healthy."}`);
      this.values ? this.show() : this.start(this.settings.check(this.settings.preset("healthy")));
    }
  }
}

async function main() {
  for (const name of ["canvas.css", "page.css"]) {
    const link = make("link", { rel: "stylesheet", href: new URL(name, import.meta.url) });
    document.head.append(link);
    await new Promise((go) => ["load", "error"].forEach((kind) => link.addEventListener(kind, go)));
  }
  home.append(said);
  const lacking = [["WebAssembly", globalThis.WebAssembly], ["workers", globalThis.Worker], ["DecompressionStream", globalThis.DecompressionStream]].find(([, thing]) => !thing);
  if (lacking) return say(`This browser cannot train here: it has no ${lacking[0]}. The pictures show what you would see.`);
  const answer = await fetch(new URL("manifest.json", import.meta.url)).catch(() => ({ status: "no answer" }));
  if (!answer.ok) return say(`The page cannot train: manifest.json did not arrive (${answer.status}). Reload to try again.`);
  const page = new Page(new Settings(await answer.json()));
  if (!calm.matches) page.ask("play");
  page.open(location.hash);
}
main();
