"""A source by just naming it; what a run keeps of it; what `stmae check` leaves out."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stmae.data import opening
from stmae.data.dataset import VideoClips
from stmae.data.frozen import index_changes, load_index, save_index
from stmae.data.index import Index, files_below
from stmae.data.loader import ClipLoader
from stmae.data.names import Names
from stmae.data.opening import open_source, read_report
from stmae.data.sources import Mixture, TensorSource, names_of, split
from stmae.data.values import values_of
from stmae.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def opened(*args: Any, **options: Any) -> tuple[list[str], list[str]]:
    """The names of a source's items, and what was said."""
    said: list[str] = []
    source = open_source(*args, say=said.append, **options)
    return list(names_of(source)), said


def test_a_folder_gives_its_videos_and_says_what_else_there_is(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.mp4", "x/a.jpg", "y/b.avi", "y/b.npy", "notes.txt")
    names, said = opened(tmp_path)
    assert names == ["x/a.mp4", "y/b.avi"]
    assert said == [f"{tmp_path}: 1 arrays and 1 images left out; --media videos arrays images takes them as well."]
    assert opened(tmp_path, media=("images", "videos"))[0] == ["x/a.jpg", "x/a.mp4", "y/b.avi"]
    source = open_source(tmp_path)
    assert [source.label(i) for i in range(2)] == ["x", "y"]
    touch(tmp_path, "stills/1.png", "stills/2.JPG")
    assert opened(tmp_path / "stills") == (["1.png", "2.JPG"], [])
    with pytest.raises(UserError, match=r"no arrays, only 2 files: 1 \.\w+, 1 "):
        open_source(tmp_path / "stills", media=("arrays",))


def test_arrays_of_one_file_are_items_of_their_own(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for name in ("b/clip", "a"):
            file[name] = np.zeros((4, 8, 8, 2), np.uint16)
        file["rates"] = np.zeros(3)
    (tmp_path / "meta.json").write_text("{}")
    np.savez(tmp_path / "one.npz", frames=np.zeros((4, 8, 8)), label=3, weights=np.zeros(5))
    with zipfile.ZipFile(tmp_path / "one.npz", "a") as file:
        file.write(tmp_path / "meta.json", "meta.json")
    source = open_source(tmp_path)
    assert list(names_of(source)) == ["many.h5::a", "many.h5::b/clip", "one.npz"]
    assert source.media(1).path == tmp_path / "many.h5"
    values = values_of(source)
    assert (values.channels, values.floating) == (2, True)


def test_what_pixels_are(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    assert values_of(open_source(tmp_path)).channels == 3
    np.save(tmp_path / "grey.npy", np.zeros((4, 8, 8), np.uint8))
    np.save(tmp_path / "broken.npy", np.array([{}]), allow_pickle=True)
    source = open_source(tmp_path, media=("arrays",))
    assert (values_of(source).channels, values_of(source).floating) == (1, False)
    ranged = values_of(source, (0, 100), mean=(0.5,), std=(0.25,))
    media = source.media(1)
    assert np.allclose(ranged.of(np.full((2, 2, 1), 100, np.uint8), media), 2.0)
    assert np.allclose(ranged.of(np.full((2, 2, 1), 50.0), media), 0.0)
    deep = values_of(Mixture([source]), None)
    assert deep == values_of(source)


def test_a_list_names_what_it_names(tmp_path: Path) -> None:
    touch(tmp_path, "data/x/a b.mp4", "data/y/c.jpg", "data/y/d.mp4")
    (tmp_path / "data" / "own.txt").write_text("x/a b.mp4 1\ny/c.jpg 0\n")
    source = open_source(tmp_path / "data" / "own.txt")
    assert isinstance(source, Index)
    assert (list(source.paths), source.root) == (["x/a b.mp4", "y/c.jpg"], tmp_path / "data")
    assert [source.label(i) for i in range(2)] == ["1", "0"]
    (tmp_path / "lists").mkdir()
    elsewhere = tmp_path / "lists" / "train.csv"
    elsewhere.write_text("y/d\nc.jpg\n")
    assert opened(elsewhere, root=tmp_path / "data")[0] == ["y/d.mp4", "y/c.jpg"]
    elsewhere.write_text("../data/y/d.mp4\n")
    (name,) = opened(elsewhere)[0]
    assert name == str(tmp_path / "data/y/d.mp4").lstrip("/")
    assert open_source(elsewhere).media(0).path == tmp_path / "data/y/d.mp4"


def test_entries_that_do_not_exist_are_told_all_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    path = tmp_path / "list.txt"
    path.write_text("".join(f"gone{i}.mp4\n" for i in range(7)) + "a.mp4\n")
    with pytest.raises(UserError, match=r"7 of the 8 entries.*gone0\.mp4, gone1\.mp4.*--leave-out missing"):
        open_source(path)
    names, said = opened(path, leave_out=("missing",))
    assert names == ["a.mp4"]
    assert "7 of the 8" in said[0]
    path.write_text("gone.mp4\n")
    with pytest.raises(UserError, match=r"none of the 1 entries.*--root"):
        open_source(path, leave_out=("missing",))
    with pytest.raises(UserError) as caught:
        open_source([path, tmp_path / "nothing", tmp_path])
    assert len(caught.value.problems) == 2


def test_a_list_of_absolute_paths_looks_where_its_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not through the whole machine."""
    looked = list[str]()

    def below(root: Path) -> Iterator[str]:
        looked.append(str(root))
        return files_below(root)

    monkeypatch.setattr(opening, "files_below", below)
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "videos" / name).touch()
    (tmp_path / "lists").mkdir()
    lines = "\n".join(f"{tmp_path}/videos/{name}" for name in ("a", "b.mp4", "gone.mp4", 300 * "x"))
    (tmp_path / "lists/all.txt").write_text(lines)
    with pytest.raises(UserError, match="2 of the 4 entries"):
        open_source(tmp_path / "lists/all.txt")
    found = open_source(tmp_path / "lists/all.txt", leave_out=("missing",))
    assert [str(found.path(i)) for i in range(2)] == [f"{tmp_path}/videos/a.mp4", f"{tmp_path}/videos/b.mp4"]
    assert not looked


def test_links_in_a_ring_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "ring").symlink_to("ring")
    assert [*names_of(open_source(tmp_path))] == ["a.mp4"]


def test_several_sources(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4", "b/1.mp4", "b/2.mp4")
    source = open_source([tmp_path / "a", str(tmp_path / "b")], weights=(2, 0.5))
    assert isinstance(source, Mixture)
    assert source.slots == [2, 1]
    assert list(names_of(source)) == [f"{tmp_path}/{name}" for name in ("a/1.mp4", "b/1.mp4", "b/2.mp4")]
    with pytest.raises(UserError, match="1 weight for 2 sources"):
        open_source([tmp_path / "a", tmp_path / "b"], weights=(2,))
    clips = torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8)
    assert isinstance(open_source(clips), TensorSource)
    assert isinstance(open_source(list(clips)), TensorSource)


def test_what_a_report_advises_against_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, *(f"v/{i}.mp4" for i in range(5)))
    report = tmp_path / "check.csv"
    report.write_text("path,seconds,flags\n0.mp4,3,\n1.mp4,2,static cuts\n2.mp4,0,unreadable\n3.mp4,1,duplicate\n")
    names, said = opened(tmp_path / "v", checked=report, leave_out=("static", "unreadable"))
    assert names == ["0.mp4", "3.mp4", "4.mp4"]
    assert said[0].startswith("2 items left out as static, unreadable")
    assert said[1].startswith("1 items are not in")
    both = opened([tmp_path / "v", tmp_path / "v"], checked=report, leave_out=("duplicate",))[0]
    assert len(both) == 8
    report.write_text("path,flags\n" + "".join(f"{i}.mp4,short\n" for i in range(5)))
    with pytest.raises(UserError, match="leaves nothing"):
        open_source(tmp_path / "v", checked=report, leave_out=("short",))
    report.write_text("path,reason\n")
    with pytest.raises(UserError, match="columns path and flags"):
        read_report(report)


def test_a_run_keeps_labels_and_sources(tmp_path: Path) -> None:
    a = Index(Path("/a"), Names.of(f"{i}.mp4" for i in range(40)), Names.of(str(i % 3) if i else "" for i in range(40)))
    b = Index(Path("/b"), Names.of(["x/caf\udce9.mp4", "y, z.mp4"]))
    whole = Mixture([a, b], (1, 2))
    train, held = split(whole, 0.2)
    save_index(tmp_path / "index.csv", train, held)
    kept, kept_out = load_index(tmp_path / "index.csv", weights=(1, 2))
    for before, after in ((train, kept), (held, kept_out)):
        assert isinstance(before, Mixture)
        assert isinstance(after, Mixture)
        assert [s.paths for s in after.sources] == [s.paths for s in before.sources]  # type: ignore[attr-defined]
        assert [after.label(i) for i in range(len(after))] == [before.label(i) for i in range(len(before))]
    moved = Mixture([Index(Path("/c"), a.paths.part(range(1, 40))), Index(Path("/d"), Names.of([*b.paths, "new.mp4"]))])
    kept, kept_out = load_index(tmp_path / "index.csv", moved, (1, 2))
    assert {str(s.root) for s in kept.sources} == {"/c", "/d"}  # type: ignore[attr-defined]
    assert index_changes((kept, kept_out), moved) == (["new.mp4"], ["0.mp4"])
    with pytest.raises(UserError, match="2 sources, and 1 are given"):
        load_index(tmp_path / "index.csv", a)
    assert os.listdir(tmp_path) == ["index.csv"]


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"bytes"))


def test_a_run_keeps_its_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in "bd":
        write_tar(folder / f"{shard}.tar", [f"{shard}{i:02d}.mp4" for i in range(20)])
    whole = open_source(folder)
    names = list(names_of(whole))
    kept = whole.part([i for i in range(40) if i not in (3, 30)])  # two were left out
    train, held = split(kept, 0.2)
    save_index(tmp_path / "index.csv", train, held)
    assert len((tmp_path / "index.csv").read_text().splitlines()) == 1 + 1 + 2 + 2 + len(held)

    for now in (None, open_source(folder)):
        again = load_index(tmp_path / "index.csv", now)
        assert [list(names_of(part)) for part in again] == [list(names_of(train)), list(names_of(held))]
    write_tar(folder / "a.tar", ["new.mp4"])  # comes before the others, and moves none of them
    now = open_source(folder)
    again = load_index(tmp_path / "index.csv", now)
    assert [list(names_of(part)) for part in again] == [list(names_of(train)), list(names_of(held))]
    assert index_changes(again, now) == (["a.tar"], [])
    assert sorted([*names_of(train), *names_of(held), names[3], names[30]]) == sorted(names)
    write_tar(folder / "d.tar", ["other.mp4"])
    with pytest.raises(UserError, match=r"1 of the 2 shards .*0 are gone, 1 hold other items\): d\.tar"):
        load_index(tmp_path / "index.csv", open_source(folder))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_deep_arrays_come_through_the_loader(tmp_path: Path, workers: int) -> None:
    data = np.random.default_rng(0).integers(0, 4096, (6, 12, 16, 16, 2)).astype(np.uint16)
    for i, array in enumerate(data):
        np.save(tmp_path / f"{i}.npy", array)
    source = open_source(tmp_path)
    values = values_of(source, (0, 4095))
    clips = VideoClips(
        source, frames=12, stride=1, image_size=(16, 16), repeats=1, seed=0, flip=False,
        crop_area=(1, 1), crop_aspect=(1, 1), values=values,
    )  # fmt: skip
    with ClipLoader(clips, batch_size=3, workers=workers) as loader:
        batches = [next(loader) for _ in range(2)]
    found = torch.cat([batch.clips for batch in batches])
    assert (found.shape, found.dtype) == ((6, 2, 12, 16, 16), torch.float32)
    order = [clips.place(slot).item for slot in range(6)]
    expected = (torch.from_numpy(data.astype(np.float32))[order] / 4095 - 0.45) / 0.225
    torch.testing.assert_close(found, expected.permute(0, 4, 1, 2, 3))
