"""Option values as people write them (Python objects, YAML, command line text) into what the annotations say."""

from __future__ import annotations

import math
import os
import re
import types
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from stmae import durations, mirror
from stmae.errors import Problems, UserError, did_you_mean
from stmae.runs import read_config

if TYPE_CHECKING:
    AutoInt = Any  # a whole number once everything is settled
else:

    class AutoInt:
        """The annotation of a whole number that may also be given as "auto"."""


def shown(value: object) -> str:
    """A value as it appears in a message: text in quotes, anything long by its type."""
    text = f'"{value}"' if isinstance(value, str | Path) else repr(value)
    return text if len(text) <= 120 else f"a {type(value).__name__}"


def unwrapped(hint: Any) -> Any:
    """The annotation without `Annotated` and without `| None`."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        assert len(members) == 1, f"options are of one type, or of one type or None: {hint}"
        return unwrapped(members[0])
    return hint


def optional(hint: Any) -> bool:
    """Whether the annotation allows None."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def coerce(name: str, value: Any, hint: Any) -> Any:
    """The value as its annotation has it: lists become tuples, str becomes Path, int becomes float; nothing is guessed.

    Args:
        name: the option's name, for messages.
        value: what was given.
        hint: Any, bool, int, float, str, Path, a Duration, a whole number or "auto", a Literal,
            a tuple of these, or one of these or None.

    Raises:
        UserError: the value is of another type; says which, and what is wanted.
    """
    if value is None and optional(hint):
        return None
    hint = unwrapped(hint)
    if hint is Any:
        return value
    if get_origin(hint) is Literal:
        return _choice(name, value, get_args(hint))
    if get_origin(hint) is tuple:
        return _tuple(name, value, get_args(hint))
    if hint in (int, float):
        return _number(name, value, hint)
    if hint is AutoInt:
        return value if value == "auto" else _number(name, from_text(value, int), int)
    if hint is durations.Duration:
        return durations.read(name, value)
    if hint is mirror.Place:
        return mirror.place(name, value)
    if hint is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name} {shown(value)} is neither true nor false.")
        return value
    assert hint in (str, Path), f"{name}: no rule for {hint}"
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} {shown(value)} is not {'text' if hint is str else 'a path'}.", "Put it in quotes.")
    if hint is str:
        return os.fspath(value)
    if mirror.is_url(value):
        raise UserError(f"{name} {shown(value)} is an address; this one is a path on this machine.", "Give a path.")
    return Path(os.path.expanduser(value)) if value != "" else _empty(name)


def _empty(name: str) -> None:
    raise UserError(f"{name} is empty.", "Give a path.")


def _choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if value in choices:
        return value
    known = [str(choice) for choice in choices]
    raise UserError(f"{name} {shown(value)} is not one of {', '.join(known)}.", did_you_mean(str(value), known))


def _tuple(name: str, value: Any, members: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        count = "several values" if members[-1] is ... else f"{len(members)} values"
        raise UserError(f"{name} {shown(value)} is a single value.", f"Give {count} in brackets.")
    values = tuple(value)
    if members[-1] is ...:
        members = members[:1] * len(values)
    if len(values) != len(members):
        raise UserError(f"{name} {shown(values)} has {len(values)} values.", f"Give {len(members)}.")
    return tuple(coerce(name, each, hint) for each, hint in zip(values, members, strict=True))


def _number(name: str, value: Any, kind: type) -> int | float:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        quoted = isinstance(value, str) and not isinstance(from_text(value, kind), str)
        raise UserError(
            f"{name} {shown(value)} is {'text, ' if quoted else ''}not {wanted}.", "Leave the quotes out." * quoted
        )
    if not math.isfinite(value):
        raise UserError(f"{name} {value} is not a finite number.")
    number: int | float = kind(value)
    return number


def named_numbers(name: str, texts: Iterable[str]) -> dict[str, float]:
    """("decoder=0.5", ...) as {"decoder": 0.5, ...}.

    Raises:
        UserError: a text of another form, a negative number, or a name given twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        key, _, number = text.partition("=")
        value = from_text(number, float)
        if not key or isinstance(value, str) or not 0 <= value < math.inf:
            raise UserError(f'{name} "{text}" is no name=number, with a number of 0 or more.', "Such as decoder=0.5.")
        if key in found:
            raise UserError(f'{name} has "{key}" twice.', "Give it once.")
        found[key] = value
    return found


def from_text(text: Any, hint: Any) -> Any:
    """Command line text as a number, None or a tuple of them where the annotation asks for one; else as it is.

    Text that is not what the annotation asks for is left alone: `coerce` then says what is wrong with it.
    """
    if isinstance(text, tuple):
        members = get_args(unwrapped(hint))
        return tuple(from_text(each, members[0 if members[-1] is ... else i]) for i, each in enumerate(text))
    if optional(hint) and str(text).lower() in ("none", "null"):
        return None
    if unwrapped(hint) in (int, float):
        try:
            return unwrapped(hint)(text)
        except ValueError:
            return text
    return text


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The options in a YAML file, without the `derived` values a run adds to its own and the file it came from itself.

    Raises:
        UserError: no such file, not YAML, or something else than options with values.
    """
    if not path.is_file():
        raise UserError(f'config "{path}" is no file.', "Give a YAML file of options, such as a run's config.yaml.")
    return {name: value for name, value in read_config(path).items() if name not in ("derived", "config")}


def coerce_all(
    given: Mapping[str, Any], hints: Mapping[str, Any], problems: Problems, where: str = ""
) -> dict[str, Any]:
    """The given values as their annotations have them; what is unknown or of a wrong type goes to `problems`."""
    values = {}
    for name, value in given.items():
        if name not in hints:
            problems.add(f'unknown option "{name}"{where}.', did_you_mean(name, hints))
            continue
        try:
            values[name] = coerce(name, value, hints[name])
        except UserError as error:
            problems.extend(error)
    return values


def size_in_bytes(text: str) -> int:
    """`256MB`, `1.5 GB` or `4GiB` as a number of bytes; without a unit it is bytes.

    Raises:
        UserError: it is no size above 0.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt]?)(i?)b?\s*", str(text), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UserError(f'"{text}" is no size.', "Write it such as 256MB, 1.5GB or 4GiB.")
    power = " kmgt".index(found[2].lower() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
