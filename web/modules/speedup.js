// The speedup map as a view of a page: the roofline of moe_lessons/analysis/speedup.py, computed here for each setting.
// web/speedup.py says of which models and machines, and the panel.

import canvas from "./canvas/index.js";
import { EVEN } from "./canvas/labels.js";
import { clamp, range, short } from "./canvas/numbers.js";
import { Control, bar, button, json, make, pack } from "./parts.js";

const ROWS = 49; // batch sizes that are drawn, and widths
const FEWEST = 14; // places that can be pointed at, in a row
const FAR = 1e9; // a batch size above both edges
const PLACE = { width: 1e4, batch_size: 4096 }; // that is selected: the most of each

const rounded = (count) => (count < 100 ? short(count) : Math.round(count).toLocaleString("en"));
// Seconds, in the unit in which `least` is said.
function say(value, least) {
  const [size, unit] = least >= 1 ? [1, "s"] : least < 1e-4 ? [1e6, "µs"] : [1e3, "ms"];
  return `${size * value < 0.001 ? "<0.001" : rounded(size * value)} ${unit}`;
}
function sizeOf(bytes) {
  const [unit, name] = bytes < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  return `${rounded(bytes / unit)} ${name}`;
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
  return { parts, seconds, bytes, flops };
}

const titleOf = (batch, width, speedup) =>
  `Batch size ${batch.toLocaleString("en")}, dense, ${width}×: speedup ${speedup.toFixed(2)}`;

// Both models at a place, as `table` of moe_lessons/widgets/speedup_map.py has them.
function tableOf({ table, inks }, steps, batch, width, caption) {
  const least = Math.min(...steps.map(({ seconds }) => seconds));
  const rows = {
    "least time of a step": [...steps.map(({ seconds }) => say(seconds, least)), ""],
    "bytes loaded": [...steps.map(({ bytes }) => sizeOf(bytes)), ""],
    FLOPs: [...steps.map(({ flops }) => `${short(flops)}FLOP`.replace(" B", " G")), ""],
  };
  for (const { name } of steps[0].parts) {
    const parts = steps.map((step) => step.parts.find((part) => part.name === name));
    const kinds = new Set(parts.filter((part) => part?.seconds).map(({ kind }) => kind));
    const times = parts.map((part) => (part?.seconds ? say(part.seconds, least) : "–"));
    if (kinds.size) rows[name] = [...times, [...kinds].join(" / ")];
  }
  const columns = ["MoE", `dense, ${width}×`, "bound by"];
  const ofModels = [0, inks[columns[1]] ?? inks[""]];
  const mark = {
    mark: "Table",
    columns,
    rows: Object.keys(rows),
    cells: Object.values(rows),
    inks: ofModels,
  };
  const [moe, dense] = steps;
  return { ...table, title: titleOf(batch, width, dense.seconds / moe.seconds), marks: [mark], caption };
}

