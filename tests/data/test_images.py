"""Images out of idx files: compressed or not, and damaged ones refused in a line."""

import gzip
import struct

import numpy as np
import pytest

from lossmith.data.images import images
from lossmith.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 9, 3, 3, 1], dtype=np.uint8)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def write(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSMITH_DATA", str(tmp_path))

    def write(pixels, labels, set_name="mnist", part="train", ending=""):
        folder = tmp_path / set_name
        folder.mkdir(exist_ok=True)
        (folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(pixels)
        (folder / f"{part}-labels-idx1-ubyte{ending}").write_bytes(labels)

    return write


def refused(set_name, part, *words):
    with pytest.raises(InputError) as caught:
        images(set_name, part)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("part", "file"), [("train", "train"), ("test", "t10k")])
def test_images_and_labels(write, packed, part, file):
    change = gzip.compress if packed else bytes
    write(change(idx(PIXELS)), change(idx(LABELS)), "fashion-mnist", file, ".gz" if packed else "")
    pixels, labels = images("fashion-mnist", part)
    np.testing.assert_array_equal(pixels, PIXELS)
    np.testing.assert_array_equal(labels, LABELS)
    assert (pixels.dtype, labels.dtype) == (np.uint8, np.int64)
    pixels[0] = 0  # the caller's own


@pytest.mark.parametrize(
    ("pixels", "labels", "words"),
    [
        (idx(LABELS), idx(LABELS), ["expected the magic number 00000803, got 00000801"]),
        (b"\1" + idx(PIXELS), idx(LABELS), ["expected the magic number"]),
        (idx(PIXELS)[:9], idx(LABELS), ["expected a header of 16 bytes, got 9"]),
        (idx(PIXELS)[:-1], idx(LABELS), ["expected 5 × 28 × 28 bytes after the header, got 3919"]),
        (idx(PIXELS) + b"x", idx(LABELS), ["got 3921"]),
        (idx(PIXELS), idx(LABELS[:4]), ["expected images of shape (4, 28, 28)", "got (5, 28, 28)"]),
        (idx(PIXELS[:, :27]), idx(LABELS), ["got (5, 27, 28)"]),
        (idx(PIXELS), idx(LABELS + 1), ["expected labels below 10, got 10"]),
        (gzip.compress(idx(PIXELS), mtime=0)[:50], idx(LABELS), ["expected a file compressed by gzip"]),
        (b"", idx(LABELS), ["the file is empty"]),
    ],
)
def test_damaged_files(write, pixels, labels, words):
    write(pixels, labels)
    refused("mnist", "train", *words)


def test_sets_parts_and_files_that_are_not_there(write, tmp_path):
    refused("mnits", "train", "mnits: there is no such set of images; did you mean 'mnist'")
    refused("mnist", "trian", "trian: there is no such part of it; did you mean 'train'?")
    refused("mnist", "train", "run: lossmith data fetch mnist")
    (tmp_path / "mnist").mkdir()
    refused("mnist", "train", "train-images-idx3-ubyte", "cannot be read")
