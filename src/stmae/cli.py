"""The commands: `stmae COMMAND`, built from the tasks' options.

The options classes give flags, help and checks; the tasks themselves (and torch with them) are imported once
nothing is left to refuse. Only flags that were given are passed on, so that presets and `--config` have their place.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, TypedDict, cast, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console
from rich.text import Text
from tyro.conf import OmitArgPrefixes, Positional, arg

from stmae.errors import Note, Problems, UserError, did_you_mean, unknown
from stmae.tasks.ablate_options import AblateOptions
from stmae.tasks.bench_options import BenchOptions
from stmae.tasks.check_options import CheckOptions
from stmae.tasks.convert_options import ConvertOptions
from stmae.tasks.demo_options import DemoOptions
from stmae.tasks.doctor_options import DoctorOptions
from stmae.tasks.embed_options import EmbedOptions
from stmae.tasks.evaluate_options import EvaluateOptions
from stmae.tasks.export_options import ExportOptions
from stmae.tasks.finetune_options import FinetuneOptions
from stmae.tasks.knn_options import KnnOptions
from stmae.tasks.maps_options import MapsOptions
from stmae.tasks.options import Options
from stmae.tasks.pack_options import PackOptions
from stmae.tasks.plan_options import PlanOptions
from stmae.tasks.predict_options import PredictOptions
from stmae.tasks.presets_options import PresetsOptions
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.probe_options import ProbeOptions
from stmae.tasks.push_options import PushOptions
from stmae.tasks.reconstruct_options import ReconstructOptions
from stmae.tasks.task import bind, field_docs
from stmae.tasks.tokenizer_options import TokenizerOptions
from stmae.tasks.values import from_text, unwrapped

COMMANDS: dict[str, tuple[type[Options], str]] = {
    "pretrain": (PretrainOptions, "stmae.tasks.pretrain:pretrain"),
    "finetune": (FinetuneOptions, "stmae.tasks.finetune:finetune"),
    "check": (CheckOptions, "stmae.tasks.check:check"),
    "pack": (PackOptions, "stmae.tasks.pack:pack"),
    "plan": (PlanOptions, "stmae.tasks.plan:plan"),
    "tokenizer": (TokenizerOptions, "stmae.tasks.tokenizer:tokenizer"),
    "reconstruct": (ReconstructOptions, "stmae.tasks.reconstruct:reconstruct"),
    "embed": (EmbedOptions, "stmae.tasks.embed:embed"),
    "knn": (KnnOptions, "stmae.tasks.knn:knn"),
    "probe": (ProbeOptions, "stmae.tasks.probe:probe"),
    "evaluate": (EvaluateOptions, "stmae.tasks.evaluate:evaluate"),
    "predict": (PredictOptions, "stmae.tasks.predict:predict"),
    "maps": (MapsOptions, "stmae.tasks.maps:maps"),
    "ablate": (AblateOptions, "stmae.tasks.ablate:ablate"),
    "convert": (ConvertOptions, "stmae.tasks.convert:convert"),
    "demo": (DemoOptions, "stmae.tasks.demo:demo"),
    "export": (ExportOptions, "stmae.tasks.export:export"),
    "push": (PushOptions, "stmae.tasks.push:push"),
    "bench": (BenchOptions, "stmae.tasks.bench:bench"),
    "doctor": (DoctorOptions, "stmae.tasks.doctor:doctor"),
    "presets": (PresetsOptions, "stmae.tasks.list_presets:list_presets"),
}

OVERVIEW = """
A folder of unlabelled videos in, a video encoder out.

Examples:
  stmae demo                                                     sample videos, a small model, pictures
  stmae pretrain videos/ --out runs/first                        any folder, any depth, no labels
  stmae finetune labelled/ --init runs/first --out runs/tuned    a classifier of labelled videos
  stmae pack videos/ --out shards/                               few large files in place of many
  stmae reconstruct clip.mp4 --model runs/first                  original | masked | painted back
  stmae embed videos/ --model runs/first --out features.parquet  a row of features per video
  stmae knn labelled/ --model runs/first                         how good these are, beside chance
