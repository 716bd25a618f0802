"""An exercise: a function that the learner writes. Its check compares an answer with the solution, case by case, and
says in words what differs."""

import html
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import ipywidgets as W
import torch
from torch import Tensor

from moe_lessons.nn import seeded
from moe_lessons.support import progress
from moe_lessons.support.errors import shown
from moe_lessons.support.keeper import Keeper
from moe_lessons.support.show import Markdown, Source, read_parts, show_source, split_points
from moe_lessons.support.static import in_notebook, static_mode

Mistakes = Sequence[tuple[Callable, str]]  # what is often written instead, and what to say about it
HINT_FILES = Path(__file__).with_name("hints").glob("*.md")  # one for each lesson
HINTS = {name: split_points(text)[1] for path in HINT_FILES for name, text in read_parts(path)}
NO_GRADIENT = (
    "no gradient gets through your function, and a model would not learn with it. Use torch on tensors all the way: no "
    "numpy, .item(), .tolist() or .detach()."
)
SAID_OF = {
    "right": "✔ Right",
    "wrong": "✘ Not yet",
    "raised": "✘ Your code stops",
    "not attempted": "… Not attempted yet",
}
COLOR_OF = {"right": "#009E73", "wrong": "#D55E00", "raised": "#D55E00", "not attempted": "#888888"}


class Check(NamedTuple):
    """The result of checking an answer. A notebook shows it with buttons for a hint and for the solution."""

    status: str  # one of `SAID_OF`
    message: str
    exercise: "Exercise"

    def __repr__(self) -> str:
        return f"{SAID_OF[self.status]}. {self.message}"

    def _repr_html_(self) -> str:
        style = f"border-left: 4px solid {COLOR_OF[self.status]}; padding: 2px 10px; max-width: 46em; line-height: 1.4"
        words = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(self.message))
        return f'<div style="{style}" role="status"><b>{SAID_OF[self.status]}.</b> {words}</div>'

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        if static_mode() or not in_notebook():
            return {}
        below, bar = W.Output(), W.HBox().add_class("moe-bar")
        for name, show in (("Hint", self.exercise.hint), ("Solution", self.exercise.solution)):
            button = W.Button(description=name, tooltip=f"Show a {name.lower()} below")
            button.on_click(lambda _, show=show: (below.set_trait("outputs", ()), below.append_display_data(show())))
            bar.children += (button,)
        words = self._replace(message=self.message.removesuffix(self.exercise.stuck))  # there is a button
        view = W.VBox([W.HTML(words._repr_html_()), bar, below, Keeper()]).add_class("moe-view").add_class("moe-plain")
        return view._repr_mimebundle_(**kwargs) | {"text/plain": repr(self)}


class Problem(Exception):  # with an answer
    def __init__(self, message: str, status: str = "wrong"):
        super().__init__(message)
        self.status = status


