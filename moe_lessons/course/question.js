// One question in the page: options to choose from, or a number with a unit. The answer is the model's `answer`, which
// the kernel keeps. What is right or wrong is said at once, also while the kernel is busy.

import { make, set } from "../widgets/canvas/elements.js";
import { keep, keepKey, keepWords } from "../widgets/canvas/keep.js";

/** @typedef {import("../widgets/canvas/keep.js").Model} Model  As question.py has it. */

const HEARD = ["answer", "note"]; // what of the model may change

export default { initialize: keep, render };

/**
 * Ask the question of a model in an element.
 * @param {{model: Model, el: HTMLElement}} its as anywidget has them
 * @returns {() => void} ends it
 */
function render({ model, el }) {
  const words = make(
    "legend",
    "moe-words",
    make("b", "", model.get("kind")),
    " ",
    ...spans(model.get("text")),
  );
  const why = set(make("p", "moe-why"), { role: "status" });
  const note = set(make("p", "moe-note"), { role: "status" });
  const ask = model.get("choices").length ? askChoice : askNumber;
  const [fields, showAnswer] = ask(model, why, () => show());
  const group = make("fieldset", "moe-question", words, ...fields, why, note);
  const show = () => {
    note.textContent = model.get("note");
    why.replaceChildren();
    delete why.dataset.right;
    showAnswer(model.get("answer"));
  };
  group.addEventListener("keydown", keepKey);
  el.replaceChildren(group);
  for (const name of HEARD) model.on(`change:${name}`, show);
  show();
  keepWords({ model, el });
  return () => HEARD.forEach((name) => model.off(`change:${name}`, show));
}

function giveAnswer(model, value) {
  model.set("answer", value);
  model.save_changes();
}

// The options, and what shows which one is chosen.
function askChoice(model, why) {
  const options = model.get("choices");
  const name = `moe-${Math.random()}`; // of the radio buttons that belong together
  const inputs = options.map(([text]) => {
    const input = set(make("input"), { type: "radio", name });
    input.addEventListener("change", () => giveAnswer(model, text));
    return input;
  });
  const labels = inputs.map((input, i) =>
    make("label", "", input, make("span", "", ...spans(options[i][0]))),
  );
  const show = (given) => {
    inputs.forEach((input, i) => (input.checked = options[i][0] === given));
    const [, words, isRight] = options.find(([text]) => text === given) ?? [];
    if (given !== null && !words) why.textContent = "What happened follows in the next cells."; // a prediction
    if (!words) return;
    why.dataset.right = isRight;
    why.replaceChildren(make("b", "", isRight ? "✔ Right. " : "✘ Not so. "), ...spans(words));
  };
  return [labels, show];
}

// The field of a number, and what shows the one that was given.
function askNumber(model, why, showAll) {
  const [low, high] = model.get("limits");
  const unit = model.get("unit");
  const allowed = `from ${digits(low)} to ${digits(high)}`;
  const label = `Your number, ${allowed} ${unit}`;
  const input = set(make("input"), { type: "text", inputmode: "decimal", "aria-label": label, size: 12 });
  const take = () => {
    const value = readNumber(input.value, unit);
    const isIn = value >= low && value <= high; // not so where it is no number
    input.setAttribute("aria-invalid", !isIn);
    if (isIn) {
      giveAnswer(model, value);
      showAll(); // also where it is the same again
    } else {
      delete why.dataset.right;
      why.textContent = `A number ${allowed}, please.`;
    }
  };
  input.addEventListener("change", take);
  input.addEventListener("keydown", ({ key }) => key === "Enter" && take()); // an empty field has no change
  const show = (given) => {
    if (given === null) return;
    input.value = String(given);
    why.textContent = `Your prediction: ${digits(given)} ${unit}`;
  };
  const hint = make("small", "", `a number ${allowed}, then Enter`);
  return [[make("div", "", input, ` ${unit} `, hint)], show];
}

// What was typed, also with its unit ("70 %"), a decimal comma ("33,5") or commas between thousands ("1,000"), as a
// number; NaN where it is none.
function readNumber(typed, unit) {
  const text = typed.trim();
  const bare = text.slice(0, unit && text.endsWith(unit) ? -unit.length : undefined).trim();
  const isGrouped = /^[1-9]\d{0,2}(,\d{3})+(\.\d+)?$/.test(bare);
  return bare ? Number(isGrouped ? bare.replaceAll(",", "") : bare.replace(",", ".")) : NaN;
}

// `code` and *emphasis* in a text.
function spans(text) {
  return text.split(/(`[^`]+`|\*\S[^*]*\*)/).map((part, i) => {
    return i % 2 ? make(part[0] === "*" ? "em" : "code", "", part.slice(1, -1)) : part;
  });
}

const digits = (number) => number.toLocaleString("en", { maximumSignificantDigits: 12 });
