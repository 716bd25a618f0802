"""What the page does by itself with the pictures of all live views: pointing, keys, words, sizes, themes."""

import contextlib
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from moe_lessons.training import REMEDIES

SOURCES = (
    "from pathlib import Path\nfrom time import sleep\n\nfrom moe_lessons.widgets import *",
    "playground = Playground(play=60)\nplayground",
    "BalancingLab(seeds=1, play=10)",
    "RoutingLab(('code', 'greek'), num_layers=2, d_model=16, num_heads=2, batch_size=4, threads=1, play=5)",
    "CollapseLab(('film', 'load', 'gradient film', 'gradient'), play=30)",
    "CostCalculator()",
    "stream = StreamView()\nstream.play()  # it stops\nstream.slider.value = 60\nstream",
    "while Path('busy').exists():\n    sleep(0.05)",
)
VIEWS = range(len(SOURCES) - 2)
LOAD, HEATMAP, TERRITORY, FILM = "Load of each", "Router probabilities", "Territory", "Load share over time"
WIDTHS = (600, 900, 1280, 1600)

NOTE_TEXTS, LOOK = (Path(__file__).with_name(f"{name}.js").read_text() for name in ("note_texts", "look"))


@pytest.fixture(scope="module")
def notebook(open_notebook):
    notebook = open_notebook("pictures.ipynb", *SOURCES)
    notebook.run_all()
    yield notebook
    assert notebook.errors == [] and notebook.cell_errors() == []


@pytest.fixture
def playground(notebook, view_of):
    notebook.page.set_viewport_size({"width": 1280, "height": 900})
    notebook.page.mouse.move(1, 1)
    playground = view_of(notebook.page)
    playground.wait_for(lambda: playground.step == 60)
    return playground


def stepped_back(view) -> list[int]:
    chips = view.view.locator(".moe-chips button.moe-back")
    return chips.evaluate_all("chips => chips.map(chip => Number(chip.dataset.expert))")


OTHERS = [0, 1, 2, 4, 5, 6, 7]


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
    (2, "Load of each layer", r"Layer \d E\d, load [\d.]+ × the even share"),
    (2, "Domains", r"code|greek E\d, share of its tokens [\d.]+ % even share 13 %"),
    (4, "Where the parameters", r"total embedding 131 M parameters .* in all 46.7 B"),
]


@pytest.mark.parametrize("place, title, says", TIPS, ids=[title for _, title, _ in TIPS])
def test_a_tip_has_words_and_units(notebook, playground, view_of, place, title, says):
    view = view_of(notebook.page, place)
    view.point(title, 0.17 if title == "jitter" else 0.3, 0.3)
    view.wait_for(lambda: re.match(says, " ".join(view.view.locator(".moe-tip").inner_text().split())))


@pytest.mark.parametrize("width", [1280, 700, 390])
def test_a_tip_names_the_remedies_near_the_pointer_and_lies_in_the_window(notebook, view_of, width):
    notebook.page.set_viewport_size({"width": width, "height": 900})
    view = view_of(notebook.page, 1)
    tip = view.view.locator(".moe-tip")
    for across, down in ((0.1, 0.08), (0.3, 0.8), (0.5, 0.5)):
        view.point("Dead experts", across, down)
        tip.wait_for()
        names = tip.locator("td:nth-child(2)").all_inner_texts()
        assert len(set(names)) == 7 and set(names[:6]) <= set(REMEDIES) and names[6] == "and 4 more"
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


def test_the_keyboard_does_the_same(notebook, playground):
    keyboard, said = notebook.page.keyboard, playground.view.locator(".moe-live")
    playground.panel(LOAD).focus()
    for expert in range(4):
        keyboard.press("ArrowRight")
        expect(said).to_have_text(re.compile(rf"^E{expert}, share of assignments [\d.]+ %$"))
    playground.wait_for(lambda: stepped_back(playground) == OTHERS)
    keyboard.press("Escape")
    playground.wait_for(lambda: stepped_back(playground) == [])
    for title, down in ((HEATMAP, "ArrowDown"), (TERRITORY, "ArrowRight")):
        playground.panel(title).focus()
        keyboard.press("Home")
        keyboard.press(down)
        keyboard.press(down)
        expect(said).to_have_text(re.compile("^Token 2, "))
        keyboard.press("Enter")
        expect(playground.canvas).to_have_attribute("data-token", "2")
        keyboard.press("Home")
        keyboard.press("Enter")
        expect(playground.canvas).to_have_attribute("data-token", "0")
        expect(playground.panel(title)).to_be_focused()  # the notebook did not take the keys


