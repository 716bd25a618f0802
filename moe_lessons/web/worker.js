// Trains in a worker of the page. What it knows: to draw random numbers, run the graphs that torch has exported (see
// graphs.py), keep histories, and fill the arrays of the panels (see tools/manifest.py). The page sends what is asked,
// and the numbers of the pictures that it has drawn; it gets pictures as the canvas takes them, or one sentence.

import { filled, json, pack } from "./parts.js";
import { fillEven, fillNormal, floats, graph, numbers, randomOf, whole } from "./runtime.js";

const FPS = 42, TURN = 12, TEXTS = 250; // pictures a second; milliseconds of training at once, and between two texts
const MOST_STEPS = 100_000, IN_FLIGHT = 2; // that Play trains; pictures that the page has not drawn yet

const mean = (rows, pick) => rows.reduce((sum, row) => sum + pick(row), 0) / Math.max(rows.length, 1);
const range = (count) => Array.from({ length: count }, (_, i) => i);
const percent = (part) => `${(100 * part).toFixed(1)}%`;
const signed = (value) => `${value < 0 ? "" : "+"}${value.toFixed(2)}`;

// --- one training: three models in step ---------------------------------------------------------------------------

class Training {
  constructor(shared, own, graphs, weights, ofSeed, values) {
    Object.assign(this, { shared, own, ...graphs, values, step: 0, count: 0 }); // count: since Adam's averages began
    Object.assign(this, { rows: [], every: 1, recent: [], marks: [] });
    const { experts: E, batch: T } = own, { width: D, tokens } = shared.numbers;
    const start = shared.starts.findIndex(([task, name]) => task === values.task && name === values.router_start);
    const state = new Float32Array(own.size), task = Object.keys(shared.tasks).indexOf(values.task);
    state.set(weights.subarray(0, own.weights)); // Adam's averages and the bias begin at zero
    const router = own.weights + start * E * D;
    if (start >= 0) state.set(weights.subarray(router, router + E * D), own.router_at);
    const { map } = shared.numbers, at = 48 + task * (3 * tokens + map * map); // see tools.manifest.seed_numbers
    this.state = this.before = floats(state, own.size);
    this.prototypes = floats(ofSeed.subarray(0, 48), 24, 2);
    this.points = floats(ofSeed.slice(at, at + 2 * tokens), tokens, 2);
    this.classes = ofSeed.slice(at + 2 * tokens, at + 3 * tokens);
    this.map = ofSeed.slice(at + 3 * tokens, at + 3 * tokens + map * map);
    this.random = randomOf(values.seed + 1);
    this.drawn = { drawn: new Float32Array(2 * T), blob: new Int32Array(T) };
    this.noise = { normal: new Float32Array(T * E), uniform: new Float32Array(T * D).fill(0.5) };
    const { frequency } = shared.tasks[values.task], all = mean(frequency, (f) => f) * frequency.length;
    let sum = 0;
    this.reach = frequency.map((part) => (sum += part / all));
  }
  async points_and_classes(random) {
    const { drawn, blob } = this.drawn, isBlobs = this.shared.tasks[this.values.task].blobs;
    (isBlobs ? fillNormal : fillEven)(drawn, random);
    if (isBlobs) for (let i = 0, at; i < blob.length; i++)
      at = random(), blob[i] = Math.max(this.reach.findIndex((end) => at < end), 0);
    const { batch: T } = this.own, of = whole(blob, T);
    return this.batch.run({ drawn: floats(drawn, T, 2), blob: of, prototypes: this.prototypes });
  }
  async train() { // one step; false where it diverges
    const { own: { experts: E, batch: T }, noise, values, random } = this;
    const { width: D, recent, window, places } = this.shared.numbers;
    const { x, y } = await this.points_and_classes(random);
    if (values.noise_std) fillNormal(noise.normal, random);
    if (values.jitter_noise) fillEven(noise.uniform, random);
    const knobs = Float32Array.from(this.shared.knobs, (name) => values[name]);
    const given = { normal: floats(noise.normal, T, E), uniform: floats(noise.uniform, T, D) };
    Object.assign(given, { knobs: floats(knobs, knobs.length), count: floats([this.count + 1]) });
    const out = await this.stepping.run({ state: this.state, x, y, ...given });
    const losses = out.losses.data, load = out.load.data;
    if (![...losses, out.norm.data[0]].every(Number.isFinite)) return this.goBack();
    [this.before, this.state] = [this.state, out.next];
    this.count++;
    this.step++;
    this.recent = [...this.recent.slice(1 - recent), { losses, load }];
    const lately = this.recent.slice(-window);
    const smooth = Array.from(losses, (_, k) => mean(lately, (row) => row.losses[k]));
    this.last = { step: this.step, load, losses: smooth };
    if (this.step % this.every === 0) this.rows.push(this.last);
    if (this.rows.length >= 2 * places) // half as many: more are not seen
      this.rows = this.rows.filter(({ step }) => step % (2 * this.every) === 0), (this.every *= 2);
    return true;
  }
  goBack() { // to the weights that the last step began with; Adam forgets its averages
    const state = new Float32Array(this.own.size), { data } = this.before, { weights, size } = this.own;
    state.set(data.subarray(0, weights));
    state.set(data.subarray(3 * weights, size), 3 * weights);
    Object.assign(this, { state: floats(state, size), count: 0 });
    this.before = this.state;
    return false;
  }
  async read(muted = null) {
    const { experts: E } = this.own, keep = new Float32Array(E).fill(1);
    if (muted !== null) keep[muted] = 0;
    this.held ??= await this.points_and_classes(randomOf(-1 - this.values.seed)); // never trained on
    const { state, points: x, held: { x: held_x, y: held_y } } = this;
    const given = { state, x, held_x, held_y, keep: floats(keep, E) };
    const out = await this.reading.run(given);
    return Object.fromEntries(Object.entries(out).map(([name, { data }]) => [name, data]));
  }
  get load() { // over the last steps
    const { recent, own: { experts } } = this;
    return recent.length ? range(experts).map((e) => mean(recent, ({ load }) => load[e])) : null;
  }
  get curve() { return this.step % this.every ? [...this.rows, this.last] : this.rows; }
  get isNoisy() { return this.values.noise_std > 0 || this.values.jitter_noise > 0; }
}

