// Trains the wall of facts: its models in step, each in a worker of its own (see wall_model.js). What it knows: to
// have them train and read, and to fill the arrays of the panels (see web/wall.py).

import { History, serve, toPercent } from "./loop.js";
import { json, once, unpacked } from "./parts.js";

const FEW = 0.05; // of the entries: too few to compare with
const withCommas = (count) => count.toLocaleString("en");
const rest = () => new Promise((go) => setTimeout(go, 200)); // milliseconds: a slider may still move

class Wall extends History {
  constructor(shared, manifest, book, values) {
    super(shared, manifest, values);
    Object.assign(this, { book, readings: [] });
    this.workers = manifest.models.map(
      () => new Worker(new URL("wall_model.js", import.meta.url), { type: "module" }),
    );
  }
  get budget() {
    return Math.round((super.budget * this.values.num_entries) / this.shared.numbers.entries); // more take longer
  }
  ask(kind, more = () => ({})) {
    // all models; what each answers
    const lost = "wall_model.js did not arrive, or this browser has no workers within workers.";
    return Promise.all(
      this.workers.map(
        (worker, k) =>
          new Promise((done, failed) => {
            worker.onmessage = ({ data }) =>
              "refused" in data ? failed(new Error(data.refused)) : done(data.answer);
            worker.onerror = () => failed(new Error(lost));
            worker.postMessage({ kind, ...more(this.manifest.models[k]) });
          }),
      ),
    );
  }
  end() {
    for (const worker of this.workers) worker.terminate();
  }
  async train() {
    // one step of all; where one of them diverges, none has made it
    const { rates, every } = this.manifest;
    const rate = this.values.lr * (rates[this.step] ?? rates.at(-1));
    const answers = await this.ask("step", () => ({ rate }));
    if (!answers.every(({ isGood }) => isGood)) return (await this.goBack(), false);
    this.note(answers.map(({ loss }) => loss));
    if (this.step % every === 0) await this.measure(true);
    return true;
  }
  goBack() {
    this.readings = this.readings.filter(({ step }) => step < this.step);
    return this.ask("back");
  }
  async measure(isPaused) {
    if (!this.known || (isPaused && this.readings.at(-1)?.step !== this.step)) {
      this.known = await this.ask("read");
      this.readings.push({ step: this.step, counts: this.known.map(({ count }) => count) });
    }
    return this.known.every(({ loss }) => Number.isFinite(loss)) ? this.known : null;
  }
  draw(place, header, known, slot) {
    const {
      manifest: { models },
      shared: {
        numbers: { length },
      },
      values: { num_entries: N },
      book,
      readings,
    } = this;
    if (place < models.length) {
      const { count, right, answers } = known[place];
      header.title = `${models[place].name}: ${withCommas(count)}/${withCommas(N)}`;
      return {
        "0.right": ["u1", [N], right],
        "0.entries": ["u1", [N, length], book.subarray(0, N * length)],
        "0.answers": ["u1", [N, answers.length / N], answers],
      };
    }
    if (place === models.length) {
      // how many are known
      const last = readings.at(-1).step;
      const line = (values) => ["f4", [readings.length], values];
      header.x = this.axis(header.x, Math.max(...models.map((_, k) => this.spent(k, last))), 1e9);
      return Object.fromEntries(
        models.flatMap((_, k) => [
          [`${k}.x`, line(readings.map(({ step }) => this.spent(k, step)))],
          [`${k}.y`, line(readings.map(({ counts }) => counts[k]))],
        ]),
      );
    }
    if (place === models.length + 1) return this.loss(header, slot);
    header.marks[0].cells.splice(
      -2,
      2,
      known.map(({ loss }) => String(+loss.toPrecision(3))),
      known.map(({ accuracy }) => toPercent(accuracy)),
    );
    return {};
  }
  // What is memorised, and as soon as there is enough to compare, at which FLOPs.
  lines([{ count: own }, ...others]) {
    const { models, flops } = this.manifest;
    const { num_entries: N } = this.values;
    const { step } = this.readings.at(-1);
    const compared = ({ count }, i) => {
      const times = +(flops[i + 1] / flops[0]).toPrecision(2);
      return `; ${models[i + 1].name} (${times} times its FLOPs): ${withCommas(count)}`;
    };
    const isEnough = others.every(({ count }) => count >= FEW * N);
    const found = isEnough ? others.map(compared).join("") : "";
    const words = `After ${withCommas(step)} steps the MoE has memorised ${withCommas(own)} of ${withCommas(N)} entries${found}.`;
    return { words, reading: "" };
  }
}

async function open(values, name, signal) {
  const { num_entries, seed } = values;
  const file = `facts-${seed}.z`;
  const [shared, manifest, book] = await Promise.all([
    json("wall.json"),
    json(`facts-${name}.json`),
    once(file, () => unpacked(file)),
    rest(),
  ]);
  signal.throwIfAborted(); // before there are workers
  const run = new Wall(shared, manifest, book, values);
  const {
    numbers: { length, digits, read },
    knobs,
  } = shared;
  const asked = { book, seed, num_entries, length, digits, read, rateAt: knobs.indexOf("lr") };
  signal.onabort = () => run.end();
  try {
    await run.ask("start", (model) => ({ ...model, ...asked }));
  } catch (error) {
    run.end();
    throw error;
  }
  signal.onabort = null;
  return run;
}
serve(open, "num_entries");
