"""Who imports whom, and what stays cheap to import."""

import subprocess
import sys
from pathlib import Path

import pytest

import stmae

ROOT = Path(__file__).parent.parent


def loaded_after(statement: str) -> set[str]:
    """The modules a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import stmae",
        "import stmae; stmae.UserError, stmae.__version__, dir(stmae)",
        "import stmae.cli",
        "import stmae.tasks.options, stmae.tasks.checks, stmae.tasks.task, stmae.presets, stmae.errors",
    ],
)
def test_no_torch_where_none_is_needed(statement: str) -> None:
    loaded = loaded_after(statement)
    assert "stmae" in loaded
    assert not loaded & {"torch", "numpy", "av", "matplotlib", "pyarrow"}


def test_import_of_the_package_loads_nothing_else_of_ours() -> None:
    assert {name for name in loaded_after("import stmae") if name.startswith("stmae.")} == set()


def test_public_names_are_there() -> None:
    for name in stmae.__all__:
        assert getattr(stmae, name) is not None, name
    assert set(stmae.__all__) <= set(dir(stmae))
    assert issubclass(stmae.UserError, ValueError)
    with pytest.raises(AttributeError, match="pretrian"):
        stmae.pretrian  # noqa: B018


@pytest.mark.skipif(not (ROOT / "src").is_dir(), reason="needs the sources")
def test_parts_import_only_what_they_may() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_packing_has_no_need_of_torch() -> None:
    assert "torch" not in loaded_after("import stmae.tasks.pack, stmae.tasks.check, stmae.data.processes")
