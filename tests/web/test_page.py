"""The page trains in a Chromium: as the notebook does, as its controls say, and without any other host."""

import re
import time
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from playwright.sync_api import expect

from moe_lessons.analysis import trace_text
from moe_lessons.analysis.roofline import machine_for, machines, published_sizes
from moe_lessons.analysis.speedup import speedups
from moe_lessons.plots.marks import CLASSES
from moe_lessons.tasks import decode
from moe_lessons.tasks import encode as to_bytes
from moe_lessons.tasks.plane import read_points
from moe_lessons.training import PRESETS, plane_runs
from moe_lessons.widgets import SpeedupMap
from web import training_page
from web.text_model import EXAMPLES, stored_models

BARE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The {0}</title><style>:root {{ color-scheme: light dark }}</style>
<main><h1>The {0}</h1><div data-moe="{0}" {1}><p>A picture</p></div></main>
<script type="module" src="page/page.js"></script></html>"""
COST = "Array.from(document.querySelectorAll('.moe-page tbody tr'), row => row.innerText.split('\\t'))"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


@pytest.fixture(scope="module")
def address(tmp_path_factory, runtime, serve) -> str:
    """Documents of few lines, and the page with the graphs of 'healthy', 'collapse' and one wall."""
    folder = tmp_path_factory.mktemp("page")
    training_page.main(str(folder / "page"), "few")
    for name, view in {"index": ("playground", "data-guide"), "wall": ("wall", ""), "text": ("text", "")}.items():
        Path(folder, f"{name}.html").write_text(BARE.format(*view), encoding="utf-8")
    return serve(folder)


class Visit:
    """A page of a browser in which a view is open, or says why not."""

    def __init__(self, browser, address: str, before=lambda page: None, is_calm=True, **options):
        self.page, self.asked, self.errors = browser.new_page(**options), [], []
        self.page.set_default_timeout(60_000)
        self.page.emulate_media(reduced_motion="reduce" if is_calm else "no-preference")  # calm: it waits for Play
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.canvas, self.said = self.page.locator(".moe-canvas").first, self.page.locator(".moe-said")
        self.letters = self.page.locator("figure:first-child span[data-byte]")
        before(self.page)
        self.page.goto(address)

    def ready(self) -> "Visit":
        """All of it is shown."""
        self.page.locator(".moe-canvas[data-step]").first.wait_for()
        if (more := self.button("More")).is_visible():
            more.click()
        self.page.locator(".moe-page tbody tr").first.wait_for()
        return self

    step = property(lambda self: int(self.canvas.get_attribute("data-step")))
    state = property(lambda self: dict(parse_qsl(urlsplit(self.page.url).fragment)))

    def button(self, name: str):
        return self.page.get_by_role("button", name=name, exact=True)

    def control(self, name: str):
        return self.page.locator(f"#moe-{name}")

    def go(self, state: str) -> None:
        self.page.evaluate("state => location.hash = state", f"#{state}")

    def wait_step(self, least: int) -> None:
        self.page.wait_for_function(f"() => Number(document.querySelector('.moe-canvas').dataset.step) >= {least}")

    def train(self, steps: int) -> None:
        """Fifty steps at a time, by its button."""
        for end in range(self.step + 50, self.step + steps + 1, 50):
            self.button("+50").click()
            self.wait_step(end)

    def measured(self) -> list[float]:
        """The loss of each model, as the page shows it: a held-out one, where there is such."""
        rows = {name.removeprefix("held-out "): values for name, *values in self.page.evaluate(COST)}
        return [float(value) for value in rows["loss"]]


@pytest.fixture
def visit(browser, address):
    """visit(state, …): the page with the playground, or with the view of a name, opened; it ends with the test, without
    an error and without a request to another host."""
    made = []

    def open_page(state="", *, view="index", **options) -> Visit:
        made.append(Visit(browser, f"{address}/{view}.html#{state}", **options))
        return made[-1]

    yield open_page
    for each in made:
        each.page.close()
        local = ("http://127.0.0.1:", "data:", "blob:")
        assert [url for url in each.asked if not url.startswith(local)] == [] and each.errors == []


def test_it_trains_by_itself_and_pauses_out_of_sight_and_by_its_buttons(visit):
    own = visit(is_calm=False).ready()
    own.wait_step(50)
    own.page.evaluate("document.querySelector('main').style.paddingTop = '3000px'; scrollTo(0, 0)")
    own.page.wait_for_timeout(1000)
    before = own.step
    own.page.wait_for_timeout(1000)
    assert own.step == before
    own.page.evaluate("document.querySelector('main').style.paddingTop = 0")
    own.wait_step(before + 5)
    own.button("Pause").click()
    own.button("Play").wait_for()
    at = own.step
    own.button("Step").click()
    own.wait_step(at + 1)
    move = partial(own.control("seed").fill, "3")
    for ask in (own.button("Restart").click, move, own.button("top-1 collapse").click):  # each new start trains
        at = own.step
        ask()
        own.page.wait_for_function(f"() => Number(document.querySelector('.moe-canvas').dataset.step) < {at}")
        own.wait_step(30)
        own.button("Pause").click()
        own.button("Play").wait_for()


def test_it_learns_as_the_notebook_does_and_a_slider_acts_on_the_next_step(visit):
    """The same starts and other batches."""
    own, runs = visit("preset=collapse&seed=1").ready(), plane_runs(PRESETS["collapse"], seed=1)
    assert own.measured() == pytest.approx([run.evaluate(2048)["loss"] for run in runs.values()], rel=0.1)
    own.train(200)
    for run in runs.values():
        for _ in range(200):
            run.step()
    learned = own.measured()
    assert learned == pytest.approx([run.evaluate(2048)["loss"] for run in runs.values()], rel=0.5)
    own.control("lr").focus()
    own.page.keyboard.press("End")  # the largest rate
    assert own.state == {"preset": "collapse", "seed": "1", "lr": "0.5"}
    expect(own.said).to_have_text("In force from the next step: press Play.")
    own.train(50)
    expect(own.said).to_have_text("")
    assert own.measured()[0] > 2 * learned[0]


def test_it_trains_at_one_rate_until_full_speed_is_asked_for_and_offers_only_what_the_site_has(visit):
    own = visit("").ready()
    own.button("Play").click()
    own.wait_step(10)
    own.button("Pause").click()
    own.button("Play").click()
    own.button("Pause").wait_for()
    at, start = own.step, time.monotonic()
    own.page.wait_for_timeout(1000)
    assert 0 < own.step - at <= 110 * (time.monotonic() - start) + 10
    own.button("Full speed").click()
    expect(own.button("Full speed")).to_have_attribute("aria-pressed", "true")
    offered = own.control("router").locator("option")
    assert [option.is_disabled() for option in offered.all()] == [False, *[True] * (offered.count() - 1)]


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
        setTimeout(() => fail(new Error('no picture of step 10')), 60_000);
    });
    worker.postMessage({ kind: 'start', values, name: settings.graph(values) });
    const losses = await found;
    worker.terminate();
    return losses;
}"""


