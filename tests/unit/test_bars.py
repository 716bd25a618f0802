"""Long work shows a bar with the time left, and an interrupt stops it and keeps what there is."""

import os
import signal
import threading

import nbformat
import pytest
from nbclient import NotebookClient

from moe_lessons.support.interrupts import held_back
from moe_lessons.training import PlaneSetting, bar, plane_runs, train
from tools.render import WIDGET


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


pytestmark = pytest.mark.usefixtures("interruptible")


def test_an_interrupt_ends_it_and_bars_around_it_after_the_thing_in_work(capsys):
    done, before = [], signal.getsignal(signal.SIGINT)
    for n in bar(range(10)):
        if n == 3:
            interrupt()
        done.append(n)
    assert done == [0, 1, 2, 3] and signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out == "Stopped after 4 of 10: what there is, is kept.\n"
    done = []
    for outer in bar(range(3)):
        for inner in bar(range(5)):
            done.append((outer, inner))
            if done == [(0, 0), (0, 1)]:
                interrupt()
    assert done == [(0, 0), (0, 1)] and capsys.readouterr().out.count("Stopped after") == 2


def test_what_is_held_back_comes_at_the_end_and_where_it_is_let_through_at_once():
    done, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), held_back() as signals:
        interrupt()
        done.append("inside")
        with pytest.raises(KeyboardInterrupt), signals.let_through():
            done.append("never")
        with pytest.raises(KeyboardInterrupt), signals.let_through():
            interrupt()
        interrupt(), interrupt()
        done.append("to the end")
    assert done == ["inside", "to the end"] and signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_ends_the_code_and_on_another_thread_there_is_none():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        for _ in bar(range(2)):
            interrupt()
            interrupt()
    assert signal.getsignal(signal.SIGINT) is before
    done = []
    thread = threading.Thread(target=lambda: done.extend(bar(range(3))))
    thread.start()
    thread.join()
    assert done == [0, 1, 2]


def test_runs_take_turns_and_stopped_all_have_as_many_steps(capsys):
    runs = plane_runs(PlaneSetting())
    last = list(runs.values())[-1]
    last.after_step.append(lambda run, _: len(run.records) == 5 and interrupt())
    train(runs.values(), 100)
    assert [len(run.records) for run in runs.values()] == [6, 6, 6]
    train(last, 1)
    assert len(last.records) == 7 and "Stopped after 6 of 100" in capsys.readouterr().out


LONG = "for n in bar(range(4)): time.sleep(0.15)"
CELLS = f"""import os, signal, time
import moe_lessons.training.bars as module
from moe_lessons.training import bar
module.SOON = 0.4
---
for _ in bar(range(100)): pass
---
{LONG}
---
from IPython.display import display as shown
class Kept:
    def update(self, *args, **options): pass
module.display = lambda *args, **options: shown(*args, raw=True) or Kept()
{LONG}
---
for n in bar(range(4)): n == 1 and os.kill(os.getpid(), signal.SIGINT)
---
os.environ["MOE_LESSONS_STATIC"] = "1"
{LONG}
"""


def test_in_a_notebook_it_is_shown_when_it_takes_long_and_nothing_is_left_and_on_a_static_page_there_is_none():
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS.split("---\n")])
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    shown = [[o.get("text") or "+".join(o["data"]) for o in cell.outputs] for cell in book.cells]
    assert shown == [[], [], [""], [WIDGET], ["Stopped after 2 of 4: what there is, is kept.\n"], []]
