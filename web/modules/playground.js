// The playground as a view of a page: controls as the table of knobs has them (manifest.json), the course's own canvas,
// and a worker that trains. The wall of facts is one, too: see wall.js.

import canvas from "./canvas/index.js";
import { Control, bar, button, guide, json, make } from "./parts.js";

export const calm = matchMedia("(prefers-reduced-motion: reduce)");

// --- what can be set ----------------------------------------------------------------------------------------------

export class Settings {
  constructor(manifest) {
    Object.assign(this, manifest, { names: Object.values(manifest.groups).flat() });
    this.live = new Set(this.names.filter((name) => this.knobs.includes(name)));
    [this.structure, , this.look] = Object.values(manifest.groups);
  }
  // What a control has to choose from, as [text, value]; undefined where it slides.
  stops(name, values) {
    const { stops, names: own } = this.controls[name] ?? {}, { num_experts: E } = values;
    const experts = () => Array.from({ length: E }, (_, e) => `E${e}`);
    const names = name === "mute" ? ["none", ...experts()] : own;
    if (names) return names.map((text) => [text, text]);
    return name === "top_k" ? stops.filter(([, k]) => k === E || (k < E && k <= 4)) : stops;
  }
  get first() { return Object.keys(this.presets)[0]; } // of the presets: what is usual
  preset(name) {
    const { values } = this.presets[name];
    const look = { seed: 0, token: 0, mute: "none", classes: "shown", x_axis: "steps" };
    return Object.fromEntries([...this.names.map((each) => [each, values[each] ?? look[each]]), ["preset", name]]);
  }
  // The values that stand in an address, or an error whose message is a sentence for whoever has opened it.
  parse(address) {
    const fail = (what) => { throw new Error(`The address cannot be read: ${what}.`); };
    const { preset: name = this.first, ...given } = Object.fromEntries(new URLSearchParams(address));
    if (!Object.hasOwn(this.presets, name))
      fail(`preset must be one of ${Object.keys(this.presets).join(", ")}, got ${name}`);
    if (this.presets[name].off) fail(`the preset ${name} is ${this.presets[name].off}`);
    const values = this.preset(name), unknown = Object.keys(given).find((key) => !this.names.includes(key));
    if (unknown !== undefined) fail(`there is no control ${unknown}`);
    for (const key of new Set(["num_experts", ...this.names])) { // which says what the others may be
      const usual = key === "top_k" ? Math.min(values[key], values.num_experts) : values[key];
      const text = given[key] ?? String(usual), number = text.trim() === "" ? NaN : Number(text);
      const least = key === "lr" ? "above 0" : "of at least 0", most = key === "jitter_noise" ? 1 : 1e30;
      const texts = this.stops(key, values)?.map(([, value]) => String(value));
      if (!this.live.has(key) && !texts.includes(text)) fail(`${key} must be one of ${texts.join(", ")}, got ${text}`);
      if (this.live.has(key) && !(number >= 0 && number <= most && (number > 0 || key !== "lr")))
        fail(`${key} must be a number ${least}${most === 1 ? " and at most 1" : ""}, got ${text}`);
      values[key] = typeof values[key] === "number" ? number : text;
    }
    return this.check(values);
  }
  address(values) {
    const usual = this.preset(values.preset), moved = this.names.filter((name) => values[name] !== usual[name]);
    const preset = Object.keys(this.presets).length > 1 ? [["preset", values.preset]] : [];
    return String(new URLSearchParams([...preset, ...moved.map((name) => [name, values[name]])]));
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
  graph({ router, num_experts, top_k, d_ff }) { // as web.manifest.graph_name has it
    return [router.replaceAll(" ", "-"), num_experts, top_k, d_ff].join("-");
  }
  why(values) { return this.idle[values.router] ?? {}; } // a control is off
  inForce(values) {
    const off = [...this.live].filter((name) => name in this.why(values));
    return { ...values, ...Object.fromEntries(off.map((name) => [name, 0])) };
  }
  isSame(one, other, names = this.names) { return names.every((name) => one[name] === other[name]); }
}

// --- the view ------------------------------------------------------------------------------------------------------

export class Playground {
  constructor(place, settings, worker = "worker.js", more = []) { // more: buttons
    Object.assign(this, { place, settings, say: place.say, isPlaying: false, hear: () => {} });
    this.play = button("Play", "Start or pause the training", () => this.ask(this.isPlaying ? "pause" : "play"));
    const steps = (text, tip, count) => button(text, tip, () => this.ask("steps", { count }));
    this.steps = [steps("Step", "Train one step", 1), steps("+50", "Train 50 steps", 50)];
    const reset = button("Reset", "Start afresh with the same settings", () => (this.say(""), this.start(this.values)));
    this.presets = Object.entries(settings.presets).map(([name, { tip, off }]) => {
      const made = button(name, off ? `${tip}. ${off}` : tip, () => this.choose(name));
      return Object.assign(made, { disabled: Boolean(off) });
    });
    const lists = (name) => Boolean(settings.controls[name].names) || name === "mute";
    const moved = (name) => (value) => this.apply({ ...this.values, [name]: value });
    const control = (name) => new Control(`${place.id}-${name}`, settings.controls[name], lists(name), moved(name));
    this.controls = Object.fromEntries(settings.names.map((name) => [name, control(name)]));
    this.off = make("div", { class: "moe-off" });
    const groups = Object.entries(settings.groups).flatMap(([title, names]) => [
      make("div", { class: "moe-group" }, title),
      ...names.map((name) => this.controls[name].element),
      ...(settings.live.has(names[0]) ? [this.off] : []),
    ]);
    const view = make("div"), body = make("div", { class: "moe-page-body" }, view);
    body.append(make("div", { class: "moe-page-controls" }, ...groups));
    const [link, embed] = place.shares(), collapse = this.presets[Object.keys(settings.presets).indexOf("collapse")];
    const top = bar(make("b", {}, settings.words.title), this.play, ...this.steps, reset, ...more, link, embed);
    const presets = this.presets.length > 1 ? [bar("Presets:", ...this.presets)] : [];
    place.home.replaceChildren(top, ...presets, place.said, body);
    if ("guide" in place.home.dataset) this.guide({ look: view, collapse, link });
    this.worker = new Worker(new URL(worker, import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.answer(data);
    this.worker.onerror = () => this.say(`${worker} did not arrive, or this browser has no workers that are modules.`);
    const model = { on: (_, hear) => (this.hear = hear), off() {}, get() {}, set() {}, send: (it) => this.told(it) };
    canvas.render({ el: view, model });
    place.watch((isSeen) => this.ask("seen", { isSeen }), () => this.open());
  }
  guide(elements) {
    guide(Object.entries(this.settings.words.hints).map(([name, text]) => {
      const element = elements[name] ?? this.controls[name].input, { tagName } = element;
      const below = element.closest(".moe-page-bar, .moe-control") ?? this.place.said;
      const event = { BUTTON: "click", INPUT: "input" }[tagName] ?? "pointerover";
      return [below, element, event, text, () => name !== "router_aux_loss_coef" || this.values[name] >= 0.1];
    }));
  }
  ask(kind, more) { this.worker.postMessage({ kind, ...more }); }
  // From here on `values` are what is asked for; `standing` is what trains.
  start(values) {
    [this.values, this.isOpening] = [values, true];
    this.ask("start", { values: this.settings.inForce(values), name: this.settings.graph(values) });
    this.show();
  }
  apply(values) {
    const { settings, values: before } = this, isSame = (names) => settings.isSame(values, before, names);
    try { values = settings.check(values); } catch (error) {
      this.say(`${error.message} What stands is kept.`);
      return this.show();
    }
    this.say("");
    if (!isSame(settings.structure)) return this.start(values);
    this.values = values;
    if (!this.isOpening) this.standing = values;
    this.ask("turn", { values: settings.inForce(values), isKnob: !isSame([...settings.live]) });
    this.show();
  }
  choose(preset) { // 'rescued' goes on with a collapsed run, if that is here
    const { seed, token, classes, x_axis } = this.values, kept = { seed, token, classes, x_axis };
    const chosen = { ...this.settings.preset(preset), ...kept };
    this.say("");
    preset === "rescued" && this.isAt("collapse") ? this.apply(chosen) : this.start(chosen);
  }
  answer({ content, data, playing, started, refused }) {
    if (started || refused) this.isOpening = false;
    if (started) this.standing = this.values;
    if (refused) {
      this.say(`${refused} ${this.standing ? "What stands is kept." : "Reload the page to try again."}`);
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
    if (pick === "token" && "token" in this.controls) this.apply({ ...this.values, token: index });
  }
  isAt(preset) {
    const { settings, values } = this, names = settings.names.filter((name) => name in settings.presets[preset].values);
    return settings.isSame(settings.inForce(values), settings.preset(preset), names);
  }
  show() {
    const { settings, values } = this;
    const inForce = settings.inForce(values), why = settings.why(values);
    for (const [name, control] of Object.entries(this.controls))
      control.show(inForce[name], settings.stops(name, values), why[name]);
    const off = new Set([...settings.live].map((name) => why[name]).filter(Boolean));
    this.off.textContent = off.size ? `Off: ${[...off].join("; ")}.` : "";
    Object.entries(settings.presets).forEach(([name, { off }], i) =>
      this.presets[i].setAttribute("aria-pressed", !off && this.isAt(name)));
    this.place.keep(settings.address(values));
  }
  open() {
    try { this.start(this.settings.parse(this.place.state)), this.say(""); } catch (error) {
      const { settings, standing, values } = this, { first } = settings;
      this.say(`${error.message} ${standing ? "What stands is kept." : `Here is the preset ${first}.`}`);
      values ? this.show() : this.start(settings.check(settings.preset(first)));
    }
  }
}

export default async function show(place) {
  const view = new Playground(place, new Settings(await json("manifest.json")));
  if (!calm.matches) view.ask("play");
  view.open();
}