@pytest.mark.parametrize(
    "state", ["preset=noise&seed=1", "task=blobs&seed=1", "task=uneven&jitter_noise=0.1", "points=0fle3xy70gd01te2"]
)
def test_a_button_copies_a_program_whose_first_losses_are_those_of_the_page(visit, state):
    own = visit(state).ready()
    own.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    own.button("Copy as PyTorch").evaluate("button => button.click()")  # wherever it stands
    expect(own.said).to_contain_text("Copied: ")
    program, names = own.page.evaluate("navigator.clipboard.readText()"), {}
    exec(compile(program.replace("500, 256", "10, 256"), "moe_plane.py", "exec"), names)
    means = np.cumsum(names["losses"]) / np.arange(1, 11)  # the page shows the mean of the last ten
    assert own.page.evaluate(LOSSES, state) == pytest.approx(list(means), abs=1e-4)


def test_a_link_opens_its_state_and_a_broken_one_is_said_and_keeps_what_stands(visit):
    own = visit("preset=collapse&task=waves&router_start=random&noise_std=0.55&seed=1&token=7").ready()
    assert own.control("task").input_value() == "waves" and own.control("router_start").input_value() == "random"
    assert own.page.locator("output[for=moe-noise_std]").inner_text() == "0.55"
    assert own.page.locator(".moe-reading").first.inner_text().startswith("Token 7 at (")
    own.button("top-1 collapse").click()
    expect(own.control("task")).to_have_value("voronoi")
    kept = {"preset": "collapse", "seed": "1", "token": "7"}
    assert own.state == kept
    for broken in ("aux=1", "preset=helthy", "top_k=9", "lr=0", "num_experts=16", "capacity_factor=2", "points=0fle3x"):
        own.go(broken)
        expect(own.said).to_contain_text(re.compile(rf"{broken.split('=')[0]}|Experts E 16"))
        assert own.state == kept and own.control("task").input_value() == "voronoi"
    own.wait_step(own.step + 5)
    other = visit("jitter_noise=1.5").ready()
    assert "jitter_noise" in other.said.inner_text() and other.state == {"preset": "healthy"}