@dataclass(eq=False)
class Exercise:
    """A function that the learner writes: `check` it, ask for a `hint`, see a `solution`."""

    name: str  # of the variable that holds the exercise, too
    lesson: str
    stars: int
    answer: Callable  # the solution: gives a number, a tensor, or a tuple of these
    mistakes: Mistakes
    cases: Callable[[], Iterable[tuple]]  # draws the arguments, the general ones first
    hints: Sequence[str]
    what: tuple[str, ...] = ()  # the names of the results
    axes: tuple[str, ...] = ()  # what the places of a tensor are, such as ('token', 'expert')
    then: Callable[..., None] = lambda *_: None  # gets a right result and its arguments; raises Problem
    try_case: Callable[..., str | None] | None = None  # in the place of `compare`
    hints_seen: int = 0
    solution_taken: bool = False  # in the place of the learner's

    @property
    def answer_name(self) -> str:
        return self.answer.__name__

    @property
    def key(self) -> str:
        """Its key in the learner's progress, such as '08.new_bias'."""
        return f"{self.lesson}.{self.name}"

    @property
    def stuck(self) -> str:
        return f" Stuck? {self.name}.hint()"

    def check(self, answer: Any = None) -> Check:
        """Try `answer` and say what differs. Never raises."""
        status, message = self._try(answer)
        solved = {"status": "right"} if status == "right" else {}  # once solved, always solved
        if status != "not attempted":
            progress.record("exercises", self.key, last=status, **solved)
        more = "" if solved else self.stuck
        if solved and self.solution_taken:
            more = f" Run the cell with `{self.name}.take` again, and those below it: they then use yours."
        return Check(status, shorten(message, 600, placeholder=" …") + more, self)

    def take(self, answer: Any = None) -> Callable:
        """Give `answer` where it is right, and the solution where it is not yet; print which."""
        is_own = self._try(answer)[0] == "right"
        self.solution_taken = not is_own
        print(f"{self.answer_name}: {'yours' if is_own else 'the solution, until yours passes its check'}")
        return answer if is_own else self.answer

    def hint(self) -> Markdown:
        """Give the next hint; after the last one, the last again."""
        number = self.hints_seen = min(self.hints_seen + 1, len(self.hints))
        more = "" if number < len(self.hints) else f" (The last hint. Next is {self.name}.solution().)"
        return Markdown(f"Hint {number} of {len(self.hints)}: {self.hints[number - 1]}{more}")

    def solution(self) -> Source:
        """Show a function that is right, to be read or pasted."""
        return show_source(self.answer)

    def __repr__(self) -> str:
        calls = f"{self.name}.check({self.answer_name}), {self.name}.hint(), {self.name}.solution()"
        return f"{self.lesson} {'★' * self.stars} {calls}"

    def _try(self, answer: Any) -> tuple[str, str]:
        """Give the status of an answer, and what to say of it."""
        todo = "write it in the cell above, with a return, run it, then run this one"
        nothing = f"{self.answer_name} returns nothing: {todo}."
        if answer is None or answer is Ellipsis:
            return "not attempted", nothing
        if not callable(answer):
            call = f"{self.name}.check({self.answer_name})"
            return "wrong", f"Give the function itself, {call}, not {shown(answer)}."
        with seeded(0):
            cases, said = list(self.cases()), None
            for case in cases:
                try:
                    said = (self.try_case or self.compare)(answer, *case)
                except Problem as problem:
                    return problem.status, str(problem) or nothing
                except KeyboardInterrupt:
                    return "raised", "You interrupted it."
                except BaseException as error:
                    return "wrong", f"Your answer cannot be read: {type(error).__name__}: {error}"
        return "right", said or f"All {len(cases)} cases agree."

    def compare(self, answer: Callable, *case: Any) -> None:
        """Raise Problem where `answer` and the solution differ: the advice on a mistake that gives the same, or how."""
        names = list(inspect.signature(self.answer).parameters)
        at = "With " + ", ".join(argument(name, value) for name, value in zip(names, case) if not callable(value))
        given = copies_of(case)  # an answer may change them
        result = attempt(answer, *given, at=at)
        values, expected = self._values(result, at), self._values(self.answer(*copies_of(case)))
        if all(map(agree, values, expected)):
            return self.then(result, *given)
        for mistake, advice in self.mistakes:
            try:
                is_made = all(map(agree, values, self._values(mistake(*copies_of(case)))))
            except Exception:  # it is no mistake that one can make in this case
                continue
            if is_made:
                raise Problem(advice)
        parts = zip(self.what, values, expected)
        raise Problem(f"{at}, {next(say_difference(*part, self.axes) for part in parts if not agree(*part[1:]))}")

    def _values(self, result: Any, at: str = "") -> list[Tensor]:
        """Give each part of a result as numbers. Raises Problem where it has other parts, or one that is no number."""
        try:
            parts = [result] if len(self.what) == 1 else list(result)
        except TypeError:
            parts = []
        if len(parts) != len(self.what):
            raise Problem(f"{at}, return {len(self.what)} values ({', '.join(self.what)}), not {shown(result)}.")
        return [numbers(part, name, at) for part, name in zip(parts, self.what)]


def exercise(stars: int, solution: Callable, mistakes: Mistakes = (), what: Any = "", **options: Any) -> Callable:
    """Make an exercise of the function below, which draws its cases; its name is the exercise's, its hints in hints/.

    stars: 1 to 3. solution: the function that the learner could have written, with the name of theirs. mistakes: what
    is often written instead, and what to say about it. what, options: of `Exercise`; a check of another kind than
    comparing the results case by case is a function `try_case`."""

    def make(cases: Callable) -> Exercise:
        lesson, name = cases.__module__.split("lesson_")[-1], cases.__name__
        parts = (what,) if isinstance(what, str) else what
        return Exercise(name, lesson, stars, solution, mistakes, cases, HINTS[name], parts, **options)

    return make


