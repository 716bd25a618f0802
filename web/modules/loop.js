// What the workers of the views share: the history of a training with the panel of its losses, and the loop that trains
// until a picture is due and shows it. The page sends what is asked, and the numbers of the pictures that it has drawn;
// it gets pictures as the canvas takes them, or one sentence.

import { pack } from "./parts.js";

const FPS = 62; // pictures a second: a little more than a display has
const TURN = 12; // milliseconds of training at once
const TEXTS = 250; // milliseconds between two texts
const IN_FLIGHT = 2; // pictures that the page has not drawn yet

export const mean = (rows, pick) => rows.reduce((sum, row) => sum + pick(row), 0) / Math.max(rows.length, 1);
export const toPercent = (part) => `${(100 * part).toFixed(1)} %`;
/** The end of an axis that has room for a value, as `roomy` in plots/marks.py has it. */
export const roomy = (value, first) => {
  let end = first;
  while (end < value) end *= 1.5;
  return end;
};
export const firstAtLeast = (value, ...tops) => tops.find((top) => top >= value) ?? 10;

// One training. A view's own has also: train(), which gives false where it diverges; goBack(); measure(isPaused), which
// reads what is shown, or gives null where it is not finite; draw(place, header, out, slot), which gives the arrays of
// a panel by slot and puts into its header what has changed; lines(out); and end(), if something of it is to end.
export class History {
  constructor(shared, manifest, values) {
    Object.assign(this, { shared, manifest, values, step: 0, rows: [], every: 1, recent: [] });
    Object.assign(this, { changes: [], names: {} }); // steps after which a knob was turned, and what is written there
  }
  /** Note a step that is done: the loss of each model, and more. */
  note(losses, more = {}) {
    const { recent, window, places } = this.shared.numbers;
    this.step++;
    this.recent = [...this.recent.slice(1 - recent), { losses, ...more }];
    const lately = this.recent.slice(-window);
    const smooth = Array.from(losses, (_, k) => mean(lately, (row) => row.losses[k]));
    this.last = { step: this.step, ...more, losses: smooth };
    if (this.step % this.every === 0) this.rows.push(this.last);
    if (this.rows.length < 2 * places) return;
    this.every *= 2; // half as many: more are not seen
    this.rows = this.rows.filter(({ step }) => step % this.every === 0);
  }
  /** How many steps Play trains. */
  get budget() {
    return this.shared.numbers.budget;
  }
  get curve() {
    return this.step % this.every ? [...this.rows, this.last] : this.rows;
  }
  get isFlops() {
    return this.values.x_axis === "FLOPs";
  }
  spent(k, step, isFlops = this.isFlops) {
    return isFlops ? step * this.manifest.flops[k] : step;
  }
  /** The axis of what is spent. */
  axis(x, reach, first) {
    const link = this.isFlops ? "" : "step";
    const high = roomy(reach, this.isFlops ? first : x.high);
    return { ...x, label: this.shared.axes[this.values.x_axis], link, high };
  }
  loss(header, slot) {
    const { curve, isFlops, ghost } = this;
    const { flops } = this.manifest;
    let old = ghost?.curve ?? [];
    const arrays = {};
    const slots = { x: { slot: slot("g.x") }, y: { slot: slot("g.y") } };
    const previous = {
      ...header.marks[0],
      name: "previous run",
      ink: -1,
      end: header.marks[0].end && "prev.",
      ...slots,
    };
    const line = (name, rows, k, history) =>
      Object.assign(arrays, {
        [`${name}.x`]: ["f4", [rows.length], rows.map(({ step }) => history.spent(k, step, isFlops))],
        [`${name}.y`]: ["f4", [rows.length], rows.map(({ losses }) => losses[k])],
      });
    flops.forEach((_, k) => line(k, curve, k, this));
    const reach = Math.max(0, ...flops.map((_, k) => this.spent(k, this.step)));
    const ghostReach = old.length ? ghost.spent(0, old.at(-1).step, isFlops) : 0;
    const highest = Math.max(0, ...curve.flatMap(({ losses }) => losses), old[0]?.losses[0] ?? 0);
    header.x = this.axis(header.x, Math.max(reach, Math.min(ghostReach, 2 * reach || Infinity)), 1e7);
    old = old.filter(({ step }) => ghost.spent(0, step, isFlops) <= header.x.high);
    if (old.length) line("g", old, 0, ghost);
    header.y.high = firstAtLeast(highest, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 7);
    const rules = this.changes.map((step) => ({
      mark: "Rule",
      x: this.spent(0, step),
      kind: "mark",
      name: this.names[step] ?? "",
    }));
    header.marks = [...rules, ...(old.length ? [previous] : []), ...header.marks];
    return arrays;
  }
}

