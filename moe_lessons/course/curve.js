// A curve drawn by hand, with the pointer, a finger or the keyboard; the measured one is drawn over it. An SVG is sharp
// at any size, and its colours are those of the page. See question.py for what the model holds.

const WIDTH = 600, HEIGHT = 290, LEFT = 66, RIGHT = 586, TOP = 26, BOTTOM = 240, SVG = "http://www.w3.org/2000/svg";
const HEARD = ["answer", "measured", "note"]; // what of the model may change
export default { initialize: keep, render }; // keep, keepWords: see ../widgets/keep.js

const clamp = (value, low = 0, high = 1) => Math.min(Math.max(value, low), high);
const short = (value) => String(+value.toPrecision(3));
const across = (part) => LEFT + part * (RIGHT - LEFT), down = (part) => BOTTOM - part * (BOTTOM - TOP);

const set = (element, attributes) => {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
function html(tag, attributes, ...children) {
  const element = set(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}
const svg = (tag, attributes, textContent = "") =>
  Object.assign(set(document.createElementNS(SVG, tag), attributes), { textContent });
// A line through [x, y], as parts of the axes.
const path = (points) =>
  points.map(([x, y], i) => `${i ? "L" : "M"}${across(x).toFixed(1)} ${down(y).toFixed(1)}`).join("");

function render({ model, el }) {
  const places = model.get("places"), last = places.length - 1;
  const [[xName], [yName, low, high]] = [model.get("x"), model.get("y")];
  let heights, cursor = 0, from = null, timer = 0; // heights: at each place a part of the y axis, or null

  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "moe-curve", tabindex: 0, role: "slider",
    "aria-valuemin": low, "aria-valuemax": high, "aria-orientation": "vertical", "aria-label": `${yName} over ${xName}, to be drawn` });
  const [drawn, measured] = ["moe-drawn", "moe-measured"].map((name) => svg("path", { class: name }));
  const dot = svg("circle", { class: "moe-dot", r: 5 }), key = svg("g", {});
  key.append(svg("path", { class: "moe-drawn", d: "M426 12h18" }), svg("text", { x: 448, y: 16 }, "yours"),
    svg("path", { class: "moe-measured", d: "M496 12h18" }), svg("text", { x: 518, y: 16 }, "measured"));
  picture.append(...axes(), drawn, measured, dot, key);
  const say = html("p", { class: "moe-why", role: "status" }), note = html("p", { class: "moe-note", role: "status" });
  const clear = html("button", { type: "button" }, "Clear");
  const hint = html("small", {}, "Draw with the mouse or a finger. By keyboard: ← → choose the place, ↑ ↓ the height.");
  const title = html("div", { class: "moe-words" }, html("b", {}, model.get("kind")), ` ${model.get("text")}`);
  el.replaceChildren(html("div", { class: "moe-question" }, title, picture, html("div", {}, clear, " ", hint), say, note));

  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    picture.focus({ preventScroll: true });
    event.preventDefault();
    from = null;
    stroke(event);
  });
  picture.addEventListener("pointermove", (event) => picture.hasPointerCapture(event.pointerId) && stroke(event));
  picture.addEventListener("keydown", keyPressed);
  clear.addEventListener("click", () => show((heights = places.map(() => null))));
  for (const name of HEARD) model.on(`change:${name}`, take);
  take();
  keepWords({ model, el });
  return () => HEARD.forEach((name) => model.off(`change:${name}`, take));

  function axes() {
    const [xTicks, yTicks] = model.get("ticks"), middle = { "text-anchor": "middle" };
    return [
      svg("rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP }),
      ...xTicks.map(([part, text]) => svg("text", { x: across(part), y: BOTTOM + 18, ...middle }, text)),
      ...yTicks.map(([part, text]) => svg("text", { x: LEFT - 7, y: down(part) + 4, "text-anchor": "end" }, text)),
      ...yTicks.map(([part]) => svg("path", { class: "moe-grid-line", d: path([[0, part], [1, part]]) })),
      svg("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 10, ...middle }, xName),
      svg("text", { x: LEFT, y: TOP - 10 }, yName),
      ...given(),
    ];
  }
  function given() { // the value that the question names
    const value = model.get("given"), part = (value - low) / (high - low);
    return value === null ? [] : [svg("path", { class: "moe-given", d: path([[0, part], [1, part]]) }),
      svg("text", { x: RIGHT - 4, y: down(part) - 5, "text-anchor": "end" }, `given: ${short(value)}`)];
  }
  function stroke({ clientX, clientY }) { // from where the pointer was to where it is
    const box = picture.getBoundingClientRect(), scale = WIDTH / box.width;
    const part = clamp(((clientX - box.left) * scale - LEFT) / (RIGHT - LEFT));
    const place = Math.round(part * last), height = clamp((BOTTOM - (clientY - box.top) * scale) / (BOTTOM - TOP));
    const [start, old] = from ?? [place, height], steps = Math.max(Math.abs(place - start), 1);
    for (let i = 0; i <= steps; i++)
      heights[Math.round(start + ((place - start) * i) / steps)] = old + ((height - old) * i) / steps;
    [from, cursor] = [[place, height], place];
    changed();
  }
  function keyPressed(event) {
    const { key } = event, go = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1, Home: 0, End: last }[key];
    const up = { ArrowUp: 0.025, ArrowDown: -0.025, PageUp: 0.1, PageDown: -0.1 }[key];
    if (go === undefined && up === undefined) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook would move to another cell
    if (go !== undefined) return show((cursor = clamp(go, 0, last)));
    heights[cursor] = clamp(here() + up);
    changed();
  }
  function here() { // the height at the cursor; where nothing is drawn, that of the nearest place, or the middle
    const near = heights.map((height, i) => [Math.abs(i - cursor), height]).filter(([, height]) => height !== null);
    return near.length ? near.sort(([a], [b]) => a - b)[0][1] : 0.5;
  }
  function changed() { // tell the kernel, once the hand rests
    show();
    clearTimeout(timer);
    timer = setTimeout(() => {
      const value = (part) => clamp(+(low + part * (high - low)).toPrecision(5), low, high);
      const answer = heights.flatMap((part, i) => (part === null ? [] : [[places[i], value(part)]]));
      if (answer.length > 1) model.set("answer", answer), model.save_changes();
    }, 300);
  }
  function take() { // what the kernel has
    const given = new Map(model.get("answer") ?? []);
    heights = places.map((x) => (given.has(x) ? (given.get(x) - low) / (high - low) : null));
    note.textContent = model.get("note");
    show();
  }
  function show() {
    const points = heights.flatMap((height, i) => (height === null ? [] : [[i / last, height]]));
    const value = short(low + here() * (high - low)), where = `${xName} ${short(places[cursor])}`;
    drawn.setAttribute("d", path(points));
    measured.setAttribute("d", path(model.get("measured").map(([x, y]) => [clamp(x), clamp(y)])));
    key.style.display = model.get("measured").length ? "" : "none";
    set(dot, { cx: across(cursor / last), cy: down(here()) });
    const text = `${where}: ${yName} ${value}${heights[cursor] === null ? ", not drawn here" : ""}`;
    set(picture, { "aria-valuenow": value, "aria-valuetext": text });
    say.textContent = points.length ? "" : "Nothing is drawn yet.";
  }
}
