"""Rows of an .npy file, written in any order and gathered in any order."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from deepfake.errors import DataError

if TYPE_CHECKING:  # who makes a store needs none of it
    from torch import Tensor


class Rows:
    """Consecutive rows of an array on disk, all but the first axis of which is one row.

    Read, not mapped: mapped pages count as the private memory of a machine's only worker, so
    that it would grow with the file. Either way the page cache is shared by all workers. Read
    rows were also the faster: 190,000 faces of 128 px a second against 120,000 mapped.
    """

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self.path = path
        self.start, self.stop = start, stop
        self._file = path.open("rb", buffering=0)
        np.lib.format.read_magic(self._file)
        shape, _, self.dtype = np.lib.format.read_array_header_1_0(self._file)
        if self.dtype.hasobject:  # pickles: reading them would run their code
            raise DataError(f"{path}: holds Python objects, not numbers; delete it")
        self.shape = (stop - start, *shape[1:])
        self._row_bytes = int(np.prod(shape[1:])) * self.dtype.itemsize
        self._first = self._file.tell() + start * self._row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def gather(self, numbers: "Tensor", into: "Tensor") -> "Tensor":
        """into, (n, ...) contiguous on the CPU, filled with the rows of those numbers (n,)."""
        rows = into.numpy()
        for place, number in enumerate(numbers.tolist()):
            self._read(number, memoryview(rows[place]).cast("B"))
        return into

    def mapped(self) -> "Tensor":
        """All rows, mapped from disk; never written to."""
        import torch

        array = np.load(self.path, mmap_mode="r")[self.start : self.stop]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the map is read-only, and nothing here writes to it
            return torch.from_numpy(array)

    def _read(self, number: int, into: memoryview) -> None:
        offset = self._first + number * self._row_bytes
        while into:
            read = os.preadv(self._file.fileno(), [into], offset)
            if not read:
                raise DataError(
                    f"{self.path}: ends within row {self.start + number}; delete it: the next run"
                    " makes it again"
                )
            into, offset = into[read:], offset + read


class RowWriter:
    """An .npy file being filled, by several threads or processes at once."""

    def __init__(self, descriptor: int, first: int, row_bytes: int) -> None:
        self._descriptor, self._first, self._row_bytes = descriptor, first, row_bytes

    def write(self, number: int, rows: bytes | memoryview) -> None:
        """rows, one or more, beginning at row number."""
        # not through a memory map: there a full disk is a bus error, here an OSError
        rest, offset = memoryview(rows).cast("B"), self._first + number * self._row_bytes
        while rest:
            written = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def sync(self) -> None:
        os.fsync(self._descriptor)


@contextmanager
def writing(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[RowWriter]:
    """A writer of that array; what the file held already stays where nothing is written."""
    kind = np.dtype(dtype)
    descr = np.lib.format.dtype_to_descr(kind)
    header: dict[str, Any] = {"descr": descr, "fortran_order": False, "shape": shape}
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        first, row_bytes = file.tell(), int(np.prod(shape[1:])) * kind.itemsize
        os.ftruncate(file.fileno(), first + shape[0] * row_bytes)
        yield RowWriter(file.fileno(), first, row_bytes)
