"""The canvas in a Chromium without JupyterLab: views in this process, whose pictures a page draws and points at."""

import base64
import functools
import json
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import expect

from moe_lessons.hub import ConfigCalculator
from moe_lessons.nn import MoE, seeded
from moe_lessons.plots.marks import Bars, Panel
from moe_lessons.plots.panels.block import COLUMNS, HEIGHT, LOGITS, ORDER, RIGHT, STRIP, WIDTH, as_digits
from moe_lessons.tasks import PlaneClassifier, PlaneTask
from moe_lessons.tasks.plane import read_points
from moe_lessons.training import BALANCING_METHODS, Run
from moe_lessons.widgets import (
    BalancingLab,
    CollapseLab,
    FactsLab,
    LiveRun,
    Picture,
    Playground,
    RoutingLab,
    SpeedupMap,
)
from moe_lessons.widgets import canvas as code

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
LOAD, HEATMAP, TERRITORY, FILM = "Load of each", "Router probabilities", "Territory", "Load share over time"
OTHERS = [0, 1, 2, 4, 5, 6, 7]
NOTE_TEXTS = Path(__file__).with_name("note_texts.js").read_text()
IS_CRISP = """root => [...root.querySelectorAll('canvas')].every((canvas) => {
    const { width, height } = canvas.getBoundingClientRect();
    const [across, down] = [width * devicePixelRatio, height * devicePixelRatio];
    return Math.abs(canvas.width - across) < 1 && Math.abs(canvas.height - down) < 1;
})"""


class Seen:
    """Views, each drawn in the page in its turn."""

    def __init__(self, page, view_of, *views):
        self.page, self.views, self.sent = page, views, []
        for place, view in enumerate(views):
            view.canvas.send = lambda content, buffers, at=place: self.sent.append((at, content, buffers[0]))
            page.evaluate("openView()")
        self.turn()
        self.drawn = [view_of(page, place) for place in range(len(views))]

    def turn(self) -> list:
        """Have the canvases hear what the page says, and the page take what they send; return what was said."""
        said = self.page.evaluate("said.splice(0)")
        for place, message in said:
            self.views[place].canvas._handle_custom_msg(message, [])
        for place, content, data in self.sent:
            self.page.evaluate("take", [place, json.dumps(content), base64.b64encode(data).decode()])
        self.sent.clear()
        return said

    def until(self, condition) -> None:
        self.drawn[0].wait_for(lambda: (self.turn(), condition())[1], 10)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canvas")
    shutil.copytree(code.HERE / "canvas", folder / "canvas")
    shutil.copy(code.HERE / "canvas.css", folder)
    (folder / "index.html").write_text(PAGE, "utf-8")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *words: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


@pytest.fixture(scope="module")
def see(browser, address, view_of):
    """see(*views): a `Seen`, whose page must not complain."""
    errors = []

    def see(*views):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_function("'take' in window")
        return Seen(page, view_of, *views)

    yield see
    assert errors == []


@pytest.fixture(scope="module")
def seen(see):
    text = {"num_layers": 2, "d_model": 16, "num_heads": 2, "batch_size": 4}
    labs = [Playground(router_start="spread"), BalancingLab(seeds=1), RoutingLab(("code", "greek"), **text)]
    labs[0].show_more()
    labs += [CollapseLab(), FactsLab(num_entries=250)]
    for lab, steps in zip(labs, (60, 10, 5, 30, 2)):
        lab.advance(steps)
    return see(*labs, ConfigCalculator(), SpeedupMap())


@pytest.fixture
def playground(seen):
    seen.page.set_viewport_size({"width": 1280, "height": 900})
    seen.page.mouse.move(1, 1)
    return seen.drawn[0]


def stepped_back(view) -> list[int]:
    chips = view.view.locator(".moe-chips button.moe-back")
    return chips.evaluate_all("chips => chips.map(chip => Number(chip.dataset.expert))")


def test_pointing_at_an_expert_lights_it_up_everywhere(playground):
    three, five = (playground.in_colour(expert, TERRITORY, FILM, LOAD) for expert in (3, 5))
    tip = playground.view.locator(".moe-tip")
    playground.point(LOAD, 0.51, 0.8)
    playground.wait_for(lambda: stepped_back(playground) == OTHERS)
    assert re.fullmatch(r"E3\s+share of assignments\s+[\d.]+ %", tip.inner_text())
    playground.wait_for(lambda: not any(playground.in_colour(5, TERRITORY, FILM, LOAD)))  # they fade
    strong = playground.in_colour(3, TERRITORY, FILM, LOAD)
    assert min(five) > 100 and all(now > 0.8 * before > 80 for now, before in zip(strong, three))
    playground.page.mouse.move(1, 1)
    tip.wait_for(state="hidden")
    playground.wait_for(lambda: playground.in_colour(5, TERRITORY, FILM, LOAD) == five)


