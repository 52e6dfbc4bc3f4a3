"""How elements cross a shuffle."""

import apache_beam as beam
import pytest

from ot_core import Part
from transforms import Failure, ImageRecord, ImageRef

ROWS = [
    ImageRef("a/b", "gs://c/a/b.png", "source", "tar:0:9:x", "v1", 1.5, "camera", (0.0, 0.5), 3),
    ImageRecord("a", "in/a.png", "out/a.png", 0.5, 3, 4, 9, "ab", 0.1, "v1", "camera"),
    Failure("a", "in/a.png", "read", "not_found", "gone"),
    Part("source", 3, "camera"),
]


@pytest.mark.parametrize("row", ROWS, ids=[type(row).__name__ for row in ROWS])
def test_a_row_comes_back_as_it_was_by_its_fields_alone(row):
    coder = beam.coders.registry.get_coder(beam.typehints.Tuple[str, type(row)])
    encoded = coder.encode(("key", row))
    found = coder.decode(encoded)[1]
    assert found == row
    assert type(found) is type(row)
    assert type(row).__name__.encode() not in encoded
    assert coder.is_deterministic()
