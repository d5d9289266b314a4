"""`stmae evaluate`: how good a classifier is, by a protocol that stands with the result."""

from __future__ import annotations

import dataclasses

import numpy as np

from stmae.data.labels import Labels
from stmae.data.opening import Say
from stmae.data.sources import Source
from stmae.data.views import End
from stmae.engine.log import Console, Log
from stmae.errors import UserError
from stmae.model.config import ClassifierConfig
from stmae.tasks import build
from stmae.tasks.classifying import LoadedClassifier
from stmae.tasks.evaluate_options import EvaluateOptions
from stmae.tasks.features import report_reading
from stmae.tasks.judging import Number, Predictions, judge, save, show
from stmae.tasks.labelled import Part, open_labelled, own_parts
from stmae.tasks.protocol import leaks, protocol_of
from stmae.tasks.task import task
from stmae.tasks.videos import places_of

VIEWS = 7  # the paper's for Kinetics, with 3 crops


@task(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> dict[str, Number]:
    """Returns:
        The numbers by name.

    Raises:
        UserError: a mistake in the options, no classifier, classes that it does not know, or no video that can be read.
    """
    with build.cpu_threads(options.threads), Log([Console()]) as log:
        classifier = LoadedClassifier(options)
        part, of = open_part(options, classifier.config, log.message)
        if told := leaks(options.model, options.videos):
            log.message(told)
        views = classifier.views(part.source, VIEWS)
        shown = f"{views} view{'s' * (views > 1)} x {options.crops} crop{'s' * (options.crops > 1)}"
        log.message(f"{len(part)} videos{of}, {shown} each")
        found = predictions(classifier, part, views, options.crops, log)
        numbers = judge(found)
        show(log, found, numbers, f"{len(found.paths)} videos, {shown}, averaged")
        if options.out is not None:
            about = {
                **protocol_of(options, classifier.clip, classifier.extras, classifier.precision, classifier.device),
                "part": of.strip(" ()"), "views": views, "crops": options.crops,
                "averaged": "values" if found.labels.problem == "regression" else "probabilities",
            }  # fmt: skip
            written = save(options.out, found, numbers, about, f"{options.model}, {shown}")
            log.message(f"written to {options.out}: {', '.join(path.name for path in written)}")
    return numbers


def open_part(options: EvaluateOptions, config: ClassifierConfig, say: Say) -> tuple[Part, str]:
    """The videos to judge, with labels in the classifier's order, and which part of a set they are, in words.

    Raises:
        UserError: no such part, or classes that the classifier does not know.
    """
    own = own_parts(options)
    name = options.part if options.part != "auto" else next((name for name in ("test", "val") if name in own), None)
    if name is not None and name not in own:
        raise UserError(
            f'"{options.videos}" has no part called {name}{"; it has " + ", ".join(own) if own else ""}.',
            "Leave --part out to judge all of it.",
        )
    own_options = dataclasses.replace(options, **own[name]) if name is not None else options
    part = open_labelled(own_options, say, classes=config.class_names or None, problem=config.problem)
    if not config.class_names and part.labels.problem != "regression":
        part = dataclasses.replace(part, labels=_numbered(part.source, part.labels, config.classes, say))
    elif len(part.labels.classes) != config.classes:
        raise UserError(
            f"the labels have {len(part.labels.classes)} values, the model {config.classes} outputs.",
            "Give the labels that it was trained on.",
        )
    return part, f" ({name} part)" if name is not None else ""


def _numbered(source: Source, labels: Labels, outputs: int, say: Say) -> Labels:
    """Labels for a model whose outputs have no names: by number; or names in alphabetical order, if they are as many.

    Raises:
        UserError: neither will do.
    """
    names = labels.classes
    numbers = all(name.isdecimal() for name in names)
    if numbers and all(int(name) < outputs for name in names):
        places = [int(name) for name in names]
    elif not numbers and len(names) == outputs:
        say(f"the model does not name its {outputs} outputs: they are taken for the classes in alphabetical order.")
        places = list(range(outputs))
    else:
        raise UserError(
            f"the model has {outputs} outputs without names, and {source.root} has {len(names)} classes.",
            f"Give labels as numbers from 0 to {outputs - 1}, or --label-map.",
        )
    called = dict(zip(places, names, strict=True))
    classes = tuple(called.get(place, str(place)) for place in range(outputs))
    if labels.problem == "single":
        return Labels(labels.problem, classes, np.array(places)[labels.targets])
    targets = np.zeros((len(labels.targets), outputs), np.float32)
    targets[:, places] = labels.targets
    return Labels(labels.problem, classes, targets)


def predictions(classifier: LoadedClassifier, part: Part, views: int, crops: int, log: Log) -> Predictions:
    """What the classifier says of a part's videos, the mean over their views."""
    source, kept, ends = part.source, [], list[End]()
    for video in classifier.through(source, places_of(classifier.extras, classifier.clip.frames, views), crops):
        ends.append(video.end)
        log.progress(len(ends), len(source))
        if video.end.clips:
            kept.append(video)
    report_reading(log, source, ends, "are not judged")
    items = [video.end.item for video in kept]
    return Predictions(
        dataclasses.replace(part.labels, targets=part.labels.targets[items]),
        [source.name(item) for item in items],
        np.stack([video.rows.mean(axis=0) for video in kept]),
        [video.rows for video in kept],
        [video.times for video in kept],
    )
