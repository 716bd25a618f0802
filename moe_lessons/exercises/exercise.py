"""An exercise: a function that the learner writes. Its check tries an answer within limits, compares it with the
solution, case by case, and says in words whatever it does."""

import ctypes
import html
import inspect
import io
import re
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as W
import torch
from torch import Tensor

from moe_lessons.course import progress
from moe_lessons.nn import seeded
from moe_lessons.support.show import Markdown, Source, read_parts, show_source, split_points
from moe_lessons.support.static import in_notebook, static_mode

SECONDS, LINES, WIDTH = 10.0, 5, 200  # of an answer: how long it runs, and how much is shown of what it prints
Mistakes = Mapping[Callable, str]  # what is often written instead, and what to say about it
HINT_FILES = Path(__file__).with_name("hints").glob("*.md")  # one for each lesson
HINTS = {name: split_points(text)[1] for path in HINT_FILES for name, text in read_parts(path)}
NOT_THEIRS = str(Path(__file__).parent), str(Path(traceback.__file__).parent), "site-packages"  # no code of the learner
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
    """What became of an answer to an exercise. `status`: one of `WORDS`; known: whether it is a mistake that is often
    made. A notebook shows it with buttons for a hint and for the solution."""

    status: str
    message: str
    known: bool = False
    exercise: Any = None

    def __repr__(self) -> str:
        return f"{WORDS[self.status]}. {self.message}"

    def _repr_html_(self) -> str:
        color = {"right": "#009E73", "not attempted": "#888888"}.get(self.status, "#D55E00")
        style = f"border-left: 4px solid {color}; padding: 2px 10px; max-width: 46em; line-height: 1.4"
        words = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(self.message))
        return f'<div style="{style}" role="status"><b>{WORDS[self.status]}.</b> {words}</div>'

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        if self.exercise is None or static_mode() or not in_notebook():
            return {}
        below, bar = W.Output(), W.HBox()
        for name, show in (("Hint", self.exercise.hint), ("Solution", self.exercise.solution)):
            button = W.Button(description=name, tooltip=f"Show a {name.lower()} below")
            button.on_click(lambda _, show=show: (below.set_trait("outputs", ()), below.append_display_data(show())))
            bar.children += (button,)
        view = W.VBox([W.HTML(re.sub(r" Stuck\? \S+\(\)", "", self._repr_html_())), bar, below])  # a button is there
        return view._repr_mimebundle_(**kwargs) | {"text/plain": repr(self)}


class Problem(Exception):  # with an answer
    def __init__(self, message: str, status: str = "wrong", known: bool = False):
        self.check = Check(status, message, known)


@dataclass(frozen=True)
class Comparison:
    """A check that compares an answer with `solution`, case by case, and recognises `mistakes`."""

    solution: Callable  # gives a number, a tensor, or a tuple of these; its arguments' names stand in sentences
    what: str | tuple[str, ...]  # the name of the result, or of each in a tuple
    cases: Callable[[], Iterable[tuple]]  # makes the arguments, the general ones first, under a seed
    mistakes: Mistakes
    axes: tuple[str, ...] = ()  # what the places of a tensor are, such as ('token', 'expert')
    read: Callable[..., Iterable[Tensor]] = lambda *parts: parts  # what is compared of the parts of a result
    then: Callable[..., None] | None = None  # gets a right result and its arguments; raises Problem
    in_place: bool = False  # whether arguments may be changed

    def __call__(self, answer: Callable) -> Check:
        with seeded(0):
            cases = list(self.cases())
        return judge(((case,) for case in cases), partial(self._try, answer), f"All {len(cases)} cases agree.")

    def _try(self, answer: Callable, case: tuple) -> None:
        names = list(inspect.signature(self.solution).parameters)
        at = "With " + ", ".join(argument(name, value) for name, value in zip(names, case) if not callable(value))
        given = copies(case)
        result = attempt(partial(answer, *given), at)
        changed = [name for name, *pair in zip(names, case, given) if moved(*pair) and not self.in_place]
        wanted = self.solution(*copies(case))
        expected = self._values(wanted)
        values = self._values(result, at)
        if all(map(agree, values, expected)):
            if changed:
                raise Problem(f"The result is right, but your function changed {changed[0]}. Work on a copy of it.")
            return self.then and self.then(result, *given)
        for mistake, advice in self.mistakes.items():
            if self._is(mistake, case, values):
                raise Problem(advice, known=True)
        also = f" Your function also changed {changed[0]}: work on a copy." if changed else ""
        names = [self.what] if isinstance(self.what, str) else self.what
        name, *pair = next(part for part in zip(names, values, expected) if not agree(*part[1:]))
        raise Problem(f"{at}, {difference(name, *pair, self.axes, isinstance(wanted, list))}{also}")

    def _is(self, mistake: Callable, case: tuple, values: list[Tensor]) -> bool:
        try:
            return all(map(agree, values, self._values(mistake(*copies(case)))))
        except Exception:  # what is no mistake that one can make in this case
            return False

    def _values(self, result: Any, at: str = "") -> list[Tensor]:
        """Give each part of a result as numbers. Raises Problem where it has other parts, or one that is no number."""
        if isinstance(self.what, str):
            return list(self.read(numbers(result, self.what, at)))
        has_parts = isinstance(result, (tuple, list)) or getattr(result, "ndim", 0)  # a tensor, or of numpy
        parts = list(result) if has_parts else []
        if len(parts) != len(self.what):
            raise Problem(f"{at}, return {len(self.what)} values ({', '.join(self.what)}), not {kind_of(result)}.")
        return list(self.read(*(numbers(part, name, at) for part, name in zip(parts, self.what))))


