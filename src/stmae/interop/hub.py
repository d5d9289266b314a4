"""Models on the Hugging Face Hub: `hf://user/name` in, a folder out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

PREFIX = "hf://"
FILES = ["*.safetensors", "config.json", "config.yaml", "README.md"]
OLD_WEIGHTS = "pytorch_model.bin"


def is_hub(where: object) -> bool:
    """Whether a model is named by its place on the hub."""
    return isinstance(where, str) and where.startswith(PREFIX)


def download(where: str) -> Path:
    """A model on the hub in huggingface_hub's cache: its folder, or the one file of it that is named.

    Args:
        where: ``hf://user/name``, ``hf://user/name@revision``, and with ``/path/in/it.pth`` behind it, one file.

    Raises:
        UserError: no such model, no connection and not in the cache, or huggingface_hub is missing.
    """
    _require()
    from huggingface_hub import hf_hub_download, snapshot_download

    user, _, rest = where.removeprefix(PREFIX).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = f"{user}/{name}".partition("@")
    _check(name)
    with _reasons(where):
        if file:
            return Path(hf_hub_download(name, file, revision=revision or None))
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=FILES))
        if not any(folder.glob("*.safetensors")):  # the same weights as a pickle are fetched only where they are needed
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[*FILES, OLD_WEIGHTS]))
        return folder


def upload(folder: Path, name: str, *, private: bool = False) -> str:
    """Makes the repository ``user/name`` where it is missing and puts a folder's files into it; returns its address.

    Raises:
        UserError: not logged in, not allowed, no connection, or huggingface_hub is missing.
    """
    _require()
    from huggingface_hub import HfApi

    name = name.removeprefix(PREFIX)
    _check(name)
    api = HfApi()
    with _reasons(PREFIX + name):
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model written by stmae")
    return str(made)


def _check(name: str) -> None:
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f'"{name}" is no place on the hub.', "Write it as user/name.")


def _require() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("the hub needs huggingface_hub.", "Install with: pip install 'stmae[hub]'")


@contextmanager
def _reasons(where: str) -> Iterator[None]:
    """Turns what the hub says into words a person can act on."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except RepositoryNotFoundError:
        raise UserError(
            f'there is no "{where}" on the hub, or it is private.', "Check the name; `hf auth login` for your own."
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(f'"{where}" is not in the cache and the hub cannot be reached.', "Check the network.") from None
    except EntryNotFoundError:
        raise UserError(f'there is no such file on the hub: "{where}".', "Look at the model's page.") from None
    except HFValidationError as error:
        raise UserError(f'"{where}" is no place on the hub: {error}.', "Write it as user/name.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        cure = "Log in with `hf auth login`." if status in (401, 403) else "Try again."
        raise UserError(f'the hub refused "{where}": {status}, {str(error).splitlines()[0]}', cure) from None
    except Exception as error:
        # Which library carries the requests changes from one version of huggingface_hub to the next.
        if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise UserError(f'the hub cannot be reached for "{where}": {error}.', "Check the network.") from None
        raise
