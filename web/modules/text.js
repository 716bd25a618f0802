// "Your own text" as a view: a small language model of experts reads what is typed and goes on writing; beside it the
// same model untrained. The graph is torch's (see graphs.py), the panels are those of web/text_model.py.

import canvas from "./canvas/index.js";
import { percent, range } from "./canvas/numbers.js";
import { Control, KEPT, bar, button, filled, json, make, pack, unpacked } from "./parts.js";
import { graph, halves, randomOf, whole } from "./runtime.js";

const MOST = 1000;
const PAUSE = 200; // letters in the address; milliseconds between two that are written
const utf8 = new TextEncoder();
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const decoder = new TextDecoder();
const lengthBy = (lead) => (lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4); // bytes of a letter of UTF-8

function lettersOf(bytes) {
  // [letter, how many bytes it has]; "�" for a byte of none
  const found = [];
  for (let i = 0; i < bytes.length; i += found.at(-1)[1]) {
    const length = lengthBy(bytes[i]);
    try {
      found.push([strict.decode(bytes.subarray(i, i + length)), length]);
    } catch {
      found.push(["�", 1]);
    }
  }
  return found;
}
function rowOf({ data, dims }, ...places) {
  // of an output of the graph
  const width = dims.at(-1);
  const at = places.reduce((sum, place, axis) => sum * dims[axis] + place, 0);
  return [...data.subarray(at * width, (at + 1) * width)];
}
// The panels of `text_panels`, and their arrays. outs: what both models read of the bytes, of which one is the token;
// pointed: another one that is shown.
export function panelsOf(manifest, outs, { bytes, layer, token: selected, pointed: token = selected }) {
  const panels = structuredClone(manifest.panels);
  const arrays = {};
  const letters = lettersOf(bytes);
  const [trained] = outs;
  const [, , route, path] = panels;
  const layers = range(manifest.layers);
  const ints = (slot, values) => (arrays[slot] = ["i4", [values.length], values]);
  const floats = (slot, values, width) => (arrays[slot] = ["f4", [values.length / width, width], values]);
  const words = { layer, next: layer + 1, token, byte: manifest.names[bytes[token]] };
  const named = (kind, model) => filled(manifest.titles[kind], { ...words, model });
  outs.forEach((out, i) => {
    const [text, next] = [panels[i], panels[i + 4]];
    const texts = [letters.map(([letter]) => letter).join("")];
    const rows = (all) => range(bytes.length).map((at) => rowOf(all, layer, at));
    const weights = rows(out.serves);
    const serve = (row, at) => row.map((e, k) => `E${e} ${weights[at][k].toFixed(2)}`).join(", ");
    Object.assign(text.marks[0], { texts, says: rows(out.experts).map(serve), selected });
    ints(
      `${i}.0.experts`,
      rows(out.experts).map(([first]) => first),
    );
    ints(
      `${i}.0.sizes`,
      letters.map(([, length]) => length),
    );
    const [likeliest, probs] = [out.bytes, out.next].map((all) =>
      rowOf(all, token).slice(0, manifest.likeliest),
    );
    const rowNames = likeliest.map((byte) => manifest.names[byte]);
    Object.assign(next.marks[0], { rows: rowNames, texts: probs.map(percent) });
    floats(`${i + 4}.0.values`, probs, 1);
    [text.title, next.title] = ["text", "next"].map((kind) => named(kind, manifest.models[i]));
  });
  [route.title, path.title, path.marks[0].selected] = [named("route"), named("path"), layer];
  const served = layers.flatMap((row) => rowOf(trained.experts, row, token).map((e) => [e, row]));
  const places = { x: 0, y: 1, expert: 0 };
  for (const [name, axis] of Object.entries(places)) {
    const values = served.map((at) => at[axis]);
    ints(`3.1.${name}`, values);
  }
  floats(
    "3.0.z",
    layers.flatMap((row) => rowOf(trained.probs, row, token)),
    manifest.experts,
  );
  const [experts, weights] = ["experts", "serves"].map((name) => rowOf(trained[name], layer, token));
  const serves = range(manifest.experts).map((e) => weights[experts.indexOf(e)] ?? 0);
  const [head, ...feet] = manifest.ends.map((text) => filled(text, words));
  Object.assign(route.marks[0], { head, foot: feet[Number(layer === manifest.layers - 1)] });
  arrays["2.0.probs"] = ["f4", [manifest.experts], rowOf(trained.probs, layer, token)];
  arrays["2.0.weights"] = ["f4", [manifest.experts], serves];
  return { panels, arrays };
}

