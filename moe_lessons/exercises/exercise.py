"""An exercise: a function that the learner writes. Its check tries an answer within limits, compares it with the
solution, case by case, and says in words what differs."""

import ctypes
import html
import inspect
import io
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import ipywidgets as W
import torch
from torch import Tensor

from moe_lessons.course import progress
from moe_lessons.nn import seeded
from moe_lessons.support.show import Markdown, Source, read_parts, show_source, split_points
from moe_lessons.support.static import in_notebook, static_mode

SECONDS, LINES, WIDTH = 10.0, 5, 200  # of an answer: how long it runs, and how much is shown of what it prints
Mistakes = Sequence[tuple[Callable, str]]  # what is often written instead, and what to say about it
HINT_FILES = Path(__file__).with_name("hints").glob("*.md")  # one for each lesson
HINTS = {name: split_points(text)[1] for path in HINT_FILES for name, text in read_parts(path)}
NO_GRADIENT = (
    "no gradient gets through your function, and a model would not learn with it. Use torch on tensors all the way: no "
    "numpy, .item(), .tolist() or .detach()."
)
WORDS = {
    "right": "✔ Right",
    "wrong": "✘ Not yet",
    "raised": "✘ Your code stops",
    "stopped": "✘ Stopped",
    "not attempted": "… Not attempted yet",
}


class Check(NamedTuple):
    """The result of checking an answer. A notebook shows it with buttons for a hint and for the solution."""

    status: str  # one of `WORDS`
    message: str
    known: bool = False  # whether it is a mistake that is often made
    exercise: Any = None

    @property
    def stuck(self) -> str:
        needs_help = self.exercise and self.status in ("wrong", "not attempted") and not self.known
        return f" Stuck? {self.exercise.name}.hint()" if needs_help else ""

    def __repr__(self) -> str:
        return f"{WORDS[self.status]}. {self.message}{self.stuck}"

    def _repr_html_(self) -> str:
        return self._in_a_frame(self.message + self.stuck)

    def _in_a_frame(self, message: str) -> str:
        color = {"right": "#009E73", "not attempted": "#888888"}.get(self.status, "#D55E00")
        style = f"border-left: 4px solid {color}; padding: 2px 10px; max-width: 46em; line-height: 1.4"
        words = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(message))
        return f'<div style="{style}" role="status"><b>{WORDS[self.status]}.</b> {words}</div>'

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        if self.exercise is None or static_mode() or not in_notebook():
            return {}
        below, bar = W.Output(), W.HBox()
        for name, show in (("Hint", self.exercise.hint), ("Solution", self.exercise.solution)):
            button = W.Button(description=name, tooltip=f"Show a {name.lower()} below")
            button.on_click(lambda _, show=show: (below.set_trait("outputs", ()), below.append_display_data(show())))
            bar.children += (button,)
        view = W.VBox([W.HTML(self._in_a_frame(self.message)), bar, below])
        return view._repr_mimebundle_(**kwargs) | {"text/plain": repr(self)}