// --- what is seen -------------------------------------------------------------------------------------------------

const roomy = (value, first) => { while (first < value) first *= 1.5; return first; }; // as marks.roomy has it
const firstAtLeast = (value, ...tops) => tops.find((top) => top >= value) ?? 10;
const best = (row) => row.indexOf(Math.max(...row));
const rowsOf = (data, width) => range(data.length / width).map((i) => data.subarray(i * width, (i + 1) * width));

// The header of each panel, and its arrays by slot: those of tools.manifest.graph_manifest, with what has changed.
const PANELS = {
  territory(run, { scores, probs, named }, header, slot) {
    const { experts: E } = run.own, side = Math.sqrt(scores.length / E), count = run.classes.length;
    const [x, y] = [0, 1].map((axis) => range(count).map((i) => run.points.data[2 * i + axis]));
    const look = range(count).map((i) => named[i] !== run.classes[i]), expert = rowsOf(probs, E).map(best);
    const { map } = run.shared.numbers, isShown = run.values.classes === "shown";
    header.marks[0].classes = isShown ? { slot: slot("0.classes") } : undefined;
    const arrays = { "0.z": ["f4", [side, side, E], scores], "1.x": ["f4", [count], x], "1.y": ["f4", [count], y] };
    if (sent.map !== run.map) arrays["0.classes"] = ["u1", [map, map], (sent.map = run.map)];
    return { ...arrays, "1.look": ["u1", [count], look], "1.expert": ["u1", [count], expert] };
  },
  heatmap(run, { probs, serves }) {
    const { experts: E } = run.own, served = [...serves.keys()].filter((i) => serves[i] > 0), count = served.length;
    const expert = ["u1", [count], served.map((i) => i % E)];
    return { "0.z": ["f4", [probs.length / E, E], probs], "1.x": expert, "1.expert": expert,
      "1.y": ["i4", [count], served.map((i) => Math.floor(i / E))] };
  },
  load(run, { clean }, header, slot) {
    const { experts: E } = run.own, load = run.load ?? clean, second = run.isNoisy && run.load ? clean : null;
    const highest = Math.max(...load, ...(second ?? []), 1 / E);
    header.y.high = firstAtLeast(highest, Math.min(1.15, 4 / E), 0.5, 1.15, 1.1 * highest);
    if (second) header.marks[0].second = { slot: slot("0.second") };
    return { "0.y": ["f4", [E], load], ...(second && { "0.second": ["f4", [E], second] }) };
  },
  film(run, _, header) {
    const { experts: E } = run.own, curve = run.curve;
    header.x.high = roomy(run.step, 200);
    header.marks.push(...run.marks.map((x) => ({ mark: "Rule", x, kind: "mark", name: "" })));
    return { "0.x": ["f4", [curve.length], curve.map(({ step }) => step)],
      "0.y": ["f4", [curve.length, E], curve.flatMap(({ load }) => [...load])] };
  },
  loss(run, _, header, slot) {
    const { own: { flops }, curve, shared: { axes }, values: { x_axis } } = run, isFlops = x_axis === "FLOPs";
    const arrays = {}, old = run.ghost?.curve ?? [], slots = { x: { slot: slot("g.x") }, y: { slot: slot("g.y") } };
    const ghost = { ...header.marks[0], name: "previous run", ink: -1, ...slots };
    const spent = (k, step, of = run) => (isFlops ? step * of.own.flops[k] : step);
    const line = (name, rows, k, of) => Object.assign(arrays, {
      [`${name}.x`]: ["f4", [rows.length], rows.map(({ step }) => spent(k, step, of))],
      [`${name}.y`]: ["f4", [rows.length], rows.map(({ losses }) => losses[k])],
    });
    flops.forEach((_, k) => line(k, curve, k, run));
    if (old.length) line("g", old, 0, run.ghost);
    const reach = Math.max(0, ...flops.map((_, k) => spent(k, run.step)));
    const ghostReach = old.length ? arrays["g.x"][2].at(-1) : 0;
    const highest = Math.max(0, ...curve.flatMap(({ losses }) => losses), old[0]?.losses[0] ?? 0);
    header.x = { ...header.x, label: axes[x_axis], link: isFlops ? "" : "step" };
    header.x.high = roomy(Math.max(reach, Math.min(ghostReach, 2 * reach || Infinity)), isFlops ? 1e7 : 200);
    header.y.high = firstAtLeast(highest, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 7);
    const rules = run.marks.map((step) => ({ mark: "Rule", x: spent(0, step), kind: "mark", name: "" }));
    header.marks = [...rules, ...(old.length ? [ghost] : []), ...header.marks];
    return arrays;
  },
  cost(run, { measured, accuracy }, header) {
    const { cells } = header.marks[0];
    cells.splice(-2, 2, [...measured].map((loss) => String(+loss.toPrecision(3))), [...accuracy].map(percent));
    return {};
  },
};

