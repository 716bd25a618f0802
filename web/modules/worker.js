// Trains the playground in a worker of the page. What it knows: to draw random numbers, run the graphs that torch has
// exported (see graphs.py), and fill the arrays of the panels (see web/manifest.py).

import { CLASSES, clamp, nearest, range, readPoints, weightText } from "./canvas/numbers.js";
import { History, firstAtLeast, mean, roomy, serve, toPercent } from "./loop.js";
import { filled, json } from "./parts.js";
import { fillEven, fillNormal, floats, graph, numbers, randomOf, whole } from "./runtime.js";

const minus = (text) => text.replace("-", "−");
const signed = (value) => `${value < 0 ? "" : "+"}${minus(value.toFixed(2))}`;

// --- one training: its models in step -----------------------------------------------------------------------------

class Training extends History {
  constructor(shared, manifest, graphs, weights, ofSeed, values) {
    super(shared, manifest, values);
    Object.assign(this, { ...graphs, count: 0 }); // count: since Adam's averages began
    const { experts: E, batch: T } = manifest;
    const { width: D, tokens } = shared.numbers;
    const start = shared.starts.findIndex(
      ([task, name]) => task === values.task && name === values.router_start,
    );
    const state = new Float32Array(manifest.size);
    const task = Object.keys(shared.tasks).indexOf(values.task);
    state.set(weights.subarray(0, manifest.weights)); // Adam's averages and the bias begin at zero
    const router = manifest.weights + start * E * D;
    if (start >= 0) state.set(weights.subarray(router, router + E * D), manifest.router_at);
    const { map } = shared.numbers;
    const at = 48 + task * (3 * tokens + map * map); // see web.manifest.seed_numbers
    this.state = this.before = floats(state, manifest.size);
    this.prototypes = floats(ofSeed.subarray(0, 48), 24, 2);
    this.points = floats(ofSeed.slice(at, at + 2 * tokens), tokens, 2);
    this.classes = ofSeed.slice(at + 2 * tokens, at + 3 * tokens);
    this.map = ofSeed.slice(at + 3 * tokens, at + 3 * tokens + map * map);
    this.random = randomOf(values.seed);
    this.drawn = { drawn: new Float32Array(2 * T), blob: new Int32Array(T) };
    this.noise = { normal: new Float32Array(T * E), uniform: new Float32Array(T * D).fill(0.5) };
    const { frequency } = shared.tasks[values.task];
    const all = mean(frequency, (f) => f) * frequency.length;
    let sum = 0;
    this.reach = frequency.map((part) => (sum += part / all));
    this.isEven = new Set(frequency).size === 1;
    this.drawing = readPoints(values.points);
    if (values.points) this.showDrawing();
  }
  /** Show tokens and classes of what was drawn by hand, not of the task: see `PlaneTask`. */
  showDrawing() {
    const { drawing, shared, values } = this;
    const { tokens, map, shown } = shared.numbers;
    const { x, y } = this.ofDrawing(tokens, randomOf(values.seed + shown));
    const order = range(tokens).sort((one, other) => y[one] - y[other]);
    this.points = floats(Float32Array.from(order.flatMap((i) => [x[2 * i], x[2 * i + 1]])), tokens, 2);
    this.classes = Float32Array.from(order, (i) => y[i]);
    const place = (i) => (2 * i) / (map - 1) - 1;
    this.map = Float32Array.from({ length: map * map }, (_, i) => {
      const [across, up] = [place(i % map), place(Math.floor(i / map))];
      const away = (k) => (drawing[k].x - across) ** 2 + (drawing[k].y - up) ** 2;
      return drawing[nearest(drawing.length, away)].label;
    });
  }
  ofDrawing(count, random) {
    const chosen = range(count).map(() => this.drawing[random.below(this.drawing.length)]);
    const noise = fillNormal(new Float32Array(2 * count), random);
    const moved = ({ x, y }, i) =>
      [x, y].map((at, axis) => at + this.shared.numbers.own_noise * noise[2 * i + axis]);
    const x = Float32Array.from(chosen.flatMap(moved), (at) => clamp(at, -1, 1));
    return { x, y: Int32Array.from(chosen, ({ label }) => label) };
  }
  async points_and_classes(random) {
    if (this.drawing.length) {
      const { batch } = this.manifest;
      const { x, y } = this.ofDrawing(batch, random);
      return { x: floats(x, batch, 2), y: whole(y, batch) };
    }
    const { drawn, blob } = this.drawn;
    const isBlobs = this.shared.tasks[this.values.task].blobs;
    for (let i = 0; isBlobs && i < blob.length; i++) blob[i] = this.blob(random); // in the order of PlaneTask.batch
    (isBlobs ? fillNormal : fillEven)(drawn, random);
    const { batch: T } = this.manifest;
    const blobs = whole(blob, T);
    return this.batch.run({ drawn: floats(drawn, T, 2), blob: blobs, prototypes: this.prototypes });
  }
  blob(random) {
    const { reach, isEven } = this;
    if (isEven) return random.below(reach.length);
    const at = random.double();
    return reach.findIndex((end, last) => at <= end || last === reach.length - 1);
  }
  /** Whether a knob that scales random numbers is turned on. */
  draws(name) {
    return this.values[name] !== this.shared.controls[name].off;
  }
  get isNoisy() {
    return Object.keys(this.shared.drawn).some((name) => this.draws(name));
  }
  get knobs() {
    const values = Float32Array.from(this.shared.knobs, (name) => this.values[name]);
    return floats(values, values.length);
  }
  /** Train one step; false where it diverges. */
  async train() {
    const { noise, random, shared, state, knobs } = this;
    const { seed } = this.values;
    const { experts: E, batch: T } = this.manifest;
    const { x, y } = await this.points_and_classes(random);
    const fill = { normal: fillNormal, uniform: fillEven };
    const ofStep = this.isNoisy && randomOf(shared.numbers.noise * (seed + 1) + this.step); // as in a `Run`
    for (const [name, input] of Object.entries(shared.drawn))
      if (this.draws(name)) fill[input](noise[input], ofStep);
    const drawn = {
      normal: floats(noise.normal, T, E),
      uniform: floats(noise.uniform, T, shared.numbers.width),
    };
    const count = floats([this.count + 1]);
    const out = await this.stepping.run({ state, x, y, knobs, count, ...drawn });
    const losses = out.losses.data;
    const load = out.load.data;
    if (![...losses, out.norm.data[0]].every(Number.isFinite)) return this.goBack();
    [this.before, this.state] = [this.state, out.next];
    this.count++;
    this.note(losses, { load });
    return true;
  }
  /** Go back to the weights that the last step began with; Adam forgets its averages. */
  goBack() {
    const state = new Float32Array(this.manifest.size);
    const { data } = this.before;
    const { weights, size } = this.manifest;
    state.set(data.subarray(0, weights));
    state.set(data.subarray(3 * weights, size), 3 * weights);
    Object.assign(this, { state: floats(state, size), count: 0 });
    this.before = this.state;
    return false;
  }
  async read(muted = null) {
    const { experts: E } = this.manifest;
    const keep = new Float32Array(E).fill(1);
    if (muted !== null) keep[muted] = 0;
    const { held_out } = this.shared.numbers;
    this.held ??= await this.points_and_classes(randomOf(this.values.seed + held_out)); // never trained on
    const { state, points: x, held, knobs } = this;
    const given = { state, x, held_x: held.x, held_y: held.y, keep: floats(keep, E), knobs };
    const out = await this.reading.run(given);
    return Object.fromEntries(Object.entries(out).map(([name, { data }]) => [name, data]));
  }
  /** The load of each expert over the last steps. */
  get load() {
    const { recent, manifest } = this;
    return recent.length ? range(manifest.experts).map((e) => mean(recent, ({ load }) => load[e])) : null;
  }
  async measure() {
    const plain = await this.read();
    if (![...plain.measured].every(Number.isFinite)) return null;
    return { ...(muted(this) === null ? plain : await this.read(muted(this))), plain };
  }
  draw(place, header, out, slot) {
    return PANELS[this.shared.panels[place]](this, out, header, slot);
  }
  lines(out) {
    return lines(this, out);
  }
}