def test_a_click_selects_a_token_in_both_pictures_and_in_the_reading(playground):
    reading = playground.view.locator(".moe-reading")

    def red(title: str) -> int:
        """Where the frame or ring is: a number for its pixels."""
        return playground.panel(title).evaluate(
            """canvas => {
                const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                let sum = 0;
                for (let i = 0; i < data.length; i += 4)
                    if (data[i] === 255 && data[i + 1] === 77 && data[i + 2] === 77) sum += i;
                return sum;
            }"""
        )

    def clicked(title: str, across: float, down: float) -> list[str]:
        before = red(HEATMAP), red(TERRITORY)
        playground.point(title, across, down, click=True)
        playground.page.mouse.move(1, 1)
        playground.wait_for(lambda: red(HEATMAP) != before[0] and red(TERRITORY) != before[1])
        token = playground.canvas.get_attribute("data-token")
        expect(reading).to_have_text(re.compile(rf"^Token {token} at "))
        return re.match(r"Token (\d+) at \((\S+), (\S+)\)", reading.inner_text()).groups()

    token, x, y = clicked(HEATMAP, 0.5, 0.4)
    clicked(HEATMAP, 0.5, 0.8)
    box = playground.panel(TERRITORY).bounding_box()
    side = min(box["width"] - 37, box["height"] - 29)  # it is square
    place = 25 + (float(x) + 1) / 2 * side, 8 + (1 - float(y)) / 2 * side
    assert clicked(TERRITORY, place[0] / box["width"], place[1] / box["height"])[0] == token


def test_a_step_is_drawn_anew_for_another_batch(notebook, view_of):
    view = view_of(notebook.page, 5)
    picture = view.picture
    view.handle("Batch B").focus()
    notebook.page.keyboard.press("ArrowRight")
    view.view.get_by_text("dense wrote 4").wait_for()
    view.wait_for(lambda: view.picture != picture)


def test_without_motion_nothing_fades(playground):
    playground.page.emulate_media(reduced_motion="reduce")
    playground.point(LOAD, 0.51, 0.8)
    playground.page.evaluate("() => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)))")
    assert not any(playground.in_colour(5, TERRITORY, FILM, LOAD))
    playground.page.emulate_media(reduced_motion="no-preference")


@pytest.mark.parametrize("place", VIEWS)
def test_each_picture_is_described_in_words(notebook, view_of, place):
    view = view_of(notebook.page, place)
    assert len(view.view.locator(".moe-words").inner_text()) > 20
    for figure in view.view.locator("figure:has(canvas)").all():
        expect(figure.locator("canvas")).to_have_attribute("aria-label", re.compile("."))  # once it is drawn
        title, label = figure.locator("b").inner_text(), figure.locator("canvas").get_attribute("aria-label")
        assert label.startswith(title) and re.search(r"\d|empty", label.removeprefix(title)), label


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("place", VIEWS)
def test_crisp_at_each_width_with_letters_of_one_size(notebook, view_of, place, ratio):
    page, device = notebook.page, notebook.page.context.new_cdp_session(notebook.page)
    page.evaluate(NOTE_TEXTS)
    sizes = set()
    for width in (WIDTHS[0] + 50, *WIDTHS):
        for attempt in range(3):  # where two sizes follow each other quickly, the page may never lay out the first
            page.evaluate("window.texts = {}")
            for pixels in (width + 20, width):
                size = {"width": pixels, "height": 900, "deviceScaleFactor": ratio, "mobile": False}
                device.send("Emulation.setDeviceMetricsOverride", size)
                page.wait_for_timeout(200)
            view = view_of(page, place)
            with contextlib.suppress(*[pytest.fail.Exception] * (attempt < 2)):
                view.wait_for(lambda v=view: v.is_drawn() and v.canvas.evaluate(LOOK)[0] and page.evaluate("texts"), 10)
                break
        if width not in WIDTHS:  # the first one settles the pixel ratio
            continue
        assert view.view.evaluate("view => view.scrollWidth <= view.clientWidth")
        texts = page.evaluate("texts")
        assert [text for text, (_, is_in) in texts.items() if not is_in] == []
        assert {size for size, _ in texts.values()} <= {11, 14}  # 14: the numbers of the territories
        sizes.add(tuple(view.canvas.evaluate(LOOK)[1]))
    assert len(sizes) == 1
    device.detach()


