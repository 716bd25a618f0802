// What questions of all kinds have in common.

/** @typedef {import("../widgets/canvas/keep.js").Model} Model  As question.py has it. */

/**
 * Say what became of a prediction, once something happened: of this answer, and of no earlier one.
 * @param {Model} model of the question
 * @param {HTMLElement} why where it is said; nothing is changed where there is nothing to say
 */
export function showVerdict(model, why) {
  const [about, words] = model.get("verdict");
  if (!words || JSON.stringify(about) !== JSON.stringify(model.get("answer"))) return;
  why.dataset.right = { "✔": true, "✘": false }[words[0]] ?? "";
  why.textContent = words;
}

/**
 * Keep a key from the notebook, which would move to another cell.
 * @param {KeyboardEvent} event of the key
 */
export function keepKey(event) {
  if (!(event.ctrlKey || event.metaKey || event.shiftKey || event.key === "Escape")) event.stopPropagation();
}