@pytest.mark.parametrize(
    "view, name", [("index", "top-k-8-2-3.step.z"), ("wall", "facts-dense-32.step.z"), ("text", "text.weights.z")]
)
def test_what_does_not_arrive_is_said(visit, view, name):
    lost = visit(view=view, before=lambda page: page.route(f"**/{name}", lambda route: route.abort()))
    expect(lost.said).to_contain_text(f"{name} did not arrive")


def test_offline_it_goes_on_and_what_is_asked_while_a_start_is_on_its_way_is_not_lost(visit):
    own = visit().ready()
    own.page.context.set_offline(True)
    own.button("top-1 collapse").click()
    expect(own.said).to_contain_text("offline")
    own.page.context.set_offline(False)
    own.train(50)
    assert own.control("task").input_value() == "checker" and own.state == {"preset": "healthy"}
    own.page.route("**/top-k-8-1-8.step.z", lambda route: (time.sleep(1), route.continue_()))
    own.button("top-1 collapse").click()
    own.control("token").fill("7")
    assert own.step == 50  # it waits
    own.wait_step(60)
    assert own.state == {"preset": "collapse", "token": "7"} and own.said.inner_text() == ""


def test_where_nothing_can_train_the_picture_stays_and_the_reason_is_said(visit):
    old = visit(before=lambda page: page.add_init_script("delete globalThis.WebAssembly"))
    expect(old.said).to_contain_text("it has no WebAssembly.")
    assert old.page.locator("[data-moe] p").inner_text() == "A picture"


@pytest.mark.parametrize("view, state", [("index", "lr=1e15"), ("wall", "lr=1e15")])
def test_where_it_diverges_it_says_so_and_goes_on_with_a_lower_rate(visit, view, state):
    own = visit(state, view=view).ready()
    trouble = own.page.locator(".moe-trouble").first
    own.button("Play").click()
    expect(trouble).to_contain_text("lower the learning rate")
    own.button("Play").wait_for()
    own.control("lr").focus()
    own.page.keyboard.press("Home")
    at = own.step
    own.button("Step").click()
    own.wait_step(at + 1)
    assert trouble.inner_text() == "" and own.measured()[0] < 100


@pytest.fixture
def touched(visit):
    """The playground on a phone, and swipe(element, start, across, up): a finger on it, from a part of its size."""
    own = visit(view="index", is_mobile=True, **PHONE)
    own.page.locator(".moe-canvas[data-step]").first.wait_for()
    touch = own.page.context.new_cdp_session(own.page)

    def swipe(element, start: tuple[float, float], across=0, up=0) -> None:
        box = element.bounding_box()
        x, y = box["x"] + box["width"] * start[0], box["y"] + box["height"] * start[1]
        for part in range(11):
            at = [{"x": x + across * part / 10, "y": y + up * part / 10}]
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove" if part else "touchStart", "touchPoints": at})
            own.page.wait_for_timeout(20)
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        own.page.wait_for_timeout(300)

    return own, swipe


