// What is seen outlives the kernel. When JupyterLab saves a notebook, `keep` adds the state of the widgets in its
// outputs, also of those whose kernel has ended. A page that draws no widgets gets the last picture or words in each
// output: what a model has as its `still`, { data, metadata } by MIME type. What is put into `manager.moeNotes` is
// called before; it can set what is to be saved. Where nothing answers, controls are inert, and one line says so.

const WORDS = "text/markdown";
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

function keep({ model: { widget_manager: manager } }) {
  const book = manager?.context?.model, models = manager?._modelsSync;
  if (!models || !book?.toJSON || manager.moeNotes) return; // no JupyterLab, or done
  const [VIEW, STATE] = ["view", "state"].map((kind) => `application/vnd.jupyter.widget-${kind}+json`);
  const { toJSON } = book;
  manager.moeNotes = new Set();
  book.toJSON = () => {
    const json = toJSON.call(book);
    try { add(json); } catch (error) { console.debug("moe_lessons:", error); } // the notebook is saved in any case
    return json;
  };
  const mended = new Set(), timer = setInterval(() => {
    document.querySelectorAll(".moe-view").forEach(say);
    if (document.querySelector(".jp-OutputArea-output.jupyter-widgets")) mend();
    if (manager.isDisposed) clearInterval(timer);
  }, 500);

  // Where a kernel is slow to start, JupyterLab gives up models that it has not loaded yet; asked again, it draws them.
  function mend() {
    for (const { outputs } of book.cells) for (let i = 0; i < outputs?.length; i++) {
      const id = outputs.get(i).data[VIEW]?.model_id, views = Object.keys(models.get(id)?.views ?? { none: 0 });
      if (!views.length && !mended.has(id)) outputs.set(i, outputs.get(i).toJSON()), mended.add(id);
    }
  }

  function add(json) {
    manager.moeNotes.forEach((note) => note());
    const live = new Set([...models.keys()].filter((id) => models.get(id).comm_live)), shown = new Set(), stills = {};
    const { state, ...version } = whole();
    for (const [id, { state: own }] of Object.entries(state)) if (own.still) (stills[id] = own.still), delete own.still;
    for (const output of json.cells.flatMap(({ outputs }) => outputs ?? [])) {
      const parts = [...within(state, output.data?.[VIEW]?.model_id)], data = {};
      const found = parts.flatMap((id) => stills[shown.add(id) && id] ?? []);
      if (!found.some(({ isAnswered }) => isAnswered)) continue; // what stands there is as good
      for (const [type, text] of found.flatMap((still) => Object.entries(still.data)))
        data[type] = type in data ? `${data[type]}\n\n${text}` : text; // of several questions
      if (data[WORDS]) data[WORDS] += "\n\n*Run this cell to go on.*";
      Object.assign(output, { data: { ...output.data, ...data } });
      Object.assign(output, { metadata: Object.assign({}, output.metadata, ...found.map(({ metadata }) => metadata)) });
    }
    const isGone = (id) => !shown.has(id) && (!live.has(id) || state[id].model_module === "anywidget");
    for (const id of Object.keys(state).filter(isGone)) delete state[id];
    const states = Object.values(state).map(({ state: own }) => own), isCanvas = (id) => id?.endsWith(".LiveCanvas");
    const ours = states.filter((own) => own._anywidget_id?.startsWith("moe_lessons.")), all = [...models.values()];
    const style = all.map((model) => model.get("_css")).find((text) => text?.includes(".moe-view"));
    ours.forEach((own, i) => (own._css = i ? "" : style)); // the page needs it once, and so the code of canvases
    const codes = all.filter((model) => isCanvas(model.get("_anywidget_id"))).map((model) => model.get("_esm"));
    const canvases = ours.filter((own) => isCanvas(own._anywidget_id));
    canvases.forEach((own, i) => (own._esm = i ? LATER : codes.find((text) => text !== LATER)));
    json.metadata = { ...json.metadata, widgets: { [STATE]: { ...version, state } } };
  }
  function whole() { // the state of all: the manager, who leaves out what has no kernel, is told that each has one
    const dead = [...models.values()].filter((model) => !model.comm_live);
    for (const model of dead) Object.defineProperty(model, "comm_live", { value: true, configurable: true });
    try { return manager.get_state_sync({ drop_defaults: true }); }
    finally { for (const model of dead) delete model.comm_live; }
  }
  function within(state, id, found = new Set()) { // a model, and those that it refers to
    if (!state[id] || found.has(id)) return found;
    found.add(id);
    for (const [, next] of JSON.stringify(state[id].state).matchAll(/IPY_MODEL_([\w-]+)/g)) within(state, next, found);
    return found;
  }
  function say(view) { // JupyterLab marks what is cut off; a picture can still be pointed at
    const isStale = view.matches(".jupyter-widgets-disconnected");
    const notice = view.querySelector(":scope > .moe-stale:not(.moe-wait)");
    if (isStale === Boolean(notice)) return;
    const fresh = Object.assign(document.createElement("div"), { className: "moe-stale", role: "status" });
    notice ? notice.remove() : view.prepend(Object.assign(fresh, { textContent: "Run this cell to go on." }));
    for (const one of view.querySelectorAll(".moe-bar, .moe-controls, .noUi-target")) one.inert = isStale;
    for (const one of view.querySelectorAll("fieldset, :not(.moe-chips) > button, input, select, textarea"))
      one.disabled = isStale;
  }
}

// The still of a question in `el`, once it is answered: its words, with the answer and what was said of it.
function keepWords({ model, el }) {
  const plain = (text) => text.trim().replace(/[\\`*_[\]<>|]/g, "\\$&");
  const mark = (label) => (label.querySelector(":checked") ? " **← your answer**" : "");
  const line = (part) => `${part.matches("label") ? "- " : ""}${plain(part.textContent)}${mark(part)}`;
  const point = ([x, y]) => `${+y.toPrecision(3)} at ${+x.toPrecision(3)}`;
  model.widget_manager?.moeNotes?.add(() => {
    const answer = model.get("answer"), parts = [...el.querySelectorAll(".moe-words, label, .moe-why, .moe-note")];
    const curve = Array.isArray(answer) ? answer.filter((_, i) => i % 8 === 0 || i === answer.length - 1) : [];
    const lines = [...parts.map(line), curve.length ? `You drew: ${curve.map(point).join(", ")}.` : ""];
    const text = lines.filter(Boolean).join("\n\n").replace(/(- .*)\n\n(?=- )/g, "$1\n");
    model.set("still", { data: { [WORDS]: text }, isAnswered: answer !== null });
  });
}
