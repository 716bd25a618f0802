"""The look of the widgets around the picture, in the colours of JupyterLab's theme."""

CSS = """<style>
.moe-view { container-type: inline-size; border: 1px solid var(--jp-border-color2, #ccc); border-radius: 8px;
  padding: 8px 12px; overflow: visible; color: var(--jp-ui-font-color1, #222); }
.moe-view .moe-title { font-size: 15px; font-weight: 600; line-height: 28px; }
.moe-view .moe-group { font-size: 11px; font-weight: 600; letter-spacing: .04em; text-transform: uppercase;
  line-height: 1.3; border-bottom: 1px solid var(--jp-border-color2, #ccc); padding: 6px 0 3px; }
.moe-view .moe-status { font-family: var(--jp-code-font-family, monospace); font-size: 12px; line-height: 28px; }
.moe-view .moe-words { font-size: 14px; line-height: 1.45; min-height: 1.45em; }
.moe-view .moe-reading { font-size: 13px; line-height: 1.45; min-height: 2.9em; color: var(--jp-ui-font-color1, #444); }
.moe-view .moe-idle { font-size: 12px; line-height: 1.35; color: var(--jp-ui-font-color1, #444); white-space: normal; }
.moe-view .moe-trouble { color: var(--jp-error-color0, #b00020); font-weight: 600; }
.moe-view .widget-label, .moe-view .widget-readout { color: var(--jp-ui-font-color1, #222); }
.moe-view img { max-width: 100%; height: auto; border-radius: 4px; cursor: pointer; }
.moe-view .moe-bar { display: flex; flex-flow: row wrap; align-items: center; gap: 4px 8px; overflow: visible; }
.moe-view .moe-bar button { width: auto; margin: 0; }
.moe-view .moe-body { display: grid; grid-template-columns: minmax(240px, 270px) minmax(0, 1fr); gap: 14px;
  overflow: visible; }
.moe-view .moe-alone { grid-template-columns: minmax(0, 1fr); }
.moe-view .moe-controls { display: flex; flex-direction: column; overflow: visible; }
@container (max-width: 1000px) {
  .moe-view .moe-body { grid-template-columns: minmax(0, 1fr); }
  .moe-view .moe-controls { order: 2; display: grid; gap: 0 16px;
    grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
  .moe-view .moe-controls > .widget-html { grid-column: 1 / -1; }
}
</style>"""
