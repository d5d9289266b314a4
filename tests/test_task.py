"""Options from keywords, YAML and presets: bound, coerced, refused all at once, and which goes before which."""

import copy
import inspect
import pickle
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_type_hints

import pytest

from stmae.cli import COMMANDS
from stmae.errors import UserError
from stmae.presets import PRESETS, Facts
from stmae.tasks import checks
from stmae.tasks.options import Options
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.task import bind, field_docs, resolve, task
from stmae.tasks.values import coerce, from_text

ROOT = Path(__file__).parent.parent
CPU = Facts(videos=10, device="cpu")
GPU = Facts(videos=10, device="cuda")


@dataclass(frozen=True, kw_only=True)
class PieOptions(Options):
    """Bake a pie.

    Example:

        stmae pie apple
    """

    filling: str
    """What goes in."""
    size: tuple[int, int] = (20, 4)
    """Width and height."""
    heat: float = 180.0
    """How hot."""
    oven: Literal["gas", "electric"] = "gas"
    """Which oven."""
    plate: Path | None = None
    """Where it goes."""
    cuts: tuple[float, ...] = ()
    """Where it is cut."""


@task(PieOptions)
def bake(options: PieOptions) -> PieOptions:
    """Returns:
    The options.
    """
    return options


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"not looked into here")
    return folder


def mistakes(error: UserError) -> list[str]:
    return [" ".join(pair).strip() for pair in error.problems]


def refused(**keywords: object) -> list[str]:
    """What `pretrain` has to say about these keywords."""
    with pytest.raises(UserError) as caught:
        bind(PretrainOptions, (), keywords)
    return mistakes(caught.value)


def test_keywords_become_what_the_annotations_say() -> None:
    pie = bake(filling="apple", size=[24, 5], heat=200, plate="shelf/top", cuts=[1, 2.5])
    assert pie.size == (24, 5)
    assert (pie.heat, type(pie.heat)) == (200.0, float)
    assert pie.plate == Path("shelf/top")
    assert pie.cuts == (1.0, 2.5)
    assert pie.oven == "gas"
    assert pie.given == {"filling": "apple", "size": (24, 5), "heat": 200.0, "plate": pie.plate, "cuts": (1.0, 2.5)}


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        bake(size=(1, 2, 3), heat="180", oven="gaz", fillin="plum", cuts=3, plate=4)
    assert mistakes(caught.value) == [
        "size (1, 2, 3) has 3 values. Give 2.",
        'heat "180" is text, not a number. Leave the quotes out.',
        'oven "gaz" is not one of gas, electric. Did you mean "gas"?',
        'unknown option "fillin". Did you mean "filling"?',
        "cuts 3 is a single value. Give several values in brackets.",
        "plate 4 is not a path. Put it in quotes.",
        "filling is missing. Give filling: what goes in.",
    ]


