// Opens the views of a document, each when it comes near:
//   <div data-moe="playground" data-state="preset=collapse"><img …></div>
//   <div data-moe="recording" data-state="08-BalancingLab"><img …></div>
//   <script type="module" src="…/page.js"></script>
// What stands in such an element is replaced when the view is there. Without data-state the address has the state;
// without a name, its ?view= has it. Another document shows a view in a frame: see `frame` in parts.js.

import { Place, make } from "./parts.js";

const VIEWS = ["playground", "recording", "speedup", "text", "wall"]; // each a module whose default is show(place)
const NEEDED = ["WebAssembly", "Worker", "DecompressionStream"];
const LESS = { recording: NEEDED.slice(2), speedup: [] }; // what is needed where nothing trains

export async function openView(home) {
  home.dataset.moe ||= new URLSearchParams(location.search).get("view") ?? VIEWS[0];
  const place = new Place(home);
  const lacking = (LESS[place.view] ?? NEEDED).find((name) => !(name in globalThis));
  home.classList.add("moe-page");
  home.append(place.said);
  try {
    if (lacking) throw new Error(`This browser cannot show this view: it has no ${lacking}.`);
    if (!VIEWS.includes(place.view))
      throw new Error(`view must be one of ${VIEWS.join(", ")}, got ${place.view}.`);
    const lost = () => {
      throw new Error(`${place.view}.js, or what it imports, did not arrive.`);
    };
    await (await import(`./${place.view}.js`).catch(lost)).default(place);
  } catch (error) {
    place.say(`${error.message} Reload the page to try again.`);
  }
}

const isReady = ["canvas.css", "page.css"].map((name) => {
  const link = make("link", { rel: "stylesheet", href: new URL(name, import.meta.url) });
  document.head.append(link);
  return new Promise((go) => ["load", "error"].forEach((kind) => link.addEventListener(kind, go)));
});
async function opened(entries) {
  for (const { target } of entries.filter(({ isIntersecting }) => isIntersecting)) {
    near.unobserve(target);
    await Promise.all(isReady);
    openView(target);
  }
}
const near = new IntersectionObserver(opened, { rootMargin: "1200px" });
for (const home of document.querySelectorAll("[data-moe]")) near.observe(home);
const dress = () => document.body.classList.toggle("moe-dressed"); // of this a canvas hears: the theme may be another
const themes = { attributes: true, attributeFilter: ["data-theme"] };
new MutationObserver(dress).observe(document.documentElement, themes);
