"""Finding videos, splitting them for good, keeping the list, and clips given as tensors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stmae.data.frozen import index_changes, load_index, save_index
from stmae.data.sources import Index, TensorSource, scan, split
from stmae.errors import UserError


def touch(root: Path, *names: str | bytes) -> None:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass


def test_scan_finds_videos_at_any_depth_in_byte_order(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.mp4", "B.MKV", "a/deep/er/x.webm", "a.avi", "notes.txt", "still.png", "moving.gif", "a b/ü,\n.MoV"
    )
    touch(tmp_path, ".hidden/v.mp4", "a/.v.mp4", "a/._x.webm", "mp4", "é.mp4")
    index = scan(tmp_path)
    assert index.paths == ("B.MKV", "a b/ü,\n.MoV", "a.avi", "a/deep/er/x.webm", "b.mp4", "moving.gif", "é.mp4")
    assert index.root == tmp_path
    assert len(index) == 7
    assert index.path(3) == tmp_path / "a/deep/er/x.webm"
    assert scan(str(tmp_path)) == index


def test_scan_takes_a_relative_folder_and_a_link_and_survives_circles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "real/x/v.mp4", "outside/w.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real/circle").symlink_to(tmp_path / "real")
    (tmp_path / "real/x/more").symlink_to(tmp_path / "outside")
    (tmp_path / "real/gone.mp4").symlink_to(tmp_path / "nowhere")
    assert scan(tmp_path / "link").paths == ("x/more/w.mp4", "x/v.mp4")
    monkeypatch.chdir(tmp_path)
    assert scan("real").root == tmp_path / "real"


def test_pipes_are_not_files(tmp_path: Path) -> None:
    touch(tmp_path, "v.mp4")
    os.mkfifo(tmp_path / "p.mp4")
    assert scan(tmp_path).paths == ("v.mp4",)


def test_scan_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing/deep does not exist; .* does"):
        scan(tmp_path / "missing/deep")
    touch(tmp_path, "clips/v.mp4")
    with pytest.raises(UserError, match=rf"is a file.*folder that holds it: {tmp_path}/clips"):
        scan(tmp_path / "clips/v.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        scan(tmp_path / "empty")
    touch(tmp_path, *(f"lists/{i}.txt" for i in range(30)), *(f"lists/x/{i}.csv" for i in range(7)))
    with pytest.raises(UserError, match=r"no videos, only 37 files: 30 \.txt, 7 \.csv"):
        scan(tmp_path / "lists")


names = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1),
    min_size=1,
    max_size=40,
    unique=True,
)


@given(names, st.floats(0, 0.99))
def test_a_split_keeps_everything_once(paths: list[str], holdout: float) -> None:
    index = Index(Path("/v"), tuple(sorted(paths, key=lambda p: p.encode("utf-8", "surrogatepass"))))
    train, held = split(index, holdout)
    assert isinstance(train, Index)
    assert isinstance(held, Index)
    assert sorted(train.paths + held.paths) == sorted(index.paths)
    assert len(train) >= 1
    assert (len(held) >= 1) == (holdout > 0 and len(paths) >= 2)


def test_new_files_never_move_old_ones_and_the_share_is_met() -> None:
    paths = [f"{i:05d}.mp4" for i in range(4000)]
    few, many = Index(Path("/v"), tuple(paths[::4])), Index(Path("/v"), tuple(paths))
    small, large = split(few, 0.1)[1], split(many, 0.1)[1]
    assert isinstance(small, Index)
    assert isinstance(large, Index)
    assert set(small.paths) == set(large.paths) & set(few.paths)
    assert 320 < len(large) < 480
    wider = split(many, 0.2)[1]
    assert isinstance(wider, Index)
    assert set(large.paths) < set(wider.paths)


@settings(deadline=None)
@given(names)
def test_an_index_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    path = tmp_path_factory.mktemp("index") / "index.csv"
    train, held = Index(Path("/some/where"), tuple(paths)), Index(Path("/some/where"), ("held.mp4",))
    save_index(path, train, held)
    assert load_index(path) == (train, held)
    assert load_index(path, Index(Path("/new"), ()))[0].root == Path("/new")
    assert os.listdir(path.parent) == ["index.csv"]


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    touch(tmp_path, b"caf\xe9.mp4", "café.mp4")
    train, held = split(scan(tmp_path), 0.5)
    assert isinstance(train, Index)
    assert isinstance(held, Index)
    save_index(tmp_path / "index.csv", train, held)
    assert load_index(tmp_path / "index.csv") == (train, held)
    assert b"caf\xe9.mp4" in (tmp_path / "index.csv").read_bytes()


def test_a_wrong_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.csv"
    for text, match in (("", "which folder"), ("a,b\n", "line 1"), ("split,path\nroot,/v\ntrain\n", "line 3")):
        path.write_text(text)
        with pytest.raises(UserError, match=match):
            load_index(path)
    with pytest.raises(UserError, match="No such file"):
        load_index(tmp_path / "missing.csv")


def test_changes_are_lists_of_what_came_and_went() -> None:
    frozen = Index(Path("/v"), ("a", "b")), Index(Path("/v"), ("c",))
    assert index_changes(frozen, Index(Path("/v"), ("d", "b", "c", "0"))) == (["0", "d"], ["a"])


def test_tensors_lists_and_datasets_are_sources() -> None:
    clips = torch.randint(0, 256, (5, 2, 4, 6, 8), dtype=torch.uint8)
    pairs = torch.utils.data.TensorDataset(clips, torch.arange(5))
    for given_as in (clips, list(clips), pairs, clips.numpy()):
        source = TensorSource(given_as)
        assert len(source) == 5
        assert source.shape == (2, 4, 6, 8)
        assert source.dtype == torch.uint8
        assert torch.equal(source.clip(3), clips[3])
    train, held = split(TensorSource(clips), 0.4)
    assert len(train) + len(held) == 5
    assert len(held) >= 1


def test_clips_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be indexed"):
        TensorSource(iter([]))
    with pytest.raises(UserError, match="no clips"):
        TensorSource([])
    with pytest.raises(UserError, match=r"shape \(4, 6, 8\)"):
        TensorSource(torch.zeros(3, 4, 6, 8))
    with pytest.raises(UserError, match=r"torch\.int64"):
        TensorSource(torch.zeros(3, 1, 4, 6, 8, dtype=torch.int64))
    uneven = TensorSource([torch.zeros(1, 4, 6, 8), torch.zeros(1, 4, 6, 9)])
    with pytest.raises(UserError, match="clip 1 is"):
        uneven.clip(1)
