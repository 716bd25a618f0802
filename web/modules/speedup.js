// The speedup map as a view of a page: the roofline of moe_lessons/analysis/speedup.py, computed here for each setting.
// web/speedup.py says of which models and machines, and the panel.

import canvas from "./canvas/index.js";
import { clamp, range, short } from "./canvas/numbers.js";
import { Control, bar, json, make, pack } from "./parts.js";

const ROWS = 49; // batch sizes that are drawn, and widths
const FEWEST = 14; // places that can be pointed at, in a row

const say = (value) => (value < 1e-4 ? `${short(1e6 * value)} µs` : `${short(1e3 * value)} ms`);
function sizeOf(bytes) {
  const [unit, name] = bytes < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  const count = bytes / unit;
  return `${count < 100 ? short(count) : Math.round(count).toLocaleString("en")} ${name}`;
}

// [name, bytes, FLOPs] of each part of a step: of the mixture, or of the dense model of this width.
export function costsOf(model, { E, K, weight, cached, context }, batch, width) {
  const touched = E * (1 - (1 - K / E) ** batch);
  const active = model.shared + K * model.expert;
  const part = (name, weights, products = weights) => [name, weight * weights, 2 * batch * products];
  const ffn =
    width === undefined
      ? [
          part("router", model.router * E),
          part("FFN", model.shared),
          part("experts", model.expert * touched, model.matrix * K),
        ]
      : [part("FFN", active * width)];
  const cache = ["KV cache", cached * batch * model.cache * context, batch * model.scores * context];
  return [part("attention, head", model.weights, model.flops / 2), ...ffn, cache];
}

// The least seconds of a step, and what bounds each part of it.
export function stepOf(costs, [bandwidth, peak]) {
  const parts = costs.map(([name, bytes, flops]) => ({
    name,
    seconds: Math.max(bytes / bandwidth, flops / peak),
    kind: bytes / bandwidth >= flops / peak ? "memory" : "compute",
  }));
  const seconds = parts.reduce((sum, part) => sum + part.seconds, 0);
  const [bytes, flops] = [1, 2].map((at) => costs.reduce((sum, cost) => sum + cost[at], 0));
  return { parts, seconds, text: `${say(seconds)}: ${sizeOf(bytes)}, ${short(flops)} FLOPs` };
}

function rowsOf(name, { parts, seconds, text }) {
  const bounds = ["memory", "compute"].map((kind) => {
    const bound = parts.filter((part) => part.kind === kind && part.seconds > 0.01 * seconds);
    return bound.length && ["", `${kind}-bound: ${bound.map((part) => part.name).join(", ")}`];
  });
  return [[name, text], ...bounds.filter(Boolean)];
}

// The two batch sizes between which the mixture is slower than a dense model: `edges` of moe_lessons/analysis/speedup.py.
export function edgesOf(model, { E, K, weight }, [bandwidth, peak], width) {
  const shared = model.shared / model.expert;
  const asWide = width * (K + shared); // of how many experts
  const loaded = (asWide - shared) / E;
  if (loaded >= 1) return undefined;
  const lower = Math.log1p(-loaded) / Math.log1p(-K / E);
  const computeBound = ((peak / bandwidth) * weight) / 2;
  return lower < computeBound ? [lower, (computeBound * (E + shared)) / asWide] : undefined;
}

// What memory has room for: a sentence where the weights do not fit, else how many sequences do; of weights alone, any.
function roomFor(model, { E, weight, cached, context }, memory) {
  const weights = weight * (model.rest + E * (model.expert + model.router));
  if (weights > memory)
    return { trouble: `It does not fit: ${sizeOf(weights)} of weights, ${sizeOf(memory)} of memory.` };
  const each = cached * model.cache * context;
  return { sequences: each ? Math.floor((memory - weights) / each) : Infinity };
}

