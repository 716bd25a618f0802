"""Facts to be remembered: a phone book, in which nothing follows from anything else; a model reads a name and writes
its number."""

from random import Random
from string import ascii_uppercase

import torch
from torch import Tensor, nn

from moe_lessons.nn import evaluating
from moe_lessons.support.errors import check_positive_int, check_seed
from moe_lessons.tasks.text import encode

NAME_LETTERS, NUMBER_DIGITS = 4, 4
MOST_ENTRIES = len(ascii_uppercase) ** NAME_LETTERS // 10  # of 456,976 names: a new one is found at once
NOT_SCORED = -100  # torch's ignore_index: a token that counts neither for the loss nor for the accuracy


class Facts:
    """A phone book of `num_entries` (N) different names, each with a number, drawn from `seed`.

    A token is a byte in ASCII. x (N, T) has the name, the colon and all digits but the last; y has the digit that
    follows, and `NOT_SCORED` where a letter or the colon follows, which no model can know. entries: the texts.

    >>> facts = Facts(num_entries=2000)
    >>> facts.entries[0], facts.y[0].tolist()  # 52 is '4'
    ('IUHQ:4869', [-100, -100, -100, -100, 52, 56, 54, 57])
    """

    vocab_size = 128  # ASCII
    context = NAME_LETTERS + NUMBER_DIGITS  # T: the colon more, the last digit less

    def __init__(self, num_entries: int = 2000, seed: int = 0):
        if check_positive_int("num_entries", num_entries) > MOST_ENTRIES:
            raise ValueError(f"num_entries must be at most {MOST_ENTRIES}, got {num_entries}")
        self.num_entries, self.seed = num_entries, check_seed(seed)
        rng, numbers = Random(f"facts {seed}"), {}  # a string seeds the same on every machine
        while len(numbers) < num_entries:
            name = "".join(rng.choices(ascii_uppercase, k=NAME_LETTERS))
            numbers.setdefault(name, "".join(rng.choices("0123456789", k=NUMBER_DIGITS)))
        self.entries = tuple(f"{name}:{number}" for name, number in numbers.items())
        self.tokens = encode("".join(self.entries)).view(num_entries, -1)  # (N, T + 1)
        self.x, self.y = asked(self.tokens)

    def batch(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `num` entries, every one as likely: x (num, T) int64 and y (num, T)."""
        chosen = torch.randint(self.num_entries, (num,), generator=generator)
        return self.x[chosen], self.y[chosen]

    @torch.no_grad()
    def known(self, model: nn.Module) -> Tensor:
        """Tell which entries a model knows by heart: (N,) bool. One pass is enough: what it writes right, it reads."""
        device = next(model.parameters()).device
        with evaluating(model):  # in parts so small that they stay in the cache
            return is_known(torch.cat([model(x.to(device))[0].argmax(dim=-1).cpu() for x in self.x.split(256)]), self.y)


def asked(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Give x and y (N, T) of whole entries (N, T + 1)."""
    name = torch.full_like(tokens[:, :NAME_LETTERS], NOT_SCORED)
    return tokens[:, :-1], torch.cat([name, tokens[:, NAME_LETTERS + 1 :]], dim=1)


def is_known(said: Tensor, y: Tensor) -> Tensor:
    """Tell of which entries all that is scored was said right: said and y (N, T) -> (N,) bool."""
    return ((said == y) | (y == NOT_SCORED)).all(dim=1)
