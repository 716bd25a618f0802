// The memorisation grid as a view of a page: the controls, buttons and words of the playground, and a worker that trains
// three models.

import { json } from "./parts.js";
import { Playground, calm } from "./playground.js";
import { Settings } from "./settings.js";

class Wall extends Playground {
  apply(...asked) {
    super.apply(...asked);
    this.view.classList.toggle("moe-starting", Boolean(this.isOpening));
  }
  answer(heard) {
    super.answer(heard);
    if (!this.isOpening && (heard.content || heard.refused)) this.view.classList.remove("moe-starting");
  }
}

export default async function show(place) {
  const view = new Wall(place, new Settings(await json("wall.json")), "wall_worker.js");
  if (!calm.matches) view.ask("play");
  view.open();
}