// Lines of both edges, and their arrays, over the widths from 1 to `top`, where they lie on the map.
function edgeLines(manifest, edges, top, first) {
  const found = range(8 * manifest.last + 1).flatMap((i) => {
    const width = 1 + ((top - 1) * i) / (8 * manifest.last);
    const pair = edges(width);
    return pair ? [[width, pair.map(Math.log2)]] : [];
  });
  const arrays = {};
  const marks = Object.entries(manifest.edges).flatMap(([name, ink], edge) => {
    const points = found.filter(([, ends]) => ends[edge] <= manifest.last);
    if (points.length < 2) return [];
    const slots = ["x", "y"].map((axis) => `0.${first + edge}.${axis}`);
    arrays[slots[0]] = ["f4", [points.length], points.map(([width]) => width)];
    arrays[slots[1]] = ["f4", [points.length], points.map(([, ends]) => ends[edge])];
    return [{ mark: "Line", x: { slot: slots[0] }, y: { slot: slots[1] }, name, ink, strong: false }];
  });
  const places = found.flatMap(([width, ends]) => ends.map((end) => [width, end]));
  return { marks, arrays, places };
}

// Where the level of each contour stands, as `_contour_labels` of moe_lessons/plots/speeds.py has it: it touches nothing.
function contourLabels({ levels, last }, lines, top, taken) {
  const labels = [];
  const isFree = ([x, y]) =>
    [...taken, ...labels.map(([, place]) => place)].every(
      (other) => Math.abs(other[0] - x) >= 0.055 * top || Math.abs(other[1] - y) >= 0.5,
    );
  levels.forEach((level, i) => {
    const line = lines[i];
    for (const row of new Set([7, ROWS - 2, line.indexOf(Math.max(...line))])) {
      const place = [line[row] + 0.006 * top, (last * row) / (ROWS - 1)];
      const isInside = line[row] > 1 + 0.01 * top && line[row] < 0.95 * top;
      if (isInside && isFree(place)) labels.push([String(level), place]);
    }
  });
  return labels;
}

// The panel for these settings, and its arrays.
export function panelOf(manifest, values) {
  const model = manifest.models[values.model];
  const { num_experts: E, top_k: K, context_length: context, weights: kind } = values;
  const [bandwidth, usual, fast, memory] = manifest.machines[values.machine];
  const roof = [bandwidth, kind === "fp8" && fast ? fast : usual];
  const [weight, cached] = manifest.bytes[kind];
  const setting = { E, K, weight, cached, context };
  const step = (batch, width) => stepOf(costsOf(model, setting, batch, width), roof);
  const active = model.shared + K * model.expert;
  const top = Math.max(2, (model.shared + E * model.expert) / active);
  const rows = range(ROWS).map((row) => (manifest.last * row) / (ROWS - 1));
  const ends = rows.map((row) => {
    // a dense model's time is linear in its width
    const [moe, one, two] = [undefined, 1, 2].map((width) => step(2 ** row, width).seconds);
    return { moe, ffn: two - one, rest: 2 * one - two };
  });
  const widths = rows.map((row) => 1 + ((top - 1) * row) / manifest.last);
  const z = ends.flatMap(({ moe, ffn, rest }) =>
    widths.map((width) => Math.log2((rest + ffn * width) / moe)),
  );
  const lines = manifest.levels.map((level) => ends.map(({ moe, ffn, rest }) => (level * moe - rest) / ffn));
  const apart = 2 ** Math.round(Math.log2((top - 1) / FEWEST));
  const across = [...new Set(range(Math.floor(top / apart + 0.25) + 1).map((i) => Math.max(i * apart, 1)))];
  const places = range(manifest.last + 1).flatMap((i) => across.map((width) => [width, manifest.last - i]));
  const tooltips = places.map(([width, row]) => {
    const [moe, dense] = [step(2 ** row), step(2 ** row, width)];
    const name = `dense, ${width}×`;
    const title = `batch size ${(2 ** row).toLocaleString("en")}, ${name}: speedup ${(dense.seconds / moe.seconds).toFixed(2)}`;
    return [title, [...rowsOf("MoE", moe), ...rowsOf(name, dense)]];
  });
  const panel = structuredClone(manifest.panel);
  const [heat, words] = [panel.marks[0], panel.marks.at(-1)];
  const [titles, says] = [0, 1].map((at) => tooltips.map((one) => one[at]));
  Object.assign(heat, { titles, says, columns: across.length });
  panel.x.high = top;
  const { trouble = "", sequences } = roomFor(model, setting, memory);
  if (sequences >= 1 && sequences < 2 ** manifest.last) {
    const text = `memory is full: ${sequences.toLocaleString("en")} sequences`;
    panel.marks.push({ mark: "Rule", x: null, y: Math.log2(sequences), kind: "limit", name: text });
  }
  const edges = edgeLines(manifest, (width) => edgesOf(model, setting, roof, width), top, panel.marks.length);
  panel.marks.push(...edges.marks);
  const labels = contourLabels(manifest, lines, top, edges.places);
  words.texts = labels.map(([text]) => text);
  words.says = labels.map(() => "");
  const none = labels.map(() => -1);
  const arrays = {
    ...edges.arrays,
    [heat.z.slot]: ["f4", [ROWS, ROWS], z],
    [heat.contours.slot]: ["f4", [lines.length, ROWS], lines.flat()],
    [heat.places.slot]: ["f4", [places.length, 2], places.flat()],
    [words.places.slot]: ["f4", [labels.length, 4], labels.flatMap(([, place]) => [...place, 0, 0.4])],
    [words.fill.slot]: ["i4", [labels.length], labels.map(() => 0)],
    [words.expert.slot]: ["i4", [labels.length], none],
    [words.token.slot]: ["i4", [labels.length], none],
  };
  return { panel, arrays, trouble };
}

