"""`stmae push`: a run's weights, configuration, numbers and picture on the Hugging Face Hub, with a model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from stmae.errors import UserError
from stmae.interop.hub import upload
from stmae.interop.native import Model, load_with_extras
from stmae.model.config import as_dict
from stmae.runs import RunFolder, read_config
from stmae.tasks.convert import describe
from stmae.tasks.push_options import PushOptions
from stmae.tasks.task import task
from stmae.weights import save_weights, weights_name, write_atomic

PICTURE = "reconstructions.png"
DESCRIPTION = "A video encoder, trained by hiding most of each clip and painting it back (arXiv 2205.09113)."


@task(PushOptions)
def push(options: PushOptions) -> str:
    """Returns:
        The address of the model, or with `to` the folder that was written.

    Raises:
        UserError: nothing there to push, or the hub refuses it.
    """
    console = Console(highlight=False, soft_wrap=True)
    if options.to is not None:
        options.to.mkdir(parents=True, exist_ok=True)
        write_model(options.to, options)
        console.print(f"written: {options.to}")
        return str(options.to)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options)
        address = upload(Path(folder), options.name, private=options.private)
    console.print(f"pushed: {address}\n  python -c 'import stmae; print(stmae.load(\"hf://{options.name}\"))'")
    return address


def write_model(folder: Path, options: PushOptions) -> None:
    """Weights, configuration, picture and card of a run, as they lie on the hub."""
    model, extras = load_with_extras(options.model)
    run = RunFolder(options.model)
    recipe = _recipe(run)
    metrics = _last_metrics(run.metrics)
    picture = _newest_picture(run.reconstructions)
    try:
        config = as_dict(model.config)
        save_weights(folder / weights_name(config), model.state_dict(), {**extras, "model": config})
        if picture:
            shutil.copyfile(picture, folder / PICTURE)
        text = card(options, model, extras, recipe, metrics, picture is not None)
        write_atomic(folder / "README.md", text)
        # The hub counts downloads by this file, and other tools look for it.
        write_atomic(
            folder / "config.json", json.dumps({"library_name": "stmae", "model": as_dict(model.config)}, indent=1)
        )
    except OSError as error:
        raise UserError(f'"{folder}" cannot be written: {error.strerror or error}.', "Choose another --to.") from None


def _recipe(run: RunFolder) -> dict[str, Any]:
    """The run's options, without what is about this machine only."""
    if not run.exists:
        return {}
    private = {"videos", "out", "config", "init", "workers", "device"}
    return {name: value for name, value in read_config(run.config).items() if name not in private}


def _last_metrics(path: Path) -> dict[str, float]:
    """The newest value of each number that a reader of the card would ask for."""
    wanted = ("step", "loss", "held_out_loss", "held_out_explained", "monitor_knn")
    found: dict[str, float] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found |= {name: row[name] for name in wanted if row.get(name) is not None}
    return found


def _newest_picture(folder: Path) -> Path | None:
    pictures = sorted(folder.glob("*.png")) if folder.is_dir() else []
    return pictures[-1] if pictures else None


def card(
    options: PushOptions,
    model: Model,
    extras: Mapping[str, Any],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, float],
    picture: bool,
) -> str:
    """The model card, README.md: what the hub's readers see."""
    derived = recipe.get("derived", {})
    rows = {name: value for name, value in recipe.items() if name != "derived" and value is not None}
    lines = [
        "---",
        "library_name: stmae",
        "pipeline_tag: video-classification",
        f"license: {licence(options, extras)}",
        "tags: [video, self-supervised, masked-autoencoder, feature-extraction]",
        "---",
        f"# {options.name.split('/')[-1]}",
        "",
        options.description or DESCRIPTION,
        "",
        "```python",
        "import stmae",
        f'encoder = stmae.load("hf://{options.name}")',
        "features = encoder(clips)  # uint8 (B, C, T, H, W) to (B, D)",
        "```",
        "",
        f"{describe(model)}.",
    ]
    if "source" in extras:
        lines += ["", f"Made from weights of {extras['source']}."]
    if picture:
        lines += ["", "Original, masked, painted back, on videos that were held out:", "", f"![]({PICTURE})"]
    if metrics:
        lines += ["", "| | |", "|---|---|", *(f"| {name} | {value:g} |" for name, value in metrics.items())]
    if options.data or "videos" in derived:
        lines += ["", "## Data", "", options.data or f"{derived['videos']} videos, not described further."]
    if rows:
        lines += ["", "## Recipe", "", "| option | value |", "|---|---|"]
        lines += [f"| {name} | {_text(value)} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"


def licence(options: PushOptions, extras: Mapping[str, Any]) -> str:
    """As given; else that of the weights the model comes from, if it is known."""
    return options.license or str(extras.get("license") or "other")


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
