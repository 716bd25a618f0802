"""The door of a package: what it offers refuses, in a sentence, an argument of another type than its signature says."""

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from moe_lessons.support.errors import first_line, in_words, is_number, is_whole, shown

MOST = 2**63 - 1
NAMES = {int: "a whole number below 2**63", float: "a finite number", str: "a text", bool: "True or False"}
NAMES |= {type(None): "None", type: "a class"}


def guard(names: dict[str, Any]) -> None:
    """Guard the functions and classes among the `names` of a package. A plain record takes what it is given."""
    for name, thing in list(names.items()):
        if name.startswith("_") or not str(getattr(thing, "__module__", "")).startswith(names["__name__"]):
            continue
        if inspect.isfunction(thing):
            names[name] = guarded(thing)
        elif "__init__" in vars(thing) and (hasattr(thing, "__post_init__") or not is_dataclass(thing)):
            thing.__init__ = guarded(thing.__init__)


def guarded(function: Callable) -> Callable:
    """Let a function refuse what is no such object as it wants. Numbers and texts most functions check: they are named
    where it fails without a word on any argument."""
    signature, is_late = inspect.signature(function), inspect.isgeneratorfunction(inspect.unwrap(function))

    @functools.wraps(function)
    def door(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says what is missing or unknown
        check_types(function, given, is_late)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            is_sentence = "\n" not in str(error) and len(str(error)) < 500
            is_said = is_sentence and any(re.search(rf"\b{name}\b", str(error)) for name in given)
            if not is_said or not isinstance(error, (ValueError, TypeError, OSError)):
                check_types(function, given, True)
            for name, value in given.items():
                if isinstance(error, AttributeError) and error.obj is value:
                    raise ValueError(f"{name} must have {error.name!r}, got {shown(value)}") from None
            tensors = [f"{name} ({in_words(value)})" for name, value in given.items() if isinstance(value, Tensor)]
            if tensors and not is_said and type(error) in (RuntimeError, IndexError, TypeError, ValueError):
                raise ValueError(f"{', '.join(tensors)} cannot be used here: {first_line(error)}") from error
            raise

    return door


def check_types(function: Callable, given: Mapping[str, Any], strict: bool) -> None:
    """Raise ValueError where an argument is not what the signature says; strict: also numbers, texts, what is empty."""
    for name, value in given.items():
        hint = hints_of(function).get(name, int if type(value) is int else Any)  # none is beyond what a computer can
        if not fits(value, hint, strict):
            raise ValueError(f"{name} must be {say(hint)}, got {shown(value)}") from None


@functools.cache
def hints_of(function: Callable) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    hints = {p.name: type(p.default) for p in parameters if type(p.default) in (bool, int, float, str)}
    hints |= typing.get_type_hints(inspect.unwrap(function))
    return {p.name: hints[p.name] for p in parameters if p.name in hints and not p.kind.name.startswith("VAR")}


def fits(value: Any, hint: Any, strict: bool) -> bool:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, part, strict) for part in parts)
    if kind is type:
        return inspect.isclass(value) and issubclass(value, parts[0])
    if not inspect.isclass(kind) or kind is Any:
        return True
    if isinstance(value, Tensor) and (value.is_nested or (strict and (value.is_sparse or value.is_meta))):
        return False
    if kind in (int, float, str):
        right = {int: is_whole(value, -MOST, MOST), float: is_number(value), str: isinstance(value, str)}[kind]
        return right or not (strict or (is_whole(value, -math.inf) and not is_number(value)))
    if kind in (Sequence, list, tuple, Iterable):  # arrays, too
        if isinstance(value, (str, Iterator)):  # some take a single name; to read an iterator would use it up
            return not strict and (not isinstance(value, str) or parts == (str,))
        is_one = hasattr(value, "__iter__") and not isinstance(value, Mapping)
        if not is_one or (kind is not Iterable and not hasattr(value, "__getitem__")):
            return False
        hints = (parts or (Any,))[:1] * len(value) if kind is not tuple or ... in parts else parts
        each = [fits(one, own, strict or own is str) for one, own in zip(value, hints)]
        return len(hints) == len(value) and all(each) and (bool(each) or not strict)
    if issubclass(kind, nn.Module) and not strict:  # a learner's own
        return isinstance(value, nn.Module)
    return isinstance(value, kind) and (kind is not Mapping or all(fits(v, parts[1], strict) for v in value.values()))


def say(hint: Any) -> str:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(map(say, parts))
    if kind in (list, tuple, Sequence, Iterable) and parts:
        return f"a sequence, each of it {say(parts[0])}"
    return NAMES.get(kind) or f"a {getattr(kind, '__name__', kind)}"
