"""Live views, on a real event loop: they train, pause, answer, and stay usable whatever happens."""

import asyncio
import functools
import io
import signal
import threading
import time

import numpy as np
import pytest
import torch
from ipywidgets.widgets import widget as ipywidgets
from PIL import Image

from moe_lessons.analysis.cost import count_parameters, flops_per_token
from moe_lessons.nn import LanguageModel, MoE, NoisyTopKRouter, TransformerConfig, dense_twin, seeded
from moe_lessons.plots import LoadBars
from moe_lessons.tasks import PlaneClassifier, PlaneTask, TextTask
from moe_lessons.training import Run
from moe_lessons.widgets import LivePanel, LiveRun, live
from moe_lessons.widgets.panels import PANELS, spent, writing

ENDLESS = 10**6  # steps; a test that trains so many has forgotten to stop


def on_a_loop(test):
    """Run a coroutine as a test, on an event loop of its own."""
    return functools.wraps(test)(lambda *args, **kwargs: asyncio.run(test(*args, **kwargs)))


def make_run(task=None, seed: int = 0, noise_std: float = 0.0) -> Run:
    with seeded(seed):
        router = NoisyTopKRouter(16, 8, 2, noise="gaussian", noise_std=noise_std)
        model = PlaneClassifier(MoE(16, 4, num_experts=8, top_k=2, router=router), num_classes=8)
    return Run(model, task or PlaneTask(), lr=0.02, batch_size=32, seed=seed)


def make_view(task=None, **options) -> LiveRun:
    return LiveRun(make_run(task), **{"panels": ("loss", "load")} | options)


def words(view: LiveRun) -> str:
    return view._words.value


def status(view: LiveRun) -> str:
    return view._status.value


def button(view: LiveRun, name: str):
    found = [child for child in live._descendants(view) if getattr(child, "description", "") == name]
    assert len(found) == 1, f"{len(found)} buttons {name}"
    return found[0]