def test_tab_and_enter_come_from_play_to_the_pictures_whose_first_arrow_says_something(playground):
    keyboard = playground.page.keyboard
    playground.button("Play").focus()
    for key in ("Tab", "Enter", "ArrowRight"):
        keyboard.press(key)
    expect(playground.panel(TERRITORY)).to_be_focused()
    expect(playground.view.locator(".moe-tip")).to_have_text(re.compile(r"^Token \d+E\d"))
    keyboard.press("Escape")
    playground.button("Play").focus()
    stops = 0
    while playground.page.evaluate("document.activeElement.textContent.trim()") != "healthy":
        keyboard.press("Tab")
        stops += 1
    assert stops == 5 and playground.view.locator(".widget-readout:not([tabindex='-1'])").count() == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_on_a_phone_a_picture_comes_before_the_controls(notebook, view_of, place):
    notebook.page.set_viewport_size({"width": 390, "height": 900})
    view = view_of(notebook.page, place)
    picture, controls = view.view.locator("canvas").first, view.view.locator(".moe-controls")
    assert picture.bounding_box()["y"] < controls.bounding_box()["y"]
    assert view.view.evaluate("view => view.scrollWidth <= view.clientWidth")


@pytest.mark.parametrize("width", [700, 900])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_controls_stand_beside_the_pictures_of_a_narrow_page(notebook, view_of, place, width):
    notebook.page.set_viewport_size({"width": width, "height": 900})
    view = view_of(notebook.page, place)
    controls = view.view.locator(".moe-controls")
    box, picture = controls.bounding_box(), view.view.locator("canvas").first.bounding_box()
    assert box["x"] + box["width"] <= picture["x"] and picture["width"] > 200
    assert min(box["y"] + box["height"], picture["y"] + picture["height"]) - max(box["y"], picture["y"]) > 100
    for picture in (view.view.locator("canvas").first, view.view.locator("canvas").last):
        picture.scroll_into_view_if_needed()
        expect(controls).to_be_in_viewport(ratio=0.8)
        expect(picture).to_be_in_viewport(ratio=0.8)


def test_the_theme_is_followed_while_the_kernel_is_busy(lab, notebook, playground):
    def papers() -> set[tuple[int, ...]]:
        script = "all => all.map(c => c.getContext('2d').getImageData(c.width - 1, 0, 1, 1).data.slice(0, 3).join())"
        return set(playground.view.locator("canvas").evaluate_all(script))

    page, busy = notebook.page, Path(lab.root / "notebooks" / "busy")
    assert papers() == {"255,255,255"}
    busy.touch()
    notebook.run_cell(len(SOURCES) - 1, wait=False)
    playground.is_drawn()
    try:
        for theme, paper in (("Dark", "17,17,17"), ("Light", "255,255,255")):
            page.locator(".lm-MenuBar-item", has_text="Settings").click()
            page.locator(".lm-Menu-item", has_text=re.compile("^Theme$")).hover()
            page.locator(".lm-Menu-item", has_text=re.compile(f"^JupyterLab {theme}$")).click()
            playground.wait_for(lambda paper=paper: papers() == {paper})
        assert page.locator(".jp-InputPrompt", has_text="[*]").count() == 1
    finally:
        busy.unlink()
