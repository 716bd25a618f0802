"""Predictions, quiz, interview and course page as a learner uses them: by mouse and by key, over a restart and in two
tabs."""

import json
import re

import pytest
from playwright.sync_api import expect

NAME = "asked.ipynb"
CELLS = (
    "from moe_lessons.course import CoursePage, CurvePrediction, Interview, NumberPrediction, Prediction, Quiz",
    'left = Prediction("How many experts are left?", ("all", "some", "one"), key="07.left")\nleft',
    'size = NumberPrediction("How large is it?", "GB", 1, 1000, key="03.size")\nsize',
    'curve = CurvePrediction("How does the loss fall with the number of experts?", ("expert count", 1, 64), '
    '("loss, nats", 0, 4), key="05.curve", log_x=True)\ncurve',
    'print(repr(left.compare("some")), repr(size.compare(93.4)), '
    "repr(curve.compare([1, 2, 4, 8, 16, 32, 64], [3, 2.6, 2.3, 2.1, 2, 1.9, 1.8])))",
    'Quiz("07")',
    "Interview()",
    "CoursePage()",
)


@pytest.fixture(scope="module")
def book(open_notebook):
    book = open_notebook(NAME, *CELLS)
    book.run_all()
    yield book
    assert book.wrong() == []


@pytest.fixture
def cell(book):

    def output(place: int, page=None):
        found = (page or book.page).locator(".jp-CodeCell").nth(place)
        found.evaluate("cell => cell.scrollIntoView({ block: 'center' })")
        return found.locator(".jp-Cell-outputArea")

    return output


@pytest.fixture
def wait_kept(book, lab):
    """wait_kept(section, key, is_so): wait until what the learner's file keeps under a key is so, and return it."""

    def wait(section: str, key: str, is_so=bool):
        path, entry = lab.home / "progress.json", None
        for _ in range(400):
            entry = json.loads(path.read_text()).get(section, {}).get(key, {}) if path.exists() else {}
            if is_so(entry):
                return entry
            book.page.wait_for_timeout(50)
        pytest.fail(f"{section} {key} is {entry}")

    return wait


def test_a_prediction_is_chosen_typed_and_drawn_by_mouse_key_and_finger_and_compared(book, cell, wait_kept):
    keyboard = book.page.keyboard
    options = cell(1).get_by_role("group", name="How many experts are left?").get_by_role("radio")
    cell(1).get_by_text("all").click()
    wait_kept("predictions", "07.left", lambda entry: entry.get("answer") == "all")
    keyboard.press("ArrowDown")
    wait_kept("predictions", "07.left", lambda entry: entry.get("answer") == "some")
    assert options.nth(1).is_checked()

    field = cell(2).get_by_role("textbox")
    for text in ("", "0 ", "a lot", "1,001", "1,5,5", "GB", "20 %"):
        field.fill(text)
        field.press("Enter")
        expect(cell(2).get_by_text("A number from 1 to 1,000, please")).to_have_count(1)
        expect(field).to_have_attribute("aria-invalid", "true")
    for text, number in (("33,5", "33.5"), ("1,000", "1,000"), ("70GB", "70"), ("20 GB ", "20")):
        field.fill(text)
        field.press("Enter")
        expect(cell(2).get_by_text(f"Your prediction: {number} GB")).to_have_count(1)
        expect(field).to_have_attribute("aria-invalid", "false")
    wait_kept("predictions", "03.size", lambda entry: entry.get("answer") == 20)

    picture = cell(3).get_by_role("slider")
    box, mouse = picture.bounding_box(), book.page.mouse
    place = lambda across, down: (box["x"] + across * box["width"], box["y"] + down * box["height"])  # noqa: E731
    mouse.move(*place(0.2, 0.2))
    mouse.down()
    for at in ((0.5, 0.5), (0.9, 0.6)):
        mouse.move(*place(*at), steps=10)
    mouse.up()
    done = cell(3).get_by_role("button", name="Done")
    expect(cell(3).get_by_text("Press Done when this is your prediction.")).to_have_count(1)
    done.click()
    points = wait_kept("predictions", "05.curve", lambda entry: len(entry.get("answer", ())) > 20)["answer"]
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    touch, box = book.page.context.new_cdp_session(book.page), picture.bounding_box()
    for kind, across in (("touchStart", 0.6), ("touchMove", 0.7), ("touchMove", 0.8), ("touchEnd", None)):
        fingers = [dict(zip("xy", place(across, 0.2)))] if across else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    done.click()
    wait_kept("predictions", "05.curve", lambda entry: sum(y > 3 for _, y in entry["answer"]) > 8)
    picture.focus()
    for key in ("Home", "ArrowUp", "ArrowUp", "Tab", "Enter"):
        keyboard.press(key)
    wait_kept("predictions", "05.curve", lambda entry: entry["answer"][0][0] == 1)
    said = book.run_cell(4)
    assert "As you predicted: some." in said and "4.7 times" in said and "Your curve is" in said
    asked = [cell(place).locator(".moe-why").text_content() for place in (1, 2, 3)]  # what was chosen, and no more
    assert asked == ["What happened follows in the next cells.", "Your prediction: 20 GB", "This is your prediction."]


