"""What lesson 11 measures on ranks: who gets which rows, and what an exchange sends."""

import pytest

from moe_lessons.parallel import launch
from moe_lessons.parallel.measure import exchange_times, given_routing


@pytest.mark.parametrize("share, rows", [(0.5, [512, 512]), (1.0, [1024, 0]), (0.75, [768, 256]), (0.0, [0, 1024])])
def test_a_given_routing_gives_each_rank_its_share(share, rows):
    load = given_routing(1024, 8, 2, share).tokens_per_expert
    assert load.view(2, -1).sum(dim=1).tolist() == rows


@pytest.mark.parametrize("share", [1.5, -0.1, float("nan"), "half"])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="share must be"):
        given_routing(1024, 8, 2, share)


def test_each_size_is_sent_in_turns():
    tries = list(launch(exchange_times, 2, (1000, 30_000)))
    assert [one["bytes"] for one in tries] == [1000, 30_000] * 7 and all(one["seconds"] > 0 for one in tries)