function describeLoad(load, { top_k: K }, { numbers: { dead, even }, words: { load: words } }) {
  const E = load.length, busiest = load.indexOf(Math.max(...load)), most = load[busiest] * E;
  const count = load.filter((share) => share * K < dead * (1 - 1e-6)).length;
  const [all, some] = [E > 1 ? "dense" : "one expert", count > 1 ? "dead" : "one dead"];
  const kind = K === E ? all : count ? some : most < even ? "even" : "uneven";
  const found = { experts: E, dead: count, limit: 100 * dead, busiest, times: most.toFixed(1) };
  return filled(words[kind], { ...found, goes_to: words["goes to"] });
}

function lines(run, out, plain) {
  const { shared: { numbers, words: { reading } }, own: { experts: E }, values: { token }, recent } = run;
  const guessing = Math.log(numbers.classes), loss = mean(recent, ({ losses }) => losses[0]);
  const isWorse = run.step > numbers.recent && loss > 1.1 * guessing;
  const words = describeLoad([...(run.load ?? out.clean)], run.own, run.shared);
  const [logits, probs, serves] = [out.logits, out.probs, out.serves].map((data) => rowsOf(data, E)[token]);
  const order = range(E).sort((one, other) => probs[other] - probs[one]).slice(0, 4);
  const read = order.map((e) => `E${e} ${signed(logits[e])} (${(100 * probs[e]).toFixed()}%)`).join(", ");
  const chosen = range(E).filter((e) => serves[e] > 0).sort((one, other) => serves[other] - serves[one]);
  const served = chosen.map((e) => `${serves[e].toFixed(2)} × E${e}`).join(", ") || reading.dropped;
  const label = run.classes[token], verdict = out.named[token] === label ? "correct" : "wrong";
  const [x, y] = [0, 1].map((axis) => run.points.data[2 * token + axis].toFixed(2));
  const parts = { with_it: percent(plain.accuracy[0]), without: percent(out.accuracy[0]), points: numbers.measured };
  const told = filled(reading.token, { token, x, y, label, verdict, read, served });
  return { words: words + (isWorse ? filled(reading.worse, { guessing: guessing.toFixed(2) }) : ""),
    reading: told + (muted(run) === null ? "" : filled(reading.muted, { expert: muted(run), ...parts })) };
}
const muted = ({ values: { mute } }) => (mute === "none" ? null : Number(mute.slice(1)));

// --- the loop: train until a picture is due, show it, hear what is asked --------------------------------------------

