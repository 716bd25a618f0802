// What is seen outlives the kernel. When JupyterLab saves a notebook, `keep` adds the state of the widgets in its
// outputs, also of those whose kernel has ended. A page that draws no widgets gets the last picture or words in each
// output: what a model has as its `still`, { data, metadata } by MIME type. What is put into `manager.moeNotes` is
// called before; it can set what is to be saved. Where nothing answers, controls are inert, and one line says so.
//
// Written for JupyterLab 4.6, of which it uses what is not documented: `toJSON` of a notebook's model, `views` and
// `comm_live` of widgets, `_modelsSync` of their manager. tests/browser/test_saved.py notices where they have changed.

import { quietly } from "./numbers.js";
import { make, set } from "./elements.js";

/** @typedef {{widget_manager?: object, get: (name: string) => any, set: (name: string, value: unknown) => void}} Model */

const WORDS = "text/markdown";
const VIEW = "application/vnd.jupyter.widget-view+json";
const STATE = "application/vnd.jupyter.widget-state+json";
export const STALE = "To go on, choose Run > Run All Above Selected Cell, then run this one.";
const TURN = 500; // milliseconds between two looks at the page
const LATER = `// This model uses the code of the first one.
const code = async () => {
  while (!globalThis.moeCanvas) await new Promise((go) => setTimeout(go, 50));
  return globalThis.moeCanvas;
};
export default {
  initialize: async (its) => (await code()).initialize(its),
  render: async (its) => (await code()).render(its),
};
`;

/**
 * Have what is seen saved with the notebook; once for each.
 * @param {{model: Model}} its of any widget of ours
 */
export function keep({ model: { widget_manager: manager } }) {
  const book = manager?.context?.model;
  const models = manager?._modelsSync;
  if (!models || !book?.toJSON || manager.moeNotes) return; // no JupyterLab, or done
  manager.moeNotes = new Set();
  const { toJSON } = book;
  book.toJSON = () => {
    const json = toJSON.call(book);
    quietly(() => addState(json, manager, models)); // the notebook is saved in any case
    return json;
  };
  const mended = new Set();
  const timer = setInterval(() => {
    document.querySelectorAll(".moe-view:not(.moe-view *)").forEach(sayStale);
    if (document.querySelector(".jp-OutputArea-output.jupyter-widgets")) mend(book, models, mended);
    if (manager.isDisposed) clearInterval(timer);
  }, TURN);
}

// Where a kernel is slow to start, JupyterLab gives up models that it has not loaded yet; asked again, it draws them.
function mend(book, models, mended) {
  for (const { outputs } of book.cells) {
    for (let i = 0; i < outputs?.length; i++) {
      const id = outputs.get(i).data[VIEW]?.model_id;
      const views = Object.keys(models.get(id)?.views ?? { none: 0 });
      if (views.length || mended.has(id)) continue;
      outputs.set(i, outputs.get(i).toJSON());
      mended.add(id);
    }
  }
}

// --- what is saved ---

function addState(json, manager, models) {
  manager.moeNotes.forEach((note) => note());
  const live = new Set([...models.keys()].filter((id) => models.get(id).comm_live));
  const { state, ...version } = wholeState(manager, models);
  const stills = takeStills(state);
  const shown = new Set();
  for (const output of json.cells.flatMap(({ outputs }) => outputs ?? [])) {
    const parts = within(state, output.data?.[VIEW]?.model_id);
    parts.forEach((id) => shown.add(id));
    const pictures = [...parts].flatMap((id) => stills[id] ?? []);
    addStills(output, pictures);
  }
  for (const [id, { model_module: kind }] of Object.entries(state)) {
    if (!shown.has(id) && (!live.has(id) || kind === "anywidget")) delete state[id];
  }
  shareCode(state, [...models.values()]);
  json.metadata = { ...json.metadata, widgets: { [STATE]: { ...version, state } } };
}

// The state of all: the manager, who leaves out what has no kernel, is told that each has one.
function wholeState(manager, models) {
  const dead = [...models.values()].filter((model) => !model.comm_live);
  for (const model of dead) Object.defineProperty(model, "comm_live", { value: true, configurable: true });
  try {
    return manager.get_state_sync({ drop_defaults: true });
  } finally {
    for (const model of dead) delete model.comm_live;
  }
}

