// The wall of facts as a view of a page: the controls, buttons and words of the playground, and a worker that trains
// three models. Beside it, the recording of a longer training.

import { openView } from "./page.js";
import { button, json, make } from "./parts.js";
import { Playground, calm } from "./playground.js";
import { Settings } from "./settings.js";

const RECORDING = "05-WallRecording"; // of web.recorder

export default async function show(place) {
  const what =
    "A longer training, of lesson 05: 8,000 entries, and a fourth model, the dense one of equal quality.";
  const recording = button("Play the recording of the whole training", what, async () => {
    const home = make("div", { "data-moe": "recording", "data-state": RECORDING });
    recording.disabled = true;
    view.ask("pause"); // one training at a time
    place.home.after(make("p", {}, what), home);
    await openView(home);
    home.querySelector("button")?.click(); // Play
    home.scrollIntoView();
  });
  const view = new Playground(place, new Settings(await json("wall.json")), "wall_worker.js", [recording]);
  if (!calm.matches) view.ask("play");
  view.open();
}
