// One question in the page: options to choose from, or a number with a unit. The answer is the model's `answer`, which
// the kernel keeps. What is right or wrong is said at once, also while the kernel is busy.

export default { initialize: keep, render }; // keep, keepWords: see ../widgets/keep.js

function make(tag, attributes = {}, ...children) { // an element; texts become text nodes, never HTML
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
// `code` and *emphasis* in a text.
const spans = (text) => text.split(/(`[^`]+`|\*\S[^*]*\*)/).map((part, i) =>
  i % 2 ? make(part[0] === "*" ? "em" : "code", {}, part.slice(1, -1)) : part);
const said = (number) => number.toLocaleString("en", { maximumSignificantDigits: 12 });

function render({ model, el }) {
  const name = `moe-${Math.random()}`; // of the radio buttons that belong together
  const kind = model.get("kind"), why = make("p", { class: "moe-why", role: "status" });
  const note = make("p", { class: "moe-note", role: "status" }), options = model.get("choices");
  const legend = make("legend", { class: "moe-words" }, make("b", {}, kind), " ", ...spans(model.get("text")));
  const group = make("fieldset", { class: "moe-question" }, legend);
  const inputs = options.length ? options.map(option) : [number()];
  group.append(why, note);
  el.replaceChildren(group);
  group.addEventListener("keydown", (event) => { // else the notebook would move to another cell
    if (!(event.ctrlKey || event.metaKey || event.shiftKey || event.key === "Escape")) event.stopPropagation();
  });
  model.on("change:answer", show);
  model.on("change:note", show);
  show();
  keepWords({ model, el });
  return () => (model.off("change:answer", show), model.off("change:note", show));

  function answer(value) {
    model.set("answer", value);
    model.save_changes();
  }
  function option([text]) {
    const input = make("input", { type: "radio", name });
    input.addEventListener("change", () => answer(text));
    group.append(make("label", {}, input, make("span", {}, ...spans(text))));
    return input;
  }
  function number() {
    const [low, high] = model.get("limits"), unit = model.get("unit"), allowed = `from ${said(low)} to ${said(high)}`;
    const label = { type: "text", inputmode: "decimal", "aria-label": `Your number, ${allowed} ${unit}`, size: 12 };
    const input = make("input", label), take = () => {
      const text = input.value.trim(), value = Number(text);
      const isIn = text !== "" && value >= low && value <= high; // not so where it is no number
      input.setAttribute("aria-invalid", !isIn);
      if (isIn) answer(value);
      why.textContent = isIn ? `Your prediction: ${said(value)} ${unit}` : `A number ${allowed}, please, such as 12.5`;
    };
    input.addEventListener("change", take);
    group.append(make("div", {}, input, ` ${unit} `, make("small", {}, `a number ${allowed}, then Enter`)));
    return input;
  }
  function show() {
    const given = model.get("answer"), at = options.findIndex(([text]) => text === given);
    const [, words, isRight] = options[at] ?? [];
    note.textContent = model.get("note");
    if (!options.length && given !== null) inputs[0].value = String(given);
    if (!options.length && given !== null) why.textContent = `Your prediction: ${said(given)} ${model.get("unit")}`;
    inputs.forEach((input, i) => (input.checked = i === at));
    if (!words) return;
    why.dataset.right = isRight;
    why.replaceChildren(make("b", {}, isRight ? "✔ Right. " : "✘ Not so. "), ...spans(words));
  }
}
