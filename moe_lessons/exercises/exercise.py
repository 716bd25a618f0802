"""The base of the exercises: an answer is tried case by case, and whatever it does is said in words."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from moe_lessons.course import progress
from moe_lessons.exercises import limits
from moe_lessons.nn import seeded
from moe_lessons.support.show import Source, show_source

Mistakes = Mapping[Callable, str]  # what is often written instead, and what to say about it
NOT_THEIRS = str(Path(__file__).parent), str(Path(traceback.__file__).parent), "site-packages"  # no code of the learner
WORDS = {
    "right": "✔ Right",
    "wrong": "✘ Not yet",
    "raised": "✘ Your code stops",
    "stopped": "✘ Stopped",
    "not attempted": "… Not attempted yet",
}


class Check(NamedTuple):
    """What became of an answer. `status`: one of `WORDS`; known: whether it is a mistake that is often made."""

    status: str
    message: str
    known: bool = False

    def __repr__(self) -> str:
        return f"{WORDS[self.status]}. {self.message}"


class Problem(Exception):
    """What to say of an answer that is not right, in whole sentences, and the status that it gives."""

    def __init__(self, message: str, status: str = "wrong", known: bool = False):
        super().__init__(message)
        self.check = Check(status, message, known)


class Hint(str):
    """A sentence or two that a notebook shows as text."""

    _repr_markdown_ = __repr__ = str.__str__


class Exercise:
    """A function that the learner writes: `check` it, ask for a `hint`, see a `solution`.

    name: of the variable that holds the exercise, too. stars: 1 to 3. check: answer -> Check, for instance a
    `Comparison`. solution: the function that the learner could have written, with the name of theirs; it is kept as
    `answer`. mistakes: what is often written instead, and what to say about it; a `Comparison` has its own.
    """

    def __init__(
        self,
        name: str,
        lesson: str,
        stars: int,
        check: Callable[[Any], Check],
        hints: tuple[str, ...],
        solution: Callable,
        mistakes: Mistakes | None = None,
    ):
        self.name, self.lesson, self.stars, self.hints = name, lesson, stars, hints
        self.mistakes: Mistakes = mistakes or getattr(check, "mistakes", {})
        self.answer, self.answer_name = solution, solution.__name__
        self._check, self._hints_seen = check, 0

    def check(self, answer: Any = None) -> Check:
        """Try `answer`, within a time limit, and say what differs. Never raises, but where the user interrupts."""
        found = self._try(answer)
        if found.status == "not attempted":
            todo = "write it in the cell above, with a return, run it, then run this one"
            found = Check(found.status, f"{self.answer_name} returns nothing: {todo}.")
        else:
            solved = {"status": "right"} if found.status == "right" else {}  # once solved, always solved
            progress.record("exercises", self.key, last=found.status, **solved)
        stuck = f" Stuck? {self.name}.hint()" if found.status in ("wrong", "not attempted") and not found.known else ""
        return found._replace(message=_shortened(found.message) + stuck)

    @property
    def key(self) -> str:
        """Its key in the learner's progress, such as '05.slowdown'."""
        return f"{self.lesson}.{self.name}"

    def _try(self, answer: Any) -> Check:
        if is_nothing(answer):
            return Check("not attempted", "")
        if not callable(answer):
            kind = type(answer).__name__
            return Check("wrong", f"Give the function itself, {self.name}.check({self.answer_name}), not a {kind}.")
        try:
            with seeded(0), limits.kept_short():
                return limits.limited(partial(self._check, answer), limits.SECONDS)
        except limits.TimeUp:
            return Check("stopped", f"It was not done after {limits.SECONDS:g} s: does a loop never end?")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit
            return Check("raised", f"It ends with {type(error).__name__}.")

    def hint(self) -> Hint:
        """The next hint; after the last one, the last again."""
        number = self._hints_seen = min(self._hints_seen + 1, len(self.hints))
        more = "" if number < len(self.hints) else f" (The last hint. Next is {self.name}.solution().)"
        return Hint(f"Hint {number} of {len(self.hints)}: {self.hints[number - 1]}{more}")

    def solution(self) -> Source:
        """A function that is right, to be read or pasted. That it was seen is noted in the progress."""
        progress.record("exercises", self.key, solution_seen=True)
        return show_source(self.answer)

    def __repr__(self) -> str:
        calls = f"{self.name}.check({self.answer_name}), {self.name}.hint(), {self.name}.solution()"
        return f"{self.lesson} {'★' * self.stars} {calls}"


def judge(cases: Iterable, try_case: Callable, right: str, unreadable: str = "Your answer cannot be read") -> Check:
    """Call `try_case`(*case) for each case until one raises; where none does, `right` is said. It never raises.

    unreadable: what to say of an answer of another kind than was asked for, with which `try_case` itself fails.
    """
    num_right = 0
    try:
        for case in cases:
            try_case(*case)
            num_right += 1
    except Problem as problem:
        attempted = num_right and problem.check.status == "not attempted"
        return problem.check._replace(status="wrong") if attempted else problem.check
    except Exception as error:
        return Check("wrong", f"{unreadable}: {type(error).__name__}: {error}")
    return Check("right", right)


def attempt(call: Callable[[], Any], at: str = "") -> Any:
    """What `call`() of an answer gives. Raises Problem where it stops with an error, or returns nothing.

    at: the case, such as 'with T = 4'.
    """
    try:
        given = call()
    except Problem:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        frames = [frame for frame in frames if not any(part in frame.filename for part in NOT_THEIRS)]
        line = f", in the line '{_shortened(frames[0].line, 120)}'" if frames and frames[0].line else ""
        where = f"{at}{line}: ".lstrip(", :")
        raise Problem(f"{where[:1].upper()}{where[1:]}{type(error).__name__}: {error}", "raised") from None
    if is_nothing(given):
        raise Problem(f"{at}, your function returns nothing.", "not attempted")
    return given


def is_nothing(value: Any) -> bool:
    """What a function gives whose body is still `...`."""
    return value is None or value is Ellipsis


def _shortened(message: str, limit: int = 600) -> str:
    """On one line, and not too long."""
    line = " ".join(message.split())
    return line if len(line) <= limit else f"{line[:limit]} …"
