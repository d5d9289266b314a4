"""What an installed stmae consists of. `make wheel-test` runs this against the built wheel."""

import os
import tomllib
from importlib.metadata import distribution, metadata, requires
from pathlib import Path

import pytest

import stmae

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WHEEL_ENV = os.environ.get("STMAE_WHEEL_ENV")
from_the_wheel = pytest.mark.skipif(not WHEEL_ENV, reason="looks at the installed wheel: `make wheel-test`")


@from_the_wheel
def test_the_tests_run_against_the_wheel() -> None:
    assert WHEEL_ENV is not None
    assert Path(stmae.__file__).is_relative_to((ROOT / WHEEL_ENV).resolve())


@from_the_wheel
def test_the_wheel_holds_all_modules_and_the_licence() -> None:
    files = {str(file) for file in distribution("stmae").files or ()}
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "stmae").rglob("*.py")}
    assert sources <= files
    assert {name for name in files if name.startswith("stmae/") and name.endswith(".py")} == sources
    assert "stmae/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)


@from_the_wheel
def test_the_description_is_the_readme() -> None:
    about = metadata("stmae")
    assert about["Description-Content-Type"] == "text/markdown"
    text = str(about.get_payload()) if about.get("Description") is None else about["Description"]
    assert text.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_the_version_is_the_project_s() -> None:
    assert stmae.__version__ == PROJECT["version"]
    assert metadata("stmae")["License-Expression"] == "Apache-2.0"


def test_the_changelog_has_the_version() -> None:
    assert f"\n## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_pin_everything_that_is_required() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {name.lower().replace("_", "-") for name in pins}
    for requirement in requires("stmae") or ():
        name = requirement.split(";")[0].split(">")[0].strip().lower()
        assert name in pinned, requirement
    for name, pin in pins.items():
        assert "+" not in pin, f"{name}=={pin}: a local version is nowhere to be had"


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
