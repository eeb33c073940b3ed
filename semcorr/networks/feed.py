"""The arrays of a store on the device that computes with them.

On a GPU they stay there while they fit, since every epoch needs them again. Otherwise the next batch is read while the
GPU computes. On a CPU they are read when they are needed.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from semcorr.artifacts.store import Store
from semcorr.tensors import onto, pinned

SHARE = 0.5  # of the GPU's free memory that arrays may take


class Feed:
    """Batches of a store's arrays.

    Args:
        store: of arrays.
        device: to put them on.
        room: bytes that may stay there; None asks the device.
    """

    def __init__(self, store: Store, device: torch.device, room: int | None = None):
        self._store, self._device = store, device
        fits = store.path.stat().st_size <= (_room(device) if room is None else room)
        self._kept: dict[str, Tensor] | None = {} if fits else None
        self._reader = ThreadPoolExecutor(1) if self._kept is None and device.type != "cpu" else None
        self._ahead: dict[tuple[str, ...], Future[Tensor]] = {}

    def ahead(self, names: Sequence[str]) -> None:
        """Begin to read the arrays that are needed next, unless they stay on the device anyway."""
        if self._reader is not None:
            self._ahead[tuple(names)] = self._reader.submit(self._read, names)

    def stacked(self, names: Sequence[str]) -> Tensor:
        """Arrays of one shape, in this order: (N, ...) float32 on the device."""
        if self._kept is not None:
            for name in [name for name in names if name not in self._kept]:
                self._kept[name] = onto(self._device, self._store.array(name))
            return torch.stack([self._kept[name] for name in names]).float()
        begun = self._ahead.pop(tuple(names), None)
        read = self._read(names) if begun is None else begun.result()
        return read.to(self._device, non_blocking=True).float()

    def _read(self, names: Sequence[str]) -> Tensor:
        return pinned(torch.from_numpy(np.stack([self._store.array(name) for name in names])), self._device)


def _room(device: torch.device) -> int:
    """How much a device may keep; a CPU none, which has the file in its memory already."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    return int(SHARE * torch.cuda.mem_get_info(device)[0])
