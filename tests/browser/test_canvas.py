"""The canvas in a Chromium without JupyterLab: views in this process, whose pictures a page draws and points at."""

import base64
import json
import re
import shutil

import pytest
from playwright.sync_api import expect

from moe_lessons.hub import ConfigCalculator
from moe_lessons.plots.marks import CLASSES
from moe_lessons.tasks.plane import read_points
from moe_lessons.widgets import BalancingLab, Playground, RoutingLab, SpeedupMap
from moe_lessons.widgets import canvas as code
from web.serve import serving

PAGE = """<!doctype html><link rel="stylesheet" href="canvas.css"><body style="background: #fff; color: #000">
<script type="module">
import canvas from "./canvas/index.js";
window.hear = [];
window.said = [];
window.openView = () => {
  const [view, el, place] = [document.createElement("div"), document.createElement("div"), hear.length];
  view.className = "moe-view";
  view.append(el);
  document.body.append(view);
  const send = (message) => said.push([place, message]);
  canvas.render({ el, model: { on: (_, action) => hear.push(action), off() {}, get() {}, set() {}, send } });
};
window.take = ([place, content, data]) => {
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
  hear[place](JSON.parse(content), [new DataView(bytes.buffer)]);
};
</script>"""
LOAD, HEATMAP, TERRITORY, MAP = "Load of each", "Router probabilities", "Territory", "Speedup of the MoE"
OTHERS = [0, 1, 2, 4, 5, 6, 7]


class Seen:
    """Views, each drawn in the page in its turn."""

    def __init__(self, page, view_of, *views):
        self.page, self.views, self.sent = page, views, []
        for place, view in enumerate(views):
            view.canvas.send = lambda content, buffers, at=place: self.sent.append((at, content, buffers[0]))
            page.evaluate("openView()")
        self.turn()
        self.drawn = [view_of(page, place) for place in range(len(views))]

    def turn(self) -> None:
        """Have the canvases hear what the page says, and the page take what they send."""
        for place, message in self.page.evaluate("said.splice(0)"):
            self.views[place].canvas._handle_custom_msg(message, [])
        for place, content, data in self.sent:
            self.page.evaluate("take", [place, json.dumps(content), base64.b64encode(data).decode()])
        self.sent.clear()

    def until(self, condition) -> None:
        self.drawn[0].wait_for(lambda: (self.turn(), condition())[1])


@pytest.fixture(scope="module")
def see(browser, tmp_path_factory, view_of):
    """see(*views): a `Seen`, whose page must not complain."""
    folder, errors = tmp_path_factory.mktemp("canvas"), []
    shutil.copytree(code.HERE / "canvas", folder / "canvas")
    shutil.copy(code.HERE / "canvas.css", folder)
    (folder / "index.html").write_text(PAGE, "utf-8")

    with serving(folder, 0) as address:

        def see(*views):
            page = browser.new_page(viewport={"width": 1280, "height": 900}, has_touch=True)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"{address}/index.html")
            page.wait_for_function("'take' in window")
            return Seen(page, view_of, *views)

        yield see
    assert errors == []


@pytest.fixture(scope="module")
def seen(see):
    text = {"num_layers": 2, "d_model": 16, "num_heads": 2, "batch_size": 4}
    labs = [Playground(router_start="spread"), BalancingLab(seeds=1), RoutingLab(("code", "greek"), **text)]
    labs[0].show_more()
    for lab, steps in zip(labs, (60, 10, 5)):
        lab.advance(steps)
    return see(*labs, SpeedupMap(), ConfigCalculator())


@pytest.fixture
def playground(seen):
    seen.page.mouse.move(1, 1)
    return seen.drawn[0]


def stepped_back(view) -> list[int]:
    chips = view.view.locator(".moe-chips button.moe-back")
    return chips.evaluate_all("chips => chips.map(chip => Number(chip.dataset.expert))")


