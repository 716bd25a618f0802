"""The speedup map of the page is that of the notebook, for each setting, and its address has the settings."""

import json
import re
import shutil
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import pytest
from playwright.sync_api import expect

from moe_lessons.analysis.speedup import speedups
from moe_lessons.plots.labels import place_labels
from moe_lessons.plots.marks import Heat, Line, Rule
from moe_lessons.widgets import SpeedupMap
from web.speedup import COURSE, models, speedup_manifest
from web.training_page import CANVAS, MODULES

SETTINGS = [
    {},
    {"context_length": 4096, "machine": "NVIDIA H200 SXM", "weights": "fp8"},
    {"model": "DeepSeek-V3", "weights": "4-bit", "context_length": 512, "num_experts": 64, "top_k": 4},
    {"model": "OLMoE-1B-7B", "machine": "Desktop CPU with DDR5", "num_experts": 16, "top_k": 2},
    {"num_experts": 2, "top_k": 2, "weights": "float32"},  # K = E
    {"context_length": 65536},
    {"num_experts": 256, "top_k": 4, "machine": "Desktop CPU with DDR5", "weights": "4-bit"},
]


@pytest.fixture(scope="module")
def own():
    return json.loads(json.dumps(speedup_manifest()))


@pytest.fixture(scope="module")
def address(tmp_path_factory, own, serve):
    folder = tmp_path_factory.mktemp("map")
    for path in MODULES.iterdir():
        shutil.copy(path, folder)
    shutil.copytree(CANVAS, folder / "canvas")
    shutil.copy(CANVAS.parent / "canvas.css", folder)
    (folder / "speedup.json").write_text(json.dumps(own), encoding="utf-8")
    return f"{serve(folder)}/view.html?view=speedup"


