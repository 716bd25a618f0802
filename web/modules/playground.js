// The playground as a view of a page: controls as the table of knobs has them (manifest.json), the course's own canvas,
// and a worker that trains. The wall of facts is one, too: see wall.js.

import canvas from "./canvas/index.js";
import { copyOrSave } from "./canvas/copy.js";
import { Control, bar, button, guide, json, make } from "./parts.js";
import { Settings } from "./settings.js";

export const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Playground {
  /**
   * @param {import("./parts.js").Place} place
   * @param {Settings} settings
   * @param {string} worker the module that trains
   * @param {HTMLElement[]} more buttons
   */
  constructor(place, settings, worker = "worker.js", more = []) {
    Object.assign(this, { place, settings, say: place.say, isPlaying: false, hear: () => {} });
    this.play = button("Play", "Start or pause the training", () =>
      this.ask(this.isPlaying ? "pause" : "play"),
    );
    const steps = (text, tip, count) => button(text, tip, () => this.ask("steps", { count }));
    this.steps = [steps("Step", "Train one step", 1), steps("+50", "Train 50 steps", 50)];
    const reset = button("Reset", "Start afresh with the same settings", () => {
      this.say("");
      this.start(this.values);
    });
    this.presets = Object.entries(settings.presets).map(([name, { tip, off }]) => {
      const made = button(name, off ? `${tip}. ${off}` : tip, () => this.choose(name));
      return Object.assign(made, { disabled: Boolean(off) });
    });
    const moved = (name) => (value) => this.apply({ ...this.values, [name]: value });
    const control = (name) => new Control(`${place.id}-${name}`, settings.controls[name], moved(name));
    this.controls = Object.fromEntries(settings.names.map((name) => [name, control(name)]));
    this.off = make("div", { class: "moe-off" });
    const groups = Object.entries(settings.groups).flatMap(([title, names]) => [
      make("div", { class: "moe-group" }, title),
      ...names.map((name) => this.controls[name].element),
      ...(settings.live.includes(names[0]) ? [this.off] : []),
    ]);
    const view = make("div");
    const body = make("div", { class: "moe-page-body" }, view);
    body.append(make("div", { class: "moe-page-controls" }, ...groups));
    const [link, embed] = place.shares();
    const collapse = this.presets[Object.keys(settings.presets).indexOf("collapse")];
    const top = bar(
      make("b", {}, settings.words.title),
      this.play,
      ...this.steps,
      reset,
      ...more,
      link,
      embed,
    );
    const presets = this.presets.length > 1 ? [bar("Presets:", ...this.presets)] : [];
    place.home.replaceChildren(top, ...presets, place.said, body);
    if ("guide" in place.home.dataset) this.guide({ view, collapse, link });
    this.worker = new Worker(new URL(worker, import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.answer(data);
    this.worker.onerror = () =>
      this.say(`${worker} did not arrive, or this browser has no workers that are modules.`);
    const model = {
      on: (_, hear) => (this.hear = hear),
      off() {},
      get() {},
      set() {},
      send: (it) => this.told(it),
    };
    canvas.render({ el: view, model });
    place.watch(
      (isSeen) => this.ask("seen", { isSeen }),
      () => this.open(),
    );
  }
  guide(elements) {
    guide(
      Object.entries(this.settings.words.hints).map(([name, text]) => {
        const element = elements[name] ?? this.controls[name].input;
        const { tagName } = element;
        const below = element.closest(".moe-page-bar, .moe-control") ?? this.place.said;
        const event = { BUTTON: "click", INPUT: "input" }[tagName] ?? "pointerover";
        const isEnough = () => name !== "router_aux_loss_coef" || this.values[name] >= 0.1;
        return { below, element, event, text, isEnough };
      }),
    );
  }
  ask(kind, more) {
    this.worker.postMessage({ kind, ...more });
  }
  /** Start a training: from here on `values` are what is asked for; `standing` is what trains. */
  start(values) {
    this.values = values;
    this.isOpening = true;
    this.ask("start", { values: this.settings.inForce(values), name: this.settings.graph(values) });
    this.show();
  }
  /** Apply what a control asks for, or say why not. */
  apply(asked) {
    const { settings, values: before } = this;
    let values;
    try {
      values = settings.check(asked);
    } catch (error) {
      this.say(`${error.message} What stands is kept.`);
      this.show();
      return;
    }
    this.say("");
    if (!settings.isSame(values, before, settings.afresh)) {
      this.start(values);
      return;
    }
    this.values = values;
    if (!this.isOpening) this.standing = values;
    const isKnob = !settings.isSame(values, before, settings.live);
    this.ask("turn", { values: settings.inForce(values), isKnob });
    this.show();
  }
  /** Set all that a preset sets; 'rescued' goes on with a collapsed run, if that is here. */
  choose(preset) {
    const kept = this.settings.kept.map((name) => [name, this.values[name]]);
    const chosen = this.settings.fitted({ ...this.settings.preset(preset), ...Object.fromEntries(kept) });
    this.say("");
    if (preset === "rescued" && this.isAt("collapse")) this.apply(chosen);
    else this.start(chosen);
  }
  answer({ content, data, playing, started, refused }) {
    if (started || refused) this.isOpening = false;
    if (started) this.standing = this.values;
    if (refused) {
      this.say(`${refused} ${this.standing ? "What stands is kept." : "Reload the page to try again."}`);
      if (this.standing) {
        this.values = this.standing;
        this.show();
      }
    }
    if (!content) return;
    this.hear(content, [new DataView(data)]);
    if (playing === this.isPlaying) return;
    this.isPlaying = playing;
    this.play.textContent = playing ? "Pause" : "Play";
    for (const each of this.steps) each.disabled = playing;
  }
  /** Hear the canvas: it has drawn a picture, or something in one was clicked. */
  told({ drawn, pick, index }) {
    if (drawn) this.ask("drawn", { number: drawn });
    if (pick === "token" && "token" in this.controls) this.apply({ ...this.values, token: index });
  }
  isAt(preset) {
    const { settings, values } = this;
    const names = settings.names.filter((name) => !settings.kept.includes(name));
    return settings.isSame(settings.inForce(values), settings.preset(preset), names);
  }
  show() {
    const { settings, values } = this;
    const inForce = settings.inForce(values);
    const why = settings.why(values);
    for (const [name, control] of Object.entries(this.controls))
      control.show(inForce[name], settings.stops(name, values), why[name]);
    const reasons = new Set(settings.live.map((name) => why[name]).filter(Boolean));
    this.off.textContent = reasons.size ? `Off: ${[...reasons].join("; ")}.` : "";
    Object.entries(settings.presets).forEach(([name, { off }], i) =>
      this.presets[i].setAttribute("aria-pressed", !off && this.isAt(name)),
    );
    this.place.keep(settings.address(values));
  }
  open() {
    try {
      this.start(this.settings.parse(this.place.state));
      this.say("");
    } catch (error) {
      const { settings, standing, values } = this;
      const { first } = settings;
      this.say(`${error.message} ${standing ? "What stands is kept." : `Here is the preset ${first}.`}`);
      if (values) this.show();
      else this.start(settings.check(settings.preset(first)));
    }
  }
}

/**
 * Show the playground.
 * @param {import("./parts.js").Place} place
 */
export default async function show(place) {
  const settings = new Settings(await json("manifest.json"));
  const copied = async () => place.say(await copyOrSave(settings.code(view.values), "moe_plane.py"));
  const copy = button("Copy as PyTorch", settings.code_of.tip, copied);
  const view = new Playground(place, settings, "worker.js", [copy]);
  if (!calm.matches) view.ask("play");
  view.open();
}
