// Beside the playground: how much faster a real mixture with as many experts is than dense models, by batch size. Computed
// by the roofline of the speedup map (speedup.js), of decoding with the layers of Mixtral 8x7B, without a KV cache; in
// fp8, so that sixteen experts fit into one H200.

import canvas from "./canvas/index.js";
import { range, short } from "./canvas/numbers.js";
import { json, make, pack } from "./parts.js";
import { comparison } from "./speedup.js";

const OF = { model: "Mixtral 8x7B", machine: "NVIDIA H200 SXM", weights: "fp8", context_length: 0 };
const HOW = `Roofline of one H200, not measured: ${OF.model}'s layers, ${OF.weights}`;

/** Give what draws it in an element for E experts, top-K. */
export async function faster(home, colors) {
  const manifest = await json("speedup.json");
  const { inks, last } = manifest;
  const [view, about] = [make("div"), make("p", { class: "moe-about" })];
  const link = make("a", {}, "Speedup map");
  let hear;
  let frame = 0;
  home.replaceChildren(view, about);
  canvas.render({ el: view, model: { on: (_, action) => (hear = action), off() {}, get() {}, send() {} } });
  return ({ num_experts: E, top_k: K }) => {
    const asked = { ...OF, num_experts: E, top_k: K };
    const { speedup, words } = comparison(manifest, asked);
    const most = E / K; // as wide as all experts; a dense model between this and 1, that of one token, is as good
    const middle = most < 2 ? [] : [+Math.sqrt(most).toPrecision(2)];
    const widths = [...new Set([most, ...middle, 1])];
    const x = range(last + 1);
    const curves = [x.map(() => 1), ...widths.map((width) => x.map((row) => speedup(2 ** row, width)))];
    const arrays = {};
    const marks = curves.map((y, i) => {
      const [width, slots] = [
        `${short(widths[i - 1] ?? 1)}×`,
        { x: { slot: `0.${i}.x` }, y: { slot: `0.${i}.y` } },
      ];
      arrays[slots.x.slot] = ["f4", [x.length], x];
      arrays[slots.y.slot] = ["f4", [x.length], y];
      const [name, end] = i ? [`dense, ${width}`, `over ${width}`] : ["as fast", "as fast"];
      return { mark: "Line", ...slots, name, end, ink: inks[name] ?? inks[""], strong: i > 0 };
    });
    const ticks = x.map((row) => [row, (2 ** row).toLocaleString("en")]);
    const high = Math.ceil(Math.max(1.5, ...curves.flat()));
    const panel = {
      title: "Faster? Speedup by batch size",
      marks,
      x: { low: 0, high: last, label: "batch size", ticks, link: "batch" },
      y: { low: 0, high, label: "", link: "" },
      width: 12,
      least_width: 0,
      height: 128,
      caption: "",
      selected: false,
    };
    const { slots, data } = pack(arrays);
    const seen = { count: 1, experts: 0, words: "" };
    const content = {
      frame: ++frame,
      ...(frame === 1 && { colors }),
      panels: { 0: panel },
      slots,
      words: seen,
    };
    hear(content, [new DataView(data)]);
    const over = middle[0] ?? most;
    const found = `A large MoE over dense, ${short(over)}×: ${words(over)}. `;
    const times = short(+speedup(1, most).toPrecision(2));
    const good = `An MoE is mostly as good as a dense model between 1× and ${short(most)}×. Over ${short(most)}×, which stores as much, it is ${times} times as fast at batch size 1. `;
    const state = new URLSearchParams({ ...asked, width: over });
    link.href = new URL(`../speedup.html${E > 1 ? `#${state}` : ""}`, import.meta.url);
    const how = `${HOW}, ${E} expert${E > 1 ? "s" : ""}, top-\u2060${K}. `;
    about.replaceChildren(make("b", {}, found), most > 1 ? good : "", how, link);
  };
}
