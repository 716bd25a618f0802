"""`make site`: the whole course as pages that need no network, with search, and usable by everyone."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from moe_lessons.course.interview import SENTENCE, SHORT
from web.build import broken_links
from web.lesson_views import read_clean

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = "03_parameters_and_compute.ipynb"  # it has widgets, and is soon run
CDN = ["https://cdn.org/a.css", "https://cdn.org/a.js"]
DOORS = {
    "README.html": "Lessons",
    "speedup.html": "Speedup map",
    "wall.html": "Memorisation grid",
    "text.html": "Your own text",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory, runtime):
    """The folder of a site that was made without a warning and without a broken link, of a checkout in which a lesson
    was run and saved as JupyterLab does."""
    folder, course = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("checkout")
    there = shutil.ignore_patterns(".*", "build", "node_modules", "__pycache__")
    shutil.copytree(ROOT, course, ignore=there, dirs_exist_ok=True)
    (course / "build").mkdir()
    (ROOT / "build" / "graphs").mkdir(parents=True, exist_ok=True)
    for path in ("build/graphs", "tools/node_modules"):
        (course / path).symlink_to(ROOT / path, target_is_directory=True)
    git = ["git", "-C", str(course), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in ("init -q", "add .", "commit -q -m clean"):
        subprocess.run([*git, *command.split()], check=True, timeout=60)
    path = course / "notebooks" / RUN
    lesson = nbformat.read(path, 4)
    NotebookClient(lesson, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    assert "widgets" in lesson.metadata
    nbformat.write(lesson, path)
    command = [sys.executable, "-m", "web.build", str(folder), "few"]
    where = {"cwd": course, "env": os.environ | {"PYTHONPATH": "."}}
    made = subprocess.run(command, capture_output=True, text=True, timeout=1500, **where)
    assert made.returncode == 0, made.stdout + made.stderr
    assert f"{RUN} was run since" in made.stderr and "graphs, of which" in made.stdout
    return folder


def test_a_lesson_that_was_run_stands_there_as_it_was_committed_or_is_refused(site, tmp_path):
    page = (site / "notebooks" / RUN.replace("ipynb", "html")).read_text(encoding="utf-8")
    assert page.count('<img alt="') and "widget-state" not in page and "cdn" not in page
    lesson = nbformat.read(ROOT / "notebooks" / RUN, 4)
    lesson.metadata.language_info["version"] = "3.12"
    nbformat.write(lesson, tmp_path / RUN)
    with pytest.raises(SystemExit, match=f"{RUN} was run since it was rendered: `make render NOTEBOOKS="):
        read_clean(tmp_path / RUN)


def test_it_has_every_lesson_with_all_its_pictures_described(site):
    for path in LESSONS:
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len(re.findall(r'<img alt="[^"]{9,}"[^>]* src="\.\./_images/\w+\.png"', page)) >= len(pictures), path
        assert all("dark" in output["metadata"]["image/png"] for output in pictures), path
        assert page.count('class="only-dark" src=') == len(pictures), path


def test_it_has_the_other_documents_and_the_package(site):
    for name in ("index", "notebooks/GLOSSARY", "docs/instructors", "docs/api", "CONTRIBUTING"):
        assert (site / f"{name}.html").is_file(), name
    assert 'id="moe_lessons.nn.MoE"' in (site / "docs" / "api.html").read_text(encoding="utf-8")


def test_its_front_page_is_the_playground_with_the_answer_and_doors(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert all(text in unescape(page) for text in (SHORT, SENTENCE, "yet runs faster. How?"))
    assert 'class="front-start" href="notebooks/00_welcome.html"' in page
    assert (
        '<div data-moe="playground" data-guide><img src="_images/playground.png"' in page
        and 'src="page/page.js"' in page
    )
    assert "searchindex.js" not in page  # 150 kB that nothing here needs
    doors = re.search(r'<nav class="front-doors".*?>(.*?)</nav>', page, re.S)[1]
    assert re.findall(r'href="(.*?)">(.*?)<', unescape(doors)) == [*DOORS.items()]
    doors = re.search(r'<nav class="front-doors".*?>(.*?)</nav>', (site / "text.html").read_text("utf-8"), re.S)[1]
    assert re.findall(r'aria-current="page">(.*?)<', doors) == ["Your own text"]


def test_its_page_of_a_view_has_that_view_and_a_picture_where_no_script_runs(site):
    page = (site / "text.html").read_text(encoding="utf-8")
    assert '<div data-moe="text"><img src="_static/text.png" alt="A sentence twice' in page and "page/page.js" in page
    assert (site / "_static" / "text.png").is_file() and (site / "page" / "text.read.z").is_file()
    page = (site / "wall.html").read_text(encoding="utf-8")
    assert '<div data-moe="wall"><img src="_images/facts.png" alt="Three memorisation grids' in page


def test_the_search_knows_the_words_of_a_lesson(site):
    index = json.loads(re.search(r"setIndex\((.*)\)", (site / "searchindex.js").read_text(encoding="utf-8"))[1])
    lesson = index["docnames"].index("notebooks/07_expert_collapse")
    for stem in ("neglect", "seldom"):
        found = index["terms"][stem]
        assert lesson in (found if isinstance(found, list) else [found]), stem


def test_the_check_of_links_finds_what_is_broken(tmp_path):
    (tmp_path / "b.html").write_text('<h2 id="here">')
    good = '<a href="b.html#here"><a href="#top"><p id="top"><a href="https://example.org/x"><img src="data:,">'
    bad = '<a href="b.html#gone"><a href="c.html"><a href="#no"><a class="x" href="https:///x"><img src="p.png">'
    bad += '<script src="https://cdn.org/a.js"></script><link rel="stylesheet" href="https://cdn.org/a.css">'
    (tmp_path / "a.html").write_text(good + bad)
    found = [line.partition(": ")[2] for line in broken_links(tmp_path)]
    assert sorted(found) == ["#no", "b.html#gone", "c.html", "https:///x", *CDN, "p.png"]


@pytest.fixture(scope="module")
def address(site, serve):
    return serve(site)


def test_everyone_can_use_each_page_and_none_asks_the_network(address, site, browser, violations):
    """Each page in the light theme, and as wide as a phone; in the dark one the colours of one page of each kind."""
    page = browser.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.extend([message.text] * (message.type == "error")))
    documents = [
        *(site / "notebooks").glob("*.html"),
        *(site / "docs").glob("*.html"),
        *site.glob("*.html"),
    ]
    found, wide = {}, {}

    def scan(name: str, parts: str = "html") -> None:
        for theme, rules in {"light": {}, "dark": {"rules": ["color-contrast"]}}.items():
            if theme == "light" or name in ("index.html", "05_quality_at_equal_compute.html", "api.html", "search"):
                page.emulate_media(color_scheme=theme)
                page.locator(f"html[data-theme={theme}]").wait_for()
                found[name, theme] = violations(page, parts, **rules)

    for path in documents:
        page.goto(f"{address}/{path.relative_to(site)}")
        scan(path.name, "dl.py:nth-of-type(-n+8)" if path.stem == "api" else "html")  # it is long
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            wide[path.name, width] = page.evaluate("document.documentElement.scrollWidth")
    page.goto(f"{address}/search.html?q=collapse")
    page.locator("#search-results a", has_text="Expert collapse").first.wait_for()
    scan("search")
    page.close()
    assert [each for each in found.items() if each[1]] == []
    assert [each for each in wide.items() if each[1] > each[0][1]] == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == [] and errors == []


def test_on_a_phone_the_controls_of_the_front_page_and_the_answer_above_them_are_in_sight(address, browser):
    page = browser.new_page(viewport={"width": 360, "height": 844}, has_touch=True, reduced_motion="reduce")
    page.goto(f"{address}/index.html")
    page.locator(".moe-canvas[data-step] canvas").first.wait_for()
    for name in ("Play", "Healthy", "Collapse", "Rescue", "Sliders", "More"):
        box = page.get_by_role("button", name=name, exact=True).bounding_box()
        assert 0 < box["y"] < 844 - box["height"] and box["x"] + box["width"] < 360, name
    strip, dock = (page.locator(part).bounding_box() for part in (".moe-grid figure:nth-child(3)", ".moe-dock"))
    assert 0 < strip["y"] < dock["y"] - strip["height"]
    page.close()


def test_the_speedup_map_and_what_is_found_stand_on_the_first_screen(address, browser):
    for width, height in ((1280, 720), (390, 844)):
        page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
        page.goto(f"{address}/speedup.html")
        page.locator(".moe-canvas[data-step] canvas").first.wait_for()
        for part in (".moe-finding", "canvas", "figure:last-child b"):  # the last: what is read of a place
            box = page.locator(part).bounding_box()
            assert 0 < box["y"] < height - box["height"], (part, width)
        page.close()


def test_a_lesson_shows_its_views_alive_and_without_javascript_their_pictures(address, browser):
    views = {"07_expert_collapse": ("recording", "07-CollapseLab"), "00_welcome": ("playground", "preset=healthy")}
    for is_alive in (True, False):
        context = browser.new_context(java_script_enabled=is_alive, reduced_motion="reduce")
        page = context.new_page()
        for lesson, (kind, state) in views.items():
            page.goto(f"{address}/notebooks/{lesson}.html")
            view = page.locator(f"[data-moe={kind}][data-state='{state}']")
            view.scroll_into_view_if_needed()
            view.locator(".moe-canvas[data-step] canvas" if is_alive else "img[alt]").first.wait_for()
            assert view.locator("img" if is_alive else "img:visible").count() == (not is_alive)
        context.close()


def test_a_lesson_answers_though_no_cell_runs_and_shows_the_code_to_be_written(address, browser):
    page = browser.new_page()
    page.goto(f"{address}/notebooks/02_the_moe_block.html")
    assert page.locator(".moe-lessons [aria-current]").inner_text() == "02 The MoE block"
    assert [*map(str.split, page.locator(".moe-steps b").all_inner_texts())][1][:2] == ["03", "·"]
    assert not [text for text in ("Created using", "Not attempted") if page.get_by_text(text).count()]
    codes = page.locator(".cell_input:visible").all_inner_texts()
    defined = [re.search(r"^(?:def|class) (\w+)", code, re.M)[1] for code in codes]
    assert defined == ["my_weights", "my_moe", "MyMoE", "report"]
    options = page.get_by_text("E1, E2 and all rows of the router"), page.get_by_text("0.73, 0.27, 0.00")
    for option, verdict in zip(options, ("✘ What happened: E1, E2 and their two rows", "✔ ")):
        option.click()
        chosen = page.locator(".moe-option[open]", has=option)
        assert chosen.inner_text().partition("\n")[2].strip().startswith(verdict)
        assert ("moe-wrong" in chosen.get_attribute("class")) == (verdict[0] == "✘")
    shown = page.locator(".moe-happened:has-text('The layer is sparse')")
    assert not shown.locator(".cell_output pre").last.is_visible()
    shown.get_by_text("Show what happened").click()
    assert shown.locator(".cell_output pre").last.is_visible()
    page.get_by_text("Solution").first.click()
    assert "def my_weights" in page.locator(".cell_output details[open] pre").inner_text()
    page.goto(f"{address}/notebooks/04_inference_speed.html")
    assert page.get_by_text("to be drawn").count() == 0
    assert page.locator(".moe-happened > p:first-of-type").all_text_contents()[0].startswith("What happened: 2.")
    page.close()


def test_on_a_phone_a_figure_fits_and_a_tap_enlarges_it_and_no_printed_line_is_cut(address, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    for name in ("08_balancing", "11_many_devices", "00_welcome"):
        page.goto(f"{address}/notebooks/{name}.html")
        page.evaluate("for (const part of document.querySelectorAll('.moe-happened')) part.open = true")
        cut = "all => all.filter((pre) => pre.scrollWidth > pre.clientWidth).map((pre) => pre.innerText)"
        assert page.locator(".cell_output .stream pre:visible").evaluate_all(cut) == []
    figure, enlarged = page.locator(".moe-figure a[href$='.png']:visible img"), page.locator("dialog img")
    assert figure.bounding_box()["width"] <= 360
    figure.tap()
    assert enlarged.bounding_box()["width"] == figure.evaluate("image => image.naturalWidth")
    enlarged.tap()
    assert enlarged.is_visible()  # a finger moves it
    page.locator("dialog button").tap()
    enlarged.wait_for(state="detached")
    page.goto(f"{address}/index.html")
    page.locator("button.primary-toggle").click()
    assert page.locator(".moe-lessons a:visible").first.inner_text() == "00 Welcome"
    page.close()


def test_a_view_of_a_lesson_trains_to_the_step_of_its_text_and_then_on(address, browser):
    page = browser.new_page()
    page.goto(f"{address}/notebooks/00_welcome.html")
    assert page.get_by_text("Run All Cells").count() == 0
    view = page.locator("[data-moe=playground][data-steps='200']").first
    view.scroll_into_view_if_needed()
    view.locator(".moe-canvas[data-state=paused][data-step='200']").wait_for()
    dock, top = (view.locator(name).bounding_box() for name in (".moe-dock", ".moe-top"))
    assert dock["y"] + dock["height"] <= top["y"]
    view.get_by_role("button", name="Play", exact=True).click()
    view.locator(".moe-canvas:not([data-step='200'])").wait_for()
    page.close()


def test_a_line_that_is_typed_on_the_front_page_is_read_by_the_text_model(address, browser):
    page = browser.new_page(reduced_motion="reduce")
    page.goto(f"{address}/index.html")
    page.get_by_label("Type a sentence").fill("50% of E&F, “naïve” #1 + 2")
    page.keyboard.press("Enter")
    page.wait_for_url("**/text.html#text=*")
    page.locator("[data-moe=text] .moe-canvas canvas").first.wait_for()
    assert page.locator("[data-moe=text] textarea").input_value() == "50% of E&F, “naïve” #1 + 2"
    page.close()
