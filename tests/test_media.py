"""One item: the bytes of a file or of a range of one, and the reader that its ending asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stmae.data.container import DecodeError
from stmae.data.media import Media, kind_of, read_clips


def frames_of(media: Any, times: list[float]) -> tuple[np.ndarray, float, list[bool]]:
    """The frames at these times, the duration and whether frames were repeated."""
    found: dict[int, np.ndarray] = {}
    reading = read_clips(media, 1, lambda _, duration: times, lambda _, i, pixels: found.update({i: pixels.copy()}))
    return np.stack([found[i] for i in range(len(times))]), reading.duration, reading.repeated


def test_the_ending_tells_the_kind() -> None:
    assert [kind_of(name) for name in ("a.MP4", "b/c.jpeg", "x.tiff", "x.h5::clips/3", "notes.txt", "mp4")] == [
        "video", "image", "array", "array", None, None,
    ]  # fmt: skip
    assert kind_of("odd::name.mp4") == "video"  # only arrays lie inside files
    assert Media("x.h5::clips/3", Path("x.h5")).inside == "clips/3"


def test_a_range_of_a_file_is_read_like_the_file(videos: Path, tmp_path: Path) -> None:
    path = sorted(videos.iterdir())[0]
    packed = tmp_path / "several, packed.tar"
    packed.write_bytes(b"\0" * 1536 + path.read_bytes() + b"\1" * 999)
    times = [0.0, 0.4, 1.1]
    whole = frames_of(path, times)
    part = frames_of(Media(path.name, packed, 1536, path.stat().st_size), times)
    assert np.array_equal(whole[0], part[0])
    assert whole[1:] == part[1:]
    with pytest.raises(DecodeError, match="empty"):
        frames_of(Media("x.mp4", packed, 0, 0), times)


def test_an_image_is_every_frame(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frames, _, repeated = frames_of(tmp_path / "a.png", [0.0, 0.01, 0.03])
    assert np.array_equal(frames, np.stack([pixels] * 3))
    assert repeated == [False]
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 6  # a camera held upright
    turned.save(tmp_path / "b.png", exif=turned.getexif())
    assert np.array_equal(frames_of(tmp_path / "b.png", [0.0])[0][0], np.rot90(pixels, -1))
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(frames_of(tmp_path / "deep.png", [0.0])[0][0, ..., 0], deep >> 8)


def test_images_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    for name, why in (("empty.jpg", "empty"), ("text.jpg", "cannot identify"), ("missing.jpg", "No such file")):
        with pytest.raises(DecodeError, match=why):
            frames_of(tmp_path / name, [0.0])


def write_array(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, clip=array)
    elif path.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["group/clip"] = array
            file.create_dataset("rate", data=25.0)
    else:
        tifffile = pytest.importorskip("tifffile")
        axes = "TYX" if array.ndim == 3 else "TCYX"
        tifffile.imwrite(path, array if array.ndim == 3 else array.transpose(0, 3, 1, 2), metadata={"axes": axes})
    return path


@pytest.mark.parametrize("ending", ["npy", "npz", "h5", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [0, 2])
def test_arrays_give_their_frames_at_30_a_second(tmp_path: Path, ending: str, dtype: Any, channels: int) -> None:
    shape = (12, 24, 32) + ((channels,) if channels else ())
    array = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    path = write_array(tmp_path / f"a.{ending}", array)
    frames, duration, repeated = frames_of(path, [0.0, 3 / 30, 3.5 / 30, 99.0])
    assert frames.dtype == dtype
    wanted = array[[0, 3, 3, 11]]
    assert np.array_equal(frames, wanted if channels else wanted[..., None])
    assert duration == 12 / 30
    assert repeated == [True]
    packed = tmp_path / "packed.tar"
    packed.write_bytes(b"\0" * 512 + path.read_bytes() + b"\0" * 512)
    again = frames_of(Media(f"in/side.{ending}", packed, 512, path.stat().st_size), [0.0, 0.1])[0]
    assert np.array_equal(again, frames[:2])


def test_axes_are_told_by_their_lengths(tmp_path: Path) -> None:
    for shape, frame in (((5, 2, 20, 30), (20, 30, 2)), ((3, 40, 20, 30), (20, 30, 3)), ((20, 30), (20, 30, 1))):
        array = np.random.default_rng(1).integers(0, 99, shape, np.uint8)
        np.save(tmp_path / "a.npy", array)
        found = frames_of(tmp_path / "a.npy", [1 / 30])[0][0]
        assert found.shape == frame
        chosen = array[1] if len(shape) == 4 and shape[1] == 2 else array[:, 1] if len(shape) == 4 else array[None]
        assert np.array_equal(found, chosen.transpose(1, 2, 0))


def test_arrays_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", np.zeros((2, 3, 4, 5, 6)))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.zeros((3, 4, 5), "S3"))
    np.save(tmp_path / "wide.npy", np.zeros((20, 20, 20, 20), np.uint8))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 4, 4)), b=np.zeros((2, 4, 4)))
    (tmp_path / "short.npy").write_bytes((tmp_path / "wide.npy").read_bytes()[:5000])
    (tmp_path / "empty.h5").touch()
    for name, why in (
        ("five.npy", "5 axes"), ("object.npy", "Python objects"), ("text.npy", "not numbers"), ("wide.npy", "no axis"),
        ("two.npz", "2 arrays.*name one: .*two.npz::a"), ("short.npy", "cannot be opened"), ("empty.h5", "h5"),
    ):  # fmt: skip
        with pytest.raises(DecodeError, match=why):
            frames_of(tmp_path / name, [0.0])
    assert frames_of(Media("two.npz::b", tmp_path / "two.npz"), [0.0])[0].shape == (1, 4, 4, 1)
