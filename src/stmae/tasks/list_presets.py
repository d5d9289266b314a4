"""`stmae presets`: which presets there are, and what each sets."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console
from rich.text import Text

from stmae.presets import PRESETS, Facts
from stmae.tasks.presets_options import PresetsOptions
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.task import task


@task(PresetsOptions)
def list_presets(options: PresetsOptions) -> None:
    """Prints them, with the values for a folder of 1000 videos."""
    console = Console(highlight=False)
    console.print(Text("Presets of `stmae pretrain`; flags and --config go before them.\n"))
    defaults = {field.name: field.default for field in fields(PretrainOptions)}
    for name, preset in PRESETS.items():
        device = "cpu" if name == "small" else "cuda"
        values = preset(Facts(videos=1000, device=device))
        console.print(
            Text.assemble((f"{name:<11}", "bold cyan"), " ", " ".join((preset.__doc__ or "").split())), soft_wrap=True
        )
        for option, value in values.items():
            flag = "--" + option.replace("_", "-")
            console.print(
                Text(f"            {flag} {_text(value)}  (default: {_text(defaults[option])})"), soft_wrap=True
            )


def _text(value: object) -> str:
    return " ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)
