"""Part of a source is that part, renumbered."""

import numpy as np
import pytest

from fastssl.data import ArraySource, ObjectSource
from fastssl.data.subset import subset


class Bytes:
    labels = np.arange(5)

    def __len__(self):
        return 5

    def read(self, index):
        return bytes([index])


@pytest.mark.parametrize("ids", [[3, 0], [4], []])
def test_reads_names_and_labels_are_those_of_the_chosen(ids):
    whole = ObjectSource(Bytes())
    part = subset(whole, ids)
    assert len(part) == len(ids)
    assert [part.read(i) for i in range(len(ids))] == [bytes([i]) for i in ids]
    assert [part.name(i) for i in range(len(ids))] == [whole.name(i) for i in ids]
    assert part.labels.tolist() == ids


def test_arrays_stay_arrays():
    images = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    part = subset(ArraySource(images, [7, 8, 9, 6]), [2, 1])
    assert isinstance(part, ArraySource)
    assert np.array_equal(part.image(0), images[2])
    assert part.labels.tolist() == [9, 8]


@pytest.mark.parametrize("ids", [[5], [-1]])
def test_foreign_ids_are_refused(ids):
    with pytest.raises(IndexError, match=r"ids must be in \[0, 5\)"):
        subset(ObjectSource(Bytes()), ids)