def test_a_quiz_says_what_each_answer_is_by_mouse_and_by_key(book, cell, wait_kept):
    groups = cell(5).get_by_role("group")
    first, second = groups.first, groups.nth(1)
    for place in range(first.get_by_role("radio").count()):
        first.get_by_role("radio").nth(place).check()
        assert first.get_by_role("status").first.inner_text().startswith(("✔", "✘"))
    second.get_by_role("radio").first.focus()
    book.page.keyboard.press("Space")
    text = second.get_by_role("status").first.inner_text()
    book.page.keyboard.press("ArrowDown")
    assert second.get_by_role("radio").nth(1).is_checked() and second.get_by_role("status").first.inner_text() != text
    cell(5).get_by_text(re.compile("2 of 4 answered")).wait_for()
    wait_kept("quiz", "07.story")


def test_in_the_interview_an_answer_comes_first_and_what_was_said_is_kept(cell, wait_kept):
    asked = cell(6)
    show, ticks = asked.get_by_role("button", name="Show our answer"), asked.locator(".moe-point input")
    expect(show).to_be_disabled()
    asked.locator("textarea").press_sequentially("The next token may want any.")
    show.click()
    ticks.first.wait_for()
    ticks.first.press("Space")
    ticks.nth(2).click()
    asked.get_by_role("button", name="Next question").click()
    asked.get_by_text("Question 2 of").wait_for()
    assert ticks.count() == 0 and asked.locator("textarea").input_value() == ""
    asked.get_by_role("button", name="Back").click()
    ticks.first.wait_for()
    assert asked.locator("textarea").input_value() == "The next token may want any."
    assert [tick.is_checked() for tick in ticks.all()] == [True, False, True, False]
    wait_kept("quiz", "12.memory", lambda entry: entry.get("said") == [True, False, True, False])


def test_two_tabs_and_a_restart_lose_nothing(book, cell, lab, wait_kept):
    book.save()
    other = type(book)(book.page.context.new_page())
    other.open(lab, NAME)
    cell(1, other.page).get_by_role("radio").nth(2).check()
    wait_kept("predictions", "07.left", lambda entry: entry.get("answer") == "one")
    cell(1).locator("input:checked + span", has_text="one").wait_for()  # in the first tab, too
    other.run_cell(5)  # its own view of the quiz, with what was answered in the first
    cell(5, other.page).get_by_text(re.compile("2 of 4 answered")).wait_for()
    cell(5, other.page).get_by_role("group").nth(2).get_by_role("radio").first.check()
    cell(1).get_by_role("radio").nth(1).check()
    wait_kept("quiz", "07.cut")
    wait_kept("predictions", "07.left", lambda entry: entry.get("answer") == "some")
    assert other.wrong() == []
    other.page.close()
    book.restart()
    book.run_all()
    assert cell(1).get_by_role("radio").nth(1).is_checked()
    assert cell(2).get_by_role("textbox").input_value() == "20"
    assert cell(3).locator("svg > .moe-drawn").get_attribute("d").count("L") > 20
    cell(5).get_by_text(re.compile("3 of 4 answered")).wait_for()


def test_the_course_page_shows_it_exports_it_forgets_it_and_opens_a_lesson(book, cell, lab, wait_kept):
    own = cell(7)
    row = own.get_by_role("row").filter(has_text="07 · Expert collapse")
    row.filter(has_text="3 of 4").wait_for()
    own.get_by_role("button", name="Export").click()
    own.get_by_text("Your progress is in").wait_for()
    (exported,) = (lab.root / "notebooks").glob("moe_lessons-progress-*.json")
    assert json.loads(exported.read_text())["predictions"]["03.size"]["answer"] == 20
    own.get_by_role("button", name="Start over …").click()
    own.get_by_role("button", name="No, keep it").click()
    wait_kept("predictions", "03.size", lambda entry: entry["answer"] == 20)
    own.get_by_role("button", name="Start over …").click()
    own.get_by_role("button", name="Yes, forget everything").click()
    wait_kept("predictions", "03.size", lambda entry: entry == {})
    row.filter(has_text="0 of 4").wait_for()
    assert book.wrong() == []
    own.get_by_role("link", name="00 · Welcome").first.click()  # in the same window
    book.page.get_by_role("heading", name="00 · Welcome").wait_for()
    book.errors.clear()  # of a page that is left