// --- train until a picture is due, show it, hear what is asked -------------------------------------------------------

const TOO_LARGE = "The last step was too large and is taken back: lower the learning rate to go on.";
const KEPT_WEIGHTS = "The weights of the last good step are kept: lower the learning rate to go on.";
let run = null;
let opening = null;
let playing = false;
let seen = false; // the page says so
let pace = Infinity; // steps a second at most
let next = 0; // when a step is due
let until = 0;
let asked = false;
let isWorking = false;
let trouble = "";
let isMore = false; // whether all panels are shown
let latest = null;
let busy = Promise.resolve(); // the values that are asked for; what the loop waits for
let more = 0;
let frame = 0;
let drawn = 0;
let shownAt = 0;
let textsShownAt = 0;
let sent = {}; // more: steps to train in a pause
const turns = new MessageChannel();
const waiting = [];
const idle = () => new Promise((go) => setTimeout(go, 2)); // milliseconds: no step is due
turns.port1.onmessage = () => waiting.shift()();
const turn = () =>
  new Promise((go) => {
    waiting.push(go);
    turns.port2.postMessage(0);
  });

// A panel whose arrays are as before is not drawn anew.
const isSame = (before, now) =>
  before?.[2] === now[2] || // a map that was read once
  (before && String(before[1]) === String(now[1]) && now[2].every((value, i) => value === before[2][i]));

/** Show what trains. */
async function sendPicture() {
  const isAsked = asked;
  const now = performance.now();
  const current = run;
  asked = false;
  let isPaused = !playing && !more;
  let out = await current.measure(isPaused);
  if (!out) {
    await current.goBack();
    [playing, more, isPaused, trouble, out] = [false, 0, true, TOO_LARGE, await current.measure(true)];
  }
  if (current !== run) return;
  const panels = {};
  const all = {};
  const { step, manifest, shared } = current;
  const { token } = current.values;
  const { experts } = manifest;
  const { colors } = shared;
  const places = Object.entries(manifest.panels).slice(0, isMore ? undefined : shared.front?.panels);
  const count = places.length;
  const isTextDue = isAsked || isPaused || now - textsShownAt > TEXTS;
  for (const [place, as_encoded] of places) {
    const header = structuredClone(as_encoded);
    const slot = (rest) => `${place}.${rest}`;
    for (const mark of header.marks) if ("selected" in mark) mark.selected = token;
    const arrays = current.draw(Number(place), header, out, slot);
    const text = JSON.stringify(header);
    const isDue = isTextDue || header.marks[0]?.mark !== "Table"; // a page lays out all of a table for one new number
    if (isDue && sent[place] !== text) [panels[place], sent[place]] = [header, text];
    for (const [rest, array] of Object.entries(arrays))
      if (!isSame(sent[slot(rest)], array)) all[slot(rest)] = sent[slot(rest)] = array;
  }
  const { slots, data } = pack(all);
  const state = isPaused ? "paused" : "training";
  const words = { count, experts, token, step, state, trouble };
  words.until = more ? step + more : playing ? 0 : until; // it trains until it is asked to pause, or for very long
  if (isTextDue) {
    Object.assign(words, current.lines(out));
    textsShownAt = now;
  }
  shownAt = now;
  const content = { frame: ++frame, answer: true, panels, slots, words, ...(frame === 1 && { colors }) };
  postMessage({ content, data, playing }, [data]);
}