class Problem(Exception):  # with an answer
    def __init__(self, message: str, status: str = "wrong", known: bool = False):
        super().__init__(message)
        self.check = Check(status, message, known)


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
    what: str | tuple[str, ...] = ""  # the name of the result, or of each in a tuple
    axes: tuple[str, ...] = ()  # what the places of a tensor are, such as ('token', 'expert')
    read: Callable[..., Iterable[Tensor]] = lambda *parts: parts  # what is compared of the parts of a result
    then: Callable[..., None] = lambda *_: None  # gets a right result and its arguments; raises Problem
    in_place: bool = False  # whether arguments may be changed
    try_case: Callable[..., str | None] | None = None  # in the place of `compare`
    hints_seen: int = 0

    @property
    def answer_name(self) -> str:
        return self.answer.__name__

    @property
    def key(self) -> str:
        """Its key in the learner's progress, such as '05.slowdown'."""
        return f"{self.lesson}.{self.name}"

    def check(self, answer: Any = None) -> Check:
        """Try `answer`, within a time limit, and say what differs. Never raises, but where the user interrupts."""
        found = self._try(answer)
        if found.status == "not attempted":
            todo = "write it in the cell above, with a return, run it, then run this one"
            return Check(found.status, f"{self.answer_name} returns nothing: {todo}.", exercise=self)
        solved = {"status": "right"} if found.status == "right" else {}  # once solved, always solved
        progress.record("exercises", self.key, last=found.status, **solved)
        return found._replace(message=shortened(found.message, 600), exercise=self)

    def take(self, answer: Any = None) -> Callable:
        """Give `answer` where it is right, and the solution where it is not yet; print which."""
        is_own = self._try(answer).status == "right"
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

    def _try(self, answer: Any) -> Check:
        if answer is None or answer is Ellipsis:
            return Check("not attempted", "")
        if not callable(answer):
            kind = type(answer).__name__
            return Check("wrong", f"Give the function itself, {self.name}.check({self.answer_name}), not a {kind}.")
        try:
            with seeded(0), kept_short():
                return limited(lambda: self._judge(answer))
        except TimeUp:
            return Check("stopped", f"It was not done after {SECONDS:g} s: does a loop never end?")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit
            return Check("raised", f"It ends with {type(error).__name__}.")

    def _judge(self, answer: Callable) -> Check:
        cases, said = list(self.cases()), None
        for number, case in enumerate(cases):
            try:
                said = (self.try_case or self.compare)(answer, *case)
            except Problem as problem:  # a function that returned something for an earlier case was attempted
                was_attempted = number and problem.check.status == "not attempted"
                return problem.check._replace(status="wrong") if was_attempted else problem.check
            except Exception as error:
                return Check("wrong", f"Your answer cannot be read: {type(error).__name__}: {error}")
        return Check("right", said or f"All {len(cases)} cases agree.")

    def compare(self, answer: Callable, *case: Any) -> None:
        """Raise Problem where `answer` and the solution differ: the advice on a mistake that gives the same, or how."""
        names = list(inspect.signature(self.answer).parameters)
        at = "With " + ", ".join(argument(name, value) for name, value in zip(names, case) if not callable(value))
        given = copies(case)
        result = attempt(answer, *given, at=at)
        changed = [name for name, *pair in zip(names, case, given) if moved(*pair) and not self.in_place]
        values, expected = self._values(result, at), self._values(self.answer(*copies(case)))
        if all(map(agree, values, expected)):
            if changed:
                raise Problem(f"The result is right, but your function changed {changed[0]}. Work on a copy of it.")
            return self.then(result, *given)
        for mistake, advice in self.mistakes:
            try:
                is_made = all(map(agree, values, self._values(mistake(*copies(case)))))
            except Exception:  # it is no mistake that one can make in this case
                continue
            if is_made:
                raise Problem(advice, known=True)
        parts = zip([self.what] if isinstance(self.what, str) else self.what, values, expected)
        raise Problem(f"{at}, {next(difference(*part, self.axes) for part in parts if not agree(*part[1:]))}")

    def _values(self, result: Any, at: str = "") -> list[Tensor]:
        """Give each part of a result as numbers. Raises Problem where it has other parts, or one that is no number."""
        if isinstance(self.what, str):
            return list(self.read(numbers(result, self.what, at)))
        has_parts = isinstance(result, (tuple, list)) or getattr(result, "ndim", 0)  # a tensor, or of numpy
        parts = list(result) if has_parts else []
        if len(parts) != len(self.what):
            raise Problem(f"{at}, return {len(self.what)} values ({', '.join(self.what)}), not {kind_of(result)}.")
        return list(self.read(*(numbers(part, name, at) for part, name in zip(parts, self.what))))


def exercise(stars: int, solution: Callable, mistakes: Mistakes = (), what: Any = "", **options: Any) -> Callable:
    """Make an exercise of the function below, which draws its cases; its name is the exercise's, its hints in hints/.

    stars: 1 to 3. solution: the function that the learner could have written, with the name of theirs. mistakes: what
    is often written instead, and what to say about it. what, options: of `Exercise`; a check of another kind than
    comparing the results case by case is a function `try_case`."""

    def make(cases: Callable) -> Exercise:
        lesson, name = cases.__module__.split("lesson_")[-1], cases.__name__
        return Exercise(name, lesson, stars, solution, mistakes, cases, HINTS[name], what, **options)

    return make