// --- what is seen -------------------------------------------------------------------------------------------------

const best = (row) => row.indexOf(Math.max(...row));
const rowOf = (data, width, i) => data.subarray(i * width, (i + 1) * width);
const rowsOf = (data, width) => range(data.length / width).map((i) => rowOf(data, width, i));

// The header of each panel, and its arrays by slot: those of web.manifest.graph_manifest, with what has changed.
const PANELS = {
  territory(run, { scores, probs, named }, header, slot) {
    const { experts: E } = run.manifest;
    const side = Math.sqrt(scores.length / E);
    const count = run.classes.length;
    const [x, y] = [0, 1].map((axis) => range(count).map((i) => run.points.data[2 * i + axis]));
    const symbol = range(count).map((i) => named[i] !== run.classes[i]);
    const expert = rowsOf(probs, E).map(best);
    const { map } = run.shared.numbers;
    const isShown = run.values.classes === "shown";
    header.marks[0].classes = isShown ? { slot: slot("0.classes") } : undefined;
    const arrays = {
      "0.z": ["f4", [side, side, E], scores],
      "1.x": ["f4", [count], x],
      "1.y": ["f4", [count], y],
    };
    const { points, pen } = run.values;
    const label = CLASSES.indexOf(pen.at(-1));
    if (points || label >= 0) header.marks.push({ mark: "Drawn", points, pen: label < 0 ? null : label });
    const more = { "1.symbol": ["u1", [count], symbol], "1.expert": ["u1", [count], expert] };
    return { ...arrays, ...more, "0.classes": ["u1", [map, map], run.map] };
  },
  route(run, { probs, serves, named }, header) {
    const [mark] = header.marks;
    const { experts: E } = run.manifest;
    const { token } = run.values;
    const label = run.classes[token];
    const place = [0, 1].map((axis) => run.points.data[2 * token + axis].toFixed(2).replace("-", "−"));
    const foot = `${named[token] === label ? "correct: class" : "wrong: the class is"} ${CLASSES[label]}`;
    if (muted(run) !== null) header.caption = `E${muted(run)} is muted: its output counts as 0.`;
    Object.assign(mark, { head: `token ${token} at (${place.join(", ")})`, foot });
    const [probabilities, weights] = [probs, serves].map((data) => rowOf(data, E, token));
    return { "0.probs": ["f4", [E], probabilities], "0.weights": ["f4", [E], weights] };
  },
  // Three heads, then for each model three bars, and behind each its number: only the last pair is not fixed.
  answer(run, out, header) {
    const { manifest, shared } = run;
    const { accuracy } = out.plain;
    const [type, shape, fixed] = manifest.answer["0.places"];
    const [mark] = header.marks;
    const places = [...fixed];
    const percents = Array.from(accuracy, (part) => (100 * part).toFixed());
    percents.forEach((percent, row) => {
      const bar = 3 + 6 * row + 4;
      const wide = (shared.numbers.longest * percent) / 100;
      [places[4 * bar], places[4 * bar + 2]] = [2 + wide / 2, wide];
      const text = `${percent} %`;
      mark.texts[bar + 1] = text;
      mark.says[bar] = mark.says[bar].replace(/\d+ %$/, text);
    });
    const [, , dead] = verdictOf(run, out);
    const [, largest] = header.y.ticks.at(-1);
    const [right, other] = [percents[0], percents.at(-1)].map((percent) => `${percent}\u00a0%`);
    const named = [percents[0], percents.at(-1), percents[1]]; // as in `answer` of plots/panels/compared.py
    if (run.step >= shared.numbers.recent && dead.length)
      header.caption = filled(shared.words.dead, { right, largest, other });
    else header.caption = header.caption.replace(/\d+(?=\u00a0%)/g, () => named.shift());
    return { ...manifest.answer, "0.places": [type, shape, places] };
  },
  heatmap(run, { probs, serves }) {
    const { experts: E } = run.manifest;
    const served = [...serves.keys()].filter((i) => serves[i] > 0);
    const count = served.length;
    const expert = ["u1", [count], served.map((i) => i % E)];
    return {
      "0.z": ["f4", [probs.length / E, E], probs],
      "1.x": expert,
      "1.expert": expert,
      "1.y": ["i4", [count], served.map((i) => Math.floor(i / E))],
    };
  },
  load(run, { clean }, header, slot) {
    const { experts: E } = run.manifest;
    const load = run.load ?? clean;
    const second = run.isNoisy && run.load ? clean : null;
    const highest = Math.max(...load, ...(second ?? []), 1 / E);
    header.y.high = firstAtLeast(highest, Math.min(1.15, 4 / E), 0.5, 1.15, 1.1 * highest);
    if (second) header.marks[0].second = { slot: slot("0.second") };
    return { "0.y": ["f4", [E], load], ...(second && { "0.second": ["f4", [E], second] }) };
  },
  film(run, _, header) {
    const { experts: E } = run.manifest;
    const curve = run.curve;
    header.x.high = roomy(run.step, 200);
    header.marks.push(...run.changes.map((x) => ({ mark: "Rule", x, kind: "mark", name: "" })));
    return {
      "0.x": ["f4", [curve.length], curve.map(({ step }) => step)],
      "0.y": ["f4", [curve.length, E], curve.flatMap(({ load }) => [...load])],
    };
  },
  loss: (run, _, header, slot) => run.loss(header, slot),
  cost(run, { plain: { measured, accuracy } }, header) {
    const { cells, rows } = header.marks[0];
    if (run.drawing.length) rows.splice(-2, 1, "loss");
    const digits = 2 - Math.floor(Math.log10(Math.max(...measured))); // as `alike` in compared.py
    const losses = Array.from(measured, (loss) => loss.toFixed(Math.min(Math.max(digits, 0), 4)));
    cells.splice(-2, 2, losses, [...accuracy].map(toPercent));
    return {};
  },
};

