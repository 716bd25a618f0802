"""An exercise: a function that the learner writes, checked within limits, with hints and a solution."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from moe_lessons.course import progress
from moe_lessons.exercises import limits
from moe_lessons.exercises.compare import Check, Comparison, Mistakes, is_nothing, shortened
from moe_lessons.nn import seeded
from moe_lessons.support.show import Source, show_source


class Hint(str):
    """A sentence or two that a notebook shows as text."""

    _repr_markdown_ = __repr__ = str.__str__


@dataclass(eq=False)
class Exercise:
    """A function that the learner writes: `check` it, ask for a `hint`, see a `solution`. `exercise` makes one."""

    name: str  # of the variable that holds the exercise, too
    lesson: str
    stars: int
    verdict: Callable[[Any], Check]  # on an answer; most are a `Comparison`
    answer: Callable  # the solution
    mistakes: Mistakes
    hints: tuple[str, ...]
    hints_seen: int = 0

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
        return found._replace(message=shortened(found.message) + stuck)

    @property
    def answer_name(self) -> str:
        return self.answer.__name__

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
                return limits.limited(partial(self.verdict, answer))
        except limits.TimeUp:
            return Check("stopped", f"It was not done after {limits.SECONDS:g} s: does a loop never end?")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit
            return Check("raised", f"It ends with {type(error).__name__}.")

    def hint(self) -> Hint:
        """Give the next hint; after the last one, the last again."""
        number = self.hints_seen = min(self.hints_seen + 1, len(self.hints))
        more = "" if number < len(self.hints) else f" (The last hint. Next is {self.name}.solution().)"
        return Hint(f"Hint {number} of {len(self.hints)}: {self.hints[number - 1]}{more}")

    def solution(self) -> Source:
        """Show a function that is right, to be read or pasted, and note in the progress that it was seen."""
        progress.record("exercises", self.key, solution_seen=True)
        return show_source(self.answer)

    def __repr__(self) -> str:
        calls = f"{self.name}.check({self.answer_name}), {self.name}.hint(), {self.name}.solution()"
        return f"{self.lesson} {'★' * self.stars} {calls}"


def exercise(
    stars: int, solution: Callable, mistakes: Mistakes, hints: tuple[str, ...], what: Any = None, **options
) -> Callable[[Callable], Exercise]:
    """Make an exercise of the function that stands below, whose name is the exercise's.

    stars: 1 to 3. solution: the function that the learner could have written, with the name of theirs. mistakes: what
    is often written instead, and what to say about it. The function below draws the cases for a `Comparison` of answer
    and solution, which takes `what` and the options, too; where `what` is None it is itself the check: answer -> Check.
    """

    def make(own: Callable) -> Exercise:
        verdict = Comparison(solution, what, own, mistakes, **options) if what else own
        return Exercise(own.__name__, own.__module__.split("lesson_")[-1], stars, verdict, solution, mistakes, hints)

    return make