// The settings that an address asks for, and why it cannot be read.
function read(manifest, state) {
  const given = [...new URLSearchParams(state)];
  const values = { ...manifest.usual };
  for (const [name, text] of given) {
    const stop = manifest.controls[name]?.stops.find(([, value]) => String(value) === text);
    if (!stop) return [manifest.usual, `The address cannot be read: ${name} cannot be ${text}.`];
    values[name] = stop[1];
  }
  return [values, ""];
}

export default async function show(place) {
  const manifest = await json("speedup.json");
  let [values, trouble] = [manifest.usual, ""];
  let frame = 0;
  let hear;
  const view = make("div");
  const names = Object.keys(manifest.controls);
  const change = (name) => (value) => {
    values = { ...values, [name]: value };
    if (name === "model") {
      const { experts, top_k: K } = manifest.models[value];
      Object.assign(values, { num_experts: experts, top_k: K });
    }
    trouble = "";
    draw();
  };
  const controls = names.map(
    (name) => new Control(`${place.id}-${name}`, manifest.controls[name], change(name)),
  );
  const elements = controls.map(({ element }) => element);
  place.home.replaceChildren(
    bar(make("b", {}, "Speedup map"), ...place.shares()),
    bar(...elements),
    place.said,
    view,
  );
  const model = { on: (_, action) => (hear = action), off() {}, get() {}, set() {}, send() {} };
  canvas.render({ el: view, model });
  function draw() {
    values.top_k = clamp(values.top_k, 1, values.num_experts);
    const { panel, arrays, trouble: unfit } = panelOf(manifest, values);
    names.forEach((name, i) => {
      const fits = ([, value]) => name !== "top_k" || value <= values.num_experts;
      controls[i].show(values[name], manifest.controls[name].stops.filter(fits));
    });
    const { slots, data } = pack(arrays);
    const colors = frame ? undefined : manifest.colors;
    const seen = { count: 1, experts: 0, words: "" };
    hear({ frame: ++frame, colors, panels: { 0: panel }, slots, words: seen }, [new DataView(data)]);
    place.say(trouble || unfit || "");
    if (!trouble) place.keep(String(new URLSearchParams(values)));
  }
  const open = () => {
    [values, trouble] = read(manifest, place.state);
    draw();
  };
  place.watch(() => {}, open);
  open();
}
