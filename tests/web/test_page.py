"""The page trains in a Chromium: as the notebook does, as its controls say, and without any other host."""

import json
import re
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from playwright.sync_api import expect

from moe_lessons.analysis import trace_text
from moe_lessons.plots.marks import encode_panel
from moe_lessons.tasks import decode
from moe_lessons.tasks import encode as to_bytes
from moe_lessons.tasks.plane import read_points
from moe_lessons.training import PRESETS, PlaneSetting, plane_runs
from web import training_page
from web.text_model import WINDOW, stored_models, text_panels

BARE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The {0}</title><style>:root {{ color-scheme: light dark }}</style>
<main><h1>The {0}</h1><div data-moe="{0}" {1}><p>A picture</p></div></main>
<script type="module" src="page/page.js"></script></html>"""
COST = "Array.from(document.querySelectorAll('.moe-page tbody tr'), row => row.innerText.split('\\t'))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, runtime) -> Path:
    """A folder with two documents of few lines, and the page with the graphs of 'healthy', 'collapse' and one wall."""
    folder = tmp_path_factory.mktemp("page")
    training_page.main(str(folder / "page"), "few")
    for name, view in {"index": ("playground", "data-guide"), "wall": ("wall", ""), "text": ("text", "")}.items():
        (folder / f"{name}.html").write_text(BARE.format(*view), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(folder, serve):
    return f"{serve(folder)}/index.html"


class Visit:
    """A page of a browser in which the playground is open, or says why not."""

    def __init__(self, browser, address: str, state: str = "", before=lambda page: None, is_calm=True, **options):
        self.page, self.asked, self.errors = browser.new_page(**options), [], []
        self.page.set_default_timeout(60_000)
        self.page.emulate_media(reduced_motion="reduce" if is_calm else "no-preference")  # calm: it waits for Play
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        before(self.page)
        self.page.goto(f"{address}{state}")

    def ready(self) -> "Visit":
        """All of it is shown."""
        self.page.locator(".moe-canvas[data-step]").wait_for()
        if (more := self.button("More")).is_visible():
            more.click()
        self.page.locator(".moe-page tbody tr").first.wait_for()
        return self

    step = property(lambda self: int(self.page.locator(".moe-canvas").get_attribute("data-step")))
    said = property(lambda self: self.page.locator(".moe-said").inner_text())
    status = property(lambda self: self.page.locator(".moe-status").inner_text())

    def button(self, name: str):
        return self.page.get_by_role("button", name=name, exact=True)

    def control(self, name: str):
        return self.page.locator(f"#moe-{name}")

    def wait(self, condition: str) -> None:
        self.page.wait_for_function(condition)

    def wait_step(self, least: int) -> None:
        self.wait(f"() => Number(document.querySelector('.moe-canvas').dataset.step) >= {least}")

    def train(self, steps: int) -> None:
        """Fifty steps at a time, by its button."""
        for end in range(self.step + 50, self.step + steps + 1, 50):
            self.button("+50").click()
            self.wait_step(end)

    def measured(self) -> list[float]:
        """The loss of each model, as the page shows it: a held-out one, where there is such."""
        rows = {name.removeprefix("held-out "): values for name, *values in self.page.evaluate(COST)}
        return [float(value) for value in rows["loss"]]

    def state(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.page.url).fragment))


@pytest.fixture
def visit(browser, address):
    """visit(state, …): the page with the playground, or with the view of a name, opened; it ends with the test, without
    an error and without a request to another host."""
    made = []

    def open_page(*arguments, view: str = "index", **options) -> Visit:
        kind = TextVisit if view == "text" else Visit
        made.append(kind(browser, address.replace("index", view), *arguments, **options))
        return made[-1]

    yield open_page
    for each in made:
        each.page.close()
    for each in made:
        local = ("http://127.0.0.1:", "data:", "blob:")
        assert [url for url in each.asked if not url.startswith(local)] == [] and each.errors == []


def test_it_trains_by_itself_and_pauses_out_of_sight(visit):
    own = visit(is_calm=False).ready()
    own.wait_step(20)
    start, at = time.monotonic(), own.step
    own.wait_step(at + 50)
    speed = 50 / (time.monotonic() - start)  # steps a second
    own.page.evaluate("document.querySelector('main').style.paddingTop = '3000px'; scrollTo(0, 0)")
    before = own.step
    own.page.wait_for_timeout(4000)
    own.page.evaluate("document.querySelector('main').style.paddingTop = 0")
    own.wait_step(before + 1)
    assert own.step < before + 2 * speed  # of 4 seconds
    own.wait_step(own.step + 5)
    own.button("Pause").click()
    own.button("Play").wait_for()
    at = own.step
    own.button("Step").click()
    own.wait_step(at + 1)
    own.button("Reset").click()
    own.wait("() => document.querySelector('.moe-canvas').dataset.step === '0'")


@pytest.mark.parametrize("preset", ["healthy", "collapse", "noise"])
def test_it_learns_as_the_notebook_does(visit, preset):
    """The same starts and other batches: the losses on held-out points after 300 steps, of two seeds."""
    mine, theirs = [], []
    for seed in (0, 1):
        own, runs = visit(f"#preset={preset}&seed={seed}").ready(), plane_runs(PRESETS[preset], seed=seed)
        start = [run.evaluate(2048)["loss"] for run in runs.values()]
        assert own.measured() == pytest.approx(start, rel=0.1)  # on 256 points
        own.train(300)
        for run in runs.values():
            for _ in range(300):
                run.step()
        mine.append(own.measured())
        theirs.append([run.evaluate(2048)["loss"] for run in runs.values()])
    assert np.mean(mine, axis=0) == pytest.approx(np.mean(theirs, axis=0), rel=0.35)
    assert np.mean(mine, axis=0).max() < 0.5 * min(start)


LOSSES = """async (state) => {
    const { Settings } = await import(new URL('page/settings.js', location));
    const manifest = await (await fetch('page/manifest.json')).json();
    const settings = new Settings(manifest);
    const values = settings.inForce(settings.parse(state));
    const worker = new Worker('page/worker.js', { type: 'module' });
    const found = new Promise((give, fail) => {
        worker.onmessage = ({ data: { started, content, data, refused } }) => {
            if (refused) fail(new Error(refused));
            if (started) worker.postMessage({ kind: 'steps', count: 10 });
            if (content?.words.step !== 10) return;
            const slot = `${manifest.panels.indexOf('loss')}.0.y`;
            const [, , [length], start] = content.slots.find(([name]) => name === slot);
            give([...new Float32Array(data, start, length)]);
        };
    });
    worker.postMessage({ kind: 'start', values, name: settings.graph(values) });
    const losses = await found;
    worker.terminate();
    return losses;
}"""


@pytest.mark.parametrize(
    "state",
    ["preset=healthy", "preset=noise&seed=1", "task=blobs&seed=1", "task=uneven&jitter_noise=0.1"]
    + ["points=0fle3xy70gd01te2&seed=1", "preset=collapse&points=0fle3xy7"],
)
def test_a_button_copies_a_program_whose_first_losses_are_those_of_the_page(visit, state):
    own = visit(f"#{state}").ready()
    own.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    own.button("Copy as PyTorch").evaluate("button => button.click()")  # wherever it stands
    own.wait("() => document.querySelector('.moe-said').textContent.startsWith('Copied: ')")
    program, names = own.page.evaluate("navigator.clipboard.readText()"), {}
    exec(compile(program.replace("500, 256", "10, 256"), "moe_plane.py", "exec"), names)
    means = np.cumsum(names["losses"]) / np.arange(1, 11)  # the page shows the mean of the last ten
    assert own.page.evaluate(LOSSES, state) == pytest.approx(list(means), abs=1e-4)


def test_a_slider_acts_on_the_next_step(visit):
    own = visit().ready()
    own.train(50)
    before = own.measured()
    own.control("lr").focus()
    own.page.keyboard.press("End")  # the largest rate
    assert own.state() == {"preset": "healthy", "lr": "0.5"}
    own.train(50)
    assert own.measured()[0] > 2 * before[0]
    assert "try a lower learning rate" in own.page.locator(".moe-words").inner_text()


def test_a_link_opens_the_state_that_it_was_made_of(visit):
    own = visit("#preset=collapse&task=waves&router_start=random&noise_std=0.55&seed=1&token=7").ready()
    assert own.control("task").input_value() == "waves" and own.control("router_start").input_value() == "random"
    assert own.page.locator("output[for=moe-noise_std]").inner_text() == "0.55"
    assert own.page.locator(".moe-reading").inner_text().startswith("Token 7 at (")
    own.button("collapse").click()
    own.wait("() => document.querySelector('#moe-task').value === 'voronoi'")
    assert own.state() == {"preset": "collapse", "seed": "1", "token": "7"}
    own.page.evaluate("location.hash = '#preset=healthy&aux=1'")
    own.wait("() => document.querySelector('.moe-said').textContent")
    assert own.said == "The address cannot be read: there is no control aux. What stands is kept."
    assert own.control("task").input_value() == "voronoi"


@pytest.mark.parametrize(
    "state, sentence",
    [
        ("#preset=helthy", "preset must be one of healthy, collapse, rescued, "),
        ("#top_k=9", "top_k must be one of 1, 2, 4, 8, got 9"),
        ("#lr=0", "lr must be a number above 0 and at most 1e+15, got 0"),
        ("#preset=capacity", "the preset capacity is not in this page: a capacity drops tokens"),
        ("#num_experts=16", "Experts E 16, Top-k 2, F (units) 4: this site has no graph for it; `make site ALL=1`"),
        ("#capacity_factor=2", "capacity_factor is not in this page: a capacity drops tokens"),
        ("#jitter_noise=1.5", "jitter_noise must be a number of at least 0 and at most 1, got 1.5"),
        ("#points=0fle3x", "points must be a text as 'Draw points' writes it, four signs a point, got 0fle3x"),
        ("#points=0fl%0A", "points must be a text as 'Draw points' writes it, four signs a point, got 0fl"),
        ("#points=6xe0", "points must be a text as 'Draw points' writes it, four signs a point, got 6xe0"),
        (f"#points={501 * '0fle'}", "points must be at most 500, got 501"),
    ],
)
def test_a_broken_address_gets_a_sentence_and_the_page_trains(visit, state, sentence):
    own = visit(state).ready()
    assert sentence in own.said and own.state() == {"preset": "healthy"}
    own.train(50)


@pytest.mark.parametrize(
    "view, name", [("index", "top-k-8-2-4.step.z"), ("wall", "facts-dense-64.step.z"), ("text", "text.weights.z")]
)
def test_what_does_not_arrive_is_said(visit, view, name):
    lost = visit("", lambda page: page.route(f"**/{name}", lambda route: route.abort()), view=view)
    lost.wait("() => document.querySelector('.moe-said')?.textContent")
    assert lost.said == f"{name} did not arrive (no answer). Reload the page to try again."


def test_offline_it_says_so_and_goes_on(visit):
    own = visit().ready()
    own.page.context.set_offline(True)
    own.button("collapse").click()
    own.page.get_by_text("This browser is offline").wait_for()
    own.page.context.set_offline(False)
    own.train(50)
    assert own.state() == {"preset": "healthy"}


def test_what_is_not_there_is_said_and_what_stands_is_kept(visit):
    own = visit("", lambda page: page.route("**/top-k-8-1-8.step.z", lambda route: route.fulfill(status=404))).ready()
    own.button("collapse").click()
    own.wait("() => document.querySelector('.moe-said').textContent")
    assert own.said.startswith("top-k-8-1-8.step.z did not arrive (404). What stands is kept")
    assert own.control("task").input_value() == "checker"
    own.train(50)
    old = visit("", lambda page: page.add_init_script("delete globalThis.WebAssembly"))
    old.wait("() => document.querySelector('.moe-said')?.textContent")
    assert old.said.startswith("This browser cannot show this view: it has no WebAssembly.")
    assert old.page.locator("[data-moe] p").inner_text() == "A picture"


def test_where_it_diverges_it_says_so_and_goes_on_with_a_lower_rate(visit):
    own = visit("#lr=1e15").ready()
    own.button("Play").click()
    own.wait("() => /lower the learning rate/.test(document.querySelector('.moe-trouble').textContent)")
    own.button("Play").wait_for()
    own.control("lr").focus()
    own.page.keyboard.press("Home")
    own.train(50)
    assert own.page.locator(".moe-trouble").inner_text() == "" and own.measured()[0] < 100


@pytest.mark.parametrize(
    "view, button, shown",
    [("index", "+50", ".moe-canvas[data-step='50']"), ("text", "code", ".moe-type span:text-is('(')")],
)
def test_everyone_can_use_it_at_any_width(visit, violations, view, button, shown):
    own = visit("", viewport={"width": 390, "height": 844}, has_touch=True, view=view).ready()
    own.button(button).tap()
    own.page.locator(shown).first.wait_for()
    for width, theme in ((390, "dark"), (1280, "light")):
        own.page.set_viewport_size({"width": width, "height": 900})
        own.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        own.page.wait_for_timeout(500)
        assert own.page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(own.page) == [], (width, theme)


def test_the_wall_of_facts_trains_three_models_until_lamps_are_lit(visit):
    own = visit("#num_entries=500&lr=0.01&seed=1", view="wall", is_calm=False).ready()
    known = "() => Number(/memorised (\\d+) of 500/.exec(document.querySelector('.moe-words').textContent)[1]) >= 5"
    own.page.wait_for_function(known)
    own.button("Pause").click()
    own.button("Play").wait_for()
    assert max(own.measured()) < 2.3  # guessing a digit: ln(10)
    assert own.page.get_by_text(re.compile(r"^MoE: \d+ of 500$")).is_visible()
    own.control("num_entries").focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowRight"):
        own.page.keyboard.press(key)
    own.page.get_by_text("MoE: 0 of 1,000").wait_for()  # afresh
    own.button("Step").click()
    own.wait_step(1)
    assert len(own.page.workers) == 4  # three models, and who has them train in step
    own.button("Reset").click()
    own.wait("() => document.querySelector('.moe-canvas').dataset.step === '0'")
    assert own.step == 0 and own.state() == {"lr": "0.01", "seed": "1"} and min(own.measured()) > 4


def test_the_wall_of_facts_says_what_is_wrong_and_goes_on(visit):
    own = visit("#num_entries=700", view="wall").ready()
    assert "num_entries must be one of 500, 1000, 2000, got 700. Here is the preset of lesson 05" in own.said
    own.page.evaluate("location.hash = '#num_entries=500&lr=1e15'")
    own.page.get_by_text("MoE: 0 of 500").wait_for()
    own.button("Play").click()
    own.wait("() => /lower the learning rate/.test(document.querySelector('.moe-trouble').textContent)")
    own.button("Play").wait_for()
    own.control("lr").focus()
    own.page.keyboard.press("Home")
    at = own.step
    own.button("Step").click()
    own.wait_step(at + 1)
    assert own.page.locator(".moe-trouble").inner_text() == "" and max(own.measured()) < 100
    own.button("Play").click()
    own.button("Pause").wait_for()


def test_hints_go_when_they_are_followed(visit):
    own = visit().ready()
    hint = own.page.locator(".moe-hint")
    assert "Point at one" in hint.inner_text()
    own.page.locator(".moe-canvas canvas").first.hover()
    own.wait("() => document.querySelector('.moe-hint').textContent.includes('Collapse')")
    own.button("noise").hover()
    assert "Collapse" in hint.inner_text()
    own.button("Collapse").click()
    assert "auxiliary loss" in hint.inner_text()
    own.button("×").click()
    assert hint.count() == 0


def test_one_line_shows_a_state_in_another_document(visit, serve, tmp_path):
    own = visit("#preset=collapse&seed=1").ready()
    own.button("Embed").click()
    own.wait("() => document.querySelector('.moe-said').textContent")
    line = own.said.partition(": ")[2].removesuffix(" It starts again at step 0.")
    (tmp_path / "index.html").write_text(f"<!doctype html><title>A page of a teacher</title>{line}", encoding="utf-8")
    own.page.goto(f"{serve(tmp_path)}/index.html")
    frame = own.page.frame_locator("iframe")
    frame.locator(".moe-canvas[data-step]").wait_for()
    for name in ("More", "+50"):
        frame.get_by_role("button", name=name, exact=True).click()
    frame.locator(".moe-canvas[data-step='50']").wait_for()
    assert frame.locator("#moe-seed").input_value() == "1" and frame.locator("#moe-task").input_value() == "voronoi"


def test_it_begins_with_what_explains_most_and_follows_the_token_that_is_pointed_at(visit):
    own = visit()
    own.page.locator(".moe-canvas[data-step]").wait_for()
    titles = own.page.locator("figcaption b")
    own.wait("() => document.querySelectorAll('figcaption b').length === 5")
    shown = [control.get_attribute("id") for control in own.page.locator(".moe-control input:visible").all()]
    assert shown == [f"moe-{name}" for name in ("num_experts", "top_k", "noise_std", "router_aux_loss_coef")]
    assert titles.nth(1).inner_text() == "A token through the block"
    own.page.locator("canvas").nth(3).hover()
    own.page.wait_for_timeout(300)
    before = own.state().get("token")
    box = own.page.locator("canvas").first.bounding_box()
    for part in range(5, 60):  # across the territory, until it meets another token
        own.page.mouse.move(box["x"] + 5 * part, box["y"] + 150)
        if own.state().get("token") != before:
            break
    token = own.state()["token"]
    own.wait(f"() => document.querySelector('.moe-canvas').dataset.token === '{token}'")
    own.button("More").click()
    own.wait("() => document.querySelectorAll('figcaption b').length === 9")
    assert own.control("lr").is_visible()
    own.button("More").click()
    own.wait("() => document.querySelectorAll('figcaption b').length === 5")


def test_the_still_picture_stands_until_the_first_live_one_and_what_is_pressed_before_counts(visit):
    waiting, opened = [], []
    take = lambda route: route.continue_() if opened else waiting.append(route)  # noqa: E731
    own = visit(before=lambda page: page.route("**/*.step.z", take))
    own.page.get_by_text("Loading what trains").wait_for()
    assert own.page.get_by_text("A picture").is_visible() and own.page.locator("canvas").count() == 0
    own.button("Collapse").click()
    own.page.wait_for_timeout(500)
    opened.append(True)
    for route in waiting:
        route.continue_()
    own.page.locator(".moe-canvas[data-step]").wait_for()
    assert own.page.get_by_text("A picture").count() == 0
    own.wait_step(20)
    assert own.state()["preset"] == "collapse"


def test_on_a_phone_controls_and_pictures_are_on_one_screen(visit):
    own = visit(viewport={"width": 390, "height": 844}, has_touch=True)
    own.page.locator(".moe-canvas[data-step]").wait_for()
    own.page.wait_for_timeout(500)
    for place in (0, 600, 1200):
        own.page.evaluate(f"scrollTo(0, {place})")
        for name in ("Play", "Collapse", "Rescue", "Reset", "More"):
            box = own.button(name).bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= 844, (place, name)
    buttons = own.page.locator(".moe-dock button:visible").all_inner_texts()
    assert buttons == ["Play", "Collapse", "Rescue", "Reset", "More"]  # as in a notebook
    own.page.evaluate("scrollTo(0, 0)")
    territory = own.page.locator("canvas").first.bounding_box()
    assert territory["y"] + territory["height"] < own.button("Play").bounding_box()["y"]
    assert own.page.evaluate("Array.from(document.querySelectorAll('canvas'), c => c.clientWidth <= 366)") == [True] * 5


def test_the_classes_stand_pale_in_the_territory_and_can_be_hidden(visit):
    own = visit().ready()
    pixels = "document.querySelector('.moe-canvas canvas').toDataURL()"
    pale = own.page.evaluate(pixels)
    own.control("classes").select_option("hidden")
    own.page.wait_for_function(f"pale => {pixels} !== pale", arg=pale)
    own.control("classes").select_option("shown")
    own.page.wait_for_function(f"pale => {pixels} === pale", arg=pale)
    assert own.state() == {"preset": "healthy"}


def territory(own: Visit, label: int):
    """The place in the window of a point of the plane, in which points of a class are drawn."""
    canvas = own.page.locator(f".moe-canvas canvas[data-pen='{label}']")
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    side = min(box["width"] - 37, box["height"] - 29)  # it is square
    return lambda x, y: (box["x"] + 25 + (x + 1) / 2 * side, box["y"] + 8 + (1 - y) / 2 * side)


def drawn(own: Visit) -> list[tuple[float, float, int]]:
    points, classes = read_points(own.state().get("points", ""))
    return [(round(x, 1), round(y, 1), label) for (x, y), label in zip(points.tolist(), classes.tolist())]


def test_points_that_are_drawn_are_learned_are_in_the_link_and_can_be_taken_back(visit):
    own = visit("#token=3&seed=1").ready()
    words = own.page.locator(".moe-words")

    def stroke(label: int, *places) -> None:
        own.control("pen").select_option(f"class {label}")
        place, known = territory(own, label), own.state().get("points")
        own.page.mouse.move(*place(*places[0]))
        own.page.mouse.down()
        for each in places[1:]:
            own.page.mouse.move(*place(*each), steps=3)
        own.page.mouse.up()
        own.page.mouse.move(1, 1)
        own.wait(f"() => new URLSearchParams(location.hash.slice(1)).get('points') !== {json.dumps(known)}")

    own.train(50)
    stroke(4, (-0.5, 0.5), (0.5, 0.5))
    first = own.state()["points"]
    assert [point[1:] for point in drawn(own)] == 13 * [(0.5, 4)] and drawn(own)[0][0] == -0.5
    expect(words).to_contain_text("your 13 points: each draw is one of them, moved a little. No point is held out")
    expect(words).to_contain_text("They are of one class: choose another one and draw.")
    assert own.step == 0 and own.control("task").is_disabled()  # afresh
    stroke(1, (-0.5, -0.5), (0.5, -0.5))
    both = own.state()["points"]
    assert both.startswith(first) and {label for *_, label in drawn(own)} == {1, 4}
    assert own.page.get_by_text("Accuracy around your points").is_visible()
    own.train(100)
    runs = plane_runs(PlaneSetting(points=both), seed=1)
    for run in runs.values():
        for _ in range(100):
            run.step()
    assert own.measured() == pytest.approx([run.evaluate(256)["loss"] for run in runs.values()], abs=0.02)
    again = visit(f"#{urlsplit(own.page.url).fragment}").ready()
    assert drawn(again) == drawn(own) and again.state()["points"] == both and "pen" not in again.state()
    assert again.control("pen").input_value() == "off"
    own.button("collapse").click()  # they stay
    own.wait("() => location.hash.includes('preset=collapse')")
    assert own.state()["points"] == both and own.control("router_start").input_value() == "random"
    for name, left in [("Clear points", None), ("Undo points", both), ("Undo points", first), ("Undo points", None)]:
        own.button(name).click()
        own.wait(f"() => new URLSearchParams(location.hash.slice(1)).get('points') === {json.dumps(left)}")
    own.button("Undo points").click()
    assert own.said == "There are no points to take back." and not own.control("task").is_disabled()
    expect(words).to_contain_text("Draw in the territory: your points are then learned instead of the task.")
    assert own.page.get_by_text("Held-out accuracy").is_visible()


def test_a_finger_draws_without_moving_the_page_and_too_many_points_are_refused(visit):
    own = visit(f"#points={495 * '0fle'}", viewport={"width": 390, "height": 844}, has_touch=True).ready()
    own.page.locator(".moe-hint button").click()  # the next one may be shorter
    own.control("pen").select_option("class 0")
    place, cdp = territory(own, 0), own.page.context.new_cdp_session(own.page)
    before = own.page.evaluate("scrollY")

    def swipe(*places) -> None:
        for kind, at in zip(["touchStart", *["touchMove"] * (len(places) - 1)], places):
            points = [dict(zip("xy", place(*at)))]
            cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        cdp.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    swipe((0, 0.5), (0, 0.4), (0, 0.3))
    expect(own.page.locator(".moe-words")).to_contain_text("your 498 points")
    assert drawn(own)[-3:] == [(0, 0.5, 0), (0, 0.4, 0), (0, 0.3, 0)]
    swipe((0, 0.5), (0, 0), (0, -0.5))
    expect(own.page.locator(".moe-said")).to_have_text("points must be at most 500, got 511. What stands is kept.")
    assert len(drawn(own)) == 498 and own.page.evaluate("scrollY") == before
    own.control("pen").select_option("off")
    swipe((0, 0), (0, 0.4), (0, 0.8))
    own.page.wait_for_timeout(300)
    assert len(drawn(own)) == 498


# --- your own text ---------------------------------------------------------------------------------------------------

FILL = """async ([text, layer, token]) => {
    const [{ panelsOf }, { graph, halves, whole }, { json, unpacked }] = await Promise.all(
        ["text", "runtime", "parts"].map((name) => import(new URL(`page/${name}.js`, location))));
    const own = await json("text.json"), session = await graph("text.read.z"), all = await unpacked("text.weights.z");
    const bytes = new TextEncoder().encode(text), ids = Int32Array.from({ ...bytes, length: own.window }), outs = [];
    for (const at of [0, all.length / 2]) {
        const weights = halves(all.slice(at, at + all.length / 2).buffer, all.length / 4);
        outs.push(await session.run({ weights, ids: whole(ids, ids.length) }));
    }
    return JSON.parse(JSON.stringify(panelsOf(own, outs, { bytes, layer, token })));
}"""
NUMBER = r"−?\d+(?:\.\d+)?"


class TextVisit(Visit):
    """A page in which one's own text is read."""

    letters = property(lambda self: self.page.locator("figure:first-child .moe-type span"))
    field = property(lambda self: self.page.get_by_label("Type a text, or begin with one of these"))

    def ready(self) -> "TextVisit":
        self.letters.first.wait_for()
        return self

    def type(self, text: str) -> None:
        self.field.fill(text)
        self.wait(
            f"() => document.querySelectorAll('figure:first-child .moe-type span').length === {len(text.encode())}"
        )

    def titles(self) -> list[str]:
        return self.page.locator("figcaption b").all_inner_texts()


