// Notes when the first picture has been drawn that shows the effect of a key.
([control, isList, shows]) => {
  const canvas = document.querySelector(".moe-canvas");
  const text = (name) => canvas.querySelector(name).textContent;
  const rows = [...document.querySelectorAll(".moe-view .widget-inline-hbox, .moe-control")];
  const row = rows.find((each) => each.textContent.trim().startsWith(control));
  const value = () =>
    isList
      ? row.querySelector("select").selectedOptions[0].textContent.replace(/\u00a0/g, " ")
      : row.querySelector(".widget-readout, output").textContent;
  const titles = () => [...canvas.querySelectorAll("figure b")].map((title) => title.textContent);
  const isShown = new Function("canvas", "words", "reading", "titles", "value", "before", `return ${shows}`);
  window.watcher?.disconnect();
  window.expect = () => {
    window.arrived = window.pressed = null;
    [window.before, window.was] = [text(".moe-words"), value()];
    document.addEventListener("keydown", () => (window.pressed = performance.now()), {
      once: true,
      capture: true,
    });
  };
  window.watcher = new MutationObserver(() => {
    if (!window.pressed || window.arrived || value() === window.was) return;
    if (isShown(canvas, text(".moe-words"), text(".moe-reading"), titles(), value(), window.before))
      window.arrived = performance.now();
  });
  window.watcher.observe(canvas, { attributes: true, attributeFilter: ["data-token", "data-frames"] });
};
