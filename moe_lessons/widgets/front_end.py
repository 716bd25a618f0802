"""What the browser has to do itself: names for screen readers, the theme, and clicks on the picture."""

import anywidget
import traitlets


class FrontEnd(anywidget.AnyWidget):
    """Invisible. It names the slider handles of the view that it lies in (ipywidgets leaves them nameless), puts the
    description of each control on its whole row (`tips`: label -> what it does), tells whether the page is dark
    and the view narrow (under 700 pixels), and where in the picture a click fell (0 to 1 from the top left, and a
    count)."""

    dark = traitlets.Bool(False).tag(sync=True)
    narrow = traitlets.Bool(False).tag(sync=True)
    tips = traitlets.Dict().tag(sync=True)
    click = traitlets.List(traitlets.Float(), default_value=[0.0, 0.0, 0.0]).tag(sync=True)

    _esm = """
    function render({ model, el }) {
      el.style.display = "none";
      const view = () => el.closest(".moe-view");
      const describe = () => view()?.querySelectorAll(".widget-inline-hbox").forEach((row) => {
        const label = row.querySelector(".widget-label-basic") ?? row.querySelector(".widget-label");  // of a checkbox
        const tip = model.get("tips")[label?.textContent];
        if (!tip || row.title === tip) return;
        row.title = tip;
        row.querySelector("select, input, [role=slider]")?.setAttribute("aria-description", tip);
      });
      const name = () => view()?.querySelectorAll(".widget-slider, .widget-hslider").forEach((slider) => {
        const label = slider.querySelector(".widget-label")?.textContent;
        const readout = slider.querySelector(".widget-readout");
        const handle = slider.querySelector(".noUi-handle");
        if (!label) return;
        if (handle && handle.getAttribute("aria-label") !== label) handle.setAttribute("aria-label", label);
        if (handle && readout && handle.getAttribute("aria-valuetext") !== readout.textContent)
          handle.setAttribute("aria-valuetext", readout.textContent);
        if (readout && readout.getAttribute("aria-label") !== label + " value") {
          readout.setAttribute("aria-label", label + " value");
          readout.setAttribute("role", "textbox");
        }
      });
      const tellTheme = () => {
        const dark = document.body.dataset.jpThemeLight === "false";
        if (dark !== model.get("dark")) { model.set("dark", dark); model.save_changes(); }
      };
      const tellWidth = () => {
        const width = view()?.clientWidth;
        if (!width) return;  // not on the page now
        if ((width < 700) !== model.get("narrow")) { model.set("narrow", width < 700); model.save_changes(); }
      };
      const widths = new ResizeObserver(tellWidth);
      const onClick = (event) => {
        const box = event.target;
        if (box.tagName !== "IMG" || !view()?.contains(box)) return;
        const place = [event.offsetX / box.clientWidth, event.offsetY / box.clientHeight];
        model.set("click", [...place, model.get("click")[2] + 1]);
        model.save_changes();
      };
      const themes = new MutationObserver(tellTheme);
      themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
      document.addEventListener("click", onClick);
      const timer = setInterval(() => { name(); describe(); if (view()) widths.observe(view()); }, 500);
      tellTheme();
      return () => {
        themes.disconnect();
        widths.disconnect();
        clearInterval(timer);
        document.removeEventListener("click", onClick);
      };
    }
    export default { render };
    """