TIPS = [
    (0, HEATMAP, r"Token \d+ E\d, router probability [\d.]+ %"),
    (1, "jitter", r"step \d+ E\d, share of assignments [\d.]+ %"),
    (2, "Load of each layer", r"Layer \d E\d, load [\d.]+ × the uniform load"),
    (2, "Domains", r"code|greek E\d, share of its tokens [\d.]+ % uniform load 13 %"),
    (5, "Where the parameters", r"total embedding 131 M parameters .* in all 46.7 B"),
    (6, "Speedup of the MoE", r"batch size [\d,]+, dense, [\d.]+ ×: speedup [\d.]+ MoE [\d.]+ ms: .* memory-bound: "),
]


@pytest.mark.parametrize("place, title, says", TIPS, ids=[title for _, title, _ in TIPS])
def test_a_tip_has_words_and_units(seen, place, title, says):
    view = seen.drawn[place]
    view.point(title, 0.17 if title == "jitter" else 0.3, 0.3)
    view.wait_for(lambda: re.match(says, " ".join(view.view.locator(".moe-tip").inner_text().split())))


@pytest.mark.parametrize("width", [1280, 390])
def test_a_tip_names_the_methods_near_the_pointer_and_lies_in_the_window(seen, width):
    seen.page.set_viewport_size({"width": width, "height": 900})
    view = seen.drawn[1]
    tip = view.view.locator(".moe-tip")
    for across, down in ((0.1, 0.08), (0.3, 0.8), (0.5, 0.5)):
        view.point("Dead experts", across, down)
        tip.wait_for()
        names = tip.locator("td:nth-child(2)").all_inner_texts()
        assert len(set(names)) == 7 and set(names[:6]) <= set(BALANCING_METHODS) and names[6] == "and 4 more"
        box = tip.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= width and box["height"] < 200
        assert 80 < box["y"] and box["y"] + box["height"] < 900


def test_a_click_on_a_chip_keeps_its_expert_until_escape(playground):
    playground.chip(3).click()
    playground.page.mouse.move(1, 1)
    playground.page.keyboard.press("Tab")
    expect(playground.chip(3)).to_have_attribute("aria-pressed", "true")
    playground.wait_for(lambda: stepped_back(playground) == OTHERS)
    playground.page.keyboard.press("Escape")
    expect(playground.chip(3)).to_have_attribute("aria-pressed", "false")
    playground.wait_for(lambda: stepped_back(playground) == [])


def test_the_keyboard_does_the_same(seen, playground):
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
        for token, keys in ((2, ("Home", down, down, "Enter")), (0, ("Home", "Enter"))):
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
        playground.page.mouse.move(1, 1)
        reading = playground.view.locator(".moe-reading").inner_text()
        assert min(playground.pixels(name, [255, 77, 77]) for name in (HEATMAP, TERRITORY)) > 50
        token, x, y = re.match(r"Token (\d+) at \((\S+), (\S+)\)", reading).groups()
        assert token == playground.canvas.get_attribute("data-token")
        return token, x, y

    token, x, y = clicked(HEATMAP, 0.5, 0.4)
    clicked(HEATMAP, 0.5, 0.8)
    box = playground.panel(TERRITORY).bounding_box()
    side = min(box["width"] - 37, box["height"] - 29)  # it is square
    place = 25 + (float(x) + 1) / 2 * side, 8 + (1 - float(y)) / 2 * side
    assert clicked(TERRITORY, place[0] / box["width"], place[1] / box["height"])[0] == token