def test_a_finger_that_scrolls_moves_no_slider(touched):
    own, swipe = touched
    own.button("Sliders").click()
    for across, up, value in ((0, -120, 0.0), (-60, 0, 0.9), (0, 0, 2.2)):
        swipe(own.control("noise_std"), (0.7, 0.5), across, up)
        assert float(own.state.get("noise_std", 0)) == pytest.approx(value, abs=0.3)


def test_a_finger_that_scrolls_selects_no_token_and_one_that_taps_does_without_a_tip(touched):
    own, swipe = touched
    figures, top = own.page.locator(".moe-page-view figure"), "scrollY"
    territory = figures.first.locator("canvas")
    for start in ((0.3, 0.3), (0.5, 0.6), (0.6, 0.4)):
        before = own.page.evaluate(top)
        swipe(territory, start, up=-60)
        assert own.page.evaluate(top) > before and "token" not in own.state
        own.page.evaluate("scrollTo(0, 0)")
    swipe(territory, (0.3, 0.3))
    expect(own.canvas).to_have_attribute("data-token", own.state["token"])
    expect(own.page.locator(".moe-page-view .moe-tip")).to_be_hidden()
    own.page.wait_for_timeout(500)
    assert own.page.evaluate(top) == 0  # nearly all of the block is in sight
    count = figures.count()
    own.button("More").click()
    figures.nth(count).wait_for()  # below: nothing moves
    assert own.page.evaluate(top) == 0 and not own.control("pen").is_visible()
    own.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    own.button("Less").click()
    expect(figures).to_have_count(count)
    assert own.page.evaluate(top) == 0


@pytest.mark.parametrize("view", ["index", "text"])
def test_everyone_can_use_it_at_any_width(visit, violations, view):
    own = visit(view=view, **PHONE)
    own.ready() if view == "index" else own.letters.first.wait_for()
    for width, theme in ((390, "dark"), (1280, "light")):
        own.page.set_viewport_size({"width": width, "height": 900})
        own.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        own.page.wait_for_timeout(500)
        assert own.page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(own.page) == [], (width, theme)


def test_the_wall_of_facts_trains_three_models_until_lamps_are_lit_and_starts_afresh(visit):
    own = visit("seed=1", view="wall", is_calm=False).ready()
    known = "() => Number(/memorised (\\d+) of 400/.exec(document.querySelector('.moe-words').textContent)[1]) >= 5"
    own.page.wait_for_function(known)
    own.button("Pause").click()
    own.button("Play").wait_for()
    assert max(own.measured()) < 2.3  # guessing a digit: ln(10)
    own.page.locator("figure canvas").first.click()
    tip = own.page.locator(".moe-tip").inner_text()
    assert re.match(r"[A-Z]{4}:\d{4}\n", tip) and len(re.findall(r"\d{4} (right|wrong)", tip)) == 3, tip
    own.control("num_entries").press("ArrowRight")
    expect(own.page.locator(".moe-starting")).to_be_visible()
    own.page.get_by_text("MoE: 0/800").wait_for()  # afresh, and it trains on
    expect(own.page.locator(".moe-starting")).to_have_count(0)
    assert "of 800 entries" in own.page.locator(".moe-words").inner_text()  # at once, not with the next words
    for _ in range(8):
        own.page.wait_for_timeout(150)
        own.button("Restart").click()
    own.wait_step(3)
    assert len(own.page.workers) <= 8  # three models, and who leads them
    assert own.state == {"num_entries": "800", "seed": "1"}


def test_one_line_shows_a_state_in_another_document(visit, serve, tmp_path):
    own = visit("preset=collapse&seed=1").ready()
    own.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    place = "button => [button.offsetLeft, button.offsetWidth]"
    before = own.button("Embed").evaluate(place)
    for name in ("Copy link", "Embed"):
        own.button(name).click()
        own.button("Copied").first.wait_for()
        last = own.page.locator("button:text-is('Embed'), button:text-is('Copied')").last
        assert last.evaluate(place) == before  # whatever the buttons say
    line = own.page.evaluate("navigator.clipboard.readText()")
    Path(tmp_path, "index.html").write_text(f"<!doctype html><title>Of a teacher</title>{line}", encoding="utf-8")
    own.page.goto(f"{serve(tmp_path)}/index.html")
    frame = own.page.frame_locator("iframe")
    frame.locator(".moe-canvas[data-step]").wait_for()
    for name in ("More", "+50"):
        frame.get_by_role("button", name=name, exact=True).click()
    frame.locator(".moe-canvas[data-step='50']").wait_for()
    assert frame.locator("#moe-seed").input_value() == "1" and frame.locator("#moe-task").input_value() == "voronoi"