def like(one, other) -> bool:
    """Whether two of a header are the same but for the rounding of numbers in their texts."""
    if isinstance(one, str) and isinstance(other, str):
        numbers = [[float(n.replace("−", "-")) for n in re.findall(NUMBER, text)] for text in (one, other)]
        return re.sub(NUMBER, "#", one) == re.sub(NUMBER, "#", other) and numbers[0] == pytest.approx(
            numbers[1], abs=0.11
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(like(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(like, one, other))
    return one == other


@pytest.mark.parametrize("text, layer, token", [("The old baker sees 12+3\n", 0, 4), ("τηε αβ: größer 😀{", 2, 7)])
def test_the_page_fills_the_panels_as_python_does(visit, text, layer, token):
    filled = visit(view="text").ready().page.evaluate(FILL, [text, layer, token])
    panels = text_panels(stored_models(), text, layer, token)
    assert len(filled["panels"]) == len(panels)
    for place, panel in enumerate(panels):
        header, arrays = encode_panel(panel, place)
        mine = filled["panels"][place] | {"height": header["height"]}  # of a text: for a figure of matplotlib
        assert [key for key in header if not like(mine[key], header[key])] == []
        for slot, array in arrays.items():
            _, shape, values = filled["arrays"][slot]
            assert tuple(shape) == array.shape, slot
            assert values == pytest.approx(array.flatten().tolist(), abs=1e-4), slot


def test_a_text_is_coloured_by_experts_and_a_click_shows_the_numbers_of_a_letter(visit):
    own, model, text = visit(view="text").ready(), stored_models()["Trained"], "def find(old):\n    return old\n"
    own.type(text)
    trace = trace_text(model, text)
    for layer in range(3):
        own.control("layer").fill(str(layer))
        own.page.get_by_text(f"Trained: first choices in layer {layer}", exact=True).wait_for()
        found = own.letters.evaluate_all("spans => spans.map(span => Number(span.dataset.expert))")
        assert found == trace[trace["layer"] == layer].sort_values("position")["expert0"].tolist(), layer
    own.letters.nth(4).click()
    own.page.locator(
        "figcaption b", has_text="The block of layer 2, trained, with the numbers of token 4, “f”"
    ).wait_for()
    assert own.state() == {"text": text, "layer": "2", "token": "4"}
    assert "Untrained: the byte after “f”" in own.titles()
    block = own.page.locator("figure").last.locator("canvas")
    block.focus()
    said = []
    for _ in range(35):
        own.page.keyboard.press("ArrowRight")
        said.append(own.page.locator(".moe-live").inner_text())
    best = trace[(trace["layer"] == 2) & (trace["position"] == 4)].iloc[0]
    assert any(f"E{best['expert0']}" in one and f"weight {best['weight0']:.2f}" in one for one in said), said


def test_it_writes_the_likeliest_letter_and_then_goes_on_by_chance(visit):
    own, model = visit("#text=The+o", view="text").ready(), stored_models()["Trained"]
    for text in ("The o", "τηε μ", "12+30"):
        own.type(text)
        own.button("Write a letter").click()
        own.wait(f"() => document.querySelector('textarea').value.length === {len(text) + 1}")
        end = model.generate(to_bytes(text)[None], 1, temperature=0)[0]
        assert own.field.input_value() == decode(end), text
    own.button("Write on").click()
    own.wait("() => document.querySelector('textarea').value.length > 12")
    own.page.evaluate("document.querySelector('main').style.paddingTop = '3000px'; scrollTo(0, 0)")
    own.page.wait_for_timeout(500)
    before = own.field.input_value()
    own.page.wait_for_timeout(800)
    assert own.field.input_value() == before
    own.page.evaluate("document.querySelector('main').style.paddingTop = 0")
    own.wait(f"() => document.querySelector('textarea').value.length > {len(before)}")
    own.button("Stop").click()
    own.button("Write on").wait_for()
    own.page.wait_for_timeout(400)
    assert own.state()["text"] == own.field.input_value()
    before = own.field.input_value()
    own.page.wait_for_timeout(500)
    assert own.field.input_value() == before


def test_strange_texts_and_addresses_do_no_harm(visit):
    evil = "<img src=x onerror=alert(1)>"
    own = visit(f"#text={evil}&layer=99", view="text").ready()
    assert own.said == "The address cannot be read: layer must be from 0 to 2, got 99."
    assert own.page.locator(".moe-page img").count() == 0 and own.field.input_value() == evil
    own.type("größe 😀\0")
    assert [i for i in range(13) if "moe-rest" in (own.letters.nth(i).get_attribute("class") or "")] == [
        3,
        5,
        9,
        10,
        11,
    ]
    assert own.said == ""
    own.field.fill("")
    own.page.locator(".moe-said", has_text="There is no text: type a letter").wait_for()
    own.button("Write a letter").click()
    own.field.fill("ab" * 50)
    own.page.locator(".moe-said", has_text=f"Your text has 100 bytes: the model reads the last {WINDOW}.").wait_for()
    own.wait("() => document.querySelectorAll('figure:first-child .moe-type span').length === 64")
    own.field.fill(long := " ".join(map(str, range(400))))
    own.page.locator(".moe-said", has_text=f"Your text has {len(long):,} bytes".replace(",", "")).wait_for()
    assert own.state()["text"] == long[-1000:] and len(long) > 1400
    assert visit(f"#text={long}", view="text").ready().field.input_value() == long[-1000:]
    own.page.evaluate("location.hash = '#text=%ff%ce&token=7&layer=1'")
    own.page.locator(".moe-said", has_text="token must be from 0 to 5, got 7. What stands is kept.").wait_for()
    own.page.evaluate("location.hash = '#text=hello&x'")
    own.page.locator(".moe-said", has_text="there is no control x. What stands is kept.").wait_for()
    own.page.evaluate("location.hash = '#text=hello&token=2&layer=1'")
    own.page.locator("figcaption b", has_text="layer 1, trained, with the numbers of token 2, “l”").wait_for()
    assert own.said == ""


def test_what_is_asked_while_a_start_is_on_its_way_is_not_lost(visit):
    def slow(page) -> None:
        page.route("**/top-k-8-1-8.step.z", lambda route: (time.sleep(1), route.continue_()))

    own = visit("", slow).ready()
    own.button("collapse").click()
    own.control("token").fill("7")
    own.wait("() => document.querySelector('.moe-reading').textContent.startsWith('Token 7 ')")
    own.wait("() => document.querySelector('#moe-task').value === 'voronoi'")
    own.train(50)
    assert own.state() == {"preset": "collapse", "token": "7"} and own.said == ""


def test_a_wall_that_starts_afresh_again_and_again_goes_on(visit):
    own = visit("", view="wall", is_calm=False).ready()
    for _ in range(25):
        own.page.wait_for_timeout(150)
        own.button("Reset").click()
    own.wait_step(3)