def test_points_are_drawn_by_pointer_and_by_key(see):
    lab = Playground(panels=("territory", "loss"), seed=1)
    seen = see(lab)
    page, territory = seen.page, seen.drawn[0].panel(TERRITORY)
    box = territory.bounding_box()
    side = min(box["width"] - 37, box["height"] - 29)  # it is square
    place = lambda x, y: (box["x"] + 25 + (x + 1) / 2 * side, box["y"] + 8 + (1 - y) / 2 * side)  # noqa: E731

    def drawn(act) -> list[tuple[float, float, int]]:
        """What is drawn by an act, rounded."""
        known = len(lab.setting.points)
        act()
        seen.until(lambda: len(lab.setting.points) != known)
        points, classes = read_points(lab.setting.points[known:])
        return [(round(x, 1), round(y, 1), label) for (x, y), label in zip(points.tolist(), classes.tolist())]

    def choose(number: str | None) -> None:
        lab.set(pen=f"class {number}" if number else "off")
        seen.turn()
        page.wait_for_function("([canvas, pen]) => canvas.dataset.pen == pen", arg=[territory.element_handle(), number])

    def stroke(*places) -> None:
        page.mouse.move(*place(*places[0]))
        page.mouse.down()
        for each in places[1:]:
            page.mouse.move(*place(*each), steps=3)
        page.mouse.up()

    stroke((-0.5, 0), (0.5, 0))  # nothing is to be drawn yet
    seen.turn()
    choose("3")
    assert lab.setting.points == ""
    line = drawn(lambda: stroke((-0.5, 0), (0.5, 0)))
    assert [point[1:] for point in line] == 13 * [(0, 3)] and line[0][0] == -0.5 and line[-1][0] in (0.4, 0.5)
    assert [x for x, *_ in line] == sorted(x for x, *_ in line)
    choose("6")
    assert drawn(lambda: page.mouse.click(*place(0.5, -0.8))) == [(0.5, -0.8, 6)]
    far = drawn(lambda: stroke((0.5, 0.8), (0.9, 0.8), (3, 0.8)))  # what is outside is none of it
    assert max(x for x, *_ in far) == 1 and 6 <= len(far) <= 8
    territory.focus()
    for key in ("Home", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    expect(seen.drawn[0].view.locator(".moe-live")).to_have_text(re.compile("Press, or Enter a point of class 6$"))
    (point,) = drawn(lambda: page.keyboard.press("Enter"))
    assert point == (-0.8, 0.8, 6) or point == (-0.9, 0.9, 6)
    lab.advance(60)
    assert lab.main_run.evaluate()["accuracy"] > 0.9 and lab.runs["MoE"].task.points == lab.setting.points
    choose(None)
    before = lab.setting.points
    stroke((-0.5, 0.5), (0.5, 0.5))
    seen.turn()
    assert lab.setting.points == before


def test_a_click_or_keys_on_the_map_read_out_a_place(seen):
    view, drawn = seen.views[6], seen.drawn[6]
    table = drawn.view.locator("table").last
    drawn.point("Speedup of the MoE", 0.97, 0.9, click=True)
    seen.until(lambda: view.width > 3.5 and view.batch < 4)
    expect(drawn.view.locator(".moe-words")).to_contain_text(f"at batch size {view.batch}")
    expect(table).to_contain_text("memory")
    drawn.panel("Speedup of the MoE").focus()
    for key in ("Home", "ArrowDown", "ArrowRight", "Enter"):
        seen.page.keyboard.press(key)
    seen.until(lambda: (view.width, view.batch) == (1.25, 2048))
    expect(table).to_contain_text("compute")
    assert drawn.pixels("Speedup of the MoE", [255, 77, 77]) > 20  # the ring


def test_each_picture_is_described_in_words(seen):
    for view in seen.drawn:
        assert len(view.view.locator(".moe-words").inner_text()) > 20 and view.is_drawn()
        for figure in view.view.locator("figure:has(canvas)").all():
            expect(figure.locator("canvas")).to_have_attribute("aria-label", re.compile("."))  # once it is drawn
            title, label = figure.locator("b").inner_text(), figure.locator("canvas").get_attribute("aria-label")
            assert label.startswith(title) and re.search(r"\d|empty", label.removeprefix(title)), label


def test_a_dead_expert_is_named_itself_in_the_words_of_the_film_and_by_the_keys(see):
    lab = Playground("collapse", panels=("film",))
    lab.advance(300)
    assert lab.main_run.records[-1].dead_experts > 1
    seen = see(lab)
    film = seen.drawn[0].panel(FILM)
    expect(film).to_have_attribute("aria-label", re.compile("E0"))
    names = re.findall(r"E(\d), share", film.get_attribute("aria-label"))
    assert sorted(names) == [str(e) for e in range(8)]
    film.focus()
    walked = []
    for key in ("Home", *["ArrowDown"] * 7):
        seen.page.keyboard.press(key)
        walked.append(re.search(r"E(\d), share", seen.drawn[0].view.locator("[aria-live]").inner_text())[1])
    assert walked == [*"76543210"]


@pytest.mark.parametrize("ratio", [1, 2])
def test_crisp_at_each_width_with_letters_of_one_size(seen, ratio):
    page, device = seen.page, seen.page.context.new_cdp_session(seen.page)
    page.evaluate(NOTE_TEXTS)
    for width in (600, 900, 1600):
        size = {"width": width, "height": 900, "deviceScaleFactor": ratio, "mobile": False}
        device.send("Emulation.setDeviceMetricsOverride", size)
        for view in seen.drawn:
            page.evaluate("window.texts = {}")
            view.is_drawn()
            page.evaluate("document.body.classList.toggle('moe-dressed')")  # all is drawn anew
            page.wait_for_timeout(400)
            view.wait_for(lambda v=view: v.canvas.evaluate(IS_CRISP))
            assert view.view.evaluate("view => view.scrollWidth <= view.clientWidth")
            texts = page.evaluate("texts")
            assert [text for text, (_, is_in) in texts.items() if not is_in] == []
            assert {size for size, _ in texts.values()} <= {11, 14}  # 14: the numbers of the territories
    device.detach()


@pytest.mark.parametrize(
    "nonsense",
    [
        {"panels": {0: {"marks": [None]}, "constructor": {"marks": [{"mark": "constructor"}]}}},
        {"panels": {0: {"title": "?", "marks": [{"mark": "Bars", "y": {"slot": "nowhere"}}], "x": None}}},
        {"slots": [None, ["0.0.y", "c16", [3], 0], ["0.0.y", "f4", None, 0]], "colors": {}},
        {"words": {"experts": 1e308, "tips": None, "until": "soon", "state": 5, "step": {}}},
        {"colors": 5, "slots": 5, "panels": 5, "words": 5},
    ],
)
def test_nonsense_in_a_message_does_not_stop_later_ones(see, nonsense):
    seen = see(Picture(Panel("Load", [Bars([0.25, 0.75])])))
    (canvas,), (drawn,) = [view.canvas for view in seen.views], seen.drawn
    seen.turn()
    before = drawn.picture
    canvas.frame += 1
    canvas.send({"frame": canvas.frame, "answer": True} | nonsense, [bytes(8)])
    seen.until(lambda: canvas.answered == canvas.frame)
    canvas._handle_custom_msg({"hello": True}, [])
    seen.until(lambda: drawn.picture == before)
    seen.page.close()


# --- the block ---


@pytest.fixture(scope="module")
def block(see):
    with seeded(0):
        model = PlaneClassifier(MoE(16, 8, num_experts=8, top_k=2), num_classes=8)
    view = LiveRun(Run(model, PlaneTask("checker"), lr=0.02), ("territory", "block"), columns=2)
    view.advance(40)
    return see(view)


def block_is_of(block, token: int) -> bool:
    """Whether the page shows this token, and of the block the router logits that the model has for it."""
    (view,), (drawn,) = block.views, block.drawn
    block.turn()
    if f"The block, with the numbers of token {token}" not in drawn.view.locator("figure b").all_inner_texts():
        return False
    found = []
    for expert in range(8):
        x = COLUMNS + (expert + 0.5) * (RIGHT - COLUMNS) / 8
        drawn.point("The block", x / WIDTH, (LOGITS + 8) / (HEIGHT + 8))
        found.append(drawn.view.locator(".moe-tip").inner_text().split())
    logits = [as_digits(x) for x in view.plane.routing.router_logits[token].tolist()]
    return found == [[f"E{expert}", "router", "logit", text] for expert, text in enumerate(logits)]


def test_a_click_or_keys_on_another_token_show_its_numbers_in_the_block(block):
    (drawn,) = block.drawn
    assert block_is_of(block, 0)
    drawn.point("The block", (STRIP + 7.5 * (RIGHT - STRIP) / 16) / WIDTH, (ORDER + 8) / (HEIGHT + 8), click=True)
    drawn.wait_for(lambda: block_is_of(block, 7), 10)
    for title, keys, token in (("The block", "Home ArrowRight ArrowRight", 2), ("Territory", "ArrowRight End", 31)):
        drawn.panel(title).focus()
        for key in (*keys.split(), "Enter"):
            block.page.keyboard.press(key)
        drawn.wait_for(lambda token=token: block_is_of(block, token), 10)
