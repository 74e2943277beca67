"""Images of digits and of clothes, out of the fetched sets ``mnist`` and ``fashion-mnist``."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lossmith.data import public, tables
from lossmith.errors import InputError, near

__all__ = ["PARTS", "SETS", "images"]

SETS = ("mnist", "fashion-mnist")
PARTS = {"train": "train", "test": "t10k"}  # the second is the beginning of the file's name
_SIDE = 28  # pixels
_CLASSES = 10
_UNSIGNED = b"\0\0\x08"  # how an idx file of bytes begins; the number of dimensions follows


def images(set_name: str, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images of shape (n, 28, 28), as uint8 from 0 (background) to 255, and labels of shape (n,), from 0 to 9.

    Args:
        set_name: ``mnist`` or ``fashion-mnist``.
        part: ``train`` (60,000 images) or ``test`` (10,000).

    Raises:
        InputError: there is no such set or part, the set was not fetched, or a file is damaged.
    """
    for name, known, what in ((set_name, SETS, "set of images"), (part, PARTS, "part of it")):
        if name not in known:
            raise InputError(f"{tables.one_line(name)}: there is no such {what}; {near(name, known)}")
    folder = public.need(set_name)
    pixels = _read(folder, f"{PARTS[part]}-images-idx3-ubyte", 3)
    labels = _read(folder, f"{PARTS[part]}-labels-idx1-ubyte", 1)
    if pixels.shape != (len(labels), _SIDE, _SIDE):
        raise _damaged(folder, f"images of shape {(len(labels), _SIDE, _SIDE)}, one for each label", f"{pixels.shape}")
    if labels.size and labels.max() >= _CLASSES:
        raise _damaged(folder, f"labels below {_CLASSES}", str(labels.max()))
    return pixels, labels.astype(np.int64)


def _read(folder: Path, name: str, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of an idx file, which may be compressed by gzip, as its magic number says."""
    path = folder / name
    if not path.exists():
        path = folder / f"{name}.gz"
    data = tables.read_bytes(path)
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, "a file compressed by gzip", tables.one_line(error)) from None
    magic = _UNSIGNED + bytes([dimensions])
    if data[:4] != magic:
        raise _damaged(path, f"the magic number {magic.hex()}", data[:4].hex())
    head = 4 + 4 * dimensions
    if len(data) < head:
        raise _damaged(path, f"a header of {head} bytes", f"{len(data)} bytes")
    shape = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=dimensions, offset=4))
    if len(data) - head != int(np.prod(shape, dtype=object)):
        raise _damaged(path, f"{' × '.join(map(str, shape))} bytes after the header", f"{len(data) - head}")
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape).copy()  # a buffer cannot be written


def _damaged(path: Path, expected: str, got: str) -> InputError:
    where = tables.one_line(path)
    return InputError(f"{where}: expected {expected}, got {got}; delete the set's folder and fetch the set again")
