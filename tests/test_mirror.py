"""A run kept at an address: copied after each save, manifest last, gone on with on another machine, whatever fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from toy import assert_same, toy_run

import stmae
from stmae import mirror as module
from stmae.errors import UserError
from stmae.mirror import Mirror, place, staged
from stmae.runs import write_config
from stmae.tasks.embed_options import EmbedOptions
from stmae.tasks.task import bind
from stmae.weights import damage


class Flaky(LocalFileSystem):
    """Files below a folder, whose writing fails as often as `failures` says, and notes what is done."""

    protocol = "flaky"
    failures = 0
    done: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("flaky://"))

    def put_file(self, lpath: str, rpath: str, *args: Any, **keywords: Any) -> None:
        if Flaky.failures:
            Flaky.failures -= 1
            raise PermissionError("token expired")
        Flaky.done.append(("put", rpath))
        super().put_file(lpath, rpath, *args, **keywords)

    def rm_file(self, path: str) -> None:
        if Flaky.failures:
            Flaky.failures -= 1
            raise ConnectionError("gone for a moment")
        Flaky.done.append(("rm", path))
        super().rm_file(path)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(module, "PATIENCE", (0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    Flaky.failures, Flaky.done = 0, []
    yield
    fsspec.filesystem("memory").store.clear()


def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))


def train(url: str, steps: int, warnings: list[str] | None = None, **options: Any) -> Any:
    """A small run at an address, as pretrain does it."""
    local = staged(url)
    mirror = Mirror.of(local)
    assert mirror is not None
    mirror.pull()
    local.mkdir(parents=True, exist_ok=True)
    write_config(local / "config.yaml", {"steps": steps})
    with mirror:
        trained = toy_run(local, steps=steps, rows=4, save_every=2, log_every=1, published=mirror.push_soon, **options)
        mirror.report((warnings if warnings is not None else []).append)
    return trained


@pytest.mark.parametrize("scheme", ["memory", "file", "flaky"])
def test_a_run_goes_on_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    url = f"{scheme}://{tmp_path}/bucket/first"
    straight = toy_run(tmp_path / "straight", steps=8, rows=4, save_every=2, log_every=1)
    train(url, 5, end=8)
    another_machine(tmp_path, monkeypatch)
    resumed = train(url, 8)
    assert resumed.start.step == 5
    assert_same(resumed.tensors(), straight.tensors())
    ours = {line.split(', "time"')[0] for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()}
    theirs = [line.split(', "time"')[0] for line in (staged(url) / "metrics.jsonl").read_text().splitlines()]
    assert len(theirs) == len(ours) == 8
    files, root = fsspec.core.url_to_fs(url)
    left = {name.split("checkpoints/")[1].split("/")[0] for name in files.find(root) if "/step-" in name}
    assert {"step-000006", "step-000008"} <= left


def test_manifests_come_last_and_go_first(tmp_path: Path) -> None:
    url = f"flaky://{tmp_path}/bucket/first"
    train(url, 12, keep=1, max_bad_steps=1)
    done = [(what, Path(path)) for what, path in Flaky.done if "/step-" in path]
    puts = [path for what, path in done if what == "put"]
    for place_, path in enumerate(puts):
        if path.name == "manifest.json":
            assert {p.name for p in puts[:place_] if p.parent == path.parent} == {
                "model.safetensors", "optimizer.safetensors", "state.json",
            }  # fmt: skip
    removed = [path for what, path in done if what == "rm"]
    for folder in {path.parent for path in removed}:
        assert next(path.name for path in removed if path.parent == folder) == "manifest.json"
    there = [path for path in (tmp_path / "bucket/first/checkpoints").glob("step-*") if any(path.iterdir())]
    assert [damage(path) for path in there] == [None] * len(there)
    assert "step-000012" in {path.name for path in there}


def test_failures_are_told_and_tried_again(tmp_path: Path) -> None:
    url, warnings = f"flaky://{tmp_path}/bucket/first", list[str]()
    Flaky.failures = 10**6
    with pytest.raises(
        UserError, match=r"is whole in .* could not be copied to flaky://.*PermissionError: token expir"
    ):
        train(url, 4, warnings)
    assert toy_run(staged(url), steps=4, rows=4, train_it=False).start.step == 4
    assert not [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]
    Flaky.failures = 2
    train(url, 4)
    assert damage(tmp_path / "bucket/first/checkpoints/step-000004") is None


def test_what_could_not_be_removed_is_removed_later(tmp_path: Path) -> None:
    local = staged(f"flaky://{tmp_path}/bucket/first")
    for step in (1, 2):
        folder = local / f"checkpoints/step-00000{step}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "manifest.json"):
            (folder / name).write_text("{}")
    mirror = Mirror.of(local)
    assert mirror is not None
    assert mirror._try()
    shutil.rmtree(local / "checkpoints/step-000001")
    Flaky.failures = 1
    assert not mirror._try()
    assert mirror._try()
    assert not [path for path in (tmp_path / "bucket/first/checkpoints/step-000001").glob("*") if path.is_file()]


def test_trouble_is_told_once_until_it_is_over(tmp_path: Path) -> None:
    local = staged(f"flaky://{tmp_path}/bucket/first")
    local.mkdir(parents=True)
    (local / "config.yaml").write_text("x")
    mirror, told = Mirror.of(local), list[str]()
    assert mirror is not None
    Flaky.failures = 1
    mirror._try()
    mirror.report(told.append)
    mirror.report(told.append)
    assert len(told) == 1
    assert "token expired); it goes on, and the next save tries again" in told[0]
    mirror._try()
    mirror.report(told.append)
    assert len(told) == 1
    assert (tmp_path / "bucket/first/config.yaml").read_text() == "x"


def test_what_is_there_already_is_not_copied_again(tmp_path: Path) -> None:
    url = f"flaky://{tmp_path}/bucket/first"
    train(url, 4)
    Flaky.done.clear()
    train(url, 4)
    assert not [path for what, path in Flaky.done if what == "put" and "/step-" in path]


def test_a_damaged_newest_there_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/bucket/first"
    train(url, 6)
    os.truncate(tmp_path / "bucket/first/checkpoints/step-000006/model.safetensors", 100)
    another_machine(tmp_path, monkeypatch)
    resumed = train(url, 6)
    assert resumed.start.step == 4
    assert resumed.end.step == 6


def test_what_was_deleted_there_is_not_silently_begun_anew(tmp_path: Path) -> None:
    url = f"memory://{tmp_path}/bucket/first"
    train(url, 2)
    fsspec.filesystem("memory").store.clear()
    with pytest.raises(UserError, match=r"holds no run any more, but a copy of one is staged"):
        train(url, 2)


def test_addresses_that_cannot_work(tmp_path: Path) -> None:
    assert place("out", "~/x") == Path.home() / "x"
    assert place("out", "s3://b/r").name == "s3%3A%2F%2Fb%2Fr"
    assert Mirror.of(tmp_path / "s3%3A%2F%2Fb%2Fr") is None
    with pytest.raises(UserError, match="too long"):
        staged("s3://" + "b" * 300)
    with pytest.raises(UserError, match="no address that fsspec knows"):
        Mirror.of(staged("nowhere://b/r"))
    with pytest.raises(UserError, match=r'out "s3://b/f\.parquet" is an address'):
        bind(EmbedOptions, ("videos",), {"model": "m", "out": "s3://b/f.parquet"})


@pytest.mark.slow
def test_pretrain_to_an_address(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path}/bucket/first"
    options: dict[str, Any] = {
        "model": "vit_tiny", "frames": 8, "image_size": 32, "patch": (2, 8, 8), "decoder_width": 64,
        "decoder_depth": 1, "decoder_heads": 2, "batch_size": 8, "workers": 0, "precision": "fp32", "save_every": 2,
        "log_every": 1, "holdout": 0.0,
    }  # fmt: skip
    stmae.pretrain(videos, out=url, epochs="4 steps", **options)
    files, root = fsspec.core.url_to_fs(url)
    names = {name.removeprefix(root + "/").split("/")[0] for name in files.find(root)}
    assert {"config.yaml", "index.csv", "metrics.jsonl", "log.txt", "checkpoints", "encoder.safetensors"} <= names
    another_machine(tmp_path, monkeypatch)
    out = stmae.pretrain(videos, out=url, epochs="6 steps")  # all else stands in the run
    assert out == staged(url)
    assert "going on from step 4 of 6" in (out / "log.txt").read_text()
    assert (out / "encoder.safetensors").read_bytes() == files.cat_file(f"{root}/encoder.safetensors")
