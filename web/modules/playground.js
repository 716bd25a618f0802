// The playground as a view of a page: controls as the table of knobs has them (manifest.json), the course's own canvas,
// and a worker that trains. The wall of facts is one, too: see wall.js.

import canvas from "./canvas/index.js";
import { GIVEN, copyOrSave } from "./canvas/copy.js";
import { Control, KEPT, bar, button, calm, filled, guide, hasMouse, json, make, unpacked } from "./parts.js";
import { Settings } from "./settings.js";

const WAITS = "In force from the next step: press Play.";
const SLOWLY = 100; // steps a second, but at full speed: one sees how it learns
const MOST_NAMED = 4; // experts that a hint names
const HIDDEN = 24; // pixels of the block below which a finger does not move the page
export const LOADING = "Loading what trains.";
const EARLIER = "The picture is of an earlier training."; // where it is not of the first step

export class Playground {
  /**
   * @param {import("./parts.js").Place} place
   * @param {Settings} settings
   * @param {string} worker the module that trains
   * @param {HTMLElement[]} more buttons
   */
  constructor(place, settings, worker = "worker.js", more = []) {
    Object.assign(this, { place, settings, say: place.say, isPlaying: false, hear: () => {} });
    Object.assign(this, { dead: [], pressed: {} }); // which experts; when a button is lit, by name
    this.play = button("Play", "Start or pause the training", () =>
      this.ask(this.isPlaying ? "pause" : "play"),
    );
    const steps = (text, tip, count) => button(text, tip, () => this.ask("steps", { count }));
    this.steps = [steps("Step", "Train one step", 1), steps("+50", "Train 50 steps", 50)];
    for (const each of [this.play, ...this.steps]) each.disabled = true; // until there is what trains
    const restart = button("Restart", "Start afresh with the same settings", () => this.apply({}, true));
    const works = Object.entries(settings.presets).filter(([, { off }]) => !off);
    this.presets = works.map(([name, { label, tip }]) => [name, button(label, tip, () => this.choose(name))]);
    const moved = (name) => (value) => this.apply({ [name]: value });
    const control = (name) => new Control(`${place.id}-${name}`, settings.controls[name], moved(name));
    const shown = settings.names.filter((name) => name !== "points"); // they are drawn
    this.controls = Object.fromEntries(shown.map((name) => [name, control(name)]));
    this.past = []; // points before each that were drawn
    const { front } = settings;
    const first = front?.controls ?? settings.names;
    const elementOf = (name) => this.controls[name].element;
    const groups = Object.entries(settings.headings).map(([group, heading]) => {
      const names = settings[group].filter((name) => shown.includes(name) && name !== "pen");
      const parts = [make("div", { class: "moe-group" }, heading), ...names.map(elementOf)];
      return [make("div", {}, ...parts), names];
    });
    this.view = make("div", { class: "moe-page-view" });
    this.still = [...place.home.childNodes].filter((node) => node !== place.said);
    this.view.append(
      ...this.still,
      make("p", { class: "moe-loading" }, settings.front ? LOADING : `${LOADING} ${EARLIER}`),
    );
    const shares = place.shares();
    const presets = works.length > 1 ? ["Presets:", ...this.presets.map(([, made]) => made)] : [];
    this.buttons = front ? this.frontButtons(front) : {};
    const { More, ...breaking } = this.buttons;
    const sliders = button("Sliders", "Show the sliders, or hide them", () =>
      sliders.setAttribute("aria-expanded", this.dock.classList.toggle("moe-open")),
    ); // seen where there is little room
    const inSight = [this.play, ...Object.values(breaking), restart, sliders, ...(front ? [More] : [])];
    const rest = [...this.steps, ...more, ...shares];
    const dock = make("div", { class: "moe-dock" }, bar(make("b", {}, settings.words.title), ...inSight));
    sliders.className = "moe-sliders";
    restart.className = "moe-restart";
    this.dock = dock;
    const drawing = this.drawing(settings.words.own);
    const others = groups.map(([element]) => element);
    dock.append(...drawing, make("div", { class: "moe-page-controls" }, ...others));
    const bars = [bar(...rest), ...(presets.length ? [bar(...presets)] : [])];
    const isFirst = (name) => first.includes(name);
    const later = groups.flatMap(([element, names]) =>
      names.some(isFirst) ? names.filter((name) => !isFirst(name)).map(elementOf) : [element],
    );
    this.rest = front ? [...bars, ...drawing, ...later] : [];
    for (const element of this.rest) element.hidden = true;
    place.home.replaceChildren(dock, ...bars, place.said, this.view);
    if (front && !place.state) this.drawFirst();
    this.faster = make("div", { class: "moe-faster" });
    if ("guide" in place.home.dataset) {
      this.guide();
      place.home.append(this.faster);
    }
    this.worker = new Worker(new URL(worker, import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.answer(data);
    this.worker.onerror = () =>
      this.say("The trainer could not be loaded: reload the page, or try a newer browser.");
    if ("more" in place.home.dataset) More.click(); // a lesson shows what stands there
    place.watch(
      (isSeen) => this.ask("seen", { isSeen }),
      () => this.open(),
    );
  }
  // Buttons of the front: they break what trains, mend it, and show all that there is.
  frontButtons({ tips, collapse, rescue }) {
    const actions = {
      Healthy: () => this.choose("healthy"),
      Collapse: () => this.apply(collapse, true),
      Rescue: () => {
        this.rescued = this.dead.length > 0;
        this.apply(rescue, false, this.rescued ? tips.rescued : tips.nothing);
        this.ask("play");
      },
      More: () => {
        const isMore = this.rest[0].hidden;
        if (isMore) this.from = scrollY;
        for (const element of this.rest) element.hidden = !isMore;
        this.buttons.More.setAttribute("aria-expanded", isMore);
        this.buttons.More.textContent = isMore ? "Less" : "More";
        if (!isMore) scrollTo(0, Math.min(this.from, scrollY));
        this.ask("more", { isMore });
      },
    };
    const has = (asked) => (values) => Object.entries(asked).every(([name, value]) => values[name] === value);
    const canDie = ({ top_k: K, num_experts: E }) => K < E;
    this.pressed = {
      Healthy: () => this.isAt("healthy"),
      Collapse: (values) => has(collapse)(values) && canDie(values),
      Rescue: (values) => typeof this.rescued === "boolean" && has(rescue)(values), // no new start since
    };
    return Object.fromEntries(
      Object.entries(actions).map(([name, action]) => [name, button(name, tips[name], action)]),
    );
  }
  // What points are drawn with by hand, where they can be.
  drawing(words) {
    if (!words) return [];
    const clear = () => this.values.points && this.learn("");
    const actions = { "Undo points": () => this.undo(), "Clear points": clear };
    const buttons = Object.entries(actions).map(([name, action]) => button(name, words.tips[name], action));
    const made = bar(this.controls.pen.element, ...buttons);
    made.classList.add("moe-page-pen");
    return [made];
  }
  guide() {
    const elements = { view: this.view, ...this.buttons, top_k: this.controls.top_k.input };
    const { hints } = this.settings.words;
    const sliders = this.dock.querySelector(".moe-sliders");
    const names = Object.keys(elements).filter((name) => name in hints);
    const broken = () => {
      if (this.values.top_k === this.values.num_experts) return hints.all;
      const { num_experts: E, top_k: K } = this.settings.preset("healthy");
      const isUsual = this.values.num_experts === E && this.values.top_k === K; // as in lesson 00, which measures it
      const said = { names: listed(this.dead), hardly: isUsual ? `${hints.hardly} ` : "" };
      return this.dead.length ? filled(hints.dead, said) : hints.Rescue;
    };
    const said = {
      Collapse: () => (this.dead.length ? broken() : hints.Collapse),
      Rescue: broken,
      top_k: () => {
        if (this.dead.length && !this.rescued) return broken();
        const isFolded = sliders.offsetParent && !this.dock.classList.contains("moe-open");
        const next = isFolded ? hints.top_k.replace("move", "under “Sliders”, move") : hints.top_k;
        return `${{ true: hints.rescued, false: hints.nothing }[this.rescued] ?? ""} ${next}`.trim();
      },
    };
    const isBalanced = () => this.values.router_aux_loss_coef > 0 && !this.rescued;
    const ended = () => (this.dead.length ? broken() : hints[isBalanced() ? "ended" : "ended later"]);
    this.hint = guide(
      this.place.home,
      names.map((name) => ({
        element: elements[name],
        text: () => (this.ended ? ended() : (said[name]?.() ?? hints[name])),
      })),
      hints.last,
    );
    this.buttons.Healthy.addEventListener("click", () => this.hint(names.indexOf("Collapse")));
  }
  /** Draw the models before their first step, until the worker has them: see `first_picture` in web/manifest.py. */
  async drawFirst() {
    const bytes = await unpacked("first.z").catch(() => null);
    if (!bytes || !this.still) return;
    const end = bytes.indexOf(10);
    this.draw(JSON.parse(new TextDecoder().decode(bytes.subarray(0, end))), bytes.slice(end + 1).buffer);
  }
  /** Draw in the place of the still picture, from the first one on. */
  draw(content, data) {
    if (this.still) {
      const model = {
        on: (_, hear) => (this.hear = hear),
        off() {},
        get() {},
        set() {},
        send: (message) => this.heard(message),
      };
      this.view.style.minHeight = `${this.view.offsetHeight}px`; // what is below must not jump
      this.view.replaceChildren();
      this.still = null;
      canvas.render({ el: this.view, model });
      if (this.faster.isConnected) this.drawFaster();
    }
    this.hear(content, [new DataView(data)]);
  }
  /** Draw how much faster it is, once the first picture is there. */
  async drawFaster() {
    const { faster } = await import("./faster.js");
    this.compare = await faster(this.faster, this.settings.colors);
    this.compare(this.values);
  }
  ask(kind, more) {
    if (/^(play|steps)$/.test(kind) && this.place.said.textContent === WAITS) this.say("");
    this.worker.postMessage({ kind, ...more });
  }
  /**
   * Put other values in force, as `Lab.apply` does: a new start for what is structural, else a turn of the knobs. Or say
   * why not, and change nothing. A new start trains, but for that of an address; a knob leaves a pause as it is.
   * From here on `values` are what is asked for; `standing` is what trains.
   */
  apply(asked, restart = false, name = "", trains = true) {
    const { settings, values: before } = this;
    let values;
    try {
      values = settings.check({ ...before, ...asked });
    } catch (error) {
      this.say(`${error.message} ${KEPT}`);
      this.show();
      return;
    }
    this.say("");
    this.values = values;
    const inForce = settings.inForce(values);
    const changes = restart ? { restart } : settings.changes(settings.inForce(before), inForce);
    if (changes.restart) {
      Object.assign(this, { dead: [], rescued: null });
      this.ask("start", { values: inForce, name: settings.graph(values), trains });
    } else this.ask("turn", { values: inForce, knob: changes.knob, name });
    if (changes.knob && !name && !this.isPlaying && !this.isOpening) this.say(WAITS);
    this.isOpening ||= changes.restart;
    if (!this.isOpening) this.standing = values;
    this.showOpening();
    this.show();
  }
  // What is seen is of the earlier run until a new one has come.
  showOpening() {
    this.view.classList.toggle("moe-starting", Boolean(this.isOpening));
  }
  /** Set all that a preset sets, and train; 'rescued' goes on with a collapsed run, if that is here. */
  choose(preset) {
    const kept = this.settings.kept.map((name) => [name, this.values[name]]);
    const goesOn = preset === "rescued" && this.isAt("collapse");
    this.apply({ ...this.settings.preset(preset), ...Object.fromEntries(kept) }, !goesOn);
    if (goesOn) this.ask("play");
  }
  answer({ content, data, playing, started, refused }) {
    if (started || refused) this.isOpening = false;
    if (started) {
      this.standing = this.values;
      this.play.disabled = false;
      for (const each of this.steps) each.disabled = this.isPlaying;
    }
    if (refused) {
      this.say(`${refused} ${this.standing ? KEPT : "Reload the page to try again."}`);
      if (this.standing) {
        this.values = this.standing;
        this.show();
      }
    }
    if (content || refused) this.showOpening();
    if (!content) return;
    this.draw(content, data);
    const { dead = this.dead, step, until } = content.words;
    Object.assign(this, { dead, ended: until > 0 && step >= until && !playing });
    this.hint?.();
    if (playing === this.isPlaying) return;
    this.isPlaying = playing;
    this.play.textContent = playing ? "Pause" : "Play";
    for (const each of this.steps) each.disabled = playing;
  }
  /** Hear the canvas: it has drawn a picture, or something in one was clicked. */
  heard({ drawn, pick, index, points }) {
    if (drawn) this.ask("drawn", { number: drawn });
    if (points) this.learn(this.values.points + points);
    if (pick !== "token" || !("token" in this.controls)) return;
    this.apply({ token: index });
    if (!hasMouse.matches) this.showBlock();
  }
  // A finger is low on the screen, and what it asks for may be lower.
  showBlock() {
    const [, block] = this.view.querySelectorAll("figure");
    const { top, bottom } = block.getBoundingClientRect();
    const below = parseFloat(getComputedStyle(block).scrollMarginBottom); // the dock
    if (Math.max(-top, bottom + below - innerHeight) > HIDDEN)
      block.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
  /** Learn points that were drawn by hand, or the task again where there are none. */
  learn(points) {
    const count = points.length / 4;
    const { most } = this.settings.controls.points;
    if (count > most) {
      this.say(`points must be at most ${most}, got ${count}. ${KEPT}`);
      return;
    }
    this.past.push(this.values.points);
    this.apply({ points });
  }
  undo() {
    if (this.past.length) this.apply({ points: this.past.pop() });
    else this.say(this.settings.words.own.nothing);
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
      control.show(inForce[name], settings.stops(name, values), why[name], settings.notMade(name, values));
    for (const [name, made] of this.presets) made.setAttribute("aria-pressed", this.isAt(name));
    for (const [name, isAt] of Object.entries(this.pressed))
      this.buttons[name].setAttribute("aria-pressed", isAt(values));
    this.place.keep(settings.address(values));
    this.compare?.(values);
  }
  open() {
    try {
      this.apply(this.settings.parse(this.place.state), true, "", false);
    } catch (error) {
      const { settings, standing, values } = this;
      const { first } = settings;
      if (values) this.show();
      else this.apply(settings.preset(first), true, "", false);
      this.say(`${error.message} ${standing ? KEPT : `Here is the preset ${first}.`}`);
    }
  }
}

const listed = (experts) => {
  if (experts.length > MOST_NAMED) return `${experts.length} experts are`;
  const names = experts.map((expert) => `E${expert}`);
  return names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)} are` : `${names[0]} is`;
};

/**
 * Show the playground.
 * @param {import("./parts.js").Place} place
 */
export default async function show(place) {
  const settings = new Settings(await json("manifest.json"));
  const copied = async () => {
    const text = await copyOrSave(settings.code(view.values), "moe_plane.py", copy);
    place.say(text);
    setTimeout(() => place.said.textContent === text && place.say(""), GIVEN);
  };
  const copy = button("Copy as PyTorch", settings.code_of.tip, copied);
  const fast = button("Full speed", `Train as fast as this machine can, or ${SLOWLY} steps a second`, () => {
    const isFast = fast.getAttribute("aria-pressed") !== "true";
    fast.setAttribute("aria-pressed", isFast);
    view.ask("pace", { most: isFast ? Infinity : SLOWLY });
  });
  fast.setAttribute("aria-pressed", false);
  const view = new Playground(place, settings, "worker.js", [fast, copy]);
  view.ask("pace", { most: SLOWLY });
  const { steps } = place.home.dataset; // of a lesson, which speaks of what is seen then
  if (!calm.matches) view.ask("play", steps && { steps: Number(steps) });
  view.open();
}