const TOO_LARGE = "The last step was too large and is taken back: lower the learning rate to go on.";
const KEPT_WEIGHTS = "The weights of the last good step are kept: lower the learning rate to go on.";
let run = null, newest = 0, playing = false, seen = true, until = 0, asked = false, isWorking = false, trouble = "";
let frame = 0, drawn = 0, shownAt = 0, toldAt = 0, sent = {};
const turns = new MessageChannel(), waiting = [];
turns.port1.onmessage = () => waiting.shift()();
const turn = () => new Promise((go) => (waiting.push(go), turns.port2.postMessage(0)));

async function show() {
  const isAsked = asked, now = performance.now(), own = run;
  asked = false;
  let plain = await own.read();
  if (![...plain.measured].every(Number.isFinite)) {
    own.goBack();
    [playing, trouble, plain] = [false, TOO_LARGE, await own.read()];
  }
  const out = muted(own) === null ? plain : await own.read(muted(own)), panels = {}, all = {};
  own.shared.panels.forEach((name, place) => {
    const header = structuredClone(own.own.panels[place]), slot = (rest) => `${place}.${rest}`;
    for (const mark of header.marks) if ("selected" in mark) mark.selected = own.values.token;
    const arrays = PANELS[name](own, name === "cost" ? plain : out, header, slot), text = JSON.stringify(header);
    if (sent[place] !== text) [panels[place], sent[place]] = [header, text];
    for (const [rest, array] of Object.entries(arrays)) all[slot(rest)] = array;
  });
  const { slots, data } = pack(all), state = playing ? "training" : "paused", { step, values: { token } } = own;
  const words = { count: own.shared.panels.length, experts: own.own.experts, token, step, state, trouble };
  Object.assign(words, { budget: MOST_STEPS, until });
  if (isAsked || now - toldAt > TEXTS || !playing) Object.assign(words, lines(own, out, plain)), (toldAt = now);
  shownAt = now;
  const content = { frame: ++frame, answer: true, panels, slots, words, ...(frame === 1 && { look: own.shared.look }) };
  postMessage({ content, data, playing }, [data]);
}

async function trained() { // one step; or why not
  const isGood = await run.train();
  if (!isGood) trouble = `The training stopped after step ${run.step}: the loss is not finite. ${KEPT_WEIGHTS}`;
  return isGood;
}

async function work() { // one at a time: what is heard meanwhile is done in the next round
  if (isWorking) return;
  isWorking = true;
  try {
    while (run && (asked || (playing && seen))) {
      const end = performance.now() + TURN;
      while (playing && seen && !asked && performance.now() < end) {
        playing = (await trained()) && run.step < until;
        asked ||= !playing;
      }
      if (asked || (performance.now() - shownAt > 950 / FPS && frame - drawn < IN_FLIGHT)) await show();
      await turn();
    }
  } catch (error) { postMessage({ refused: `The training stopped: ${error.message}` }); }
  isWorking = false;
}

async function start({ values, name }) {
  const mine = ++newest, { num_experts: E, top_k: K, d_ff: F, task, seed } = values;
  try {
    const [shared, own, stepping, reading, batch, weights, ofSeed] = await Promise.all([
      json("manifest.json"), json(`${name}.json`), graph(`${name}.step.z`), graph(`${name}.read.z`), graph(`${task}.z`),
      numbers(`start-${E}-${K}-${F}-${seed}.z`), numbers(`seed-${seed}.z`)]);
    if (mine !== newest) return; // something newer was asked for
    const last = run?.step > shared.numbers.recent ? run : run?.ghost, old = last?.values.task === task ? last : null;
    if (old) old.ghost = null;
    run = new Training(shared, own, { stepping, reading, batch }, weights, ofSeed, values);
    Object.assign(run, { ghost: old });
    [trouble, until, sent] = ["", playing ? MOST_STEPS : 0, {}];
    postMessage({ started: values });
  } catch (error) {
    if (mine === newest) postMessage({ refused: error.message });
  }
}

const HEARD = {
  start,
  turn({ values, isKnob }) {
    if (isKnob && run?.step && run.marks.at(-1) !== run.step) run.marks.push(run.step);
    if (run) [run.values, trouble] = [values, ""];
  },
  play() { [playing, trouble, until] = [true, "", (run?.step ?? 0) + MOST_STEPS]; },
  pause() { playing = false; },
  async steps({ count }) {
    for (trouble = ""; run && !playing && count > 0 && (await trained()); count--);
  },
  seen: ({ isSeen }) => (seen = isSeen),
  drawn: ({ number }) => (drawn = number),
};
onmessage = async ({ data }) => {
  while (isWorking && data.kind === "steps") await turn();
  await HEARD[data.kind](data);
  asked ||= !["drawn", "seen"].includes(data.kind);
  work();
};
