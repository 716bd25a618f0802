"""The speedup map of the page is that of the notebook, for each setting, and its address has the settings."""

import json
import shutil
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import pytest

from moe_lessons.analysis.speedup import speedups
from moe_lessons.plots.marks import Boxes, Heat, Line, Rule
from moe_lessons.widgets import SpeedupMap
from web.speedup import models, speedup_manifest
from web.training_page import CANVAS, MODULES

SETTINGS = [
    {},
    {"context_length": 4096, "machine": "NVIDIA H200 SXM", "weights": "fp8"},
    {"model": "DeepSeek-V3", "weights": "4-bit", "context_length": 512, "num_experts": 64, "top_k": 4},
    {"model": "OLMoE-1B-7B", "machine": "Desktop CPU with DDR5", "num_experts": 16, "top_k": 2},
    {"num_experts": 2, "top_k": 2, "weights": "float32"},
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
        call = "async ([own, values]) => (await import('./speedup.js')).panelOf(own, values)"
        made = page.evaluate(call, [own, values])
        view = SpeedupMap(values["model"], **{name: value for name, value in values.items() if name != "model"})
        assert made["panel"]["x"]["high"] == pytest.approx(view.top)
        heat, words = made["panel"]["marks"][0], made["panel"]["marks"][1]
        marks = view.panels()[0].marks
        wanted = {kind: [mark for mark in marks if isinstance(mark, kind)] for kind in (Heat, Boxes, Line, Rule)}
        (expected,) = wanted[Heat]
        for name in ("z", "contours", "places"):
            values_of = np.array(made["arrays"][heat[name]["slot"]][2]).ravel()
            np.testing.assert_allclose(values_of, np.ravel(getattr(expected, name)), rtol=1e-4, atol=1e-5)
        assert heat["titles"] == list(expected.titles) and heat["columns"] == expected.columns
        bounds = [[text for name, text in rows if not name] for rows in heat["says"]]
        assert bounds == [[text for name, text in rows if not name] for rows in expected.says]
        assert sorted(words["texts"]) == sorted(wanted[Boxes][0].texts)
        lines = [mark for mark in made["panel"]["marks"] if mark["mark"] == "Line"]
        assert [line["name"] for line in lines] == [line.name for line in wanted[Line]]
        for line, own_line in zip(lines, wanted[Line]):
            for axis in ("x", "y"):
                values_of = made["arrays"][line[axis]["slot"]][2]
                np.testing.assert_allclose(values_of, getattr(own_line, axis), rtol=1e-6, atol=1e-9)
        rules = [mark for mark in made["panel"]["marks"] if mark["mark"] == "Rule" and mark["name"]]
        assert [(rule["name"], rule["y"]) for rule in rules] == [
            (rule.name, rule.y and pytest.approx(rule.y)) for rule in wanted[Rule] if rule.name
        ]
        assert made["trouble"] == view.unfit()


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
    assert "speedup" in page.locator(".moe-tip").inner_text()
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