// Why it is faster or slower at a place: what bounds the FFN of both models, and how many experts each has to do with.
function whyOf({ shared, expert }, { E, K }, [moe, dense], batch, width) {
  const isBound = ({ parts }, name) => parts.find((part) => part.name === name).kind === "memory";
  const inExperts = (experts, times = 1) =>
    short(Number((times * (experts + shared / expert)).toPrecision(3)));
  const [all, each, wide] = [inExperts(E), inExperts(K), inExperts(K, width)];
  const loaded = inExperts(E * (1 - (1 - K / E) ** batch));
  const counted = shared ? " (what is shared counts as experts)" : "";
  const why = isBound(dense, "FFN")
    ? `loading takes longer than computing. The MoE loads ${loaded} of its ${all} experts, the dense model as much as ${wide}`
    : isBound(moe, "experts")
      ? `the dense model computes as much as ${wide} experts for each token, which takes longer than loading them; the MoE loads ${loaded} of its ${all} experts`
      : `computing takes longer than loading. For each token the MoE computes ${each} experts, the dense model as much as ${wide}`;
  const [own, its] = [moe, dense].map(({ parts }) =>
    parts.reduce((sum, part) => sum + /FFN|experts|router/.test(part.name) * part.seconds, 0),
  );
  const pace = Math.abs(its / own - 1) <= EVEN ? "about as fast" : its > own ? "faster" : "slower";
  return `Why: in the FFN, ${why}${counted}. So the MoE is ${pace} there.`;
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

// Where the mixture is faster, slower, or about as fast: `edge_words` of moe_lessons/widgets/speedup_map.py.
export function edgeWords(pair, last, at) {
  const pace = (batches) => {
    const away = Math.min(...batches.map(at)) - 1;
    return Math.abs(away) <= EVEN ? "about as fast" : away > 0 ? "faster" : "slower";
  };
  if (!pair) {
    const isEven = range(last + 1).every((i) => Math.abs(at(2 ** i) - 1) <= EVEN);
    return isEven ? "about as fast at every batch size" : "never slower";
  }
  const [lower, edge] = pair.map((value) =>
    value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"),
  );
  const upper = pair[1] > 2 ** last ? `${edge} (beyond this map)` : edge;
  const inside = range(9).map((i) => pair[0] * (pair[1] / pair[0]) ** (i / 8));
  const paces = [[1], inside, [FAR]].map(pace);
  const ends = [lower, upper, ""];
  const kept = range(3).filter((i) => paces[i] !== paces[i + 1]);
  const [below, between, above] = kept.map((i) => paces[i]);
  if (!between) return `${below} at every batch size`;
  const end = ends[kept[0]];
  const first = end === "1.0" ? `${below} at batch size 1` : `${below} below batch size ${end}`;
  if (!above) return `${first}, ${between} above`;
  if (below === above) return `${first} and above ${upper}, ${between} between`;
  return `${first}, ${between} up to ${upper}, ${above} above`;
}

// What memory has room for: how many sequences, and a sentence where a batch does not fit; of weights alone, any.
function roomFor(model, { E, weight, cached, context }, memory, batch) {
  const weights = weight * (model.rest + E * (model.expert + model.router));
  if (weights > memory)
    return { trouble: `It does not fit: ${sizeOf(weights)} of weights, ${sizeOf(memory)} of memory.` };
  const each = cached * model.cache * context;
  const sequences = each ? Math.floor((memory - weights) / each) : Infinity;
  const isFull = batch > sequences;
  const full = isFull ? `At batch size ${batch.toLocaleString("en")} it does not fit: memory is full.` : "";
  if (sequences) return { sequences, trouble: full };
  return {
    trouble: `No text fits: ${sizeOf(weights)} of weights and ${sizeOf(each)} of cache for each text, ${sizeOf(memory)} of memory.`,
  };
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
    return [{ mark: "Line", x: { slot: slots[0] }, y: { slot: slots[1] }, name, ink, strong: true }];
  });
  return { marks, arrays };
}

// Both models at these settings: a step, the speedup, the edges and their words, over the batch size and the width.
export function comparison(manifest, values) {
  const model = manifest.models[values.model];
  const { num_experts: E, top_k: K, context_length: context, weights: kind } = values;
  const [bandwidth, usual, fast, memory] = manifest.machines[values.machine];
  const roof = [bandwidth, kind === "fp8" && fast ? fast : usual];
  const [weight, cached] = manifest.bytes[kind];
  const setting = { E, K, weight, cached, context };
  const step = (batch, width) => stepOf(costsOf(model, setting, batch, width), roof);
  const speedup = (batch, width) => step(batch, width).seconds / step(batch).seconds;
  const edges = (width) => edgesOf(model, setting, roof, width);
  const words = (width) => edgeWords(edges(width), manifest.last, (batch) => speedup(batch, width));
  return { model, setting, memory, step, speedup, edges, words };
}

