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
  // What a control has to choose from, as [text, value]; undefined where it slides.
  stops(name, values) {
    const { stops } = this.controls[name], { num_experts: E } = values;
    const experts = () => Array.from({ length: E }, (_, e) => `E${e}`);
    const names = name === "mute" ? ["none", ...experts()] : this.controls[name].names;
    if (names) return names.map((text) => [text, text]);
    return name === "top_k" ? stops.filter(([, k]) => k === E || (k < E && k <= 4)) : stops;
  }
  preset(name) {
    const { values } = this.presets[name], look = { seed: 0, token: 0, mute: "none", x_axis: "steps" };
    return Object.fromEntries([...this.names.map((each) => [each, values[each] ?? look[each]]), ["preset", name]]);
  }
  // The values that stand in an address, or an error whose message is a sentence for whoever has opened it.
  parse(address) {
    const fail = (what) => { throw new Error(`The address cannot be read: ${what}.`); };
    const { preset: name = "healthy", ...given } = Object.fromEntries(new URLSearchParams(address.replace(/^#/, "")));
    if (!(name in this.presets)) fail(`preset must be one of ${Object.keys(this.presets).join(", ")}, got ${name}`);
    if (this.presets[name].off) fail(`the preset ${name} is ${this.presets[name].off}`);
    const values = this.preset(name), unknown = Object.keys(given).find((key) => !this.names.includes(key));
    if (unknown !== undefined) fail(`there is no control ${unknown}`);
    for (const key of new Set(["num_experts", ...this.names])) { // which says what the others may be
      const text = given[key] ?? String(values[key]), number = text.trim() === "" ? NaN : Number(text);
      const least = key === "lr" ? "above 0" : "of at least 0", most = key === "jitter_noise" ? 1 : 1e30;
      const texts = this.stops(key, values)?.map(([, value]) => String(value));
      if (!this.live.has(key) && !texts.includes(text)) fail(`${key} must be one of ${texts.join(", ")}, got ${text}`);
      if (this.live.has(key) && !(number >= 0 && number <= most && (number > 0 || key !== "lr")))
        fail(`${key} must be a number ${least}, got ${text}`);
      values[key] = typeof values[key] === "number" ? number : text;
    }
    return this.check(values);
  }
  address(values) {
    const usual = this.preset(values.preset), moved = this.names.filter((name) => values[name] !== usual[name]);
    return `#${new URLSearchParams([["preset", values.preset], ...moved.map((name) => [name, values[name]])])}`;
  }
  // The same values, where fewer experts lower top-k and leave none muted that is gone; or an error: no such graph.
  check(values) {
    const [counts, experts] = ["top_k", "mute"].map((name) => this.stops(name, values).map(([, value]) => value));
    const mute = experts.includes(values.mute) ? values.mute : "none";
    const top_k = Math.max(...counts.filter((k) => k <= values.top_k));
    const checked = { ...values, top_k, mute }, { router, num_experts: E, d_ff: F } = checked;
    const sizes = `E = ${E}, top-k = ${top_k}, F = ${F}`;
    if (!this.graphs.includes(this.graph(checked)))
      throw new Error(`This site has no graph for router ${router}, ${sizes}.`);
    return checked;
  }
  graph({ router, num_experts, top_k, d_ff }) { // as tools.manifest.graph_name has it
    return [router.replaceAll(" ", "-"), num_experts, top_k, d_ff].join("-");
  }
  inForce(values) {
    const off = [...this.live].filter((name) => name in this.idle[values.router]);
    return { ...values, ...Object.fromEntries(off.map((name) => [name, 0])) };
  }
  isSame(one, other, names = this.names) { return names.every((name) => one[name] === other[name]); }
}

// --- a control: a label, a slider or a list, and what it says --------------------------------------------------------

class Control {
  constructor(settings, name, moved) {
    const { label, tip, names } = settings.controls[name], id = `moe-${name}`, isList = names || name === "mute";
    Object.assign(this, { settings, name, tip, isList });
    this.input = make(isList ? "select" : "input", isList ? { id } : { id, type: "range" });
    this.output = make("output", { for: id });
    const parts = [make("label", { for: id }, label), this.input, ...(isList ? [] : [this.output])];
    this.element = make("div", { class: "moe-control" }, ...parts);
    this.input.addEventListener("input", () => moved(name, this.value));
  }
  get value() {
    const { selectedIndex, value } = this.input;
    return this.stops ? this.stops[this.isList ? selectedIndex : value][1] : Number(value);
  }
  show(values) {
    const { settings, name, input } = this, why = settings.idle[values.router][name];
    const { low, high, step } = settings.controls[name], value = settings.inForce(values)[name];
    this.stops = settings.stops(name, values)?.slice();
    if (this.stops && !this.stops.some(([, stop]) => stop === value)) this.stops.push([String(value), value]);
    if (this.stops && settings.live.has(name)) this.stops.sort(([, one], [, other]) => one - other);
    const at = this.stops?.findIndex(([, stop]) => stop === value);
    if (this.isList) {
      const options = () => this.stops.map(([text]) => make("option", {}, text));
      if (input.options.length !== this.stops.length) input.replaceChildren(...options());
      input.selectedIndex = at;
    } else {
      const ends = { min: Math.min(low, value), max: Math.max(high, value), step };
      Object.assign(input, this.stops ? { min: 0, max: this.stops.length - 1, step: 1 } : ends);
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
    const steps = (text, tip, count) => button(text, tip, () => this.ask("steps", { count }));
    this.steps = [steps("Step", "Train one step", 1), steps("+50", "Train 50 steps", 50)];
    const reset = button("Reset", "Start afresh with the same settings", () => this.start(this.values));
    const link = button("Copy link", "The address of this state, to send to someone", () => this.copy());
    this.presets = Object.entries(settings.presets).map(([name, { tip, off }]) => {
      const made = button(name, off ? `${tip}. ${off}` : tip, () => this.choose(name));
      return Object.assign(made, { disabled: Boolean(off) });
    });
    const moved = (name, value) => this.apply({ ...this.values, [name]: value });
    this.controls = settings.names.map((name) => new Control(settings, name, moved));
    this.off = make("div", { class: "moe-off" });
    const groups = Object.entries(settings.groups).flatMap(([title, names]) => [
      make("div", { class: "moe-group" }, title),
      ...this.controls.filter(({ name }) => names.includes(name)).map(({ element }) => element),
      ...(settings.live.has(names[0]) ? [this.off] : []),
    ]);
    const view = make("div"), bar = (...content) => make("div", { class: "moe-page-bar" }, ...content);
    const body = make("div", { class: "moe-page-body" }, view, make("div", { class: "moe-page-controls" }, ...groups));
    const top = bar(make("b", {}, settings.words.title), this.play, ...this.steps, reset, link);
    home.className = "moe-page";
    home.replaceChildren(top, bar("Presets:", ...this.presets), said, body);
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.answer(data);
    this.worker.onerror = () => say("The training cannot start in this browser: it has no workers that are modules.");
    const model = { on: (_, hear) => (this.hear = hear), off() {}, get() {}, set() {}, send: (it) => this.told(it) };
    canvas.render({ el: view, model });
    this.watch();
  }
  ask(kind, more) { this.worker.postMessage({ kind, ...more }); }
  // From here on `values` are what is asked for; `standing` is what trains.
  start(values) {
    this.values = values;
    this.ask("start", { values: this.settings.inForce(values), name: this.settings.graph(values) });
    this.show();
  }
  apply(values) {
    const { settings, values: before } = this, isSame = (names) => settings.isSame(values, before, names);
    try { values = settings.check(values); } catch (error) {
      say(`${error.message} What stands is kept.`);
      return this.show();
    }
    say("");
    if (!isSame(settings.structure)) return this.start(values);
    this.values = this.standing = values;
    this.ask("turn", { values: settings.inForce(values), isKnob: !isSame([...settings.live]) });
    this.show();
  }
  choose(preset) { // 'rescued' goes on with a collapsed run, if that is here
    const { seed, token, x_axis } = this.values, chosen = { ...this.settings.preset(preset), seed, token, x_axis };
    say("");
    preset === "rescued" && this.isAt("collapse") ? this.apply(chosen) : this.start(chosen);
  }
  answer({ content, data, playing, started, refused }) {
    if (started) this.standing = this.values;
    if (refused) {
      say(`${refused} ${this.standing ? "What stands is kept." : "Reload the page to try again."}`);
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
    if (pick === "token") this.apply({ ...this.values, token: index });
  }
  isAt(preset) {
    const { settings, values } = this, names = settings.names.filter((name) => name in settings.presets[preset].values);
    return settings.isSame(settings.inForce(values), settings.preset(preset), names);
  }
  show() {
    const { settings, values } = this;
    for (const control of this.controls) control.show(values);
    const why = new Set([...settings.live].map((name) => settings.idle[values.router][name]).filter(Boolean));
    this.off.textContent = why.size ? `Off: ${[...why].join("; ")}.` : "";
    Object.entries(settings.presets).forEach(([name, { off }], i) =>
      this.presets[i].setAttribute("aria-pressed", !off && this.isAt(name)));
    history.replaceState(null, "", settings.address(values));
  }
  async copy() {
    const isCopied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
    say(`${isCopied ? "Copied" : "The address of this state"}: ${location.href}`);
  }
  watch() { // it pauses when it is not in sight; a link may be opened in it; the canvas takes the theme around it
    let isInside = true;
    const tell = () => this.ask("seen", { isSeen: isInside && !document.hidden });
    new IntersectionObserver((entries) => tell((isInside = entries.at(-1).isIntersecting))).observe(home);
    document.addEventListener("visibilitychange", tell);
    addEventListener("hashchange", () => this.open(location.hash));
    const dress = () => document.body.classList.toggle("moe-dressed"); // of this the canvas hears
    const themes = { attributes: true, attributeFilter: ["data-theme"] };
    new MutationObserver(dress).observe(document.documentElement, themes);
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
  const lacking = ["WebAssembly", "Worker", "DecompressionStream"].find((name) => !(name in globalThis));
  if (lacking) return say(`This browser cannot train here: it has no ${lacking}. A picture shows what you would see.`);
  const answer = await fetch(new URL("manifest.json", import.meta.url)).catch(() => ({ status: "no answer" }));
  if (!answer.ok) return say(`manifest.json did not arrive (${answer.status}). Reload the page to try again.`);
  const page = new Page(new Settings(await answer.json()));
  if (!calm.matches) page.ask("play");
  page.open(location.hash);
}
main();
