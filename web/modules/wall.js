// The memorisation grid as a view of a page: the controls, buttons and words of the playground, and a worker that trains
// three models.

import { calm, json } from "./parts.js";
import { LOADING, Playground } from "./playground.js";
import { Settings } from "./settings.js";

export default async function show(place) {
  const view = new Playground(place, new Settings(await json("wall.json")), "wall_worker.js");
  view.view.querySelector(".moe-loading").textContent = LOADING; // no picture is shown
  if (!calm.matches) view.ask("play");
  view.open();
}
