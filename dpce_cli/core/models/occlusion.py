"""Embeddings of a photo of which one part after another is left out (Zeiler and Fergus 2014, section 4.2).

They cover parts of the photo with a grey square. Here, a window of a feature map of the CNN is filled with zeros, and
the rest of the network is computed again, for all windows in one batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.models.cutting import places
from dpce_cli.core.models.image_encoder import ImageEncoder

BLOCKS = 12
"""Rows of blocks, and columns, of a square photo. Deeper maps with fewer cells see nearly the whole photo in each."""
WINDOW = 4
"""Rows and columns of blocks in a window."""


@torch.inference_mode()
def find_map(encoder: ImageEncoder, view: Tensor) -> str | None:
    """The last place in the encoder's CNN whose map has at least `BLOCKS` rows and columns; None: there is none.

    Args:
        encoder: in eval mode.
        view: uint8 `(3, height, width)`, on the encoder's device.
    """
    calls: dict[str, list[torch.Size]] = {}
    modules = dict(encoder.backbone.named_modules())

    def record(name: str) -> Any:
        return lambda module, given, maps: calls.setdefault(name, []).append(maps.shape)

    hooks = [modules[name].register_forward_hook(record(name)) for name in places(encoder.backbone)]
    try:
        encoder.window_features(view[None])
    finally:
        for hook in hooks:
            hook.remove()
    fine = [name for name, shapes in calls.items() if len(shapes) == 1 and _is_fine(shapes[0], view.shape)]
    return fine[-1] if fine else None


def _is_fine(maps: torch.Size, view: torch.Size) -> bool:
    """Whether maps are `(1, channels, rows, columns)` with enough cells, as long and wide as the view in proportion."""
    if len(maps) != 4 or min(maps[2:]) < BLOCKS:
        return False
    return abs(maps[2] - maps[3] * view[1] / view[2]) <= 1


@torch.inference_mode()
def encode_without_windows(encoder: ImageEncoder, view: Tensor, place: str, *, mirrored: bool = False) -> Tensor:
    """Embed a view of a photo once per window of the map at `place`, with zeros in this window.

    The map is divided into blocks: `BLOCKS` on its short side, and as many as fit on its long side. There is a window
    of `WINDOW` by `WINDOW` blocks at every position, also where a part of it is outside of the map.

    Args:
        encoder: in eval mode.
        view: uint8 `(3, height, width)`, on the encoder's device.
        place: name of a part of the CNN, from `find_map`.
        mirrored: the view is a mirror image; the windows are mirrored, too, and cover what they cover in the photo.

    Returns:
        f_img before its ReLU, not normalised: `(blocks down + WINDOW - 1, blocks across + WINDOW - 1, embedding_dim)`.
    """
    shape = list[int]()

    def leave_out(module: nn.Module, given: Any, maps: Tensor) -> Tensor:
        short = min(maps.shape[2:])
        in_row, in_column = (_windows(cells, round(BLOCKS * cells / short)) for cells in maps.shape[2:])
        if mirrored:
            in_column = in_column.flip(1)
        shape.extend((len(in_row), len(in_column)))
        is_in = in_row[:, None, :, None] & in_column[None, :, None, :]
        filled: Tensor = maps * (~is_in).flatten(0, 1)[:, None].to(maps)  # (windows, channels, rows, columns)
        return filled

    hook = encoder.backbone.get_submodule(place).register_forward_hook(leave_out)
    try:
        features = encoder.window_features(view[None])
    finally:
        hook.remove()
    embeddings: Tensor = encoder.head(features.reshape(-1, encoder.feature_dim))
    of_windows: Tensor = embeddings.unflatten(0, (*shape, -1))
    return of_windows.mean(2)


def _windows(cells: int, blocks: int) -> Tensor:
    """Which of the cells in a row are in each window: bool `(blocks + WINDOW - 1, cells)`.

    >>> _windows(6, 3).int().tolist()[:4]
    [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    """
    block = (2 * torch.arange(cells) + 1) * blocks // (2 * cells)  # where the cell's middle is
    last = torch.arange(blocks + WINDOW - 1)[:, None]
    return (last - WINDOW < block) & (block <= last)


def mean_of_windows(windows: Tensor) -> Tensor:
    """The mean over the windows that a block is in: `(down + WINDOW - 1, across + WINDOW - 1)` to `(down, across)`.

    >>> mean_of_windows(torch.arange(20.0).view(4, 5))
    tensor([[ 9., 10.]])
    """
    means: Tensor = F.avg_pool2d(windows[None], WINDOW, stride=1)
    return means[0]
