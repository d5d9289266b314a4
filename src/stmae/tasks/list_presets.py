"""`stmae presets`: which presets there are, and what each sets."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console
from rich.text import Text

from stmae.presets import Facts
from stmae.tasks.finetune_options import FinetuneOptions
from stmae.tasks.presets_options import PresetsOptions
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.task import task


@task(PresetsOptions)
def list_presets(options: PresetsOptions) -> None:
    """Prints them, with the values for a folder of 1000 videos."""
    console = Console(highlight=False)
    for command, cls in (("pretrain", PretrainOptions), ("finetune", FinetuneOptions)):
        console.print(Text(f"Presets of `stmae {command}`; flags and --config go before them.\n"))
        defaults = {field.name: field.default for field in fields(cls)}
        for name, preset in cls.presets.items():
            device = "cpu" if name == "small" else "cuda"
            values = preset(Facts(videos=1000, device=device))
            about = " ".join((preset.__doc__ or "").split())
            console.print(Text.assemble((f"{name:<11}", "bold cyan"), " ", about), soft_wrap=True)
            for option, value in values.items():
                if value != defaults[option]:
                    flag = "--" + option.replace("_", "-")
                    line = f"            {flag} {_text(value)}  (default: {_text(defaults[option])})"
                    console.print(Text(line), soft_wrap=True)
        console.print()
    console.print("Which paper each is from, and where it differs: docs/choices.md and docs/finetuning.md.")


def _text(value: object) -> str:
    return " ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)
