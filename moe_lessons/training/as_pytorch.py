"""A mixture in the plane as a file of plain PyTorch, to take home: as_pytorch.txt, of which those parts stay that a
setting needs. The page, which has no Python, joins the same parts: its manifest has them."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_lessons.support.errors import check_seed
from moe_lessons.training.knobs import KNOBS
from moe_lessons.training.settings import PlaneSetting

TEMPLATE = Path(__file__).with_suffix(".txt").read_text("utf-8")
Part = tuple[list[list[tuple[str, bool, list[str]]]], str]


def read_parts(template: str) -> list[Part]:
    """Split a template into (when, text)s. What stands between '#if name=a|b and name!=c or …' and '#end' stays where
    all tests of one alternative hold: (name, whether it must be one of these values or must not, values).

    >>> read_parts("one\\n#if top_k!=1\\ntwo\\n#end\\n")
    [([], 'one\\n'), ([[('top_k', False, ['1'])]], 'two\\n')]
    """
    parts = []
    for piece in re.split(r"^(#if .*\n(?:.*\n)*?)#end\n", template, flags=re.M):
        condition, text = piece[4:].split("\n", 1) if piece.startswith("#if ") else ("", piece)
        tests = [[re.fullmatch(r"(\w+)(!?)=(.*)", test).groups() for test in each.split(" and ")]
                 for each in condition.split(" or ") if condition]  # fmt: skip
        when = [[(name, not negated, values.split("|")) for name, negated, values in each] for each in tests]
        parts += [(when, text)] if text else []
    return parts


TESTS = [test for when, _ in read_parts(TEMPLATE) for tests in when for test in tests]
ROUTERS = {"top-k", *(router for name, _, values in TESTS if name == "router" for router in values)}  # it has


def said(value: Any) -> str:
    """Write a value as code and as a condition have it: a number with all its digits, and 0.0 as JavaScript does.

    >>> said(1 / 3), said(3.0), said(None)
    ('0.3333333333333333', '3', 'none')
    """
    return "none" if value is None else str(value).removesuffix(".0")


def as_pytorch(setting: PlaneSetting, seed: int = 0) -> str:
    """Write a program that needs PyTorch alone: it makes the mixture of a setting, draws the same data and noise from
    the same seeds, and trains it. On a CPU its `losses` are those of the run that `plane_runs` makes, up to rounding.
    ValueError for a router or a knob of your own, which the template has no part for.

    >>> as_pytorch(PlaneSetting("waves", num_experts=4, top_k=1)).splitlines()[0]
    '\"""A mixture of experts (MoE) that learns the class of points in the plane: 4 experts, top-1, seed 0.'
    """
    unknown = [name for name, knob in KNOBS.items() if name not in TEMPLATE and getattr(setting, name) != knob.off]
    if setting.router not in ROUTERS or unknown:
        raise ValueError(f"setting must be one that as_pytorch.txt has parts for, got {[setting.router, *unknown]}")
    numbers = {name: knob.check(getattr(setting, name)) for name, knob in KNOBS.items()}
    values = {name: said(value) for name, value in (asdict(setting) | numbers | {"seed": check_seed(seed)}).items()}
    values |= {"task": "points"} if setting.points else {}

    def stays(when) -> bool:
        return not when or any(all((values[n] in texts) == is_in for n, is_in, texts in tests) for tests in when)

    text = "".join(text for when, text in read_parts(TEMPLATE) if stays(when))
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], text)