def test_a_real_mixture_with_as_many_experts_is_compared_with_dense_models_at_once(visit):
    own, about = visit().ready(), ".moe-faster p"
    roof = machine_for(machines().loc["NVIDIA H200 SXM"], "fp8")
    for state, top_k in (("", 2), ("preset=collapse", 1)):
        own.go(state)
        sizes = published_sizes()["Mixtral 8x7B"].with_experts(8, top_k)
        (times,) = speedups(sizes, roof, "fp8", np.ones(1)).at(np.array([8 / top_k]))[0]
        between = float(f"{(8 / top_k) ** 0.5:.2g}")  # as good as such an MoE
        view = SpeedupMap("Mixtral 8x7B", machine="NVIDIA H200 SXM", weights="fp8", top_k=top_k)
        said = f"A large MoE over dense, {between:g}×: {view.edge_words(between)}. An MoE is mostly as good as a dense "
        said += f"model between 1× and {8 // top_k}×. Over {8 // top_k}×, which stores as much, it is {times:.2g} times"
        expect(own.page.locator(about)).to_contain_text(said)
        expect(own.page.locator(f"{about} a")).to_have_attribute("href", re.compile(f"top_k={top_k}&"))


def test_the_models_before_their_first_step_stand_where_they_train_which_follows_the_pointer(visit):
    waiting, opened = [], []
    take = lambda route: route.continue_() if opened else waiting.append(route)  # noqa: E731
    own = visit(before=lambda page: page.route("**/*.step.z", take))
    status, figures = own.page.locator(".moe-page-view .moe-status"), own.page.locator(".moe-page-view figure")
    expect(status).to_have_text("step 0 · loading")
    places = figures.evaluate_all("all => all.map(({offsetTop, offsetLeft}) => [offsetTop, offsetLeft])")
    own.button("Collapse").click()  # what is pressed before it is there counts
    hint = own.page.get_by_role("note")
    expect(hint).to_contain_text("watch the row of experts")  # hints of what came before are gone
    opened.append(True)
    for route in waiting:
        route.continue_()
    own.wait_step(200)
    assert figures.evaluate_all("all => all.map(({offsetTop, offsetLeft}) => [offsetTop, offsetLeft])") == places
    assert own.page.get_by_text("A picture").count() == 0 and own.state["router_aux_loss_coef"] == "0"
    expect(status.locator("b")).to_have_text(re.compile("^[1-4] of 8 experts (is|are) dead$"))
    expect(status.locator("b")).to_have_attribute("title", re.compile("under 1 % of the tokens"))
    expect(hint).to_contain_text(re.compile("E\\d (is|are) dead: .* press “Rescue”"))  # not before
    expect(own.button("Collapse")).to_have_attribute("aria-pressed", "true")
    own.control("router_aux_loss_coef").press("ArrowRight")
    expect(own.button("Collapse")).to_have_attribute("aria-pressed", "false")
    own.button("Pause").click()
    dead = own.page.locator(".moe-chips .moe-gone")
    expect(dead).to_have_count(int(status.locator("b").inner_text()[0]))
    assert "is dead" in dead.first.get_attribute("title")
    box, chosen = own.page.locator("canvas").first.bounding_box(), set()
    for part in (0.25, 0.5, 0.75):  # wherever it points, the nearest token
        own.page.mouse.move(box["x"] + part * box["width"], box["y"] + part * box["height"])
        own.page.wait_for_timeout(300)
        expect(own.canvas).to_have_attribute("data-token", own.state["token"])
        chosen.add(own.state["token"])
    assert len(chosen) == 3


# --- points that are drawn by hand -----------------------------------------------------------------------------------


