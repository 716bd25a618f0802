"""Predictions, quiz and course page as a learner uses them: by mouse and by key, over restarts and in two tabs."""

import json
import re

import pytest

NAME = "asked.ipynb"
CELLS = (
    "from moe_lessons.course import CoursePage, CurvePrediction, NumberPrediction, Prediction, Quiz",
    'left = Prediction("How many experts are left?", ("all", "some", "one"), key="07.left")\nleft',
    'size = NumberPrediction("How large is it?", "GB", 1, 1000, key="03.size")\nsize',
    'curve = CurvePrediction("How does the loss fall with the number of experts?", ("expert count", 1, 64), '
    '("loss, nats", 0, 4), key="05.curve", log_x=True)\ncurve',
    'print(repr(left.compare("some")), repr(size.compare(93.4)), '
    "repr(curve.compare([1, 2, 4, 8, 16, 32, 64], [3, 2.6, 2.3, 2.1, 2, 1.9, 1.8])))",
    'Quiz("07")',
    "CoursePage()",
)


@pytest.fixture(scope="module")
def book(lab, open_notebook):
    lab.write(NAME, *CELLS)
    book = open_notebook(NAME)
    book.run_all()
    yield book
    assert book.errors == []


@pytest.fixture
def cell(book):

    def output(place: int, page=None):
        found = (page or book.page).locator(".jp-CodeCell").nth(place)
        found.evaluate("cell => cell.scrollIntoView({ block: 'center' })")
        return found.locator(".jp-Cell-outputArea")

    return output


def kept(lab, section: str, key: str) -> dict:
    path = lab.home / "progress.json"
    return json.loads(path.read_text()).get(section, {}).get(key, {}) if path.exists() else {}


def wait_kept(book, lab, section: str, key: str, is_so) -> None:
    for _ in range(200):
        if is_so(entry := kept(lab, section, key)):
            return
        book.page.wait_for_timeout(50)
    pytest.fail(f"{section} {key} is {entry}")


def test_an_option_by_mouse_and_by_key(book, cell, lab):
    options = cell(1).get_by_role("group", name="How many experts are left?").get_by_role("radio")
    assert options.count() == 3
    cell(1).get_by_text("all").click()
    wait_kept(book, lab, "predictions", "07.left", lambda entry: entry.get("answer") == "all")
    book.page.keyboard.press("ArrowDown")
    wait_kept(book, lab, "predictions", "07.left", lambda entry: entry.get("answer") == "some")
    assert options.nth(1).is_checked()


def test_a_number_is_given_and_one_that_is_none_is_refused_kindly(book, cell, lab):
    field = cell(2).get_by_role("textbox", name="Your number, from 1 to 1,000 GB")
    for text in ("0", "a lot", "1001", ""):
        field.fill(text + " ")
        field.press("Enter")
        cell(2).get_by_text("A number from 1 to 1,000, please").wait_for()
        assert field.get_attribute("aria-invalid") == "true"
    assert kept(lab, "predictions", "03.size") == {}
    field.fill("20")
    field.press("Enter")
    cell(2).get_by_text("Your prediction: 20 GB").wait_for()
    wait_kept(book, lab, "predictions", "03.size", lambda entry: entry.get("answer") == 20)


def test_a_curve_is_drawn_by_hand(book, cell, lab):
    cell(3).get_by_text("Nothing is drawn yet.").wait_for()
    measured = cell(3).locator("svg > .moe-measured")
    assert not measured.get_attribute("d")  # though the comparison has run
    draw(book, cell(3).get_by_role("slider"), [(0.2, 0.2), (0.5, 0.5), (0.9, 0.6)])
    wait_kept(book, lab, "predictions", "05.curve", lambda entry: len(entry.get("answer", ())) > 20)
    points = kept(lab, "predictions", "05.curve")["answer"]
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    assert all(1 < x < 64 and 0 < y < 4 for x, y in points)
    cell(3).locator("svg > .moe-measured[d*=L]").wait_for(state="attached")
    assert measured.get_attribute("d").count("L") == 6


def draw(book, picture, places) -> None:
    box, mouse = picture.bounding_box(), book.page.mouse
    for i, (across, down) in enumerate(places):
        mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=10)
        if i == 0:
            mouse.down()
    mouse.up()


def test_a_curve_is_changed_by_a_finger(book, cell, lab):
    box, page = cell(3).get_by_role("slider").bounding_box(), book.page
    touch = page.context.new_cdp_session(page)
    for kind, across in (("touchStart", 0.6), ("touchMove", 0.7), ("touchMove", 0.8), ("touchEnd", None)):
        points = [{"x": box["x"] + across * box["width"], "y": box["y"] + 0.2 * box["height"]}] if across else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    wait_kept(book, lab, "predictions", "05.curve", lambda entry: sum(y > 3 for _, y in entry["answer"]) > 8)


