"""A recording is played in a Chromium: where nothing can train, by hand and by itself, and it says what it is."""

import gzip
import shutil

import pytest

from web.lesson_views import RECORDINGS
from web.training_page import CANVAS, MODULES

NAME, LAST = "08-BalancingLab", 100  # steps


@pytest.fixture(scope="module")
def address(tmp_path_factory, serve):
    """The page's own files without what trains, and recordings of which some are damaged."""
    folder = tmp_path_factory.mktemp("recordings")
    for path in MODULES.iterdir():
        shutil.copy(path, folder)
    shutil.copytree(CANVAS, folder / "canvas")
    shutil.copy(CANVAS.parent / "canvas.css", folder)
    shutil.copytree(RECORDINGS, folder / "recordings")
    whole = (RECORDINGS / f"{NAME}.z").read_bytes()
    (folder / "recordings" / "cut.z").write_bytes(whole[:-2000])
    (folder / "recordings" / "short.z").write_bytes(gzip.compress(gzip.decompress(whole)[:-2000]))
    (folder / "recordings" / "other.z").write_bytes(gzip.compress(b"[1, 2]\n"))
    view = f'<div data-moe="recording" data-state="{NAME}"></div><script type="module" src="page.js"></script>'
    (folder / "lesson.html").write_text(f'<body style="padding-top: 1500px">{view}')
    return f"{serve(folder)}/view.html?view=recording"


@pytest.fixture
def opened(browser, address):
    """opened(name, **options): a page with this recording, in a browser that has no WebAssembly."""
    pages, errors = [], []

    def visit(name: str, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.add_init_script("delete globalThis.WebAssembly; delete globalThis.Worker")
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}#{name}")
        page.locator(".moe-canvas[data-step], .moe-said:not(:empty)").first.wait_for()
        return page

    yield visit
    for page in pages:
        page.close()
    assert errors == []


def step_of(page) -> int:
    page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    return int(page.locator(".moe-canvas").get_attribute("data-step"))


def test_where_nothing_moves_it_stands_at_its_last_picture_says_what_it_is_and_can_be_pointed_at(opened, violations):
    page = opened(NAME, reduced_motion="reduce")
    page.wait_for_timeout(400)
    assert step_of(page) == LAST and page.get_by_role("button", name="Play", exact=True).is_visible()
    assert page.locator(".moe-about").inner_text().startswith("A recording of a real run")
    assert violations(page) == []
    page.locator(".moe-chips button").nth(2).hover()
    page.wait_for_function("() => document.querySelectorAll('.moe-chips .moe-back').length === 7")
    page.locator("figure", has=page.locator("b", has_text="auxiliary loss")).locator("canvas").last.hover()
    assert "step" in page.locator(".moe-tip").inner_text()


def test_it_is_drawn_before_it_is_seen_and_plays_by_itself_once_it_is(opened):
    page = opened(NAME, viewport={"width": 1000, "height": 600})
    page.goto(f"{page.url.partition('view.html')[0]}lesson.html")
    page.locator(".moe-canvas[data-step] canvas").first.wait_for()
    for top in (0, 1000):  # its first lines come up
        page.evaluate(f"scrollTo(0, {top})")
        page.wait_for_timeout(300)
        assert step_of(page) == LAST
    plays = "(least) => Number(document.querySelector('.moe-canvas').dataset.step) === least"
    page.evaluate("scrollTo(0, 1500)")
    page.wait_for_function(plays, arg=3)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(100)
    stopped = step_of(page)
    page.wait_for_timeout(300)
    assert 3 <= step_of(page) == stopped < LAST
    page.evaluate("scrollTo(0, 1500)")
    page.wait_for_function(plays, arg=stopped + 3)
    page.get_by_role("slider", name="Step").press("End")
    page.wait_for_timeout(300)
    assert step_of(page) == LAST


def test_one_can_go_through_it_by_hand_and_play_it(opened):
    page = opened(NAME, viewport={"width": 390, "height": 900}, reduced_motion="reduce")
    bar = page.get_by_role("slider", name="Step")
    bar.press("Home")
    assert step_of(page) == 0
    words = page.locator(".moe-words").inner_text()
    page.keyboard.press("ArrowRight")
    assert step_of(page) == 1 and bar.get_attribute("aria-valuetext") == "1"
    box = bar.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert 1 < step_of(page) < LAST and page.locator(".moe-words").inner_text() != words
    page.keyboard.press("End")
    assert step_of(page) == LAST
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("() => Number(document.querySelector('.moe-canvas').dataset.step) === 3")
    page.get_by_role("button", name="Pause", exact=True).click()
    stopped = step_of(page)
    page.wait_for_timeout(400)
    assert 3 <= step_of(page) == stopped < LAST
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_another_recording_is_opened_by_its_address_and_a_single_picture_has_no_bar(opened):
    page = opened(NAME)
    page.evaluate("location.hash = '#02-Picture'")
    page.locator(".moe-about", has_text="Drawn from a real modelPicture of 'The block").wait_for()
    page.locator(".moe-canvas canvas").first.wait_for()
    assert page.locator(".moe-page-bar").count() == 0


def test_what_cannot_be_played_gets_one_sentence(opened):
    said = {name: opened(name).locator(".moe-said").inner_text() for name in ("gone", "cut", "short", "other", "../x")}
    assert "recordings/gone.z did not arrive (404)" in said["gone"] and "got ../x" in said["../x"]
    assert all(f"recordings/{name}.z is damaged." in said[name] for name in ("cut", "short", "other"))
