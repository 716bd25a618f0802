"""Recordings: what a canvas was given while a real run trained; and what the site shows of each live view."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from moe_lessons.plots.marks import encode_panel
from moe_lessons.widgets import CollapseLab, LiveRun, Picture
from moe_lessons.widgets.canvas import LiveCanvas
from tools import recorder
from web.lesson_views import LESSON_FILES, RECORDINGS, View, views_of

VIEWS = [view for path in LESSON_FILES for view in views_of(path)]
TRAINS = {
    "00-Playground": "preset=healthy",
    "00-Playground-2": "preset=healthy&router_aux_loss_coef=0.0",
}
H200 = "model=Mixtral+8x7B&num_experts=8&top_k=2&machine=NVIDIA+H200+SXM&weights=bfloat16&context_length=1024"
H200 += "&width=3.2&batch_size=1"
OWN = "model=the+course%27s+own&num_experts=16&top_k=2&batch_size=1&width="
MAPS = {"04-SpeedupMap": f"{OWN}4.0", "05-SpeedupMap": f"{OWN}1.88", "12-SpeedupMap": H200}
STILL = ("ConfigCalculator", "ParameterMap", "StreamView", "SpeedupMap")


def decode(path: Path) -> tuple[dict, list[recorder.Shown]]:
    """What recording.js makes of a recording: its head, and all that is seen in each picture."""
    line, _, tail = gzip.decompress(path.read_bytes()).partition(b"\n")
    head, panels, data, words, pictures, at = json.loads(line), {}, {}, {}, [], 0
    for frame in head.pop("frames"):
        for slot, kind, shape, same, more in frame["arrays"]:
            assert kind in ("u1", "i1", "u2", "i2", "i4", "f2", "f4")  # which canvas/numbers.js knows
            data[slot] = kind, shape, data.get(slot, ("", (), b""))[2][:same] + tail[at : at + more]
            at += more
        panels, words = panels | frame["panels"], words | frame["words"]
        arrays = {slot: np.frombuffer(part, kind).reshape(shape) for slot, (kind, shape, part) in data.items()}
        pictures.append(recorder.Shown(panels, arrays, words))
    assert at == len(tail)
    return head, pictures


def test_a_recording_has_what_the_view_shows_at_each_step(tmp_path, monkeypatch):
    for owner, name in ((LiveCanvas, "show"), (LiveRun, "play"), (Picture, "_repr_mimebundle_")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # given back at the end
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")  # as where it records, whatever event loop a test before has left
    monkeypatch.setattr(recorder, "RECORDINGS", tmp_path)
    recorder.watch("07_expert_collapse.ipynb", ["07-CollapseLab-2"])
    other = CollapseLab(seed=1, play=2)
    other._repr_mimebundle_()
    CollapseLab(seed=2, play=24)._repr_mimebundle_()
    assert [path.name for path in tmp_path.iterdir()] == ["07-CollapseLab-2.z"]
    head, pictures = decode(tmp_path / "07-CollapseLab-2.z")
    assert head["about"].startswith(f"{CollapseLab(seed=2, play=24)!r} of lesson 07, made on 20")
    assert "by python -m tools.recorder 07-CollapseLab-2 with moe_lessons" in head["about"]
    assert [picture.words["step"] for picture in pictures] == list(range(25))
    lab, size = CollapseLab(seed=2), 0
    lab.loop.until = 24  # its axes end there, also those that are drawn
    lab._cache.clear()
    for step, picture in enumerate(pictures):
        if step:
            lab.advance(1)
        assert picture.words["words"] == lab.words() and "tips" not in picture.words
        for place, panel in enumerate(lab.panels()):
            header, arrays = encode_panel(panel, place)
            assert picture.panels[str(place)] == json.loads(json.dumps(header))
            for slot, array in arrays.items():
                size += array.nbytes
                np.testing.assert_allclose(picture.arrays[slot], array, rtol=1e-3, atol=1e-4)
    assert 4 * (tmp_path / "07-CollapseLab-2.z").stat().st_size < size


def test_an_unknown_recording_is_refused_with_the_names_that_there_are():
    with pytest.raises(SystemExit, match="NAME must be one of 01-LiveRun, 01-.*, got 99-Lab"):
        recorder.main("99-Lab")


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_each_live_view_of_a_lesson_trains_on_the_site_or_has_a_recording_or_computes_what_it_shows(view):
    kind = view.call.split("(")[0]
    expected = ("picture", "") if kind in STILL else ("recording", view.name)
    expected = ("playground", TRAINS[view.name]) if view.name in TRAINS else expected
    expected = ("speedup", MAPS[view.name]) if view.name in MAPS else expected
    kind, state = view.on_the_site()
    assert kind == expected[0] and sorted(state.split("&")) == sorted(expected[1].split("&"))


def test_a_recording_ends_at_the_picture_of_its_lesson_and_all_are_small():
    recorded = {view.name: view for view in VIEWS if view.is_recorded}
    sizes = {path.stem: path.stat().st_size for path in RECORDINGS.iterdir()}
    assert set(sizes) == set(recorded) and max(sizes.values()) < 2e6 and sum(sizes.values()) < 8e6
    for name, view in recorded.items():
        head, pictures = decode(RECORDINGS / f"{name}.z")
        words = pictures[-1].words
        if "-Picture" in name:
            assert len(pictures) == 1 and view.call in head["about"], name
            continue
        assert view.words.strip() in (words["words"], f"Step {words.get('step')}. {words['words']}".strip()), name
        assert view.call in head["about"] and 1 < len(pictures) <= recorder.MOST, name


@pytest.mark.parametrize(
    "call",
    [
        "Playground('healthy', block=MyMoE, play=300)",
        "Playground('healthy', play=300, capacity_factor=1.0)",
        "Playground('healthy', play=300, top_k=3)",
        "Playground('healthy', play=300, num_experts=32)",
        "Playground('healthy', play=200)",  # it went on after it was made
    ],
)
def test_what_the_page_cannot_train_is_to_be_recorded(call):
    view = View("00-Playground-9", 0, call, "Step 300. All 8 experts work.", "")
    assert not view.state and view.is_recorded and view.on_the_site() == ("picture", "")
