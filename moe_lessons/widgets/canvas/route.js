// A token's way through a mixture of experts, from the top: the token, the router's probabilities, the experts, their
// weighted sum, and what the model says.

import { percent, range, weightText } from "./numbers.js";
import { css, inkOn, mix } from "./colors.js";

/** @typedef {import("./cards.js").Chart} Chart  A panel with axes. */
/** @typedef {import("./view.js").Mark} Mark  With its arrays. */

// In pixels the height of a box, of an expert and of a probability; and how what is left is shared among what is between.
const [BOX_HIGH, EXPERT_HIGH, TEXT_HIGH] = [24, 32, 17];
const [OVER_ROUTER, OVER_EXPERTS, OVER_SUM] = [0.09, 0.55, 0.27];
const LEAST_PITCH = 18; // pixels from expert to expert: closer ones have no probabilities
const motion = matchMedia("(prefers-reduced-motion: reduce)");
const centred = (x, y, wide, high) =>
  new Path2D(`M${x - wide / 2} ${y - high / 2}h${wide}v${high}h${-wide}z`);
const bow = (x, y, toX, toY) =>
  new Path2D(`M${x} ${y}C${x} ${(y + toY) / 2} ${toX} ${(y + toY) / 2} ${toX} ${toY}`);

function placesOfRoute({ box: { left, top, width, height } }, count) {
  const pitch = width / count;
  const left_over = Math.max(height - 4 * BOX_HIGH - EXPERT_HIGH, 0);
  const router = top + 1.5 * BOX_HIGH + OVER_ROUTER * left_over;
  const bars = router + BOX_HIGH / 2;
  const experts = bars + OVER_EXPERTS * left_over + EXPERT_HIGH / 2;
  const sum = experts + (EXPERT_HIGH + BOX_HIGH) / 2 + OVER_SUM * left_over;
  const rows = { token: top + BOX_HIGH / 2, router, bars, experts, sum, answer: top + height - BOX_HIGH / 2 };
  const sharp = Object.entries(rows).map(([name, y]) => [name, Math.round(y) + 0.5]);
  const longest = Math.max(OVER_EXPERTS * left_over - TEXT_HIGH, 0);
  return { ...Object.fromEntries(sharp), pitch, middle: left + width / 2, longest, wide: width };
}

/**
 * @param {Chart} card in which it is drawn
 * @param {Mark} mark a `Route`
 */
export function drawRoute(card, { probs, weights, head, foot }) {
  const { pen, view, box } = card;
  const at = placesOfRoute(card, probs.length);
  const x = (expert) => box.left + (expert + 0.5) * at.pitch;
  const busy = range(probs.length).filter((expert) => weights[expert] > 0);
  const line = css(mix(view.paper, view.ink, 0.55));
  const frame = (text, y, wide, weight) => {
    pen.fill(centred(at.middle, y, wide, BOX_HIGH), css(view.paper));
    pen.stroke(centred(at.middle, y, wide, BOX_HIGH), { color: line, width: 1 });
    pen.write(pen.shorten(text, wide - 8), at.middle, y, { weight });
  };
  const down = (from, to) => pen.stroke(bow(at.middle, from, at.middle, to), { color: line, width: 1.5 });
  down(at.token, at.router);
  down(at.sum, at.answer);
  for (const expert of busy) drawFlow(card, at, x(expert), expert, weights[expert], probs[expert]);
  range(probs.length).forEach((expert) =>
    drawExpert(card, at, x(expert), expert, probs[expert], weights[expert]),
  );
  frame(head, at.token, Math.min(190, at.wide), 600);
  const unit = isNarrow(pen, at) ? " in %" : "";
  const each = `router: a probability${unit} for each of ${probs.length} experts`;
  const routed = probs.length > 1 ? [each, `router: probabilities${unit}`] : ["router: there is one expert"];
  const fitting = (texts, room) => texts.find((text) => pen.measure(text) < room - 8) ?? texts.at(-1);
  frame(fitting(routed, at.wide - 2), at.router, at.wide - 2, 400);
  const terms = (times, of) =>
    busy.map((expert) => `${weightText(weights[expert])}${times}E${expert}${of}`).join(" + ") ||
    "0: no expert serves it";
  const room = Math.min(300, at.wide);
  const forms = [
    `y = ${terms(" · ", "(x)")}`,
    `y = ${terms("·", "")}`,
    `weighted sum of ${busy.length} experts`,
  ];
  frame(fitting(forms, room), at.sum, room, 400);
  frame(foot, at.answer, Math.min(190, at.wide), 600);
}