""".strip()


def script() -> int:
    """What `stmae` and `python -m stmae` run."""
    status = main()
    if (several := sys.modules.get("stmae.engine.distributed")) is not None:
        several.end(status)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process's exit status.

    0 done, 2 the user's mistake (one message, no traceback), 130 interrupted, 141 nobody reads what it prints, 75
    stopped by SIGTERM and to be started again. Any other exception is a mistake of ours and keeps its traceback.
    """
    usual = warnings.formatwarning
    said: set[str] = set()

    def shown(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        if not issubclass(category, Note):
            return usual(message, category, *where, **more)
        if str(message) in said:  # two parts of a command have read the same weights
            return ""
        said.add(str(message))
        return f"note: {message}\n"

    warnings.formatwarning = shown
    try:
        _command(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        _show(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads has read enough: `stmae pretrain --help | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what is left in the buffer goes there at exit)
        return 141
    except Exception as error:
        status = getattr(error, "exit_status", None)  # engine's Stopped, without importing the engine
        if status is None:
            error.add_note("This is a bug in stmae. Please report it, with the lines above and `stmae doctor`'s.")
            raise
        print(error, file=sys.stderr)
        return int(status)
    finally:
        warnings.formatwarning = usual
    return 0


def _command(arguments: list[str]) -> None:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        _overview()
    elif name in ("-V", "--version", "version"):
        print(f"stmae {_version()}")
    elif name not in COMMANDS:
        raise unknown("command", name, list(COMMANDS))
    elif {"-h", "--help"} & set(rest):
        _help(name)
    else:
        options, where = COMMANDS[name]
        given = parse(name, options, rest)
        bind(options, (), given)  # refuses what it can before torch is imported
        module, function = where.split(":")
        getattr(importlib.import_module(module), function)(**given)


def parse(name: str, options: type[Options], arguments: Sequence[str]) -> dict[str, Any]:
    """The options that are given on a command line, and no others.

    The parser only sorts the words out; what they mean and whether that is right is said by `bind`, as for calls
    from Python, so that all mistakes are found at once.

    Raises:
        UserError: unknown flags, or words that belong to none.
    """
    hints = _hints(options)
    several = {f.name for f in _fields(options) if f.metadata.get("several")}
    words = {
        f.name: _words(hints[f.name])
        if f.kw_only
        else Positional[tuple[str, ...]]
        if f.name in several
        else Positional[str]
        for f in _fields(options)
    }
    # A TypedDict with total=False leaves out what was not given.
    shape = TypedDict("Given", words, total=False)  # type: ignore[misc]
    given, left_over = tyro.cli(shape, prog=f"stmae {name}", args=arguments, return_unknown_args=True)
    flags = [f"--{name.replace('_', '-')}" for name in words]
    problems = Problems()
    strange = [word.split("=")[0] for word in left_over if word.startswith("-")]
    for word in strange:
        problems.add(
            f'unknown option "{word}".',
            did_you_mean(word.replace("_", "-"), flags) or f"`stmae {name} --help` lists them.",
        )
    for word in [] if strange else left_over:
        problems.add(f'"{word}" belongs to no option.', f"`stmae {name} --help` shows what goes where.")
    problems.raise_any()
    found: dict[str, Any] = {}
    for name, text in given.items():
        if name not in several:
            found[name] = from_text(text, hints[name])
        else:
            places = cast(tuple[str, ...], text)
            found |= {name: places if len(places) > 1 else places[0]} if places else {}
    return found


def _words(hint: Any) -> Any:
    """How many words of the command line an option takes, as an annotation for the parser."""
    inner = unwrapped(hint)
    if inner is bool:
        return bool
    if get_origin(inner) is tuple:
        members = get_args(inner)
        return tuple[str, ...] if members[-1] is ... else tuple[(str,) * len(members)]  # type: ignore[misc]
    return str


def _help(name: str) -> None:
    """Prints a command's description, examples and options; a group of options that tasks share is a box of its own."""
    options = COMMANDS[name][0]
    _print_description(inspect.cleandoc(options.__doc__ or ""))
    groups = [base for base in options.__mro__[1:] if is_dataclass(base) and Options in base.__bases__]
    own = {group: [name for name in group.__annotations__ if name in group.__dataclass_fields__] for group in groups}
    shared = {name for names in own.values() for name in names}
    entries = _entries(options, [f.name for f in _fields(options) if f.name not in shared])
    for group, names in own.items():
        # Its options with this command's defaults, which may be others.
        box = make_dataclass(group.__name__, _entries(options, names), namespace={"__doc__": group.__doc__})
        entries.append((group.__name__.removesuffix("Options"), box, field(default_factory=box, kw_only=True)))
    shown = make_dataclass("Help", entries, namespace={"__doc__": ""})
    tyro.cli(shown, prog=f"stmae {name}", description="", args=["--help"], config=(OmitArgPrefixes,))


def _entries(options: type[Options], names: Sequence[str]) -> list[Any]:
    """Some options of a command, for `make_dataclass`."""
    hints, docs = _hints(options), field_docs(options)
    entries = []
    for f in _fields(options):
        if f.name in names:
            default = {} if f.default is MISSING else {"default": f.default}
            hint: Any = Annotated.__class_getitem__((hints[f.name], arg(help=docs[f.name])))  # type: ignore[attr-defined]
            entries.append((f.name, hint, field(kw_only=f.kw_only, **default)))
    return entries


def _print_description(text: str) -> None:
    """Prints a docstring: paragraphs filled to the terminal's width, indented examples as they are."""
    console = Console(highlight=False)
    width = min(shutil.get_terminal_size().columns, 100)
    for paragraph in text.split("\n\n"):
        example = paragraph.startswith("    ")
        lines = paragraph if example else textwrap.fill(" ".join(paragraph.split()), width)
        console.print(Text(lines, style="cyan" if example else ""), soft_wrap=True)
        console.print()


def _overview() -> None:
    console = Console(highlight=False)
    console.print(Text.assemble((f"stmae {_version()}", "bold"), "  ", OVERVIEW), soft_wrap=True)
    console.print("\nCommands:")
    for name, (options, _) in COMMANDS.items():
        first = " ".join(inspect.cleandoc(options.__doc__ or "").split("\n\n")[0].split())
        console.print(Text.assemble("  ", (f"{name:<12}", "cyan"), " ", first), soft_wrap=True)
    console.print("\n`stmae COMMAND --help` shows a command's options.")


def _show(error: UserError) -> None:
    console = Console(stderr=True, highlight=False)
    count = len(error.problems)
    if count > 1:
        console.print(Text(f"error: {count} mistakes", style="bold red"))
    for number, (problem, cure) in enumerate(error.problems, 1):
        head = f"{number:>3}. " if count > 1 else "error: "
        console.print(Text.assemble((head, "bold red"), (problem, "bold")), soft_wrap=True)
        if cure:
            console.print(Text(" " * len(head) + cure), soft_wrap=True)


def _version() -> str:
    from importlib.metadata import version

    return version("stmae")


def _hints(options: type[Options]) -> dict[str, Any]:
    return get_type_hints(options, include_extras=True)


def _fields(options: type[Options]) -> tuple[Any, ...]:
    return fields(options)  # type: ignore[arg-type]