def test_pointing_at_an_expert_lights_it_up_everywhere_and_a_click_keeps_it_until_escape(playground):
    before = playground.pixels
    tip = playground.view.locator(".moe-tip")
    playground.point(LOAD, 0.51, 0.8)
    playground.wait_for(lambda: stepped_back(playground) == OTHERS)
    assert re.fullmatch(r"E3\s+share of assignments\s+[\d.]+ %", tip.inner_text())
    playground.wait_for(lambda: sum(map(str.__ne__, before, playground.pixels)) >= 3)  # the others fade there, too
    playground.page.mouse.move(1, 1)
    tip.wait_for(state="hidden")
    playground.wait_for(lambda: stepped_back(playground) == [])
    playground.chip(3).click()
    playground.page.mouse.move(1, 1)
    playground.page.keyboard.press("Tab")
    expect(playground.chip(3)).to_have_attribute("aria-pressed", "true")
    playground.wait_for(lambda: stepped_back(playground) == OTHERS)
    playground.page.keyboard.press("Escape")
    expect(playground.chip(3)).to_have_attribute("aria-pressed", "false")
    playground.wait_for(lambda: stepped_back(playground) == [])


def test_a_tap_points_until_the_next_one(playground):
    load, tip = playground.panel(LOAD), playground.view.locator(".moe-tip")
    box = load.bounding_box()
    for across, expert in ((0.51, 3), (0.27, 1)):
        load.tap(position={"x": across * box["width"], "y": 0.8 * box["height"]})
        playground.wait_for(lambda e=expert: stepped_back(playground) == [other for other in range(8) if other != e])
        playground.page.wait_for_timeout(300)
        assert tip.is_visible() and tip.inner_text().startswith(f"E{expert}")
    playground.view.locator(".moe-words").tap()
    tip.wait_for(state="hidden")
    playground.wait_for(lambda: stepped_back(playground) == [])


TIPS = [
    (0, HEATMAP, r"Token \d+ E\d, router probability [\d.]+ %"),
    (1, "jitter", r"step \d+ E\d, share of assignments [\d.]+ %"),
    (2, "Load of each layer", r"Layer \d E\d, load [\d.]+ × "),
    (2, "Domains", r"code|greek E\d, share of its tokens [\d.]+ %"),
    (3, MAP, r"Batch size [\d,]+, dense, [\d.]+×: speedup [\d.]+"),
    (4, "Where the parameters", r"total embedding 131 M parameters .* in all 46.7 B"),
]


def test_a_tip_has_numbers_and_units_and_each_picture_is_described_in_words(seen):
    for place, title, says in TIPS:
        view = seen.drawn[place]
        view.point(title, 0.17 if title == "jitter" else 0.3, 0.3)
        view.wait_for(lambda v=view, s=says: re.match(s, " ".join(v.view.locator(".moe-tip").inner_text().split())))
    for view in seen.drawn:
        assert view.is_drawn() and len(view.view.locator(".moe-words").inner_text()) > 20
        for figure in view.view.locator("figure:has(canvas)").all():
            title = re.escape(figure.locator("b").inner_text())
            expect(figure.locator("canvas")).to_have_attribute("aria-label", re.compile(rf"^{title}.*(\d|empty)"))


def test_the_keyboard_does_the_same_as_the_pointer(seen, playground):
    keyboard, said = seen.page.keyboard, playground.view.locator(".moe-live")
    playground.panel(LOAD).focus()
    for expert in range(4):
        keyboard.press("ArrowRight")
        expect(said).to_have_text(re.compile(rf"^E{expert}, share of assignments [\d.]+ %$"))
    playground.wait_for(lambda: stepped_back(playground) == OTHERS)
    keyboard.press("Escape")
    playground.wait_for(lambda: stepped_back(playground) == [])
    for title, down in ((HEATMAP, "ArrowDown"), (TERRITORY, "ArrowRight")):
        playground.panel(title).focus()
        for token, keys in ((2, ("Home", down, down, "Enter")), (0, ("Home", "ArrowUp", "Space"))):
            for key in keys:
                keyboard.press(key)
            expect(said).to_have_text(re.compile(f"^Token {token}, "))
            seen.until(lambda token=token: playground.canvas.get_attribute("data-token") == str(token))
        expect(playground.panel(title)).to_be_focused()


