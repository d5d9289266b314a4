"""A task is one typed function of its options; `task` makes it callable with the options as keywords.

    @task(EmbedOptions)
    def embed(options: EmbedOptions) -> Path: ...

    embed("videos/", model="runs/first", out="features.parquet")

Calling it gathers every mistake in the keywords and raises them as one `UserError`, before anything heavy is
imported or begun. Where the options have `preset` and `config`, values come from the defaults, the preset, the
YAML file and the keywords, later ones before earlier ones. The preset depends on facts that only the task can
find (how many videos, which device), so the task asks for it when it has them:

    @task(PretrainOptions)
    def pretrain(options: PretrainOptions) -> Run:
        options = resolve(options, Facts(videos=len(index), device=device.type))
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints

from stmae.errors import Problems, UserError
from stmae.presets import Facts
from stmae.tasks.checks import check
from stmae.tasks.options import Options
from stmae.tasks.values import coerce, coerce_all, read_yaml

P = ParamSpec("P")
O = TypeVar("O", bound=Options)
R = TypeVar("R")


def task(make: Callable[P, O]) -> Callable[[Callable[[O], R]], Callable[P, R]]:
    """Decorator: a function of an options object becomes a function of the options' keywords.

    Args:
        make: the options class. Its fields are the keywords; those that are not keyword-only may be given by position.

    The function that results raises `UserError` with all mistakes at once. Its signature and documentation are
    those of the options.
    """
    cls = cast(type[O], make)

    def decorate(body: Callable[[O], R]) -> Callable[P, R]:
        @functools.wraps(body)
        def call(*args: P.args, **keywords: P.kwargs) -> R:
            return body(bind(cls, args, keywords))

        call.__doc__ = _documentation(cls, inspect.getdoc(body))
        call.__signature__ = _signature(cls, body)  # type: ignore[attr-defined]
        return call

    return decorate


def bind(cls: type[O], args: Sequence[Any], keywords: Mapping[str, Any]) -> O:
    """The options from what a caller gave and from the `config` file named there, checked as far as can be.

    Raises:
        UserError: with all unknown, missing and wrongly typed options; where there are none of these, with all
            values that cannot work.
    """
    problems = Problems()
    hints = _hints(cls)  # type: ignore[arg-type]
    positional = [field.name for field in _fields(cls) if not field.kw_only]
    problems.check(
        len(args) <= len(positional),
        f"{len(args)} values without a name, where at most {len(positional)} can be.",
        "Name the others: option=value.",
    )
    named = dict(zip(positional, args, strict=False))
    for name in named.keys() & keywords.keys():
        problems.add(f"{name} is given twice.", "Give it once.")
    values = coerce_all({**named, **keywords}, hints, problems)
    if values.get("config") is not None:
        values = {**_from_file(values["config"], hints, problems), **values}
    tried = {*named, *keywords, *values}
    for field in _fields(cls):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in tried:
            problems.add(f"{field.name} is missing.", f"Give {field.name}: {_lower(field_docs(cls)[field.name])}")
    problems.raise_any()
    options = cls(**values)
    _check_early(options)
    return options


def resolve(options: O, facts: Facts) -> O:
    """The options with everything that was not given filled in from the preset they name.

    Raises:
        UserError: the options that result cannot work; all reasons at once.
    """
    preset = type(options).presets[getattr(options, "preset")](facts)  # noqa: B009 (only some options have one)
    hints = _hints(type(options))  # type: ignore[arg-type]
    filled = {name: coerce(name, value, hints[name]) for name, value in preset.items()}
    resolved = type(options)(**{**filled, **options.given})
    check(resolved)
    return resolved


def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of an options class and its bases, by field name; empty where the source is away."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except OSError:
            continue
        body = cast(ast.ClassDef, tree.body[0]).body
        for statement, after in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    docs[statement.target.id] = " ".join(text.value.split())
    return {field.name: docs.get(field.name, "") for field in _fields(cls)}


def _check_early(options: Options) -> None:
    """Raises what is wrong whatever the machine; what is wrong on some machines only is left to `resolve`."""
    if getattr(options, "preset", None) not in options.presets:
        check(options)
        return
    outcomes = []
    for device in ("cpu", "cuda"):
        try:
            resolve(options, options.facts(1000, device))
            return
        except UserError as error:
            outcomes.append(error.problems)
    common = Problems()
    for problem in outcomes[0]:
        if problem in outcomes[1]:
            common.add(*problem)
    common.raise_any()


def _from_file(path: Path, hints: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    try:
        return coerce_all(read_yaml(path), hints, problems, where=f' in "{path}"')
    except UserError as error:
        problems.extend(error)
        return {}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotations of an options class's fields."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in _fields(cls)}


def _fields(cls: type) -> tuple[Field[Any], ...]:
    return fields(cls)


def _signature(cls: type, body: Callable[..., Any]) -> inspect.Signature:
    """The options class's parameters, with annotations a person can read, and what the function returns."""
    own = inspect.signature(cls.__init__)  # type: ignore[misc]
    hints = get_type_hints(cls)
    parameters = [p.replace(annotation=hints[name]) for name, p in own.parameters.items() if name != "self"]
    return own.replace(parameters=parameters, return_annotation=inspect.signature(body).return_annotation)


def _documentation(cls: type, about_result: str | None) -> str:
    """The options' docstring, a line for each option, and what the function's own docstring adds."""
    lines = [inspect.cleandoc(cls.__doc__ or ""), "", "Args:"]
    lines += [f"    {name}: {text}" for name, text in field_docs(cls).items()]
    if about_result:
        lines += ["", about_result]
    return "\n".join(lines)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