/** Train and show while something is to do; one at a time: what is heard meanwhile is done in the next round. */
async function work() {
  if (isWorking) return;
  isWorking = true;
  try {
    while (run && (asked || more || (playing && seen))) {
      const now = performance.now();
      const due = shownAt + 1000 / FPS;
      const end = due > now ? Math.min(due, now + TURN) : now + TURN;
      const isDue = () => more || (playing && seen && performance.now() >= next);
      while (isDue() && !asked && performance.now() < end) {
        next = Math.max(next + 1000 / pace, performance.now() - TURN);
        const current = run;
        const isGood = await (busy = current.train());
        if (current !== run) break; // another was started meanwhile
        if (!isGood)
          trouble = `The training stopped after step ${run.step}: the loss is not finite. ${KEPT_WEIGHTS}`;
        playing &&= isGood && run.step < until;
        more = isGood ? Math.max(more - 1, 0) : 0;
        asked ||= !playing && !more;
      }
      if (asked || (performance.now() >= due && frame - drawn < IN_FLIGHT)) await (busy = sendPicture());
      await (playing && !asked && performance.now() < next ? idle() : turn());
    }
  } catch (error) {
    postMessage({ refused: `The training stopped: ${error.message.replace(/\.?$/, ".")}` });
  }
  isWorking = false;
}

/**
 * Hear the page from now on.
 * @param {(values: object, name: string, signal: AbortSignal) => Promise<History>} open makes a training of the graph
 *   of this name, unless the signal says that something newer was asked for
 * @param {string[]} same it is compared with the training before where these values are the same
 */
export function serve(open, ...same) {
  const HEARD = {
    async start({ values, name, trains = false }) {
      opening?.abort();
      latest = values;
      const { signal } = (opening = new AbortController());
      try {
        const made = await open(values, name, signal);
        const { recent } = made.shared.numbers;
        if (signal.aborted) {
          made.end?.();
          return;
        }
        const last = run?.step > recent ? run : run?.ghost;
        const old = same.every((each) => last?.values[each] === values[each]) ? last : null;
        if (old) old.ghost = null;
        playing ||= trains;
        if (run || !until) until = playing ? made.budget : 0; // else it was asked to play so many steps before it was there
        const ended = run; // it may be in the middle of a step
        busy.catch(() => {}).then(() => ended?.end?.());
        run = Object.assign(made, { ghost: old, values: latest });
        opening = null;
        [trouble, more, sent, textsShownAt] = ["", 0, {}, -Infinity];
        postMessage({ started: values });
      } catch (error) {
        if (signal.aborted) return;
        postMessage({ refused: error.message });
        opening = null;
      }
    },
    turn({ values, knob, name }) {
      latest = values;
      if (!run || opening) return;
      if (knob && run.step && run.changes.at(-1) !== run.step) run.changes.push(run.step);
      if (name) run.names[run.step] = name;
      [run.values, trouble] = [values, ""];
    },
    play({ steps = run?.budget ?? 0 }) {
      [playing, more, trouble, until] = [true, 0, "", (run?.step ?? 0) + steps];
    },
    pause() {
      playing = false;
    },
    steps({ count }) {
      if (run && !playing) [more, trouble] = [more + count, ""];
    },
    more(asks) {
      ({ isMore } = asks);
      sent = {};
    },
    pace: ({ most }) => (pace = most),
    seen: ({ isSeen }) => (seen = isSeen),
    drawn: ({ number }) => (drawn = number),
  };
  onmessage = async ({ data }) => {
    await HEARD[data.kind](data);
    asked ||= !["drawn", "seen", "pace"].includes(data.kind);
    work();
  };
}