async def until(condition) -> None:
    """Let the loop run until `condition()` holds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


async def settled() -> None:
    """Let the loop do what was queued."""
    for _ in range(3):
        await asyncio.sleep(0)


class Task(PlaneTask):
    """Calls `at[n]()` while batch n is drawn: in the middle of a step."""

    def __init__(self, at: dict):
        super().__init__()
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "drawn", [])

    def batch(self, num_points, generator):
        self.drawn.append(num_points)
        self.at.get(len(self.drawn), int)()
        return super().batch(num_points, generator)


# --- playing and pausing ---------------------------------------------------------------------------------


@on_a_loop
async def test_it_trains_as_many_steps_as_asked_and_pauses():
    view = make_view(play=30)
    assert view.running and view.step == 0  # nothing is trained before the cell has ended
    assert await view.finished() is view
    assert view.step == 30 and not view.running
    assert "step 30 · paused after 30 steps, press Play for more" in status(view)


@on_a_loop
async def test_by_itself_it_trains_max_steps_and_no_more():
    view = make_view(max_steps=12)
    view.play()
    await view.finished()
    assert view.step == 12
    view.play()
    await view.finished()
    assert view.step == 24


@on_a_loop
async def test_pause_stops_it():
    view = make_view(play=ENDLESS)
    await until(lambda: view.step > 5)
    view.pause()
    await view.finished()
    paused_at = view.step
    await asyncio.sleep(0.05)
    assert view.step == paused_at and f"step {paused_at} · paused" in status(view)


@on_a_loop
async def test_play_right_after_pause_goes_on():
    view = make_view(play=ENDLESS)
    await until(lambda: view.step > 5)
    view.pause()
    before = view.step
    view.play(20)
    await view.finished()
    assert view.step == before + 20


@on_a_loop
async def test_the_notebook_stays_usable_while_it_trains():
    view = make_view(play=ENDLESS)
    turns = 0
    while view.cost["frames"] < 3:
        await asyncio.sleep(0)
        turns += 1
    view.pause()
    await view.finished()
    assert turns >= 3


@on_a_loop
async def test_two_views_train_at_once():
    one, two = make_view(play=ENDLESS), make_view(play=ENDLESS)
    await until(lambda: one.step > 5 and two.step > 5)
    for view in (one, two):
        view.pause()
        await view.finished()


def test_several_runs_train_in_step():
    view = LiveRun({"a": make_run(seed=1), "b": make_run(seed=2)}, ("loss",))
    view.advance(7)
    assert [len(run.records) for run in view.runs.values()] == [7, 7]


def test_without_a_loop_it_trains_before_play_returns():
    view = make_view(play=8)
    assert view.step == 8 and "step 8 " in status(view)


@on_a_loop
async def test_frames_change_nothing_in_training():
    view, alone = make_view(play=40), make_run()
    await view.finished()
    assert [record.loss for record in view.main_run.records] == [alone.step().loss for _ in range(40)]


# --- buttons ---------------------------------------------------------------------------------------------


@on_a_loop
async def test_the_play_button_plays_and_pauses():
    view = make_view()
    play = button(view, "Play")
    play.click()
    await until(lambda: view.step > 0)
    assert (play.description, play.icon) == ("Pause", "pause") and "training" in status(view)
    play.click()
    await until(lambda: not view.running)
    assert (play.description, play.icon) == ("Play", "play")


@on_a_loop
async def test_step_buttons_train_when_paused():
    view = make_view()
    button(view, "Step").click()
    await settled()
    assert view.step == 1 and "step 1 " in status(view)
    button(view, "+50").click()
    await settled()
    assert view.step == 51


@on_a_loop
async def test_a_step_button_is_left_alone_while_it_trains():
    view = make_view(play=20)
    button(view, "+50").click()
    await view.finished()
    assert view.step == 20


# --- how often it draws ----------------------------------------------------------------------------------


def work(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def slow_view(refreshed: list, heavy: bool = True, **options) -> LiveRun:
    """A view whose steps take 10 ms of CPU time at least, and with a panel whose refresh takes 30."""

    def refresh(view, panel) -> None:
        refreshed.append((view.cost["training"], view.cost["drawing"]))
        work(0.03)

    panel = LivePanel(lambda view, ax, theme: LoadBars(ax, theme, 8), refresh, slow=True, heavy=heavy)
    every_step = dict.fromkeys(range(1, 1000), functools.partial(work, 0.01))
    return make_view(Task(every_step), panels=("loss", panel), **options)


@on_a_loop
async def test_training_has_its_share_however_dear_the_panels_are(monkeypatch):
    monkeypatch.setattr(live, "TEXT_INTERVAL", 0)
    refreshed = []
    view = slow_view(refreshed, play=ENDLESS)
    await until(lambda: len(refreshed) > 5)
    view.pause()
    paid = list(refreshed)
    await view.finished()
    for training, drawing in paid[2:]:  # when it is refreshed, all that was drawn before is paid for
        assert training > live.SLOW.training * drawing


@pytest.mark.parametrize("heavy", [True, False])
@on_a_loop
async def test_an_answer_to_an_action_does_not_wait_for_what_is_heavy(heavy, monkeypatch):
    monkeypatch.setattr(live, "TEXT_INTERVAL", 1000)  # seconds
    refreshed = []
    view = slow_view(refreshed, heavy, play=ENDLESS)
    await until(lambda: view.step > 5)
    before, frames = len(refreshed), view.cost["frames"]
    view.post(view.want_text)
    await until(lambda: view.cost["frames"] > frames)
    view.pause()
    assert len(refreshed) == before + (not heavy)
    await view.finished()


@on_a_loop
async def test_between_two_frames_the_loop_has_turns(monkeypatch):
    monkeypatch.setattr(live, "SLOW", live.SLOW._replace(frames=0.1))  # one in ten seconds
    view = slow_view([], play=ENDLESS)
    await until(lambda: view.cost["frames"] > 0)
    frames, step, answered = view.cost["frames"], view.step, []
    asyncio.get_running_loop().call_later(0.05, answered.append, 1)  # as a message from the page
    await until(lambda: answered)
    view.pause()
    assert view.cost["frames"] == frames and view.step > step
    await view.finished()


# --- what other threads ask for --------------------------------------------------------------------------


@on_a_loop
async def test_an_action_from_another_thread_is_done_between_steps_on_the_thread_of_the_loop():
    view = LiveRun({"a": make_run(seed=1), "b": make_run(seed=2)}, ("loss",), play=ENDLESS)
    await until(lambda: view.step > 0)
    seen = []

    def look():
        seen.append((threading.current_thread(), {len(run.records) for run in view.runs.values()}))

    other = threading.Thread(target=lambda: view.post(look))
    other.start()
    other.join()
    assert seen == []  # not on the other thread
    await until(lambda: seen)
    view.pause()
    await view.finished()
    thread, steps = seen[0]
    assert thread is threading.current_thread() and len(steps) == 1


@on_a_loop
async def test_actions_are_done_in_their_order_also_when_paused():
    view, done = make_view(), []
    for number in range(5):
        view.post(functools.partial(done.append, number))
    assert done == []
    await settled()
    assert done == [0, 1, 2, 3, 4]


@on_a_loop
async def test_an_action_that_is_refused_is_said_in_words():
    view = make_view(play=20)
    view.post(lambda: setattr(view.main_run.knobs, "lr", -1))
    await view.finished()
    assert "lr must be a finite number above 0, got -1" in words(view) and view.step == 20


@on_a_loop
async def test_an_action_that_fails_is_said_in_words_and_the_next_is_done():
    view, done = make_view(), []
    view.post(lambda: 1 / 0)
    view.post(lambda: done.append(1))
    await settled()
    assert "ZeroDivisionError: division by zero" in words(view) and done == [1]


# --- interrupts ------------------------------------------------------------------------------------------


def interrupt():
    signal.raise_signal(signal.SIGINT)


@on_a_loop
async def test_an_interrupt_during_a_step_pauses_and_is_passed_on_to_the_cell_that_waits():
    handler = signal.getsignal(signal.SIGINT)
    view = make_view(Task({5: interrupt}), play=ENDLESS)
    with pytest.raises(KeyboardInterrupt):
        await view.finished()
    assert view.step == 5 and not view.running  # the step was finished
    assert "Interrupted: the training is paused." in words(view)
    assert signal.getsignal(signal.SIGINT) is handler


@on_a_loop
async def test_after_an_interrupt_it_can_be_played_on():
    view = make_view(Task({5: interrupt}), play=ENDLESS)
    await until(lambda: not view.running)
    view.play(10)
    await view.finished()
    assert view.step == 15 and "Interrupted" not in words(view)


@on_a_loop
async def test_an_interrupt_of_the_cell_that_waits_pauses_too():
    view = make_view(play=ENDLESS)
    asyncio.get_running_loop().call_later(0.1, asyncio.current_task().cancel)
    with pytest.raises(KeyboardInterrupt):
        await view.finished()
    await until(lambda: not view.running)
    assert "Interrupted" in words(view) and "paused" in status(view)


# --- trouble ---------------------------------------------------------------------------------------------


def finite(view: LiveRun) -> bool:
    return all(torch.isfinite(p).all() for run in view.runs.values() for p in run.model.parameters())


@on_a_loop
async def test_divergence_is_said_in_words_and_training_goes_on_with_a_lower_rate():
    view = LiveRun({"a": make_run(seed=1), "b": make_run(seed=2)}, ("loss", "load"))
    view.advance(10)
    view.post(lambda: [setattr(run.knobs, "lr", 1e30) for run in view.runs.values()])
    view.play(100)
    await view.finished()
    assert "lower the learning rate (now 1e+30) to go on" in words(view)
    assert view.step < 20 and "paused" in status(view) and finite(view)
    view.post(lambda: [setattr(run.knobs, "lr", 0.01) for run in view.runs.values()])
    view.play(30)
    before = view.step
    await view.finished()
    assert view.step == before + 30 and "lower the learning rate" not in words(view)
    assert max(run.records[-1].loss for run in view.runs.values()) < 3


class Faulty(PlaneClassifier):
    """A model that raises as long as it is `broken`."""

    broken = False

    def forward(self, x):
        if self.broken:
            raise IndexError("expert 9 is not there")
        return super().forward(x)


def faulty_view(**options) -> LiveRun:
    run = Run(Faulty(MoE(16, 4, num_experts=8), num_classes=8), PlaneTask(), batch_size=32)
    return LiveRun(run, ("loss", "cost"), **options)  # the cost panel asks the model too


@on_a_loop
async def test_a_model_that_raises_is_said_in_words_and_can_be_played_on_when_mended():
    view = faulty_view(play=ENDLESS)
    await until(lambda: view.step > 5)
    view.main_run.model.broken = True
    await view.finished()
    assert "IndexError: expert 9 is not there" in words(view) and "paused" in status(view)
    assert button(view, "Play")
    view.main_run.model.broken = False
    view.play(10)
    before = view.step
    await view.finished()
    assert view.step == before + 10 and "IndexError" not in words(view)


@on_a_loop
async def test_a_model_that_raises_in_a_step_button_is_said_in_words():
    view = faulty_view()
    view.main_run.model.broken = True
    button(view, "Step").click()
    await settled()
    assert "IndexError: expert 9 is not there" in words(view)


def test_what_a_model_says_is_shown_as_text_and_not_as_html():
    view = make_view()
    view.post(lambda: int("<img src=x>"))
    assert "<img" not in words(view) and "&lt;img" in words(view)


# --- the picture -----------------------------------------------------------------------------------------


def picture(view: LiveRun) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(view._image.value)))


@on_a_loop
async def test_the_last_picture_is_exact_and_shows_the_last_step():
    view = make_view(play=25)
    await view.finished()
    assert view._image.format == "png" and view._image.tooltip.startswith("Step 25.")
    assert np.array_equal(picture(view), view._figure.pixels()[..., :3])
    assert view._figure.panels[0].lines[0].get_xdata()[-1] == 25


@on_a_loop
async def test_the_picture_follows_the_theme_of_the_page():
    view = make_view()
    light = picture(view)
    view._front_end.dark = True
    await settled()
    assert light[0, 0].min() > 200 and picture(view)[0, 0].max() < 50


@on_a_loop
async def test_a_click_on_the_picture_reaches_the_view(monkeypatch):
    clicks = []
    monkeypatch.setattr(LiveRun, "clicked", lambda self, x, y: clicks.append((x, y)))
    view = make_view()
    view._front_end.click = [0.25, 0.5, 1.0]
    await settled()
    assert clicks == [(0.25, 0.5)]


def test_a_panel_of_your_own_is_shown():
    mine = LivePanel(lambda view, ax, theme: LoadBars(ax, theme, 2), lambda view, panel: panel.update([0.3, 0.7]))
    view = make_view(panels=(mine, "loss"))
    assert [bar.get_height() for bar in view._figure.panels[0].bars] == [0.3, 0.7]


def test_a_noisy_router_is_shown_too():
    view = LiveRun(make_run(noise_std=1.0))
    view.advance(3)
    view.show_frame()
    mean = torch.tensor([record.load[0] for record in view.main_run.records]).mean(dim=0)
    assert [bar.get_height() for bar in view._figure.panels[1].bars] == pytest.approx(mean.tolist())


@pytest.mark.parametrize("runs", [{}, [], "x", None, {"a": 1}])
def test_runs_must_be_runs(runs):
    with pytest.raises(ValueError, match="^runs must be a Run or a dict of names and Runs, got"):
        LiveRun(runs)


def test_one_panel_may_be_named_alone():
    assert len(LiveRun(make_run(), panels="loss").panels) == 1


# --- static pages ----------------------------------------------------------------------------------------


@pytest.fixture
def static(monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")


@on_a_loop
async def test_a_static_page_gets_the_picture_after_training_and_no_widget(static):
    view = make_view(play=9)
    assert view.step == 9 and not view.running
    data, metadata = view._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data["image/png"]))), picture(view))
    assert data["text/plain"] == "LiveRun(play=9)" and metadata["image/png"]["alt"].startswith("Step 9.")
    assert await view.finished() is view


def test_a_live_page_gets_the_widget_and_the_picture_beside_it(monkeypatch):
    monkeypatch.delenv("MOE_LESSONS_STATIC", raising=False)
    data, _ = make_view()._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"}


# --- making and ending views -----------------------------------------------------------------------------


class Shell:
    """As much of a notebook's kernel as a view asks for: which cell runs, and for which time."""

    execution_count, cell = 1, "a"

    def get_parent(self):
        return {"metadata": {"cellId": self.cell}}