function takeStills(state) {
  const stills = {};
  for (const [id, { state: own }] of Object.entries(state)) {
    if (own.still) stills[id] = own.still;
    delete own.still;
  }
  return stills;
}

// A model, and those that it refers to.
function within(state, id, found = new Set()) {
  if (!state[id] || found.has(id)) return found;
  found.add(id);
  for (const [, next] of JSON.stringify(state[id].state).matchAll(/IPY_MODEL_([\w-]+)/g))
    within(state, next, found);
  return found;
}

function addStills(output, stills) {
  if (!stills.some(({ isAnswered }) => isAnswered)) return; // what stands there is as good
  const data = {};
  for (const [type, text] of stills.flatMap((still) => Object.entries(still.data))) {
    data[type] = type in data ? `${data[type]}\n\n${text}` : text; // of several questions
  }
  if (data[WORDS]) data[WORDS] += `\n\n*${STALE}*`;
  output.data = { ...output.data, ...data };
  output.metadata = Object.assign({}, output.metadata, ...stills.map(({ metadata }) => metadata));
}

// The page needs the style once, and so the code of canvases.
function shareCode(state, models) {
  const isCanvas = (id) => id?.endsWith(".LiveCanvas");
  const states = Object.values(state).map((one) => one.state);
  const ours = states.filter((own) => own._anywidget_id?.startsWith("moe_lessons."));
  const style = models.map((model) => model.get("_css")).find((text) => text?.includes(".moe-view"));
  const canvases = models.filter((model) => isCanvas(model.get("_anywidget_id")));
  const code = canvases.map((model) => model.get("_esm")).find((text) => text !== LATER);
  ours.forEach((own, i) => (own._css = i ? "" : style));
  ours.filter((own) => isCanvas(own._anywidget_id)).forEach((own, i) => (own._esm = i ? LATER : code));
}

// --- what is said ---

// JupyterLab marks what is cut off; a picture can still be pointed at.
function sayStale(view) {
  const isStale = view.matches(".jupyter-widgets-disconnected");
  const notice = view.querySelector(":scope > .moe-stale:not(.moe-wait)");
  if (isStale === Boolean(notice)) return;
  if (notice) notice.remove();
  else view.prepend(set(make("div", "moe-stale", STALE), { role: "status" }));
  for (const one of view.querySelectorAll(".moe-bar, .moe-controls, .noUi-target")) one.inert = isStale;
  const inputs = "fieldset, :not(.moe-chips) > button, input, select, textarea";
  for (const one of view.querySelectorAll(inputs)) one.disabled = isStale;
}

/**
 * Have a question saved, once it is answered: its words, with the answer.
 * @param {{model: Model, el: HTMLElement}} its model, and the element that it is in
 */
export function keepWords({ model, el }) {
  model.widget_manager?.moeNotes?.add(() => {
    const answer = model.get("answer");
    const parts = [...el.querySelectorAll(".moe-words, label, .moe-why, .moe-note")];
    const text = [...parts.map(lineOf), curveOf(answer)].filter(Boolean).join("\n\n");
    const data = { [WORDS]: text.replace(/(- .*)\n\n(?=- )/g, "$1\n") };
    model.set("still", { data, isAnswered: answer !== null });
  });
}

/**
 * Keep a key of a question from the notebook, which would move to another cell.
 * @param {KeyboardEvent} event of the key
 */
export function keepKey(event) {
  if (!(event.ctrlKey || event.metaKey || event.shiftKey || event.key === "Escape")) event.stopPropagation();
}

// Of an element, in Markdown.
function lineOf(part) {
  const text = part.textContent.trim().replace(/[\\`*_[\]<>|]/g, "\\$&");
  if (!part.matches("label")) return text;
  return `- ${text}${part.querySelector(":checked") ? " **← your answer**" : ""}`;
}

function curveOf(answer) {
  if (!Array.isArray(answer) || !answer.length) return "";
  const some = answer.filter((_, i) => i % 8 === 0 || i === answer.length - 1);
  return `You drew: ${some.map(([x, y]) => `${+y.toPrecision(3)} at ${+x.toPrecision(3)}`).join(", ")}.`;
}
