"""Lesson 00 as a learner uses it: a real JupyterLab in a real Chromium."""

import re

import pytest


@pytest.fixture(scope="module")
def lesson(open_notebook):
    lesson = open_notebook("00_welcome.ipynb")
    lesson.page.set_default_timeout(180_000)  # it trains for half a minute, and other tests run beside it
    lesson.run_all()
    yield lesson
    assert lesson.errors == []


@pytest.fixture
def playground(lesson, view_of):
    """The last view, below the quiz: it has all panels and controls."""
    playground = view_of(lesson.page, 4)
    yield playground
    playground.pause()


def test_run_all_trains_without_an_error(lesson, playground):
    playground.wait_step(150)
    assert lesson.cell_errors() == []
    assert lesson.page.locator(".moe-canvas").count() >= 5


def test_an_interrupt_leaves_a_paused_usable_playground(lesson, playground):
    for _ in range(5):  # on a busy machine all steps may be done before the menu is open
        playground.button("Play").click()
        playground.wait_step(playground.step + 20)
        lesson.interrupt()
        playground.button("Play").wait_for()
        playground.wait_for(lambda: re.search("Interrupted|press Play for more", playground.view.inner_text()))
        if "Interrupted" in playground.view.inner_text():
            break
    assert "Interrupted" in playground.view.inner_text()
    step = playground.step
    playground.button("Play").click()
    playground.wait_step(step + 20)


def test_a_slider_dragged_fast_for_five_seconds_leaves_its_last_value(playground):
    playground.button("Play").click()
    handle = playground.handle("Auxiliary loss")
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    playground.page.mouse.move(x, y)
    playground.page.mouse.down()
    for i in range(100):
        playground.page.mouse.move(x - 60 + (i * 37) % 120, y)
        playground.page.wait_for_timeout(50)
    playground.page.mouse.move(x + 200, y)  # beyond the end
    playground.page.mouse.up()
    playground.wait_for(lambda: playground.value("Auxiliary loss") == "10")
    playground.pause()
    playground.button("healthy").click()
    playground.wait_for(lambda: playground.value("Auxiliary loss") == "0.02")


def test_restart_and_run_again(lesson, view_of):
    lesson.restart()
    lesson.run_all(wait=False)
    lesson.page.wait_for_function("() => document.querySelector('.moe-view') && !document.querySelector('.moe-stale')")
    playground = view_of(lesson.page, 4)
    playground.wait_step(20)
    playground.pause()
    assert lesson.cell_errors() == []
