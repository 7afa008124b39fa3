"""Are the data of a suite there, whole and as published? Everything that is missing at once, before anything trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from harness.catalogue import catalogue
from harness.class_maps import class_map
from harness.datasets.suites import Counts, Suite
from harness.errors import ConfigError, UserError
from harness.registry import source_class
from harness.sources import Sample, Source

UNLABELLED = 8  # images that are opened, at equal distances, where there are no classes to take one each of
SHOWN = 3  # names in one sentence


@dataclasses.dataclass(frozen=True)
class Report:
    """good, faults: one sentence each. suite: what was checked."""

    suite: Suite
    good: list[str]
    faults: list[str]

    def where(self) -> str:
        """How to get the data, in lines."""
        about = self.suite.about
        lines = [f"{about.title}: {about.where} (licence: {about.licence})", "The root must hold:"]
        return "\n".join([*lines, *(f"  {line}" for line in about.layout)])


def check_data(suite: Suite) -> Report:
    """Open both splits of a suite, count, and decode the first image of every class.

    Raises:
        UserError, ConfigError: a task, a source or an option that does not exist.
    """
    known, mistakes = catalogue(), []
    for kind, name, options in (
        ("task", suite.task, suite.options),
        ("source", suite.data.source, suite.data.options),
    ):
        try:
            known.resolve(kind, name, options)
        except ConfigError as error:
            mistakes += error.mistakes
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError(mistakes, suite.about.title)
    report = Report(suite, [], [])
    found: dict[str, Source] = {}
    for part, split in (("train", suite.data.train), ("test", suite.data.test)):
        try:
            source = _opened(suite, split)
            source.identity()  # reads or sizes up what opening only lists
            found[part] = source
        except (UserError, OSError) as error:
            report.faults.append(f"{part} (split {split!r}): {error}")
    report.faults.extend(_swapped(suite, found) or _miscounted(suite, found))
    for part, source in found.items():
        faults, opened = _contents(source)
        report.faults.extend(f"{part}: {fault}" for fault in faults)
        report.good.append(f"{part}: {_described(source)}; {opened} of its images opened")
    if len(found) == 2:
        report.faults.extend(_against_each_other(suite, found["train"], found["test"]))
    return report


def _opened(suite: Suite, split: str) -> Source:
    """A split, not from this process's store of open data: the files may just have been mended."""
    cls = source_class(suite.data.source)
    if cls.needs_root and suite.data.root is None:
        raise UserError(f"data source {suite.data.source!r} needs a root, the folder that holds {split!r}")
    return cls(suite.data.root, split, **suite.data.options)  # type: ignore[call-arg]


def _classes(source: Source) -> int:
    return len(source.segmentation_classes or source.classes)


def _described(source: Source) -> str:
    kinds = (("classes of pixels", source.segmentation_classes), ("classes", source.classes))
    parts = [f"{len(names):,} {what}" for what, names in kinds if names]
    if source.depth_range_m is not None:
        parts.append("depth from {:g} to {:g} m".format(*source.depth_range_m))
    return ", ".join([f"{len(source):,} images", *parts])


def _expected(suite: Suite, part: str) -> Counts | None:
    counts = suite.about.counts
    return counts.train if part == "train" else counts.test


def _miscounted(suite: Suite, found: dict[str, Source]) -> Iterator[str]:
    for part, source in found.items():
        expected = _expected(suite, part)
        if expected is None:
            continue
        pairs = [("images", len(source), expected.images), ("classes", _classes(source), expected.classes)]
        wrong = [f"{there:,} {what} instead of {of:,}" for what, there, of in pairs if of is not None and there != of]
        if wrong:
            more = len(source) > expected.images
            remedy = "remove what does not belong there" if more else "unpack the archive again, whole"
            yield f"{part}: {' and '.join(wrong)}; {remedy}"


def _swapped(suite: Suite, found: dict[str, Source]) -> list[str]:
    """One sentence where each split has the other's number of images."""
    train, test = _expected(suite, "train"), _expected(suite, "test")
    if len(found) < 2 or train is None or test is None or train.images == test.images:
        return []
    there = len(found["train"]), len(found["test"])
    if there != (test.images, train.images):
        return []
    return [f"train and test are swapped: they have {there[0]:,} and {there[1]:,} images; exchange them"]


def _contents(source: Source) -> tuple[list[str], int]:
    """What is wrong with labels and images, and how many images were opened."""
    faults, labels = [], source.labels()
    if source.classes:
        unlabelled = int((labels < 0).sum())
        if unlabelled:
            name = source.sample_name(int(np.argmin(labels)))
            faults.append(f"{unlabelled:,} of {len(source):,} images have no label, the first: {name!r}")
        empty = sorted(set(range(len(source.classes))) - set(labels.tolist()))
        if empty:
            faults.append(f"{len(empty)} classes have no image: {_few([source.classes[i] for i in empty])}")
    chosen = _looked_at(labels)
    wrong = {i: fault for i in chosen if (fault := _fault_of(source, i)) is not None}
    if wrong:
        shown = [f"{source.sample_name(i)!r} ({fault})" for i, fault in list(wrong.items())[:SHOWN]]
        more = ", ..." if len(wrong) > SHOWN else ""
        faults.append(f"{len(wrong)} of {len(chosen)} opened images are broken: {', '.join(shown)}{more}; replace them")
    return faults, len(chosen) - len(wrong)


def _looked_at(labels: np.ndarray) -> list[int]:
    """The first image of every class, and of those without one some at equal distances."""
    classes, first = np.unique(labels, return_index=True)
    chosen = first[classes >= 0]
    without = np.flatnonzero(labels < 0)
    spread = without[np.linspace(0, len(without) - 1, min(UNLABELLED, len(without))).round().astype(int)]
    return sorted({*chosen.tolist(), *spread.tolist()})


def _fault_of(source: Source, index: int) -> str | None:
    try:
        sample = source.read(index)
    except (UserError, OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
        return str(error) or type(error).__name__
    return _fault_of_pixels(source, sample)


def _fault_of_pixels(source: Source, sample: Sample) -> str | None:
    """What is wrong with a mask or a depth map that the source says it has."""
    if source.segmentation_classes:
        if sample.mask is None:
            return "it has no mask"
        strange = np.unique(sample.mask[sample.mask != 255])
        if strange.size and strange.max() >= len(source.segmentation_classes):
            return f"its mask has class {strange.max()}, but there are {len(source.segmentation_classes)}"
    if source.depth_range_m is not None:
        if sample.depth_m is None or not (sample.depth_m > 0).any():
            return "it has no depth"
        low, high = source.depth_range_m
        if not ((sample.depth_m >= low) & (sample.depth_m <= high)).any():
            return f"not one depth of it lies between {low:g} and {high:g} m"
    return None


def _against_each_other(suite: Suite, train: Source, test: Source) -> Iterator[str]:
    try:
        class_map(train.classes, test.classes, str(suite.options.get("test_classes", "same")))
    except UserError as error:
        yield str(error)
    if train.segmentation_classes != test.segmentation_classes:
        yield "train and test do not have the same classes of pixels"
    if train.identity() == test.identity():
        yield "train and test hold the same images; data.train and data.test must name different splits"


def _few(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
