"""Embeddings of a photo of which one part after another is left out (Zeiler and Fergus 2014, section 4.2).

They cover parts of the photo with a grey square. Here, a window of a feature map of the CNN is filled with zeros, and
the rest of the network is computed again, for many windows in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.models.cutting import places
from dpce_cli.core.models.image_encoder import ImageEncoder

BLOCKS = 12
"""Rows of blocks, and columns, of a square photo. Deeper maps with fewer cells see nearly the whole photo in each."""
WINDOW = 4
"""Rows and columns of blocks in a window."""
_AT_ONCE = 64
"""Windows that pass the rest of the network together: bounds memory for photos of any shape."""


class FeatureMap(NamedTuple):
    place: str
    """Name of the part of the CNN that gives the map."""
    rows: int
    columns: int


@torch.inference_mode()
def find_map(encoder: ImageEncoder, view: Tensor) -> FeatureMap | None:
    """The last map in the encoder's CNN that has at least `BLOCKS` rows and columns; None: there is none.

    Args:
        encoder: in eval mode.
        view: uint8 `(3, height, width)`, on the encoder's device.
    """
    shapes: dict[str, list[torch.Size]] = {}

    def record(name: str) -> Any:
        return lambda module, given, maps: shapes.setdefault(name, []).append(maps.shape)

    with ExitStack() as hooks:
        for name in places(encoder.backbone):
            hooks.enter_context(_hook(encoder, name, record(name)))
        encoder.window_features(view[None])
    found = [
        FeatureMap(name, *of_calls[0][2:])
        for name, of_calls in shapes.items()
        if len(of_calls) == 1 and _is_fine(of_calls[0], view.shape)
    ]
    return found[-1] if found else None


def _is_fine(maps: torch.Size, view: torch.Size) -> bool:
    """Whether maps are `(1, channels, rows, columns)` with enough cells, as long and wide as the view in proportion."""
    if len(maps) != 4 or min(maps[2:]) < BLOCKS:
        return False
    return abs(maps[2] - maps[3] * view[1] / view[2]) <= 1


@contextmanager
def _hook(encoder: ImageEncoder, place: str, hook: Callable[..., Any]) -> Iterator[None]:
    """In the context, `hook(module, inputs, maps)` is called with the maps at `place`, and may return others."""
    handle = encoder.backbone.get_submodule(place).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def encode_without_windows(encoder: ImageEncoder, view: Tensor, of: FeatureMap, *, mirrored: bool = False) -> Tensor:
    """Embed a view of a photo once per window of a map, with zeros in this window.

    The map is divided into blocks: `BLOCKS` on its short side, and as many as fit on its long side. There is a window
    of `WINDOW` by `WINDOW` blocks at every position, also where a part of it is outside of the map.

    Args:
        encoder: in eval mode.
        view: uint8 `(3, height, width)`, on the encoder's device.
        of: from `find_map`.
        mirrored: the view is a mirror image; the windows are mirrored, too, and cover what they cover in the photo.

    Returns:
        f_img before its ReLU, not normalised: `(blocks down + WINDOW - 1, blocks across + WINDOW - 1, embedding_dim)`.
    """
    short = min(of.rows, of.columns)
    in_row, in_column = (_windows(cells, round(BLOCKS * cells / short)) for cells in (of.rows, of.columns))
    if mirrored:
        in_column = in_column.flip(1)
    kept = ~(in_row[:, None, :, None] & in_column[None, :, None, :]).flatten(0, 1)[:, None].to(view.device)
    embeddings = list[Tensor]()
    for some in kept.split(_AT_ONCE):  # (windows, 1, rows, columns)
        with _hook(encoder, of.place, partial(_masked, some)):
            features = encoder.window_features(view[None])
        embeddings += encoder.head(features.reshape(-1, encoder.feature_dim)).unflatten(0, (len(some), -1)).mean(1)
    of_windows: Tensor = torch.stack(embeddings).unflatten(0, (len(in_row), len(in_column)))
    return of_windows


def _masked(kept: Tensor, module: nn.Module, given: Any, maps: Tensor) -> Tensor:
    masked: Tensor = maps * kept
    return masked


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
