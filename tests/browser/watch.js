// Notes when the first picture has been drawn that shows the effect of a key on a slider.
([slider, shows]) => {
  const canvas = document.querySelector(".moe-canvas");
  const rows = [...document.querySelectorAll(".moe-view .widget-inline-hbox, .moe-control")];
  const row = rows.find((each) => each.textContent.trim().startsWith(slider));
  const value = () => row.querySelector(".widget-readout, output").textContent;
  const reading = () => canvas.querySelector(".moe-reading").textContent;
  const isShown = new Function("canvas", "reading", "value", `return ${shows}`);
  let before = null;
  window.expect = () => {
    window.arrived = window.pressed = null;
    before = value();
    document.addEventListener("keydown", () => (window.pressed = performance.now()), {
      once: true,
      capture: true,
    });
  };
  window.watcher?.disconnect();
  window.watcher = new MutationObserver(() => {
    if (!window.pressed || window.arrived || value() === before) return;
    if (isShown(canvas, reading(), value())) window.arrived = performance.now();
  });
  window.watcher.observe(canvas, { attributes: true, attributeFilter: ["data-token", "data-frames"] });
};
