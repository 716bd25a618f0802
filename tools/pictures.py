"""The pictures of the README and the site, drawn by the course's own panels, from real runs: ``make render`` makes them
anew."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from moe_lessons.analysis.quality import published_pairs, width_over_size
from moe_lessons.plots import figure
from moe_lessons.plots.sweeps import width_rows
from moe_lessons.widgets import FactsLab, Playground, SpeedupMap
from web.text_model import EXAMPLES, FIRST_LAYER, stored_models, text_panels

DOCS = Path("docs")
COLLAPSE, RESCUE = 100, 200  # steps: until the auxiliary loss is switched on, until the end
EVERY = 4  # steps for each frame
GIF_WIDTH, NUM_COLORS = 800, 64  # of the animation: pixels, and colours, which keep it small
SHOWN_FOR, LAST = 120, 4000  # milliseconds


def main(folder: Path = DOCS) -> None:
    """Write them all: a collapse and its rescue, the playground, the wall of facts, a text in
    the colours of its experts, the speedup map, and how wide a dense model of equal quality is."""
    folder.mkdir(exist_ok=True)
    animate(folder / "rescue.gif")
    playground = Playground(play=300)
    (folder / "playground.png").write_bytes(playground.picture().png())
    facts = FactsLab(play=300)  # as the page begins
    walls = figure(facts.panels()[: len(facts.runs)], caption=facts.sentence())
    (folder / "facts.png").write_bytes(walls.png())
    text = EXAMPLES["English"]  # as the page begins
    texts = text_panels(stored_models(), text, FIRST_LAYER, text.index("behind") + 3)
    (folder / "text.png").write_bytes(figure(texts[:2]).png())
    (folder / "speedup.png").write_bytes(SpeedupMap("Mixtral 8x7B").picture().png())
    (folder / "widths.png").write_bytes(width_rows(width_over_size(), published_pairs()).figure.png())


def animate(path: Path, collapse: int = COLLAPSE, rescue: int = RESCUE) -> None:
    """A mixture collapses without the auxiliary loss, and comes back with it: an animated GIF, the same each time."""
    pictures = [Image.open(BytesIO(png)).convert("RGB") for png in frames(collapse, rescue)]
    palette = pictures[-1].quantize(NUM_COLORS)
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    first.save(path, save_all=True, append_images=others, duration=[*[SHOWN_FOR] * len(others), LAST], loop=0)


def frames(collapse: int, rescue: int) -> Iterator[bytes]:
    """Each frame as a PNG: the territories, the loads, and the loads over time."""
    playground = Playground("collapse", panels=("territory", "load", "film"))
    playground.spec = replace(playground.spec, first_x=rescue)
    for step in range(EVERY, rescue + 1, EVERY):
        playground.advance(EVERY)
        state = "on" if playground.main_run.knobs.router_aux_loss_coef else "off"
        dead = f"{playground.main_run.records[-1].dead_experts:g} of {playground.state.values['num_experts']}"
        words = f"Step {step}. Auxiliary loss {state}. Dead experts: {dead}."
        yield figure(playground.panels(), width=GIF_WIDTH, caption=words).png()
        if step == collapse:
            playground.set(router_aux_loss_coef=1.0)
