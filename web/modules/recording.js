// A recording as a view of a page: what the kernel sent to the canvas of a live view while a real run trained, drawn by the
// same canvas. tools/recorder.py makes recordings, and says how they are stored. The state is the name of one.

import canvas from "./canvas/index.js";
import { Control, bar, button, calm, damaged, make, unpacked } from "./parts.js";

const PAUSE = 120; // milliseconds between two pictures

// Of each picture all that is seen, as one message for the canvas; the arrays of all of them lie in one buffer.
function readRecording(bytes) {
  const end = bytes.indexOf(10);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  const data = new Uint8Array(head.size);
  const places = {};
  let panels = {};
  let words = {};
  let from = end + 1;
  let at = 0;
  const pictures = head.frames.map((frame) => {
    for (const [slot, type, shape, same, more] of frame.arrays) {
      // the bytes that are as before, and those that follow
      if (same) data.copyWithin(at, places[slot][3], places[slot][3] + same);
      data.set(bytes.subarray(from, (from += more)), at + same);
      places[slot] = [slot, type, shape, at];
      at += same + more;
    }
    [panels, words] = [
      { ...panels, ...frame.panels },
      { ...words, ...frame.words },
    ];
    return { panels, words, slots: Object.values(places) };
  });
  if (from !== bytes.length) throw new Error("it has another length than it says");
  return { ...head, pictures, buffers: [new DataView(data.buffer)] };
}

async function load(name) {
  if (!/^[\w-]+$/.test(name))
    throw new Error(`The name of a recording must have letters, digits and -, got ${name || "none"}.`);
  const bytes = await unpacked(`recordings/${name}.z`);
  try {
    return readRecording(bytes);
  } catch {
    return damaged(`recordings/${name}.z`)();
  }
}

export default async function show(place) {
  const recording = await load(place.state);
  const { pictures, buffers, colors, about } = recording;
  const last = pictures.length - 1;
  let at;
  let hear;
  let timer;
  let count = 0;
  const play = button("Play", "Play or stop the recording", () => (timer ? stop() : start()));
  play.style.minWidth = "60px"; // of either word: the slider stays where it is
  const isOfSteps = "step" in pictures[last].words;
  let isToPlay = isOfSteps && !calm.matches; // by itself, once: what is printed before is its end
  const label = isOfSteps ? "Step" : "Picture";
  const stops = pictures.map(({ words }, i) => [String(isOfSteps ? words.step : i + 1), i]);
  const tip = "Which picture of the recording is shown";
  const control = new Control(`${place.id}-picture`, { label, tip }, (i) => {
    stop();
    seek(i);
  });
  const what = last
    ? "A recording of a real run: in the notebook it trains, with its controls"
    : "Drawn from a real model";
  const view = make("div");
  const said = make("details", { class: "moe-about" }, make("summary", {}, what), `${about}.`);
  const bars = last ? [bar(make("b", {}, "A recording"), play, control.element, ...place.shares())] : [];
  place.home.replaceChildren(...bars, place.said, view, said);
  canvas.render({
    el: view,
    model: { on: (_, action) => (hear = action), off() {}, get() {}, set() {}, send() {} },
  });

  function seek(i) {
    hear({ ...pictures[(at = i)], frame: ++count, colors: count > 1 ? undefined : colors }, buffers);
    control.show(i, stops);
  }
  function start() {
    stop(false);
    seek(at === last ? 0 : at);
    timer = setInterval(() => (at < last ? seek(at + 1) : stop()), PAUSE);
    play.textContent = "Pause";
  }
  function stop(isDone = true) {
    isToPlay &&= !isDone;
    timer = clearInterval(timer);
    play.textContent = "Play";
  }
  place.watch(
    (isSeen) => (isSeen ? isToPlay && start() : stop(false)),
    () => location.reload(),
  ); // another recording is opened as a page is
  seek(last);
}