def attempt(answer: Callable, *given: Any, at: str = "") -> Any:
    """Give what `answer`(*given) gives. Raises Problem where it stops with an error, or returns nothing."""
    try:
        result = answer(*given)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]  # without this one
        line = f", in the line '{shortened(frames[0].line, 120)}'" if frames and frames[0].line else ""
        where = f"{at}{line}: ".lstrip(", :")
        raise Problem(f"{where[:1].upper()}{where[1:]}{type(error).__name__}: {error}", "raised") from None
    if result is None or result is Ellipsis:
        raise Problem(f"{at}, your function returns nothing.", "not attempted")
    return result


def has_gradient(result: Any, source: Tensor, *_: Any) -> None:
    """Raise Problem where no gradient gets from a right result back to `source`: a model would not learn with it."""
    is_part = isinstance(result, Tensor) and result.requires_grad
    if not is_part or torch.autograd.grad(result.sum(), source, allow_unused=True)[0] is None:
        raise Problem(f"The numbers are right, but {NO_GRADIENT}")


def shortened(message: str, limit: int) -> str:
    line = " ".join(message.split())
    return line if len(line) <= limit else f"{line[:limit]} …"


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
        raise Problem(f"{at}, {what} must be numbers, not {kind_of(value)}.") from None


def agree(given: Tensor, expected: Tensor) -> bool:
    if given.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return bool((given == expected).all())
    return torch.allclose(given.double(), expected.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def difference(what: str, given: Tensor, expected: Tensor, axes: tuple[str, ...] = ()) -> str:
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


def kind_of(value: Any) -> str:
    """Name it: 'a str', or 'a Tensor of shape (4, 2)'."""
    name, size = type(value).__name__, f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    size = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else size
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}{size}"


def argument(name: str, value: Any) -> str:
    """Name an argument, a short one in full: 'x of shape (7, 4)' or 'top_k = 2'."""
    if isinstance(value, Tensor) and (value.numel() > 12 or value.ndim > 1):
        return f"{name} of shape {tuple(value.shape)}"
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, list):
        short = len(value) <= 12 and all(isinstance(item, (int, float)) for item in value)
        return f"{name} = [{', '.join(map(show, value))}]" if short else f"{len(value)} {name}"
    return f"{name} = {show(value) if isinstance(value, (int, float)) else value}"


def copies(arguments: Iterable) -> list:
    return [a.clone() if isinstance(a, Tensor) else list(a) if isinstance(a, list) else a for a in arguments]


def moved(before: Any, after: Any) -> bool:
    return not torch.equal(before, after) if isinstance(before, Tensor) else before != after


class TimeUp(BaseException):
    """The time is up: not an Exception, so that `except Exception` of an answer does not catch it."""


def limited(call: Callable[[], Any]) -> Any:
    """Return what `call`() returns, or raise what it raises; TimeUp where it is not done after `SECONDS`.

    It runs in a thread, which is told to end then. One that catches everything is left behind, where a signal in the
    main thread would leave the kernel to it, and Windows has no such signal."""
    found = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as raised:
            found.set_exception(raised)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(SECONDS)
    finally:  # also where the user interrupts
        if is_late := thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeUp))
            thread.join(1.0)
    if is_late:
        raise TimeUp
    return found.result()


class FirstLines(io.StringIO):
    def write(self, text: str) -> int:  # of an endless loop, too, no more than is shown
        return super().write(text[: LINES * WIDTH]) if self.tell() < LINES * WIDTH else len(text)


@contextmanager
def kept_short() -> Iterator[None]:
    """Print, at its end, the first lines of what is printed within it."""
    printed = FirstLines()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
    finally:
        lines = printed.getvalue().splitlines()
        for line in [*(line[:WIDTH] for line in lines[:LINES]), *["…"] * (len(lines) > LINES)]:
            print(line)