def judge(cases: Iterable, try_case: Callable, right: str, unreadable: str = "Your answer cannot be read") -> Check:
    """Call `try_case`(*case) for each case until one raises; where none does, say `right`. Never raises."""
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
    """Give what `call`() of an answer gives. Raises Problem where it stops with an error, or returns nothing."""
    try:
        given = call()
    except Problem:
        raise
    except Exception as error:
        if "numpy() on Tensor that requires grad" in str(error):
            raise Problem(f"With numpy {NO_GRADIENT}") from None
        frames = traceback.extract_tb(error.__traceback__)
        frames = [frame for frame in frames if not any(part in frame.filename for part in NOT_THEIRS)]
        line = f", in the line '{shortened(frames[0].line, 120)}'" if frames and frames[0].line else ""
        where = f"{at}{line}: ".lstrip(", :")
        raise Problem(f"{where[:1].upper()}{where[1:]}{type(error).__name__}: {error}", "raised") from None
    if is_nothing(given):
        raise Problem(f"{at}, your function returns nothing.", "not attempted")
    return given


def has_gradient(result: Any, source: Tensor) -> None:
    """Raise Problem where no gradient gets from a right result back to `source`: a model would not learn with it."""
    is_part = isinstance(result, Tensor) and result.requires_grad
    if not is_part or torch.autograd.grad(result.sum(), source, allow_unused=True)[0] is None:
        raise Problem(f"The numbers are right, but {NO_GRADIENT}")


def is_nothing(value: Any) -> bool:
    return value is None or value is Ellipsis  # a body that is still `...`


def shortened(message: str, limit: int = 600) -> str:
    line = " ".join(message.split())
    return line if len(line) <= limit else f"{line[:limit]} …"


