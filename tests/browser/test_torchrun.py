"""Ranks that torchrun has started are watched from a notebook, and end when they are stopped."""

import pytest

RANK = """import json, os, time
rank = int(os.environ["RANK"])
print(json.dumps({"event": "start", "rank": rank, "ranks": 2, "pid": os.getpid()}), flush=True)
for step in range(1, 2001):
    time.sleep(0.05)
    if rank == 0:
        print(json.dumps({"event": "step", "step": step, "loss": 1 / step}), flush=True)
"""
CELLS = (
    f"from pathlib import Path\nPath('rank.py').write_text({RANK!r});",
    "from moe_lessons.parallel import torchrun\nfrom moe_lessons.widgets import TorchRun",
    "view = TorchRun(torchrun('rank.py', 2), steps=2000)\nview",
    "records = await view.finished()",
    "pids = [record['pid'] for record in records if record['event'] == 'start'] + [view.job.process.pid]\n"
    "alive = [pid for pid in pids if Path(f'/proc/{pid}').exists()]\n"
    "print('ended', len(pids), 'still there', len(alive), 'kept', sum(r['event'] == 'step' for r in records) > 3)",
)


@pytest.mark.parametrize("way", ["button", "interrupt"])
def test_progress_is_shown_and_stopped_all_ranks_are_gone(open_notebook, view_of, way):
    notebook = open_notebook(f"torchrun_{way}.ipynb", *CELLS)
    notebook.run_all(wait=False)
    view = view_of(notebook.page)
    view.wait_for(lambda: all(said in view.view.inner_text() for said in (" of 2000", " s left")), seconds=60)
    before = view.picture
    view.wait_for(lambda: view.picture != before)
    view.button("Stop").click() if way == "button" else notebook.interrupt()
    notebook.wait_executed()
    assert notebook.page.get_by_text("ended 3 still there 0 kept True").is_visible()
    assert "Stopped." in view.view.inner_text() and view.button("Stop").is_disabled()
    assert notebook.cell_errors() == [] and notebook.errors == []