def on_the_plane(own: Visit, label: int):
    """Choose a class to draw with; give where in the window a point of the plane lies."""
    own.control("pen").select_option(f"class {CLASSES[label]}")
    canvas = own.page.locator(f".moe-canvas canvas[data-pen='{label}']")
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    side = min(box["width"] - 37, box["height"] - 29)  # it is square
    return lambda x, y: (box["x"] + 25 + (x + 1) / 2 * side, box["y"] + 8 + (1 - y) / 2 * side)


def drawn(own: Visit) -> list[tuple[float, float, int]]:
    points, classes = read_points(own.state.get("points", ""))
    return [(round(x, 1), round(y, 1), label) for (x, y), label in zip(points.tolist(), classes.tolist())]


def test_points_that_are_drawn_are_learned_are_in_the_link_and_can_be_taken_back(visit):
    own, lines = visit("token=3&seed=1").ready(), []
    for label, y in ((4, 0.5), (1, -0.5)):
        own.train(100)
        at = own.step
        place = on_the_plane(own, label)
        own.page.mouse.move(*place(-0.5, y))
        own.page.mouse.down()
        own.page.mouse.move(*place(0.5, y), steps=5)
        own.page.mouse.up()
        own.page.mouse.move(1, 1)
        own.page.wait_for_function(f"() => Number(document.querySelector('.moe-canvas').dataset.step) < {at}")
        own.button("Pause").click()
        own.button("Play").wait_for()
        expect(own.page).to_have_url(re.compile("points=" + "".join(lines) + "."))
        lines.append(own.state["points"][len("".join(lines)) :])
    assert {point[1:] for point in drawn(own)} == {(0.5, 4), (-0.5, 1)} and own.control("task").is_disabled()
    own.train(100)
    assert own.measured()[0] < 0.4  # guessing: ln(8)
    again = visit(urlsplit(own.page.url).fragment).ready()
    assert drawn(again) == drawn(own) and again.control("pen").input_value() == "off"
    own.button("top-1 collapse").click()  # they stay
    expect(own.page).to_have_url(re.compile("preset=collapse.*points="))
    both = own.state["points"]
    for name, left in (("Clear points", None), ("Undo points", both), ("Undo points", lines[0]), ("Undo points", None)):
        own.button(name).click()
        own.page.wait_for_function("p => new URLSearchParams(location.hash.slice(1)).get('points') === p", arg=left)
    assert not own.control("task").is_disabled()


# --- your own text ---------------------------------------------------------------------------------------------------


def type_text(own: Visit, text: str) -> None:
    own.page.locator("textarea").fill(text)
    expect(own.letters).to_have_count(len(text.encode()))


def test_a_text_is_coloured_by_experts_and_a_click_shows_the_numbers_of_a_letter(visit):
    own, model, text = visit(view="text"), stored_models()["Trained"], "def find(größe):\n    return old\n"
    type_text(own, text)
    trace = trace_text(model, text)
    for layer in range(3):
        own.control("layer").fill(str(layer))
        own.page.get_by_text(f"Trained: first choices in layer {layer}", exact=True).wait_for()
        found = own.letters.evaluate_all("spans => spans.map(span => Number(span.dataset.expert))")
        assert found == trace[trace["layer"] == layer].sort_values("position")["expert0"].tolist(), layer
    own.letters.nth(4).click()
    own.page.locator("figcaption b", has_text="“f” through the block of layer 2").wait_for()
    assert own.state == {"text": text, "layer": "2", "token": "4"}
    for place, shown in ((0, "d"), (5, "i")):  # the pointer alone selects nothing
        own.letters.nth(place).hover()
        own.page.locator("figcaption b", has_text=f"“{shown}” through the block of layer 2").wait_for()
        assert own.state["token"] == "4" and "moe-picked" in own.letters.nth(4).get_attribute("class")
    own.page.locator("textarea").hover()
    own.page.locator("figcaption b", has_text="“f” through the block of layer 2").wait_for()
    own.page.locator("figure").nth(2).locator("canvas").focus()
    said = []
    for _ in range(8):
        own.page.keyboard.press("ArrowRight")
        said.append(own.page.locator(".moe-live").inner_text())
    best = trace[(trace["layer"] == 2) & (trace["position"] == 4)].iloc[0]
    assert any(f"E{best['expert0']}" in one and f"weight {best['weight0']:.2f}" in one for one in said), said


