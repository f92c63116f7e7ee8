"""Batches of a store's faces, normalised on the device that they are for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepfake.config import Split
from deepfake.data.arrays import Rows
from deepfake.data.layouts import PHOTO
from deepfake.data.splits import Opening, read_split
from deepfake.data.store import stored_rows

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What is done to a batch of pictures on its device before it is normalised: (B, H, W, 3) uint8,
# which may be written over, the numbers (B,) of its faces, on the CPU, and the pass's generator.
Change = Callable[[Tensor, Tensor, torch.Generator | None], Tensor]


def normalise(images: Tensor, out: Tensor | None = None) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, channels_last, as ImageNet's models expect.

    Within 1e-6 of torchvision's ToTensor and Normalize: x * (1 / 255 std) - mean / std.
    out: (B, H, W, 3) float32, written to and returned in the other order.
    """
    scale, shift = _constants(images.shape[1:3], images.device)
    flat = (torch.empty(images.shape, device=images.device) if out is None else out).flatten(1)
    flat.copy_(images.flatten(1))
    # along whole images: 3 channels alone don't vectorise, and broadcast rows are slower
    torch.addcmul(shift, flat, scale, out=flat)
    return flat.view(images.shape).permute(0, 3, 1, 2)


@cache
def _constants(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(IMAGENET_MEAN, dtype=torch.float64), torch.tensor(IMAGENET_STD)
    scale, shift = 1 / (255 * std.double()), -mean / std.double()
    pixels = size[0] * size[1]
    return scale.float().repeat(pixels).to(device), shift.float().repeat(pixels).to(device)


@dataclass(frozen=True, eq=False)
class Faces:
    """One split at one resolution."""

    table: pd.DataFrame  # rows of faces.csv, in the order of the images
    rows: Rows  # (N, side, side, 3) uint8
    labels: Tensor  # (N,) int64
    change: Change | None = None  # of every batch

    @classmethod
    def load(
        cls, work_dir: Path, split: Split, side: int, opening: Opening | None = None
    ) -> "Faces":
        """Raises SplitClosed for a test set without an Opening, DataError if there is no store."""
        table = read_split(work_dir, split, opening)
        labels = torch.from_numpy(table["category_id"].to_numpy(np.int64, copy=True))
        return cls(table, stored_rows(work_dir, split, side), labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """(N, side, side, 3) uint8, mapped from disk; never written to."""
        return self.rows.mapped()

    @cached_property
    def photos(self) -> NDArray[np.int64]:
        """(N,): the photo of each face, numbered from 0."""
        return np.asarray(self.table.groupby(list(PHOTO)).ngroup(), np.int64)

    def batches(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: (B, 3, side, side) normalised images and (B,) int64 labels, on the device.

        Shuffled by the generator (a CPU one), or in the table's order; the last batch may be
        smaller. A batch is valid until the next one is asked for: its memory is used again.
        """
        order = epoch_order(len(self), generator)
        labels = torch.split(self.labels[order].to(device), batch_size)
        chunks = torch.split(order, batch_size)

        def ready(images: Tensor, numbers: Tensor, out: Tensor | None = None) -> Tensor:
            if self.change is not None:
                images = self.change(images, numbers, generator)
            return normalise(images, out)

        on_cuda = device.type == "cuda"
        images = self._copied(chunks, device, ready) if on_cuda else self._read(chunks, ready)
        yield from zip(images, labels, strict=True)

    def _read(self, chunks: Sequence[Tensor], ready: Callable[..., Tensor]) -> Iterator[Tensor]:
        shape = (len(chunks[0]), *self.rows.shape[1:])
        gathered, normalised = torch.empty(shape, dtype=torch.uint8), torch.empty(shape)
        for numbers in chunks:
            n = len(numbers)
            yield ready(self.rows.gather(numbers, gathered[:n]), numbers, normalised[:n])

    def _copied(
        self, chunks: Sequence[Tensor], device: torch.device, ready: Callable[..., Tensor]
    ) -> Iterator[Tensor]:
        """To a GPU: the next batch is gathered and copied while the step on this one runs."""
        shape = (len(chunks[0]), *self.rows.shape[1:])
        pinned = [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in pinned]  # type: ignore[no-untyped-call]
        copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

        def copy(number: int) -> Tensor:
            numbers, turn = chunks[number], number % 2
            copied[turn].synchronize()  # the copy from this buffer two batches ago has ended
            gathered = self.rows.gather(numbers, pinned[turn][: len(numbers)])
            with torch.cuda.stream(copying):
                images = gathered.to(device, non_blocking=True)
                copied[turn].record(copying)
            return images

        following = copy(0)
        for number in range(len(chunks)):
            images, computing = following, torch.cuda.current_stream(device)
            computing.wait_event(copied[number % 2])
            images.record_stream(computing)  # or its memory is used again under the step
            normalised = ready(images, chunks[number])
            if number + 1 < len(chunks):
                following = copy(number + 1)
            yield normalised


def epoch_order(n: int, generator: torch.Generator | None) -> Tensor:
    """(n,) row numbers: shuffled by the generator, or in order without one."""
    return torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