def numbers(value: Any, what: str, at: str) -> Tensor:
    """Read in float64 or whole numbers, on the CPU, without a gradient. Raises Problem where these are no numbers."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, Tensor) and part.is_meta for part in parts):
        raise Problem(f"{at}, {what} must not be on the device meta: there tensors have a shape and no numbers.")
    try:
        if parts is value and any(isinstance(part, Tensor) for part in parts):
            value = torch.stack([torch.as_tensor(part) for part in value])
        value = torch.as_tensor(value).detach().cpu()
    except Exception:
        other = [part for part in parts if part is not value and not isinstance(part, (int, float, Tensor))]
        within = f" with {kind_of(other[0])} in it" if other else ""
        raise Problem(f"{at}, {what} must be numbers, not {kind_of(value)}{within}.") from None
    if value.is_complex():
        raise Problem(f"{at}, {what} must be real numbers, not complex ones.")
    return value.double() if value.is_floating_point() else value.long()


def agree(given: Tensor, expected: Tensor) -> bool:
    if given.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return bool((given == expected).all())
    return torch.allclose(given.double(), expected.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def difference(what: str, given: Tensor, expected: Tensor, axes: tuple[str, ...] = (), is_list: bool = False) -> str:
    """Say what differs: the shape, or where most and by how much. is_list: in plain Python, which has no shapes."""
    if given.shape != expected.shape:
        kind = "a list of {1} numbers" if is_list and given.ndim == expected.ndim == 1 else "of shape {0}"
        parts = [(tuple(x.shape), len(x)) if x.ndim else () for x in (expected, given)]
        asked, got = (kind.format(*part) if part else "one number" for part in parts)
        return f"{what} must be {asked}, not {got}."
    if not expected.ndim:
        return f"{what} is {show(expected)}, yours is {show(given)}."
    off = (given.double() - expected.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    off[(given == expected) | (given.isnan() & expected.isnan())] = 0
    place = (off == off.max()).nonzero()[0].tolist()  # torch.unravel_index would load sympy first, for seconds
    named = zip(axes or ["place"] * len(place), place)
    one, other = expected[tuple(place)], given[tuple(place)]
    by = f", off by {show(off.max())}" if off.max().isfinite() and expected.is_floating_point() else ""
    where = " and ".join(f"{axis} {i}" for axis, i in named)
    wrong = f"{int((off > 1e-5).sum())} of {off.numel()} numbers differ"
    return f"{what}: {wrong}, most for {where}: {show(one)} is right, yours is {show(other)}{by}."


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
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{name} = {show(value) if is_number else value}"


def copies(arguments: tuple) -> list:
    return [a.clone() if isinstance(a, Tensor) else list(a) if isinstance(a, list) else a for a in arguments]


def moved(before: Any, after: Any) -> bool:
    return not torch.equal(before, after) if isinstance(before, Tensor) else before != after


class TimeUp(BaseException):
    """The time is up: not an Exception, so that `except Exception` of an answer does not catch it."""


def limited(call: Callable[[], Any]) -> Any:
    """Give what `call`() gives or raises; after `SECONDS` interrupt its thread, or leave it, and raise TimeUp."""
    found = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as raised:
            found.set_exception(raised)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(SECONDS)
    finally:  # also where the user interrupts
        in_time = not thread.is_alive()
        for _ in range(0 if in_time else 50):  # again, since a bare `except:` catches it
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeUp))
            thread.join(0.02)
            if not thread.is_alive():
                break
    if not in_time:
        raise TimeUp
    return found.result()


class FirstLines(io.StringIO):
    num_lines = 0

    def write(self, text: str) -> int:
        self.num_lines += text.count("\n")
        return super().write(text[: LINES * WIDTH]) if self.tell() < LINES * WIDTH else len(text)


@contextmanager
def kept_short() -> Iterator[None]:
    """Print, at its end, the first lines of what is printed within it."""
    printed = FirstLines()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
    finally:
        shown = [line[:WIDTH] for line in printed.getvalue().splitlines()[:LINES]]
        more = printed.num_lines - len(shown)
        if shown:
            print(*shown, *[f"… and {more:,} more lines"] * (more > 0), sep="\n")


@dataclass(eq=False)
class Exercise:
    """A function that the learner writes: `check` it, ask for a `hint`, see a `solution`."""

    name: str  # of the variable that holds the exercise, too
    lesson: str
    stars: int
    verdict: Callable[[Any], Check]  # on an answer; most are a `Comparison`
    answer: Callable  # the solution
    mistakes: Mistakes
    hints: list[str]
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
        return found._replace(message=shortened(found.message) + stuck, exercise=self)

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
            with seeded(0), kept_short():
                return limited(partial(self.verdict, answer))
        except TimeUp:
            return Check("stopped", f"It was not done after {SECONDS:g} s: does a loop never end?")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit
            return Check("raised", f"It ends with {type(error).__name__}.")

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
        """Show a function that is right, to be read or pasted; the progress notes that it was seen."""
        progress.record("exercises", self.key, solution_seen=True)
        return show_source(self.answer)

    def __repr__(self) -> str:
        calls = f"{self.name}.check({self.answer_name}), {self.name}.hint(), {self.name}.solution()"
        return f"{self.lesson} {'★' * self.stars} {calls}"


def exercise(stars: int, solution: Callable, mistakes: Mistakes, what: Any = None, **options: Any) -> Callable:
    """Make an exercise of the function that stands below, whose name is the exercise's; its hints are in hints/NN.md.

    stars: 1 to 3. solution: the function that the learner could have written, with the name of theirs. mistakes: what
    is often written instead, and what to say about it. The function below draws the cases for a `Comparison` of answer
    and solution, which takes `what` and the options, too; where `what` is None it is itself the check: answer -> Check.
    """

    def make(own: Callable) -> Exercise:
        verdict = Comparison(solution, what, own, mistakes, **options) if what else own
        lesson, name = own.__module__.split("lesson_")[-1], own.__name__
        return Exercise(name, lesson, stars, verdict, solution, mistakes, HINTS[name])

    return make
