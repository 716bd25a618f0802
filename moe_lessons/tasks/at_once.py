"""The same tasks with their end hidden: all of it is named at once, so that a block may look at every token."""

from torch import Tensor

from moe_lessons.support.errors import check_positive_int
from moe_lessons.tasks.facts import NOT_SCORED, NUMBER_DIGITS, Facts
from moe_lessons.tasks.text import TextTask

HIDDEN = ord("_")


def hide_end(x: Tensor, y: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Score only the last `num` of y (B, T), and have x show none of them."""
    x, y = x.clone(), y.clone()
    x[:, len(x[0]) - num + 1 :] = HIDDEN
    y[:, : len(y[0]) - num] = NOT_SCORED
    return x, y


class FactsAtOnce(Facts):
    """Is `Facts` whose four digits are named at once, from the name alone.

    >>> "".join(map(chr, FactsAtOnce().x[0]))
    'IUHQ:___'
    """

    def __init__(self, num_entries: int = 2000, seed: int = 0):
        super().__init__(num_entries, seed)
        self.x, self.y = hide_end(self.x, self.y, NUMBER_DIGITS)


class TextAtOnce(TextTask):
    """Is `TextTask` of which the last `num_hidden` bytes of each sequence are named at once, from those before."""

    def __init__(self, *args, num_hidden: int = 4, **kwargs):
        super().__init__(*args, **kwargs)
        if check_positive_int("num_hidden", num_hidden) > self.context:
            raise ValueError(f"num_hidden must be at most the context ({self.context}), got {num_hidden}")
        self.num_hidden = num_hidden

    def _sequences(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        return hide_end(*super()._sequences(starts), self.num_hidden)
