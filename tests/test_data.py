"""Order and augmentation are functions of (seed, epoch, index) alone; views are exact; bad images are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import Augment, Data, batch_indices, batches, steps_an_epoch
from harness.errors import UserError
from harness.sources import Sample, Source, View, balanced_subset, hold_out


class Numbered(Source):
    """Images whose pixels tell their number; `broken` ones cannot be read."""

    name = "numbered"

    def __init__(self, count: int, classes: int = 3, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken
        self.classes = tuple(f"c{i}" for i in range(classes))

    def __len__(self):
        return self.count

    def read(self, index):
        if index in self.broken:
            raise OSError("image file is truncated")
        pixels = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        return Sample(Image.fromarray(pixels), int(self.labels()[index]))

    def labels(self):
        return np.arange(self.count) % len(self.classes)

    def sample_name(self, index):
        return f"n{index}.png"

    def identity(self):
        return f"numbered {self.count} {len(self.classes)}"


def stream(source, seed=0, start=0, steps=12, workers=0, augment=Augment(), batch_size=4, bad="raise"):  # noqa: B008
    data = Data(source="numbered", name="numbered", image_size=16, on_bad_image=bad)
    return list(
        batches(
            source,
            data,
            augment,
            batch_size=batch_size,
            steps=steps,
            seed=seed,
            start=start,
            num_workers=workers,
        )
    )


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)
        for (a, _), (b, _) in zip(one, other, strict=True)
    )


def test_workers_change_nothing():
    assert equal(stream(Numbered(18)), stream(Numbered(18), workers=2))


@pytest.mark.parametrize("start", [1, 4, 7])
def test_resuming_changes_nothing(start):
    assert equal(stream(Numbered(18))[start:], stream(Numbered(18), start=start))


def test_the_global_random_stream_neither_matters_nor_moves():
    torch.manual_seed(1)
    one = stream(Numbered(18))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert equal(one, stream(Numbered(18)))
    assert torch.equal(before, torch.get_rng_state())


def test_another_seed_gives_another_order_and_other_crops():
    one, other = stream(Numbered(18), seed=0), stream(Numbered(18), seed=1)
    assert [b.index.tolist() for b, _ in one] != [b.index.tolist() for b, _ in other]
    crops = {}
    for batch, _ in one:  # 12 batches of 4 are three epochs of 16: most images come again, cropped otherwise
        for image, i in zip(batch.images, batch.index.tolist(), strict=True):
            crops.setdefault(i, []).append(image)
    twice = [c for c in crops.values() if len(c) > 1]
    assert twice and all(not torch.equal(c[0], c[1]) for c in twice)


def test_an_epoch_holds_every_image_at_most_once():
    order = [b.index.tolist() for b, _ in stream(Numbered(18))]
    for epoch in range(3):
        seen = [i for batch in order[epoch * 4 : (epoch + 1) * 4] for i in batch]
        assert len(set(seen)) == 16


def test_batch_indices_tell_what_a_batch_holds():
    for step, (batch, _) in enumerate(stream(Numbered(18))):
        assert batch.index.tolist() == batch_indices(18, 4, 0, step)


def test_images_are_in_the_unit_interval_and_of_the_size_asked_for():
    for batch, _ in stream(Numbered(18)):
        assert batch.images.shape == (4, 3, 16, 16) and batch.images.dtype == torch.float32
        assert batch.images.min() >= 0 and batch.images.max() <= 1
    progress = [b.progress for b, _ in stream(Numbered(18))]
    assert progress == [i / 12 for i in range(12)]


def test_without_augmentation_the_evaluation_view_is_used():
    (batch, _), *_ = stream(Numbered(18), augment=None)
    expected = View(16)(Numbered(18).read(int(batch.index[0])).image)
    assert torch.allclose(batch.images[0], expected, atol=1 / 255)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(workers):
    with pytest.raises(UserError) as caught:
        stream(Numbered(18, broken=(2,)), workers=workers)
    assert str(caught.value).startswith("image 'n2.png' cannot be read: image file is truncated. Mend or remove it")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_may_be_skipped_and_are_counted(workers):
    found = stream(Numbered(18, broken=(3, 5)), workers=workers, bad="skip")
    indices = [i for b, _ in found for i in b.index.tolist()]
    expected = [i for b, _ in stream(Numbered(18)) for i in b.index.tolist()]
    assert indices == [i for i in expected if i not in (3, 5)]
    assert sum(skipped for _, skipped in found) == sum(i in (3, 5) for i in expected) > 0


def test_a_batch_without_a_single_good_image_is_an_error():
    with pytest.raises(UserError, match="not one image of a batch can be read"):
        stream(Numbered(8, broken=tuple(range(8))), bad="skip", steps=1)


def test_labels_that_do_not_exist_are_none():
    class Unlabelled(Numbered):
        name = "unlabelled"

        def labels(self):
            return np.full(self.count, -1)

    (batch, _), *_ = stream(Unlabelled(8), steps=1)
    assert batch.labels is None


def test_a_limit_keeps_every_classes_share():
    source = Numbered(31, classes=3)
    part = balanced_subset(source, 10)
    assert len(part) == 10 and sorted(np.bincount(part.labels())) == [3, 3, 4]
    assert part.sample_name(0) == "n0.png" and part.read(9).label == part.labels()[9]
    assert balanced_subset(source, 31) is source
    assert part.identity() != source.identity() != balanced_subset(source, 11).identity()


class Labelled(Numbered):
    """As many samples of each class as are said, class by class."""

    name = "labelled"

    def __init__(self, *sizes: int) -> None:
        super().__init__(sum(sizes), classes=len(sizes))
        self.sizes = sizes

    def labels(self):
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_what_is_held_out_is_a_share_of_every_class_and_in_no_other_part(share):
    source = Labelled(40, 1, 2, 25)
    kept, held = hold_out(source, share)
    names = [{part.sample_name(i) for i in range(len(part))} for part in (kept, held)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 68
    counts = np.bincount(held.labels(), minlength=4)
    assert counts.tolist() == [round(40 * share), 0, 1, min(24, round(25 * share))]
    ranks = held.indices[held.labels() == 0]
    assert ranks[-1] > 40 * (1 - share) / 2  # spread over the class, not its beginning


def test_the_same_images_are_held_out_whatever_the_limit_and_the_test_split_stays_closed():
    class Closed(Numbered):
        name = "closed"

        def __getattribute__(self, name):
            raise AssertionError("the test split was looked at")

    opened = {"train": Numbered(60), "test": Closed.__new__(Closed)}
    data = [
        Data(source="in-memory", name="x", opened=opened, held_out=0.1, limit=limit, test="validation")
        for limit in (None, 54, 12)
    ]
    tests = [d.open("test") for d in data]
    assert {t.identity() for t in tests} == {hold_out(Numbered(60), 0.1)[1].identity()} and len(tests[0]) == 6
    assert [len(d.open("train")) for d in data] == [54, 54, 12]
    names = [tests[0].sample_name(i) for i in range(6)]
    assert not set(names) & {data[2].open("train").sample_name(i) for i in range(12)}
    for split in ("validation", "novel"):
        with pytest.raises(UserError, match=f"split '{split}' stays closed while data.held_out is set"):
            data[0].open(split)


def test_what_is_held_out_is_part_of_the_datas_identity_only_where_it_is():
    plain, held = Data(source="x", name="x"), Data(source="x", name="x", held_out=0.1)
    assert held.identity() == {**plain.identity(), "held_out": 0.1}
    assert "held_out" not in plain.identity()


def test_nothing_can_be_held_out_of_classes_of_one_image():
    with pytest.raises(UserError, match=r"0\.1 of the training split cannot be held out: none of its classes has two"):
        hold_out(Labelled(1, 1, 1), 0.1)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_fewer_images_than_a_batch_is_an_error(count):
    if count < 4:
        with pytest.raises(UserError, match=f"there are only {count}"):
            steps_an_epoch(count, 4)
    else:
        assert steps_an_epoch(count, 4) == 1


def test_a_crop_view_keeps_the_centre_and_a_squash_view_keeps_everything():
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, :10] = 255  # a bar at the left edge, outside the central square
    image = Image.fromarray(pixels)
    assert View(20)(image).max() == 0
    assert View(20, resize="squash")(image)[:, :, 0].min() > 0.9
    assert View(20, crop_share=0.5)(image).shape == (3, 20, 20)


def test_a_source_without_a_root_is_a_clear_error():
    with pytest.raises(UserError, match=r"'folder' needs data\.root"):
        Data(source="folder", name="x").open("train")


def test_a_datas_identity_holds_no_path():
    data = Data(source="folder", name="x", root="/somewhere/private")
    assert "private" not in str(data.identity())