def test_a_click_selects_a_token_in_both_pictures_and_in_the_reading(seen, playground):
    def clicked(title: str, across: float, down: float) -> tuple[str, ...]:
        before = playground.canvas.get_attribute("data-token")
        playground.point(title, across, down, click=True)
        seen.until(lambda: playground.canvas.get_attribute("data-token") != before)
        reading = playground.view.locator(".moe-reading").inner_text().replace("−", "-")
        return re.match(r"Token (\d+) at \((\S+), (\S+)\)", reading).groups()

    token, x, y = clicked(HEATMAP, 0.5, 0.4)
    clicked(HEATMAP, 0.5, 0.8)
    box = playground.panel(TERRITORY).bounding_box()
    across, down = on_the_plane(box)(float(x), float(y))
    place = (across - box["x"]) / box["width"], (down - box["y"]) / box["height"]
    assert clicked(TERRITORY, *place)[0] == token == playground.canvas.get_attribute("data-token")


def on_the_plane(box):
    """Where in the window a point of the plane lies, of a territory that has this box."""
    side = min(box["width"] - 37, box["height"] - 29)  # it is square
    return lambda x, y: (box["x"] + 25 + (x + 1) / 2 * side, box["y"] + 8 + (1 - y) / 2 * side)


def test_points_are_drawn_by_pointer_and_by_key_and_learned(see):
    lab = Playground(panels=("territory", "loss"), seed=1)
    seen = see(lab)
    page, territory = seen.page, seen.drawn[0].panel(TERRITORY)
    place = on_the_plane(territory.bounding_box())

    def drawn(act) -> list[tuple[float, float, int]]:
        """What is drawn by an act, rounded."""
        known = len(lab.setting.points)
        act()
        seen.until(lambda: len(lab.setting.points) != known)
        points, classes = read_points(lab.setting.points[known:])
        return [(round(x, 1), round(y, 1), label) for (x, y), label in zip(points.tolist(), classes.tolist())]

    def choose(number: str) -> None:
        lab.set(pen=f"class {CLASSES[int(number)]}")
        seen.turn()
        page.wait_for_function("([canvas, pen]) => canvas.dataset.pen == pen", arg=[territory.element_handle(), number])

    def stroke(start, end) -> None:
        page.mouse.move(*place(*start))
        page.mouse.down()
        page.mouse.move(*place(*end), steps=3)
        page.mouse.up()

    stroke((-0.5, 0), (0.5, 0))  # nothing is to be drawn yet
    seen.turn()
    choose("3")
    assert lab.setting.points == ""
    line = drawn(lambda: stroke((-0.5, 0), (0.5, 0)))
    assert len(line) > 9 and {point[1:] for point in line} == {(0, 3)} and line == sorted(line)
    choose("6")
    assert drawn(lambda: page.mouse.click(*place(0.5, -0.8))) == [(0.5, -0.8, 6)]
    territory.focus()
    for key in ("Home", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert [label for *_, label in drawn(lambda: page.keyboard.press("Enter"))] == [6]
    lab.advance(60)
    assert lab.main_run.evaluate()["accuracy"] > 0.9 and lab.runs["MoE"].task.points == lab.setting.points


def test_a_click_or_keys_on_the_map_read_out_a_place(seen):
    view, drawn = seen.views[3], seen.drawn[3]
    table = drawn.view.locator(".moe-table")
    drawn.point(MAP, 0.97, 0.9, click=True)
    seen.until(lambda: view.width > 3.5 and view.batch < 4)
    expect(table).to_contain_text("memory")
    drawn.panel(MAP).focus()
    for key in ("Home", "ArrowDown", "ArrowRight", "Enter"):
        seen.page.keyboard.press(key)
    seen.until(lambda: (view.width, view.batch) == (1.25, 2048))
    expect(table).to_contain_text("compute")


def test_the_time_left_is_said_of_this_start_and_only_when_it_is_known(see):
    seen = see(Playground())
    page, status = seen.page, seen.page.locator(".moe-status")

    def take(frame: int, **words):
        page.evaluate("take", [0, json.dumps({"frame": frame, "words": {"until": 1500, "verdict": "", **words}}), ""])

    take(10**6, step=1, state="training")
    expect(status).to_have_text("step 1 · training")
    page.wait_for_timeout(1100)
    take(10**6 + 1, step=101, state="training")
    expect(status).to_have_text(re.compile(r"^step 101\s· training, [1-9]\d s left$"))
    take(10**6 + 2, step=6, state="training")  # it has started afresh
    expect(status).to_have_text(re.compile(r"step 6\s· training$"))
    take(10**6 + 3, step=1550, state="paused")
    expect(status).to_have_text(re.compile(r"step 1550\s· ended$"))