def test_it_begins_within_a_word_breaks_none_and_says_which_letter_has_most_first_choices(visit):
    own, text = visit(view="text", **PHONE), EXAMPLES["English"]
    own.letters.first.wait_for()
    assert own.state["token"] == str(text.index("behind") + 3)
    counts = []
    for model in stored_models().values():  # trained and untrained
        trace = trace_text(model, text)
        firsts = trace[trace["byte"] > 32].groupby(["layer", "byte"])["expert0"]
        many = firsts.size() > 1
        counts.append((many & (firsts.nunique() == 1)).groupby("layer").sum())
    assert counts[0][0] > max(counts[0][1:])
    first, *later = (f"{one} (untrained: {other})" for one, other in zip(*counts))
    said = f"In layer 0, {first} of {many[0].sum()} repeated characters have the same first expert each time; "
    said += "; ".join(f"in layer {layer}, {count}" for layer, count in enumerate(later, 1))
    expect(own.page.locator(".moe-words")).to_have_text(f"{said}.")
    lines = "words => words.map(word => new Set([...word.children].map(letter => letter.offsetTop)).size)"
    assert set(own.page.locator(".moe-word").evaluate_all(lines)) == {1}
    block = own.page.locator("figure", has_text="through the block").locator("canvas").bounding_box()
    assert block["y"] + block["height"] < PHONE["viewport"]["height"]  # what a letter does is seen with it
    assert all(box["width"] <= 390 for box in (c.bounding_box() for c in own.page.locator("figure canvas").all()))


def test_it_writes_the_likeliest_letter_and_then_goes_on_by_chance(visit):
    own, model, field = visit("text=The+o", view="text"), stored_models()["Trained"], "textarea"
    for text in ("The o", "τηε μ"):
        type_text(own, text)
        expect(own.said).to_have_text("It has never seen τ η ε …: its training text is ASCII." * (not text.isascii()))
        own.button("Write a letter").click()
        end = model.generate(to_bytes(text)[None], 1, temperature=0)[0]
        expect(own.page.locator(field)).to_have_value(decode(end))
    own.button("Write on").click()
    own.page.wait_for_function("() => document.querySelector('textarea').value.length > 12")
    own.button("Stop").click()
    own.button("Write on").wait_for()
    own.page.wait_for_timeout(400)
    before = own.page.locator(field).input_value()
    own.page.wait_for_timeout(500)
    assert own.page.locator(field).input_value() == own.state["text"] == before
    own.button("English").click()
    room = own.page.locator("figure").first.bounding_box()["y"]
    own.button("Write on").click()
    own.page.wait_for_function("() => document.querySelector('textarea').value.length > 66")
    expect(own.said).to_contain_text("reads the last 64")
    assert "never seen" not in own.said.inner_text()
    assert own.page.locator("figure").first.bounding_box()["y"] == room
    own.button("code").click()  # another text stops it, too
    own.button("Write on").wait_for()
    own.page.wait_for_timeout(500)
    assert own.page.locator(field).input_value() == EXAMPLES["code"]


def test_strange_texts_and_addresses_do_no_harm(visit):
    evil = "<img src=x onerror=alert(1)>"
    own = visit(f"text={evil}&layer=99", view="text")
    expect(own.said).to_contain_text("layer must be from 0 to 2, got 99")
    assert own.page.locator(".moe-page img").count() == 0 and own.page.locator("textarea").input_value() == evil
    own.page.locator("textarea").fill("")
    expect(own.said).to_contain_text("There is no text")
    own.page.locator("textarea").fill("ab" * 50)
    expect(own.said).to_contain_text("100 bytes")
    expect(own.letters).to_have_count(64)
    own.go("text=%ff%ce&token=7&layer=1")
    expect(own.said).to_contain_text("token must be")
    own.go("text=hello&token=2&layer=1")
    own.page.locator("figcaption b", has_text="“l” through the block of layer 1").wait_for()
    assert own.said.inner_text() == ""