def test_a_curve_is_changed_by_key_and_all_are_compared(book, cell, lab):
    picture = cell(3).get_by_role("slider")
    picture.focus()
    before = kept(lab, "predictions", "05.curve")["answer"]
    for key in ("Home", "ArrowUp", "ArrowUp", "ArrowRight", "ArrowDown"):
        book.page.keyboard.press(key)
    assert re.match(r"expert count 1\.11: loss, nats [\d.]+$", picture.get_attribute("aria-valuetext"))
    wait_kept(book, lab, "predictions", "05.curve", lambda entry: len(entry["answer"]) > len(before) + 1)
    first, second, *others = kept(lab, "predictions", "05.curve")["answer"]
    assert first[0] == 1 and first[1] > second[1] and others == before
    said = book.run_cell(4)
    assert "As you predicted: some." in said and "4.7 times as much" in said and "Your curve is" in said


def test_a_quiz_by_mouse_and_by_key(book, cell, lab):
    groups = cell(5).get_by_role("group")
    assert groups.count() == 4 and cell(5).get_by_text("Nothing answered yet.").is_visible()
    first = groups.first
    for place in range(first.get_by_role("radio").count()):
        first.get_by_role("radio").nth(place).check()
        assert first.get_by_role("status").first.inner_text().startswith(("✔ Right. ", "✘ Not so. "))
    second = groups.nth(1)
    second.get_by_role("radio").first.focus()
    book.page.keyboard.press("Space")
    text = second.get_by_role("status").first.inner_text()
    book.page.keyboard.press("ArrowDown")
    assert second.get_by_role("radio").nth(1).is_checked() and second.get_by_role("status").first.inner_text() != text
    cell(5).get_by_text(re.compile("2 of 4 answered")).wait_for()
    wait_kept(book, lab, "quiz", "07.story", lambda entry: entry)


def test_two_tabs_on_one_notebook(book, cell, lab):
    book.menu("File", "docmanager:save")
    other = type(book)(book.page.context.new_page())
    other.open(lab, NAME)
    again = cell(1, other.page).get_by_role("radio")
    again.nth(2).check()
    wait_kept(book, lab, "predictions", "07.left", lambda entry: entry.get("answer") == "one")
    cell(1).locator("input:checked + span", has_text="one").wait_for()  # in the first tab, too
    other.run_cell(5)  # its own view of the quiz, with what was answered in the first
    cell(5, other.page).get_by_text(re.compile("2 of 4 answered")).wait_for()
    cell(5, other.page).get_by_role("group").nth(2).get_by_role("radio").first.check()
    cell(1).get_by_role("radio").nth(1).check()
    wait_kept(book, lab, "quiz", "07.initialisation", lambda entry: entry)
    wait_kept(book, lab, "predictions", "07.left", lambda entry: entry.get("answer") == "some")
    assert len(json.loads((lab.home / "progress.json").read_text())["quiz"]) == 3
    assert other.errors == []
    other.page.close()


def test_after_a_restart_all_is_still_there(book, cell):
    book.restart()
    book.run_all()
    assert cell(1).get_by_role("radio").nth(1).is_checked()
    assert cell(2).get_by_role("textbox").input_value() == "20"
    assert cell(3).locator("svg > .moe-drawn").get_attribute("d").count("L") > 20
    assert cell(3).locator("svg > .moe-measured").get_attribute("d").count("L") == 6
    cell(5).get_by_text(re.compile("3 of 4 answered")).wait_for()


def test_the_course_page_shows_it_exports_it_forgets_it_and_opens_a_lesson(book, cell, lab):
    row = cell(6).get_by_role("row").filter(has_text="07 · Expert collapse")
    row.filter(has_text=re.compile("3 of 4, . right at first")).wait_for()
    cell(6).get_by_role("button", name="Export").click()
    cell(6).get_by_text("Your progress is in").wait_for()
    (exported,) = (lab.root / "notebooks").glob("moe_lessons-progress-*.json")
    assert json.loads(exported.read_text())["predictions"]["03.size"]["answer"] == 20
    cell(6).get_by_role("button", name="Start over …").click()
    cell(6).get_by_role("button", name="No, keep it").click()
    assert kept(lab, "predictions", "03.size")["answer"] == 20
    cell(6).get_by_role("button", name="Start over …").click()
    cell(6).get_by_role("button", name="Yes, forget everything").click()
    cell(6).get_by_text("Everything is forgotten.").wait_for()
    assert kept(lab, "predictions", "03.size") == {}
    row.filter(has_text=re.compile("0 of 4")).wait_for()
    assert book.cell_errors() == []
    cell(6).get_by_role("link", name="00 · Welcome").first.click()  # in the same window
    book.page.get_by_role("heading", name="00 · Welcome").wait_for()