// In each layer, how many of the characters that repeat have one first expert, trained and untrained: all of them where a
// layer routes by the character alone.
export function noticed({ layers }, outs, bytes) {
  const places = new Map(); // byte -> where it stands
  bytes.forEach((byte, at) => {
    if (byte > 32 && byte < 127) places.set(byte, [...(places.get(byte) ?? []), at]);
  });
  const repeated = [...places.values()].filter(({ length }) => length > 1);
  if (!repeated.length) return "";
  const isOne = (out, layer) => (all) =>
    new Set(all.map((at) => rowOf(out.experts, layer, at)[0])).size === 1;
  const counts = range(layers).map((layer) => outs.map((out) => repeated.filter(isOne(out, layer)).length));
  const [first, ...later] = counts.map(([trained, untrained]) => `${trained} (untrained: ${untrained})`);
  const others = later.map((said, i) => `in layer ${i + 1}, ${said}`).join("; ");
  return `In layer 0, ${first} of ${repeated.length} repeated characters have the same first expert each time; ${others}.`;
}

// The byte in the middle of the last of the longest words: there is something before it and after it.
function middleOf(bytes) {
  const words = [...String.fromCharCode(...bytes).matchAll(/[a-z]+/gi)];
  const longest = words.reduce((one, other) => (other[0].length >= one[0].length ? other : one), words[0]);
  return longest ? longest.index + (longest[0].length >> 1) : null;
}

