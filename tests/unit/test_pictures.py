"""The pictures of the README: they are there, small, and the animation is the same each time."""

from pathlib import Path

import pytest
from PIL import Image

from tools import pictures

DOCS = Path(__file__).resolve().parents[2] / pictures.FOLDER


@pytest.mark.parametrize("name, least", [("rescue.gif", 640), ("playground.png", 900), ("facts.png", 900)])
def test_each_is_an_image_of_at_most_500_kilobytes(name, least):
    assert (DOCS / name).stat().st_size < 500_000
    with Image.open(DOCS / name) as picture:
        assert picture.width >= least and getattr(picture, "n_frames", 1) == (50 if name == "rescue.gif" else 1)
        picture.load()


def test_the_animation_shows_the_auxiliary_loss_switched_on_and_is_the_same_each_time(tmp_path):
    for name in ("one.gif", "other.gif"):
        pictures.animate(tmp_path / name, collapse=8, rescue=16)
    assert (tmp_path / "one.gif").read_bytes() == (tmp_path / "other.gif").read_bytes()
    with Image.open(tmp_path / "one.gif") as film:
        assert film.n_frames == 4 and film.width == pictures.WIDTH