// The panels for these settings, their arrays, and what is found at the width that is selected.
export function panelsOf(manifest, values) {
  const { num_experts: E, top_k: K } = values;
  const { model, setting, memory, step, speedup, edges, words } = comparison(manifest, values);
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
  const titles = places.map(([width, row]) => titleOf(2 ** row, width, speedup(2 ** row, width)));
  const panel = structuredClone(manifest.panel);
  const [heat] = panel.marks;
  const [width, batch] = [Math.min(values.width, top), values.batch_size];
  Object.assign(heat, { titles, columns: across.length });
  panel.x.high = top;
  const tick = top < 6 ? 0.5 : 2 ** Math.round(Math.log2((2 * (top - 1)) / FEWEST));
  const ticks = range(Math.floor(top / tick)).map((i) => (i + 1) * tick);
  panel.x.ticks = [1, ...ticks.filter((each) => each >= 1 + tick / 2)].map((each) => [each, short(each)]);
  const isPublished = E === model.experts && K === model.top_k;
  const { matched } = manifest;
  const rule = (x, style, name) => ({ mark: "Rule", x: clamp(x, 1, top), y: null, kind: style, name });
  if (matched.model === values.model && isPublished)
    panel.marks.push(
      rule(matched.width, "dash", matched.name),
      rule(matched.low, "even", "its 95 % interval"),
      rule(matched.high, "even", ""),
    );
  const { trouble, sequences } = roomFor(model, setting, memory, batch);
  if (sequences >= 1 && sequences < 2 ** manifest.last) {
    const text = `memory is full: ${sequences.toLocaleString("en")} sequence${sequences > 1 ? "s" : ""}`;
    panel.marks.push({ mark: "Rule", x: null, y: Math.log2(sequences), kind: "end", name: text });
  }
  const drawn = edgeLines(manifest, edges, top, panel.marks.length);
  panel.marks.push(...drawn.marks);
  const mixture = isPublished ? values.model : `${values.model} with ${E} experts, top-${K}`;
  const subject = mixture[0].toUpperCase() + mixture.slice(1);
  const finding = `${subject} over dense, ${width}×, on one ${values.machine}: ${words(width)}.`;
  const arrays = {
    ...drawn.arrays,
    [heat.z.slot]: ["f4", [ROWS, ROWS], z],
    [heat.contours.slot]: ["f4", [lines.length, ROWS], lines.flat()],
    [heat.places.slot]: ["f4", [places.length, 2], places.flat()],
    [heat.selected.slot]: ["f4", [2], [width, Math.log2(batch)]],
  };
  const over = (each) => `${short(each)}×: ${words(each)}`;
  const widest = [1, 2, 4].filter((each) => each < top);
  const same = K === E ? ["With top-k = E the MoE loads and computes what dense, 1×, does."] : [];
  const steps = [step(batch), step(batch, width)];
  const why = whyOf(model, setting, steps, batch, width);
  const caption = [why, "", "The MoE over dense models:", ...[...widest, top].map(over), ...same];
  const table = tableOf(manifest, steps, batch, width, caption.join("\n"));
  const found = trouble && !sequences ? `If it fitted: ${finding}` : finding;
  return { panels: { 0: panel, 1: table }, arrays, trouble, finding: found, places };
}

// The settings that an address asks for, and why it cannot be read.
function read(manifest, state) {
  const given = [...new URLSearchParams(state)];
  const values = { ...manifest.usual };
  const { experts, top_k: K } = manifest.models[Object.fromEntries(given).model] ?? {};
  if (experts) Object.assign(values, { num_experts: experts, top_k: K }); // where the address does not have others
  for (const [name, text] of given) {
    if (name in PLACE && Number(text) >= 1 && Number(text) <= PLACE[name]) {
      values[name] = Number(text);
      continue;
    }
    const stop = manifest.controls[name]?.stops.find(([, value]) => String(value) === text);
    if (!stop) return [{ ...manifest.usual }, `The address cannot be read: ${name} cannot be ${text}.`];
    values[name] = stop[1];
  }
  return [values, ""];
}

export default async function show(place) {
  const manifest = await json("speedup.json");
  let [values, trouble] = [{ ...manifest.usual }, ""];
  let frame = 0;
  let hear;
  let places = [];
  const [view, finding] = [make("div"), make("div", { class: "moe-finding", role: "status" })];
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
  const verdict = make("div", { class: "moe-verdict" }, place.said, finding);
  const more = button("More", "Show all settings, or two", () => {
    more.textContent = settings.classList.toggle("moe-open") ? "Less" : "More";
  }); // seen where there is little room
  more.className = "moe-sliders";
  const settings = bar(...elements, more);
  place.home.replaceChildren(settings, verdict, bar(...place.shares()), view);
  const send = ({ pick, index }) => {
    if (pick !== "place" || !places[index]) return;
    const [width, row] = places[index];
    Object.assign(values, { width, batch_size: 2 ** row });
    trouble = "";
    draw();
  };
  const model = { on: (_, action) => (hear = action), off() {}, get() {}, set() {}, send };
  canvas.render({ el: view, model });
  function draw() {
    values.top_k = clamp(values.top_k, 1, values.num_experts);
    const { panels, arrays, trouble: unfit, ...found } = panelsOf(manifest, values);
    places = found.places;
    finding.textContent = found.finding;
    names.forEach((name, i) => {
      const fits = ([, value]) => name !== "top_k" || value <= values.num_experts;
      controls[i].show(values[name], manifest.controls[name].stops.filter(fits));
    });
    const { slots, data } = pack(arrays);
    const colors = frame ? undefined : manifest.colors;
    const seen = { count: 2, experts: 0, words: "" };
    hear({ frame: ++frame, colors, panels, slots, words: seen }, [new DataView(data)]);
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
