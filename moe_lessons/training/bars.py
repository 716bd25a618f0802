"""Long work, under a bar that shows the time left, and which can be stopped."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from IPython.display import display
from tqdm import tqdm
from tqdm.notebook import tqdm_notebook

from moe_lessons.support.errors import check_count
from moe_lessons.support.interrupts import heeding
from moe_lessons.support.static import in_notebook, static_mode
from moe_lessons.training.run import Run, step_together

WIDGET = "application/vnd.jupyter.widget-view+json"
SOON = 1.0  # seconds: what is done sooner shows no bar
Thing = TypeVar("Thing")


def bar(things: Iterable[Thing], what: str = "") -> Iterator[Thing]:
    """Give `things`, one after another. Where they take more than a second, a bar shows how many are done.

    The interrupt of the kernel (■, or Ctrl-C in a terminal) ends it after the one in work, and the code goes on with
    what there is; a second interrupt ends the code.

    >>> [n * n for n in bar(range(3))]
    [0, 1, 4]
    """
    things = list(things)
    interrupts = []
    given = {"desc": what, "leave": False}
    if in_notebook():
        made = NotebookBar(total=len(things), display=False, disable=static_mode(), **given)
    else:
        made = tqdm(total=len(things), delay=SOON, disable=None, **given)  # None: only on a terminal

    def hear() -> bool:
        interrupts.append(True)
        if len(interrupts) > 1:
            raise KeyboardInterrupt
        return False

    with heeding(hear), made as drawn:
        for done, thing in enumerate(things, start=1):
            yield thing
            drawn.update()
            if interrupts and done < len(things):
                print(f"Stopped after {done} of {len(things)}: what there is, is kept.")
                return


def train(runs: Run | Iterable[Run], steps: int) -> None:
    """Train a run, or each of several in turn, `steps` steps, under a `bar`. Stopped, all have as many steps."""
    runs = [runs] if isinstance(runs, Run) else list(runs)
    for _ in bar(range(check_count("steps", steps)), "steps"):
        step_together(runs)


class NotebookBar(tqdm_notebook):
    """tqdm's bar of widgets, of which nothing is stored in the notebook, and nothing is left at the end."""

    shown = None

    def display(self, *args, **kwargs) -> None:
        super().display(*args, **kwargs | {"check_delay": False})
        is_late = self.format_dict["elapsed"] > SOON and not kwargs.get("close")  # closed, it has no view
        if self.shown is None and is_late:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.container.model_id}
            self.shown = display({WIDGET: view}, raw=True, display_id=True)  # no text: it is no result

    def close(self) -> None:
        is_open = not self.disable  # it may be closed twice
        super().close()
        if is_open and self.shown is not None:
            self.shown.update({}, raw=True)
