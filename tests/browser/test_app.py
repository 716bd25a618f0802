"""``python -m moe_lessons app``: the page without code trains, draws and computes, in both themes."""

import os
import re
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("voila")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    environment = os.environ | {"MOE_LESSONS_STATIC": "", "IPYTHONDIR": str(folder), "JUPYTER_PREFER_ENV_PATH": "1"}
    command = [sys.executable, "-m", "moe_lessons", "app", "--no-browser", f"--port={port}"]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        for _ in range(300):
            if found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield found.group()
    finally:
        process.terminate()  # it ends its kernels, too
        process.wait(20)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_plays_and_answers(address, browser, view_of, theme):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=theme)
    errors, asked = [], []
    page.on("console", lambda message: errors.extend([message.text] * (message.type == "error")))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}?theme={theme}")
    page.locator(".moe-view").nth(3).wait_for(state="attached", timeout=60_000)
    assert page.locator(".jp-InputArea-editor, .highlight").count() == 0  # no code
    for place in (0, 1):  # the playground and the wall of facts
        view = view_of(page, place)
        view.button("Play").click()
        view.wait_step(5)
        picture = view.picture
        view.wait_for(lambda view=view, picture=picture: view.picture != picture)
        view.pause()
    words = page.locator(".moe-view").nth(2)
    before = words.inner_text()
    words.get_by_role("slider").first.press("ArrowRight")
    view.wait_for(lambda: words.inner_text() != before)
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    page.close()