@pytest.mark.parametrize(
    "value, hint, message",
    [
        ("8", int, 'x "8" is text, not a whole number.'),
        (8.0, int, "x 8.0 is not a whole number."),
        (True, int, "x True is not a whole number."),
        ("abc", float, 'x "abc" is not a number.'),
        (float("nan"), float, "x nan is not a finite number."),
        (None, float, "x None is not a number."),
        (1, bool, "x 1 is neither true nor false."),
        (("1", 2), tuple[int, int], 'x "1" is text, not a whole number.'),
        ("12", tuple[int, ...], 'x "12" is a single value.'),
        ("", Path, "x is empty."),
    ],
)
def test_wrong_types_say_what_they_are_and_what_is_wanted(value: object, hint: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        coerce("x", value, hint)
    assert caught.value.problems[0][0] == message


@pytest.mark.parametrize(
    "text, hint, value",
    [
        ("8", int, 8),
        ("1e-3", float | None, 1e-3),
        ("none", float | None, None),
        ("none", str, "none"),
        ("x", int, "x"),
        (("1", "y"), tuple[int, ...], (1, "y")),
        (("2", "0.5"), tuple[int, float], (2, 0.5)),
        ("7", str, "7"),
    ],
)
def test_text_of_the_command_line_becomes_values(text: object, hint: object, value: object) -> None:
    assert from_text(text, hint) == value


def test_a_task_shows_its_options_to_people_and_tools() -> None:
    assert bake.__doc__ is not None
    assert "Bake a pie." in bake.__doc__
    assert "heat: How hot." in bake.__doc__
    assert "The options." in bake.__doc__
    parameters = inspect.signature(bake).parameters
    assert parameters["filling"].default is inspect.Parameter.empty
    assert parameters["plate"].annotation == Path | None
    assert list(parameters) == [field.name for field in fields(PieOptions)]


def test_positional_values_go_to_the_fields_that_take_them(videos: Path) -> None:
    assert bind(PretrainOptions, (str(videos),), {"out": "x"}).videos == str(videos)
    with pytest.raises(UserError, match="2 values without a name, where at most 1"):
        bind(PretrainOptions, (str(videos), "x"), {})
    with pytest.raises(UserError, match="videos is given twice"):
        bind(PretrainOptions, (str(videos),), {"videos": "x", "out": "y"})


def test_every_option_has_a_line_of_help() -> None:
    for options, _ in COMMANDS.values():
        for name, text in field_docs(options).items():
            assert text, f"{options.__name__}.{name}"


def test_options_remember_what_was_given_when_copied() -> None:
    pie = PieOptions(filling="apple", heat=200.0)
    assert set(copy.deepcopy(pie).given) == {"filling", "heat"}
    assert pickle.loads(pickle.dumps(pie)).given == pie.given


def test_precedence_is_defaults_preset_file_keywords(videos: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("image_size: 64\nepochs: 1e+2\nlr: 1e-3\npatch: [2, 8, 8]\nderived: {steps: 7}\nconfig: null\n")
    options = bind(PretrainOptions, (videos,), {"out": "x", "config": str(config), "image_size": 32})
    resolved = resolve(options, CPU)
    small = PRESETS["small"](CPU)
    assert resolved.image_size == 32  # a keyword goes before the file
    assert (resolved.epochs, resolved.lr, resolved.patch) == (100.0, 1e-3, (2, 8, 8))  # the file before the preset
    assert resolved.model == small["model"] != PretrainOptions.model  # the preset before the defaults
    assert resolved.weight_decay == 0.05
    assert resolve(options, GPU).model == PretrainOptions.model  # auto is `paper` there


def test_a_keyword_equal_to_the_default_still_goes_before_the_preset(videos: Path) -> None:
    options = bind(PretrainOptions, (videos,), {"out": "x", "model": "vit_base", "preset": "small"})
    assert PRESETS["small"](CPU)["model"] != "vit_base"
    assert resolve(options, CPU).model == "vit_base"


def test_required_options_may_come_from_the_file(videos: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"videos: {videos}\nout: {tmp_path / 'run'}\nframes: 8\n")
    options = bind(PretrainOptions, (), {"config": config})
    assert options.out == tmp_path / "run"
    assert options.frames == 8


def test_the_file_is_checked_like_keywords(videos: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text('mask_ration: 0.9\nmask_ratio: "0.9"\nframes: eight\n')
    said = refused(videos=videos, out="x", config=config)
    assert said == [
        f'unknown option "mask_ration" in "{config}". Did you mean "mask_ratio"?',
        'mask_ratio "0.9" is text, not a number. Leave the quotes out.',
        'frames "eight" is not a whole number.',
    ]
    assert "is no file" in refused(videos=videos, out="x", config=tmp_path / "missing.yaml")[0]
    config.write_text("- 1\n")
    assert len(refused(videos=videos, out="x", config=config)) == 1


def test_presets_give_options_that_work(videos: Path) -> None:
    hints = get_type_hints(PretrainOptions, include_extras=True)
    for name, preset in PRESETS.items():
        assert preset.__doc__
        for facts in (CPU, GPU, Facts(videos=100_000, device="mps")):
            for option, value in preset(facts).items():
                assert coerce(option, value, hints[option]) == value
            own = {"tokenizer": __file__} if name == "bevt" else {}  # any file: what is in it is looked at later
            resolve(bind(PretrainOptions, (videos,), {"out": "x", "preset": name, **own}), facts)


@pytest.mark.parametrize(
    "wrong, message, cure",
    [
        ({"mask_ratio": 1.0}, "mask_ratio 1.0 hides every token.", "below 1"),
        ({"mask_ratio": 0}, "mask_ratio 0.0 hides none.", "above 0"),
        ({"frames": 7}, "frames 7 does not divide into patches of 2 frames.", "Choose 6 or 8"),
        ({"image_size": 100}, "image_size 100 does not divide into patches of 16 pixels.", "Choose 96 or 112"),
        ({"image_size": 8}, "image_size 8 does not divide into patches of 16 pixels.", "Choose 16,"),
        ({"batch_size": 10}, "batch_size 10 is not a multiple of repeats 4.", "Choose 8 or 12."),
        (
            {"batch_size": 12, "accumulate": 2},
            "batch_size 12 is not a multiple of repeats 4 x accumulate 2.",
            "8 or 16.",
        ),
        ({"model": "vit_lage"}, 'unknown model "vit_lage".', 'Did you mean "vit_large"?'),
        ({"preset": "papr"}, 'unknown preset "papr".', 'Did you mean "paper"?'),
        ({"decoder_width": 100, "decoder_heads": 8}, "decoder_width 100 does not divide into 8 heads.", "96 or 104"),
        ({"holdout": 1.0}, "holdout 1 is not a share that leaves videos to train on.", "below 1"),
        ({"epochs": 0}, "epochs 0 is not above 0.", "800"),
        ({"epochs": "80%"}, 'epochs "80%" is a share of itself.', "Give epochs"),
        ({"epochs": 10, "warmup": 10}, "warmup 10 is not from 0 to below epochs 10", "15%"),
        ({"epochs": "100 steps", "warmup": "200 steps"}, "warmup 200 steps is not from 0 to below", "15%"),
        ({"warmup": "100%"}, "warmup 100% is not from 0 to below epochs 800", "15%"),
        ({"cooldown": "10%"}, "cooldown 10% has no meaning with schedule cosine", "schedule constant"),
        ({"save_every": 0}, "save_every 0 is too small.", "1 or more"),
        ({"end_lr": -1.0}, "end_lr -1 is negative.", "0 or more"),
        ({"group_lr": ("decoder",)}, 'group_lr "decoder" is no name=number', "decoder=0.5"),
        ({"group_decay": ("a=1", "a=2")}, 'group_decay has "a" twice.', "once"),
        ({"lr": 0}, "lr 0 is not above 0.", "Leave it out"),
        ({"crop_area": (0.5, 1.5)}, "crop_area 0.5 1.5 is not a range", "0.5 1.0"),
        ({"crop_aspect": (2, 1)}, "crop_aspect 2 1 is not a range", "0.75 1.333"),
        ({"workers": -1}, "workers -1 is negative.", "Choose 0"),
        ({"stride": 0}, "stride 0 is not above 0.", "30 fps"),
        ({"frames": 2, "image_size": 16}, "a clip of a single patch leaves nothing to hide.", "smaller patches"),
        ({"clip_grad": -1}, "clip_grad -1 is not above 0.", "none"),
        ({"init": "runs/nowhere"}, 'init "runs/nowhere" does not exist.', "weights file"),
    ],
)
def test_values_that_cannot_work_are_refused_with_a_cure(videos: Path, wrong: dict, message: str, cure: str) -> None:
    said = refused(videos=videos, out="x", **{"preset": "paper", **wrong})
    assert len(said) == 1, said
    assert message in said[0]
    assert cure in said[0]


def test_all_values_that_cannot_work_are_found_together(videos: Path) -> None:
    said = refused(videos=videos / "nope", out=videos / "a.mp4", mask_ratio=1.5, frames=7, lr=-1, model="vit")
    assert [text.split()[0] for text in said] == ["videos", "out", "lr", "unknown", "frames", "mask_ratio"]


def test_places_that_are_not_there_or_not_free(videos: Path) -> None:
    (videos.parent / "videso").mkdir()
    said = refused(videos=videos.parent / "vidoes", out=videos / "a.mp4" / "run")
    assert "does not exist" in said[0]
    assert "Did you mean" in said[0]
    assert "is a file" in said[1]
    (videos / "notes.doc").touch()
    (only,) = refused(videos=videos / "notes.doc", out="x")
    assert "neither a video nor a list" in only


def test_a_tilde_is_the_home_folder(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(videos.parent))
    (videos.parent / "options.yaml").write_text("out: ~/runs/first\n")
    options = bind(PretrainOptions, (f"~/{videos.name}",), {"config": "~/options.yaml"})
    assert options.out == videos.parent / "runs" / "first"


def test_sources_other_than_folders_are_left_to_the_loader() -> None:
    assert bind(PretrainOptions, (object(),), {"out": "x"}).videos is not None


def test_model_names_are_those_of_create_model() -> None:
    from stmae.model.sizes import SIZES

    assert tuple(SIZES) == checks.MODELS


@pytest.mark.slow
def test_type_checkers_know_the_keywords(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from stmae.tasks.embed_options import EmbedOptions\n"
        "from stmae.tasks.task import task\n"
        "@task(EmbedOptions)\n"
        "def embed(options: EmbedOptions) -> int:\n"
        "    return options.batch_size\n"
        "fine: int = embed('videos', model='m', out='f.npz', views=2)\n"
        "embed('videos', model='m', out='f.npz', veiws=2)\n"
        "embed('videos', model='m')\n"
        "embed('videos', model='m', out='f.npz', batch_size='8')\n"
    )
    # In the project's folder, for its settings and its cache.
    command = [sys.executable, "-m", "mypy", str(snippet)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    lines = [line.split("snippet.py:")[1] for line in done.stdout.splitlines() if "error:" in line]
    assert [int(line.split(":")[0]) for line in lines] == [7, 8, 9], done.stdout
    assert 'Unexpected keyword argument "veiws"' in lines[0]
    assert 'Missing named argument "out"' in lines[1]
    assert "incompatible type" in lines[2]