@pytest.fixture
def shell(monkeypatch):
    made = Shell()
    monkeypatch.setattr(live, "get_ipython", lambda: made)
    monkeypatch.setattr(live, "_views", {})
    return made


@on_a_loop
async def test_running_a_cell_again_ends_the_views_that_it_made(shell):
    earlier = [make_view(play=ENDLESS), make_view(play=ENDLESS)]
    assert all(view.running for view in earlier)  # both of one execution live
    shell.execution_count = 2
    new = make_view(play=5)
    await new.finished()
    assert not any(view.running for view in earlier) and all(view.comm is None for view in earlier)
    assert new.step == 5 and new.comm is not None


@on_a_loop
async def test_running_another_cell_ends_nothing(shell):
    view = make_view(play=ENDLESS)
    shell.execution_count, shell.cell = 2, "b"
    make_view()
    await until(lambda: view.step > 5)
    view.pause()
    await view.finished()
    assert view.comm is not None


def test_a_cell_that_failed_halfway_can_be_run_again(shell):
    with pytest.raises(ZeroDivisionError):
        make_view(panels=(LivePanel(lambda view, ax, theme: 1 / 0, None),))
    shell.execution_count = 2
    assert make_view().comm is not None


@on_a_loop
async def test_closing_ends_the_training_and_leaves_no_widget():
    before = set(ipywidgets._instances)
    view = make_view(play=ENDLESS)
    await until(lambda: view.step > 0)
    view.close()
    await until(lambda: not view.running)
    assert set(ipywidgets._instances) == before


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"panels": ("loss", "speed")}, f"panels must be LivePanels or of {', '.join(map(repr, PANELS))}, got 'speed'"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"max_steps": 1.5}, "max_steps must be a whole number of at least 1, got 1.5"),
        ({"play": -1}, "play must be a whole number of at least 1, got -1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    run = make_run()
    with pytest.raises(ValueError, match=message):
        LiveRun(run, **options)
    assert run.records == []


@pytest.mark.parametrize("steps", [0, -3, 2.5])
def test_bad_numbers_of_steps_are_refused(steps):
    view = make_view()
    with pytest.raises(ValueError, match=f"steps must be a whole number of at least 1, got {steps}"):
        view.play(steps)
    assert view.step == 0 and not view.running


def test_a_dense_model_has_no_experts_to_show():
    run = Run(dense_twin(make_run().model), PlaneTask())
    assert LiveRun(run, ("loss", "cost")).step == 0
    with pytest.raises(ValueError, match="panels that show experts need a mixture of experts, got PlaneClassifier"):
        LiveRun(run, ("load",))


# --- several layers ----------------------------------------------------------------------------------------


class TwoLayers(torch.nn.Module):
    """Two mixtures, one after the other."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Linear(2, 16), torch.nn.Linear(16, 8)
        self.layers = torch.nn.ModuleList([MoE(16, 4, num_experts=8, top_k=2), MoE(16, 4, num_experts=8, top_k=1)])

    def forward(self, x):
        hidden, routings = self.embed(x), []
        for layer in self.layers:
            y, routing = layer(hidden)
            hidden, routings = hidden + y, [*routings, routing]
        return self.head(hidden), routings


def test_each_layer_has_its_row():
    with seeded(0):
        run = Run(TwoLayers(), PlaneTask(), batch_size=64)
    view = LiveRun(run, ("layers", "load", "film"))
    view.advance(30)
    view.draw()
    layers, load, film = view._figure.panels
    recent = [record.load for record in run.records[-20:]]
    expected = 8 * np.mean(recent, axis=0)
    np.testing.assert_allclose(layers.image.get_array(), expected)
    dead = {(e, layer) for layer in (0, 1) for e in range(8) if expected[layer, e] / 8 * (2, 1)[layer] < 0.01}
    assert {tuple(point) for point in layers.dead.get_xydata().astype(int)} == dead
    assert dead, "the case should have a dead expert, or it shows nothing"
    assert load.ax.get_title(loc="left").endswith("layer 0") and film.ax.get_title(loc="left").endswith("layer 0")


def test_one_layer_needs_no_number():
    (load,) = make_view(panels=("load",))._figure.panels
    assert load.ax.get_title(loc="left") == LoadBars.title


# --- a language model --------------------------------------------------------------------------------------


def language_run(**options) -> Run:
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, num_heads=2, num_layers=1, d_ff=16, **options))
    return Run(model, TextTask(["english", "json"], context=32), lr=0.01, batch_size=4)


def test_a_dense_language_model_is_shown_while_it_learns_and_writes():
    prompts = {"english": "The ", "json": '{"id": '}
    run, alone = language_run(moe_layers=()), language_run(moe_layers=())
    view = LiveRun(run, ("loss", "cost", writing(prompts, num_bytes=20)), max_steps=5)
    _, costs, text = view._figure.panels
    assert [cell[0].get_text() for cell in costs.cells][:2] == [f"{count_parameters(run.model).total:,}"] * 2
    before = [artist.get_text() for artist in text.texts]
    view.advance(5)
    view.draw()
    written = ["".join(artist.get_text().splitlines()) for artist in text.texts]
    assert all(new.startswith(prompt.replace("\n", "↵")) for new, prompt in zip(written, prompts.values()))
    assert before != [artist.get_text() for artist in text.texts]
    for _ in range(5):
        alone.step()
    assert [r.loss for r in run.records] == [r.loss for r in alone.records], "writing disturbed the training"


def test_a_language_model_of_experts_has_its_load_beside():
    view = LiveRun(language_run(num_experts=4), ("loss", "load", writing({"english": "The "}, num_bytes=5)))
    view.advance(2)
    view.draw()
    assert sum(bar.get_height() for bar in view._figure.panels[1].ax.patches[:4]) == pytest.approx(1)


def test_flops_count_every_token_of_a_sequence():
    run = language_run(moe_layers=())
    run.step(), run.step()
    tokens = 4 * 32
    assert spent(run, "FLOPs").tolist() == [n * tokens * flops_per_token(run.model, training=True) for n in (1, 2)]
    plane = make_run()
    plane.step()
    assert spent(plane, "FLOPs").tolist() == [32 * flops_per_token(plane.model, training=True)]