// From the router through an expert into the sum, as wide as its weight; dashes move on with the pictures.
function drawFlow({ pen, view }, at, x, expert, weight, prob) {
  const color = css(view.palette[expert % 8]);
  const width = 2 + 7 * weight;
  const { context } = pen;
  const below = at.bars + prob * at.longest + TEXT_HIGH; // the number of its probability
  for (const path of [bow(x, below, x, at.experts), bow(x, at.experts, at.middle, at.sum)]) {
    pen.stroke(path, { color, width, lineCap: "butt" });
    context.lineDashOffset = motion.matches ? 0 : -performance.now() / 25;
    pen.stroke(path, { color: css(view.paper, 0.75), width: 1.5, dash: [4, 14] });
    context.lineDashOffset = 0;
  }
}

function drawExpert({ pen, view }, at, x, expert, prob, weight) {
  const isBusy = weight > 0;
  const isDead = view.words.dead?.includes(expert);
  const name = at.pitch < 25 ? String(expert) : `E${expert}`;
  const bar = new Path2D(
    `M${x - at.pitch * 0.3} ${at.bars}h${at.pitch * 0.6}v${prob * at.longest}h${-at.pitch * 0.6}z`,
  );
  const box = centred(x, at.experts, at.pitch - 4, EXPERT_HIGH);
  const grey = css(mix(view.paper, view.ink, 0.3));
  const ground = view.palette[expert % 8]; // also where another is pointed at: it is of one token
  if (isBusy) {
    for (const path of [bar, box]) pen.fillExpert(path, expert, ground);
  } else {
    pen.fill(bar, grey);
    pen.stroke(box, { color: isDead ? view.colors.red : grey, width: 1, dash: isDead ? [3, 3] : [] });
  }
  const halo = expert < 8 ? "" : css(ground); // keeps letters apart from stripes
  const style = isBusy ? { color: css(inkOn(ground)), halo, weight: 700 } : { color: css(view.quiet) };
  const isNamed = isDead && at.pitch >= 25;
  pen.write(name, x, at.experts - (isNamed ? 7 : 0), style);
  if (isNamed) pen.write("dead", x, at.experts + 7, { ...style, weight: 700 });
  if (at.pitch < (isBusy ? LEAST_PITCH : 34)) return;
  const text = isNarrow(pen, at) ? (100 * prob).toFixed() : percent(prob);
  pen.write(text, x, at.bars + prob * at.longest + TEXT_HIGH / 2, { weight: isBusy ? 700 : 400 });
}

// Whether probabilities stand without their sign.
const isNarrow = (pen, { pitch }) => pen.measure("100 %") > pitch - 2;

/**
 * @param {Chart} card in which it is
 * @param {Mark} mark a `Route`
 * @returns {import("./stops.js").Stops} its experts
 */
export function stopsOfRoute(card, { probs, weights }) {
  const { dead = [] } = card.view.words;
  const { box } = card;
  const count = probs.length;
  const at = placesOfRoute(card, count);
  const place = (expert) => [box.left + (expert + 0.5) * at.pitch, at.experts];
  const find = (x, y) =>
    y < at.bars || y > at.experts + EXPERT_HIGH ? -1 : Math.floor((x - box.left) / at.pitch);
  const tell = (expert) => {
    const weight = weights[expert] > 0 ? weightText(weights[expert]) : "0: idle for this token";
    const rows = [
      [expert, "router probability", percent(probs[expert])],
      [null, "weight", weight],
    ];
    return { expert, title: `E${expert}${dead.includes(expert) ? ", dead" : ""}`, rows };
  };
  return { columns: count, count, place, at: (x, y) => Math.min(find(x, y), count - 1), tell };
}