def attempt(answer: Callable, *given: Any, at: str = "") -> Any:
    """Give what `answer`(*given) gives. Raises Problem where it stops with an error, or returns nothing."""
    try:
        result = answer(*given)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]  # without this one
        line = f", in the line '{shorten(frames[0].line, 120)}'" if frames and frames[0].line else ""
        where = f"{at}{line}: ".lstrip(", :")
        raise Problem(f"{where[:1].upper()}{where[1:]}{type(error).__name__}: {error}", "raised") from None
    if result is None or result is Ellipsis:
        raise Problem("", "not attempted")
    return result


def has_gradient(result: Any, source: Tensor, *_: Any) -> None:
    """Raise Problem where no gradient gets from a right result back to `source`: a model would not learn with it."""
    is_part = isinstance(result, Tensor) and result.requires_grad
    if not is_part or torch.autograd.grad(result.sum(), source, allow_unused=True)[0] is None:
        raise Problem(f"The numbers are right, but {NO_GRADIENT}")


def numbers(value: Any, what: str, at: str) -> Tensor:
    """Read in float64 or whole numbers, on the CPU, without a gradient. Raises Problem where these are no numbers."""
    try:
        if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
            value = torch.stack([torch.as_tensor(part) for part in value])
        read = torch.as_tensor(value).detach().cpu()
        if read.is_complex():
            raise TypeError
        return read.double() if read.is_floating_point() else read.long()
    except Exception:
        raise Problem(f"{at}, {what} must be numbers, not {shown(value)}.") from None


def agree(given: Tensor, expected: Tensor) -> bool:
    if given.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return bool((given == expected).all())
    return torch.allclose(given.double(), expected.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def say_difference(what: str, given: Tensor, expected: Tensor, axes: tuple[str, ...] = ()) -> str:
    """Say what differs: the shape, or where most and by how much."""
    if given.shape != expected.shape:
        return f"{what} must be {size(expected)}, not {size(given)}."
    if not expected.ndim:
        return f"{what} is {show(expected)}, yours is {show(given)}."
    off = (given.double() - expected.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    off[(given == expected) | (given.isnan() & expected.isnan())] = 0
    place = (off == off.max()).nonzero()[0].tolist()  # torch.unravel_index would load sympy first, for seconds
    where = " and ".join(f"{axis} {i}" for axis, i in zip(axes or ["place"] * len(place), place))
    by = f", off by {show(off.max())}" if off.max().isfinite() and expected.is_floating_point() else ""
    wrong = f"{int((off > 1e-5).sum())} of {off.numel()} numbers differ"
    one, other = show(expected[tuple(place)]), show(given[tuple(place)])
    return f"{what}: {wrong}, most for {where}: {one} is right, yours is {other}{by}."


def size(x: Tensor) -> str:
    return "one number" if not x.ndim else f"{len(x)} numbers" if x.ndim == 1 else f"of shape {tuple(x.shape)}"


def show(number: float | Tensor) -> str:
    """Write a number as a reader does, whole ones in full: 1,520 and 0.6667."""
    number = number.item() if isinstance(number, Tensor) else number
    return f"{int(number):,}" if float(number).is_integer() else f"{number:.4g}"


def argument(name: str, value: Any) -> str:
    """Name an argument, a short one in full: 'x of shape (7, 4)' or 'top_k = 2'."""
    if isinstance(value, Tensor) and (value.numel() > 12 or value.ndim > 1):
        return f"{name} of shape {tuple(value.shape)}"
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, list):
        short = len(value) <= 12 and all(isinstance(item, (int, float)) for item in value)
        return f"{name} = [{', '.join(map(show, value))}]" if short else f"{len(value)} {name}"
    return f"{name} = {show(value) if isinstance(value, (int, float)) else value}"


def copies_of(arguments: Iterable) -> list:
    return [a.clone() if isinstance(a, Tensor) else list(a) if isinstance(a, list) else a for a in arguments]
