// What is seen stays where it is while cells start: JupyterLab takes the picture or question of an earlier run away at once,
// and goes to the next cell, or to the last one. What is said of a hidden result stays hidden until its cell has shown
// something. A still has its description and, in a dark theme, its dark version. An extension of JupyterLab, written by
// hand, for `lab` in moe_lessons/commands/lab.py.

const PICTURE = ".moe-canvas, .jp-OutputArea-output img";
const QUESTION = ".moe-question, .jp-RenderedMarkdown > p:first-child > strong:first-child"; // live, and as it is stored
const TRAINS = '.moe-canvas[data-state="training"]';
const PNG = "image/png";
const RANK = 89; // before the one of JupyterLab
const LOOK = 50; // milliseconds between two looks at whether what comes is there
const PATIENCE = 20000; // milliseconds for which a cell may load what it shows
let app; // JupyterLab
const held = new Map(); // the output area of a cell -> the picture in its place, and until when

// A result was hidden, and its cell runs: what is said below (custom.css) waits for what it shows, a question perhaps.
function wait({ target, removedNodes }) {
  const isHidden = [...removedNodes].some((node) => node.matches?.(".jp-OutputPlaceholder"));
  const cell = isHidden && target.closest(".jp-CodeCell");
  if (!cell) return;
  cell.dataset.moeWaits = "";
  const see = () => {
    const [shown] = cell.getElementsByClassName("jp-OutputArea-output");
    if (cell.isConnected && (isRunning(cell) || !shown || shown.textContent.startsWith("Loading widget")))
      return setTimeout(see, LOOK);
    delete cell.dataset.moeWaits;
  };
  see();
}

function isRunning(node) {
  const cells = app.shell.currentWidget?.content.widgets ?? [];
  return cells.find((cell) => cell.node === node)?.model.executionState === "running";
}

// A live question is taken out of its output, which is taken away, too: put it back there.
function restore({ target, removedNodes }) {
  const question = [...removedNodes].find((node) => node.querySelector?.(QUESTION));
  if (!question || target.isConnected || !target.matches(".jp-OutputArea-output")) return;
  target.append(question);
  target.classList.remove("lm-mod-hidden");
}

// Keep a picture or question that is taken away in its place.
function hold({ target: area, removedNodes }) {
  const old = [...removedNodes].find((node) => node.querySelector?.(`${PICTURE}, ${QUESTION}`));
  if (!old || !area.matches(".jp-Cell-outputArea") || held.has(area)) return;
  const frame = Object.assign(document.createElement("div"), { className: "moe-held", inert: true });
  frame.append(old);
  frame.style.left = `${area.offsetLeft}px`;
  area.after(frame);
  area.parentElement.style.minHeight = `${frame.offsetHeight}px`;
  held.set(area, { frame, from: performance.now() });
  if (held.size === 1) look();
}

function look() {
  for (const [area, { frame, from }] of held) {
    if (area.isConnected && !isThere(area, performance.now() - from)) continue;
    area.parentElement?.style.removeProperty("min-height");
    frame.remove();
    held.delete(area);
  }
  if (held.size) setTimeout(look, LOOK);
}

function isThere(area, since) {
  if (area.querySelector(".moe-view, .moe-canvas"))
    return !area.querySelector(".moe-canvas:not([data-frames])");
  const isComing =
    isRunning(area.closest(".jp-Cell")) || (area.querySelector(".jupyter-widgets") && since < PATIENCE);
  return area.querySelector(`img, ${QUESTION}`) || !isComing;
}

// Bring what a cell shows into sight, or its question, in the place of the cell to which JupyterLab has gone; what it shows
// stays there until it has come, or somebody goes elsewhere.
async function show(book, cell) {
  const area = cell.node.querySelector(".jp-Cell-outputArea");
  const find = () => cell.node.querySelector(PICTURE)?.closest(".moe-held, .jp-Cell-outputArea");
  const left = new AbortController();
  const { signal } = left;
  for (const kind of ["wheel", "pointerdown", "keydown"])
    book.node.addEventListener(kind, () => left.abort(), { signal, capture: true });
  const since = performance.now();
  await book.scrollToItem(book.widgets.indexOf(cell), find() ? "smart" : "center", 0).catch(() => {});
  const keep = () => {
    const found = find();
    if (signal.aborted || !found) return left.abort();
    const { top, bottom } = found.getBoundingClientRect();
    const room = book.outerNode.getBoundingClientRect();
    if (top < room.top || bottom > room.bottom) book.outerNode.scrollBy(0, top - room.top);
    if (performance.now() - since < PATIENCE && !isThere(area, 0)) setTimeout(keep, LOOK);
    else left.abort();
  };
  keep();
}

async function ran(id) {
  const book = app.shell.currentWidget?.content;
  const cells = book?.widgets;
  if (!cells) return;
  const training = cells.find(({ node }) => isInSight(book, node.querySelector(TRAINS)));
  await null; // what is taken away is in its place
  const isOne = id === "notebook:run-cell-and-select-next";
  const hasPicture = ({ node }) => node.querySelector(PICTURE);
  const asks = ({ model }) => model.sharedModel.getSource().includes("Prediction(");
  const cell = isOne ? cells[book.activeCellIndex - 1] : cells.find((each) => hasPicture(each) || asks(each));
  if (cell && (!isOne || hasPicture(cell))) show(book, cell);
  else if (training && cell?.model.type === "code") show(book, training); // for which the cell waits
}

function isInSight(book, element) {
  const room = book.outerNode.getBoundingClientRect();
  const { top, bottom } = element?.getBoundingClientRect() ?? {};
  return top < room.bottom && bottom > room.top;
}

// A PNG with what its metadata say: `alt`; `dark`, the same in dark colours (custom.css shows one of them); or `is_dark`,
// that it was drawn so.
function withMetadata(factory) {
  const createRenderer = (options) => {
    const widget = factory.createRenderer(options);
    const render = widget.renderModel.bind(widget);
    widget.renderModel = async (model) => {
      await render(model);
      const image = widget.node.querySelector("img");
      const { alt, dark, is_dark: isDark } = model.metadata[PNG] ?? {};
      image.alt = alt ?? "";
      image.classList.toggle("moe-of-dark", Boolean(isDark)); // a still of a live view
      if (!dark) return;
      image.after(
        Object.assign(image.cloneNode(), { src: `data:${PNG};base64,${dark}`, className: "moe-dark" }),
      );
    };
    return widget;
  };
  return { ...factory, createRenderer };
}

const steady = {
  id: "moe-lessons:steady",
  autoStart: true,
  activate(lab, rendermime) {
    app = lab;
    rendermime.addFactory(withMetadata(rendermime.getFactory(PNG)), RANK);
    const commands = /^notebook:(run-all-cells|restart-run-all|run-cell-and-select-next)$/;
    app.commands.commandExecuted.connect((_, { id }) => commands.test(id) && ran(id));
    const taken = new MutationObserver((records) => {
      records.forEach(wait);
      records.forEach(restore);
      records.forEach(hold);
    });
    taken.observe(document.body, { childList: true, subtree: true });
  },
};
let shared; // the modules of JupyterLab

async function get() {
  const [rendermime] = Object.values(shared["@jupyterlab/rendermime"]);
  steady.requires = [(await rendermime.get())().IRenderMimeRegistry];
  return () => ({ __esModule: true, default: steady });
}

globalThis._JUPYTERLAB ??= {};
globalThis._JUPYTERLAB["moe-lessons"] = { init: (modules) => (shared = modules), get };