class OwnText {
  constructor(place, manifest, session, models) {
    Object.assign(this, {
      place,
      manifest,
      session,
      models,
      turn: Promise.resolve(),
      random: randomOf(0),
      frame: 0,
    });
    const { words, examples } = manifest;
    const id = `${place.id}-text`;
    const view = make("div");
    const take = (text, token) => {
      if (this.writing) this.goOn(); // who types, or begins with another text, stops it
      this.change({ text, token });
    };
    const type = (text) => take(text, null); // the last one
    const begin = (text) => take(text, this.middle(text));
    this.field = make("textarea", { id, rows: 2, spellcheck: "false" });
    this.field.addEventListener("input", () => type(this.field.value));
    const lines = Object.entries(examples).map(([name, text]) => button(name, text, () => begin(text)));
    const letter = button("Write a letter", words.letter, () => this.write(([likeliest]) => likeliest));
    this.on = button("Write on", words.on, () => this.goOn());
    const control = (name, label, said = { label, tip: words[name] }) =>
      new Control(`${place.id}-${name}`, said, (value) => this.change({ [name]: value }));
    this.controls = [control("layer", "Layer"), control("token", "Token")];
    const top = bar(make("label", { for: id }, words.label), ...lines);
    const controls = bar(letter, this.on, ...this.controls.map(({ element }) => element), place.said);
    const about = make("p", {}, words.model);
    place.home.replaceChildren(top, this.field, controls, view, about, bar(...place.shares()));
    const preview = (target) => {
      const byte = target?.closest("[data-byte]")?.dataset.byte;
      const pointed = byte && Number(byte);
      if (pointed !== this.pointed) this.ask({ pointed });
    };
    view.addEventListener(
      "pointerover",
      ({ target, pointerType }) => pointerType === "mouse" && preview(target),
    );
    view.addEventListener("pointerleave", () => preview());
    const send = ({ pick, index }) => ["layer", "token"].includes(pick) && this.change({ [pick]: index });
    canvas.render({
      el: view,
      model: { on: (_, hear) => (this.hear = hear), off() {}, get() {}, set() {}, send },
    });
    place.watch(
      (isSeen) => (this.isSeen = isSeen),
      () => this.open(),
    );
  }
  middle(text) {
    return middleOf(utf8.encode(text).slice(-this.manifest.window));
  }
  open() {
    const { manifest, place } = this;
    const given = Object.fromEntries(new URLSearchParams(place.state));
    const text = (given.text ?? Object.values(manifest.examples)[0]).slice(-MOST);
    const { length } = utf8.encode(text);
    const counts = { layer: manifest.layers, token: Math.min(length, manifest.window) };
    const isBad = (name) =>
      name in given && counts[name] && !range(counts[name]).map(String).includes(given[name]);
    const bad = Object.keys(counts).find(isBad);
    const { layer = manifest.layer, token = this.middle(text) } = bad ? {} : given;
    const strange = Object.keys(given).find((key) => !["text", "layer", "token"].includes(key));
    const why =
      strange !== undefined
        ? `The address cannot be read: there is no control ${strange}.`
        : bad
          ? `The address cannot be read: ${bad} must be from 0 to ${counts[bad] - 1}, got ${given[bad]}.`
          : "";
    if (why && this.text !== undefined) return place.say(`${why} ${KEPT}`);
    this.change({ text, layer: Number(layer), token: token === null ? null : Number(token), trouble: why });
  }
  change(state) {
    Object.assign(this, { trouble: "", isWhole: true }, state);
    if ("text" in state) this.pointed = undefined;
    if (this.field.value !== this.text) this.field.value = this.text;
    if (this.writing) this.field.scrollTop = this.field.scrollHeight;
    this.ask();
  }
  ask(state) {
    Object.assign(this, state);
    if (this.isAsked) return;
    this.isAsked = true;
    this.queue(() => {
      this.isAsked = false;
      return this.show();
    });
  }
  queue(work) {
    // one after the other
    const said = (error) => this.place.say(`The model stopped: ${error.message}`);
    return (this.turn = this.turn.then(work).catch(said));
  }
  run(bytes, weights) {
    const ids = Int32Array.from({ ...bytes, length: this.manifest.window });
    return this.session.run({ weights, ids: whole(ids, ids.length) });
  }
  async show() {
    const {
      manifest,
      manifest: { words, window },
      text,
      layer,
      place,
    } = this;
    const all = utf8.encode(text);
    const bytes = all.slice(-window);
    const count = bytes.length;
    const token = Math.min(this.token ?? count, count - 1);
    const note = text ? count < all.length && filled(words.long, { bytes: all.length, window }) : words.empty;
    const cut = text.length > MOST ? `A link has its last ${MOST.toLocaleString("en")} letters.` : "";
    const strange = [...new Set(decoder.decode(bytes))].filter((letter) => letter > "~");
    const letters = [...strange.slice(0, 3), ...(strange.length > 3 ? ["…"] : [])].join(" ");
    const unseen = letters && filled(words.unseen, { letters });
    place.say([this.trouble, note, unseen, cut].filter(Boolean).join(" "));
    const state = { text: text.slice(-MOST), layer, ...(this.token !== null && { token }) };
    if (!this.writing) place.keep(String(new URLSearchParams(state)));
    this.controls[0].show(
      layer,
      range(manifest.layers).map((at) => [String(at), at]),
    );
    const tokens = Array.from(bytes, (byte, at) => [`${at} ${manifest.names[byte]}`, at]);
    this.controls[1].show(token, text ? tokens : [["–", token]]);
    const isOther = this.read?.text !== text;
    if (isOther) {
      const outs = [];
      for (const weights of this.models) outs.push(await this.run(bytes, weights));
      this.read = { text, outs };
    }
    const { outs } = this.read;
    const { pointed, isWhole } = this;
    this.isWhole = false;
    const made = text
      ? panelsOf(manifest, outs, { bytes, layer, token, pointed })
      : { panels: [], arrays: {} };
    // the letters stay as they are under the pointer
    const [panels, arrays] = [made.panels, made.arrays].map((parts) =>
      Object.fromEntries(Object.entries(parts).filter(([name]) => isWhole || parseInt(name) > 1)),
    );
    const [trained, untrained] = outs.map(({ surprise: { data } }) => data[count - 2]?.toFixed(2));
    const reading = count > 1 ? filled(words.surprise, { trained, untrained }) : "";
    const notice = noticed(manifest, outs, bytes);
    const { slots, data } = pack(arrays);
    const seen = {
      count: made.panels.length,
      experts: text ? manifest.experts : 0,
      token,
      words: notice,
      reading,
      isOther,
    };
    this.hear({ frame: ++this.frame, colors: manifest.colors, panels, slots, words: seen }, [
      new DataView(data),
    ]);
    if (isWhole) requestAnimationFrame(() => this.follow(token));
  }
  // Have the letter that is selected in sight, in texts longer than their places.
  follow(token) {
    for (const letter of this.place.home.querySelectorAll(`.moe-text [data-byte="${token}"]`)) {
      const [text, { top, bottom }] = [letter.closest(".moe-text"), letter.getBoundingClientRect()];
      const room = text.getBoundingClientRect();
      if (top < room.top) text.scrollTop += top - room.top;
      if (bottom > room.bottom) text.scrollTop += bottom - room.bottom + 4;
    }
  }
  write(choose) {
    // a letter: one byte, or as many as its first one says
    return this.queue(async () => {
      const added = [];
      const {
        text,
        manifest: { window },
        models: [trained],
      } = this;
      while (text && added.length < lengthBy(added[0] ?? 0)) {
        const bytes = Uint8Array.from([...utf8.encode(text), ...added]).slice(-window);
        const out = await this.run(bytes, trained);
        const at = bytes.length - 1;
        added.push(choose(rowOf(out.bytes, at), rowOf(out.next, at)));
      }
      const letters = lettersOf(Uint8Array.from(added)).map(([letter]) => letter);
      this.change({ text: this.text + letters.join(""), token: null });
    });
  }
  async goOn() {
    // each letter by its probability
    const mine = (this.writing = this.writing ? null : {});
    this.on.textContent = mine ? "Stop" : "Write on";
    const at = (probs, left = this.random()) => probs.findIndex((part) => (left -= part) < 0);
    const draw = (bytes, probs) => bytes[at(probs)] ?? bytes[0];
    while (mine && this.writing === mine) {
      if (this.isSeen) await this.write(draw);
      await new Promise((go) => setTimeout(go, PAUSE));
    }
    if (!mine) this.change({}); // the address has the text again
  }
}

export default async function show(place) {
  const load = [unpacked("text.weights.z"), graph("text.read.z"), json("text.json")];
  const [bytes, session, manifest] = await Promise.all(load);
  const half = bytes.length / 2;
  const models = [0, half].map((at) => halves(bytes.slice(at, at + half).buffer, half / 2));
  new OwnText(place, manifest, session, models).open();
}