// The verdict, the rest, and who is dead.
function describeLoad(load, { top_k: K }, { numbers: { dead, even }, words: { load: words } }) {
  const E = load.length;
  const busiest = load.indexOf(Math.max(...load));
  const most = load[busiest] * E;
  const gone = range(E).filter((e) => load[e] * K < dead * (1 - 1e-6));
  const count = gone.length;
  const [all, some] = [E > 1 ? "dense" : "one expert", count > 1 ? "dead" : "one dead"];
  const kind = K === E ? all : count ? some : most < even ? "even" : "uneven";
  const found = { experts: E, dead: count, limit: 100 * dead, busiest, times: most.toFixed(1) };
  return [...words[kind].map((text) => filled(text, { ...found, goes_to: words["goes to"] })), gone];
}

const verdictOf = (run, out) =>
  run.step
    ? describeLoad([...(run.load ?? out.clean)], run.manifest, run.shared)
    : [...run.shared.words.load.untrained, []];

function lines(run, out) {
  const { recent } = run;
  const { numbers: sizes, words: texts } = run.shared;
  const { reading } = texts;
  const { experts: E } = run.manifest;
  const { token } = run.values;
  const guessing = Math.log(sizes.classes);
  const loss = mean(recent, ({ losses }) => losses[0]);
  const isWorse = run.step > sizes.recent && loss > 1.1 * guessing;
  const [verdict, rest, dead] = verdictOf(run, out);
  const [logits, probs, serves] = [out.logits, out.probs, out.serves].map((data) => rowOf(data, E, token));
  const order = range(E)
    .sort((one, other) => probs[other] - probs[one])
    .slice(0, 4);
  const read = order.map((e) => `E${e} ${signed(logits[e])} (${(100 * probs[e]).toFixed()} %)`).join(", ");
  const chosen = range(E)
    .filter((e) => serves[e] > 0)
    .sort((one, other) => serves[other] - serves[one]);
  const served = chosen.map((e) => `${weightText(serves[e])} × E${e}`).join(", ") || reading.dropped;
  const label = run.classes[token];
  const isRight = out.named[token] === label ? "correct" : "wrong";
  const [x, y] = [0, 1].map((axis) => minus(run.points.data[2 * token + axis].toFixed(2)));
  const [with_it, without] = [out.plain, out].map(({ accuracy }) => toPercent(accuracy[0]));
  const worse = isWorse ? filled(reading.worse, { guessing: guessing.toFixed(2) }) : "";
  const { length } = run.drawing;
  const isOne = new Set(run.drawing.map((each) => each.label)).size === 1;
  const ofDrawing = length
    ? filled(reading.own, { points: length }) + (isOne ? reading["one class"] : "")
    : "";
  const hint = !length && run.values.pen !== "off" ? reading.draw : "";
  const values = { expert: muted(run), with_it, without, points: sizes.measured };
  const lost = muted(run) === null ? "" : filled(reading.muted, values);
  return {
    words: verdict + rest + worse + ofDrawing + hint,
    ...(run.step < sizes.recent ? { verdict: "", dead: [] } : { verdict, dead }), // too little is known at first
    sizes: `${E} expert${E > 1 ? "s" : ""}, top-${run.manifest.top_k}`,
    reading:
      filled(reading.token, { token, x, y, label: CLASSES[label], verdict: isRight, read, served }) + lost,
  };
}
const muted = ({ values: { mute } }) => (mute === "none" ? null : Number(mute.slice(1)));

async function open(values, name) {
  const { num_experts: E, top_k: K, d_ff: F, task, seed } = values;
  const [shared, manifest, stepping, reading, batch, weights, ofSeed] = await Promise.all([
    json("manifest.json"),
    json(`${name}.json`),
    graph(`${name}.step.z`),
    graph(`${name}.read.z`),
    graph(`${task}.z`),
    numbers(`start-${E}-${K}-${F}-${seed}.z`),
    numbers(`seed-${seed}.z`),
  ]);
  return new Training(shared, manifest, { stepping, reading, batch }, weights, ofSeed, values);
}
serve(open, "task", "points");
