// The wall of facts as a view of a page: the controls, buttons and words of the playground, and a worker that trains
// three models. Beside it, the recording of a longer training.

import { open } from "./page.js";
import { button, json, make } from "./parts.js";
import { Playground, Settings, calm } from "./playground.js";

const FILM = "08-WallRecording"; // of tools.films

class Sizes extends Settings { // a name of tools.wall.Wall.names
  graph({ num_experts, top_k, num_entries }) { return [num_experts, top_k, num_entries].join("-"); }
}

export default async function show(place) {
  const film = button("Play the recording of the whole training", "Of a real run, below", () => {
    const home = make("div", { "data-moe": "film", "data-state": FILM });
    film.disabled = true;
    place.home.after(home);
    open(home);
  });
  const view = new Playground(place, new Sizes(await json("wall.json")), "wall_worker.js", [film]);
  if (!calm.matches) view.ask("play");
  view.open();
}