@pytest.fixture
def page(browser, address):
    page, errors = browser.new_page(viewport={"width": 1000, "height": 900}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.locator("canvas").wait_for()
    yield page
    page.close()
    assert errors == []


def test_each_setting_is_computed_as_in_the_notebook(page, own):
    for given in SETTINGS:
        values = own["usual"] | given
        if "model" in given and "num_experts" not in given:
            values |= {name: own["models"][given["model"]][name] for name in ("num_experts", "top_k")}
        values |= {"width": 3.2, "batch_size": 16}
        call = "async ([own, values]) => (await import('./speedup.js')).panelsOf(own, values)"
        made = page.evaluate(call, [own, values])
        panel, table = made["panels"].values()
        place = {"width": min(3.2, panel["x"]["high"]), "batch_size": 16}
        given = {name: value for name, value in values.items() if name != "model"}
        view = SpeedupMap(values["model"], **given | place)
        assert panel["x"]["high"] == pytest.approx(view.top)
        heat, (map_panel, table_panel) = panel["marks"][0], view.panels()
        marks = map_panel.marks
        wanted = {kind: [mark for mark in marks if isinstance(mark, kind)] for kind in (Heat, Line, Rule)}
        (expected,) = wanted[Heat]
        for name in ("z", "contours", "places", "selected"):
            values_of = np.array(made["arrays"][heat[name]["slot"]][2]).ravel()
            np.testing.assert_allclose(values_of, np.ravel(getattr(expected, name)), rtol=1e-4, atol=1e-5)
        assert heat["titles"] == list(expected.titles) and heat["columns"] == expected.columns
        assert (heat["names"], heat["regions"]) == (expected.names, list(expected.regions))
        shown = json.loads(json.dumps(table_panel.marks[0]._asdict()))
        assert table["marks"] == [{"mark": "Table"} | shown] and table["title"] == table_panel.title
        assert made["finding"].endswith(f": {view.edge_words(place['width'])}.")
        lines = [mark for mark in panel["marks"] if mark["mark"] == "Line"]
        assert [line["name"] for line in lines] == [line.name for line in wanted[Line]]
        for line, own_line in zip(lines, wanted[Line]):
            for axis in ("x", "y"):
                values_of = made["arrays"][line[axis]["slot"]][2]
                np.testing.assert_allclose(values_of, getattr(own_line, axis), rtol=1e-6, atol=1e-9)
        rules = [mark for mark in panel["marks"] if mark["mark"] == "Rule" and mark["name"]]
        assert [(rule["name"], rule["y"]) for rule in rules] == [
            (rule.name, rule.y and pytest.approx(rule.y)) for rule in wanted[Rule] if rule.name
        ]
        assert made["trouble"] == view.unfit()


PLACED = """async ([own, values, width, height]) => {
  const { panelsOf } = await import("./speedup.js");
  const { placeLabels } = await import("./canvas/labels.js");
  const { panels, arrays } = panelsOf(own, values);
  const shaped = ([, shape, values]) => Object.assign(values, { shape });
  const arrayOf = ([name, value]) => [name, value?.slot ? shaped(arrays[value.slot]) : value];
  const filled = (mark) => Object.fromEntries(Object.entries(mark).map(arrayOf));
  const marks = panels[0].marks.map(filled);
  const { x, y } = panels[0];
  const along = (axis, size) => (value) => ((value - axis.low) / (axis.high - axis.low)) * size;
  const up = along(y, height);
  const pen = { measure: (text) => 6.6 * text.length };
  const box = { left: 0, top: 0, width, height };
  const labels = placeLabels({ box, pen, marks, x: along(x, width), y: (value) => height - up(value) }, marks[0]);
  return labels.map(({ text, x, y }) => [text, x, height - y]);
}"""


def test_words_stand_where_there_is_room_and_as_in_a_still_picture(page, own):
    for given in SETTINGS:
        values = own["usual"] | given
        view = SpeedupMap(values["model"], **{name: value for name, value in values.items() if name != "model"})
        panel = view.panels()[0]
        heat = panel.marks[0]
        for width, height in ((280, 320), (720, 320)):
            placed = place_labels(panel, width, height)
            made = page.evaluate(PLACED, [own, values, width, height])
            assert [text for text, *_ in made] == [label.text for label in placed]
            np.testing.assert_allclose([at for _, *at in made], [(one.x, one.y) for one in placed], atol=0.1)
            for label in placed:
                left, low, right, high = label.box
                row, column = (np.array((label.y / height, label.x / width)) * 48).round().astype(int)
                assert not label.is_region or label.text == heat.regions[int(heat.z[row, column] > 0)]
                heights = np.arange(low, high) / height * 48
                lines = (np.array([np.interp(heights, np.arange(49), line) for line in heat.contours]) - 1) * width
                crossed = (left < lines / (view.top - 1)) & (lines / (view.top - 1) < right)
                names = [name for name, rows in zip(heat.names, crossed) if rows.any()]
                assert not names if label.is_region else label.text in names, (label, given)
                others = [other.box for other in placed if other != label]
                assert all(left > x1 or right < x0 or low > y1 or high < y0 for x0, y0, x1, y1 in others)


def test_the_width_that_was_measured_is_on_the_map_of_this_mixture_alone(page, own):
    call = "async ([own, values]) => (await import('./speedup.js')).panelsOf(own, values).panels"
    for more, rules in (({}, 3), ({"top_k": 4}, 0), ({"model": "OLMoE-1B-7B"}, 0)):
        values = own["usual"] | {"model": COURSE, "num_experts": 16, "top_k": 2} | more
        panel, table = page.evaluate(call, [own, values]).values()
        assert len([mark for mark in panel["marks"] if mark["mark"] == "Rule"]) == rules
        *_, lines = table["caption"].split("\n\n")  # first why it is faster there
        head, *lines = lines.splitlines()
        assert [line.split("×")[0] for line in lines][0] == "1" and len(lines) > 1
        assert lines[0].endswith("slower between")


def test_it_says_why_the_mixture_is_faster_or_slower_there_and_where_memory_is_full(page, own):
    call = "async ([own, values]) => (await import('./speedup.js')).panelsOf(own, values)"
    cases = {
        1: "The MoE loads 2 of its 8 experts, the dense model as much as 4. So the MoE is faster there.",
        64: "The MoE loads 8 of its 8 experts, the dense model as much as 4. So the MoE is slower there.",
        512: "which takes longer than loading them; the MoE loads 8 of its 8 experts. So the MoE is faster there.",
        4096: "For each token the MoE computes 2 experts, the dense model as much as 4. So the MoE is faster there.",
        1024: "At batch size 1,024 it does not fit: memory is full.",
    }
    for batch, words in cases.items():
        context = 4096 * (batch == 1024)
        made = page.evaluate(call, [own, own["usual"] | {"batch_size": batch, "context_length": context}])
        assert words in (made["trouble"] if context else made["panels"]["1"]["caption"])


def test_a_slider_moves_the_map_and_the_address_opens_it_again(page, address):
    slider = page.locator("#moe-context_length")
    slider.fill("4")
    slider.dispatch_event("input")
    state = dict(parse_qsl(urlsplit(page.url).fragment))
    assert state["context_length"] == "4096" and state["model"] == "Mixtral 8x7B"
    page.locator("#moe-model").select_option("DeepSeek-V3")
    state = dict(parse_qsl(urlsplit(page.url).fragment))
    assert (state["num_experts"], state["top_k"]) == ("256", "8")
    page.goto("about:blank")
    page.goto(f"{address}#{urlencode(state)}")
    page.locator("canvas").wait_for()
    assert page.locator("#moe-model").input_value() == "DeepSeek-V3"
    assert page.locator(".moe-said").inner_text() == "It does not fit: 1,342 GB of weights, 141 GB of memory."
    page.locator("canvas").hover(position={"x": 300, "y": 200})
    said = page.locator(".moe-tip").inner_text()
    assert "speedup" in said and page.locator("figure b").last.inner_text() != said
    page.locator("canvas").click(position={"x": 300, "y": 200})
    expect(page.locator("figure b").last).to_have_text(said)  # the table beside the map, which stays
    state = dict(parse_qsl(urlsplit(page.url).fragment))
    assert f"dense, {state['width']}×" in said
    assert page.locator(".moe-finding").inner_text().partition(" over ")[2].startswith(f"dense, {state['width']}×,")
    page.goto("about:blank")
    page.goto(f"{address}#machine=abacus")
    page.locator("canvas").wait_for()
    assert "The address cannot be read: machine cannot be abacus." in page.locator(".moe-said").inner_text()


def test_the_page_knows_each_model_that_it_offers():
    found = speedup_manifest()["models"]
    for name, sizes in models().items():
        own = found[name]
        assert own["weights"] + own["router"] * own["experts"] + own["shared"] + own["expert"] * own[
            "top_k"
        ] == pytest.approx(sizes.read(1))
    one = speedups(models()["Mixtral 8x7B"], SpeedupMap().roof, "bfloat16", np.array([1.0]))
    assert one.at(np.array([1.0])).item() == pytest.approx(1, rel=0.01)


def test_on_a_phone_the_map_comes_first_and_a_tap_stays(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    picture = page.locator("canvas")
    picture.wait_for()
    page.wait_for_function("document.querySelector('canvas').style.visibility === ''")
    tops = [page.locator(name).first.bounding_box()["y"] for name in (".moe-finding", "canvas", "select")]
    assert tops == sorted(tops) and tops[-1] < 844  # its controls are in sight
    picture.tap(position={"x": 200, "y": 150})
    expect(page.locator("figure b").last).to_have_text(re.compile("Batch size (16|32|64), dense, [\\d.]+×: speedup"))
    expect(page.locator(".moe-tip")).to_be_hidden()
    page.locator("#moe-model").select_option("DeepSeek-V3")
    expect(page.locator(".moe-said")).to_be_in_viewport()
    expect(page.locator(".moe-said")).to_contain_text("It does not fit")
    context.close()


def test_the_arrows_walk_from_the_place_that_is_selected(page):
    expect(page.get_by_text("Batch size 1, dense, 2×: speedup")).to_have_count(1)
    page.locator("canvas").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".moe-tip")).to_contain_text("Batch size 1, dense, 2.25×")
