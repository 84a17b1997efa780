"""Both encoders as ONNX graphs that hold the whole test protocol, for other programs and for searches without torch.

    text.onnx    token_ids int64 (sentences, words), left-aligned, 0 = blank  ->  embeddings float32 (sentences, dim)
    image.onnx   photos uint8 RGB (photos, 3, height, width)                  ->  embeddings float32 (photos, dim)

Embeddings are L2-normalised, summed over the placements of a sentence and over a photo and its mirror image, where the
model's test protocol does so. A photo comes resized and cropped as config.json says under "preprocessing".
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpce_cli.core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:  # a search without torch
    from torch import nn

    from dpce_cli.core.retrieval.model import Array, Model, TextEngine

TEXT, IMAGE = "text.onnx", "image.onnx"
_OPSET = 17
_SENTENCES = 32
"""Sentences that pass the graph at once: all their placements are in memory together."""


def write_onnx(model: Model, folder: Path) -> None:
    """Write both encoders of a model on the CPU.

    torch's exporter that follows TorchScript is used: it needs no other library, and gives the same graph from torch
    2.6 on; the newer one needs onnxscript.

    Raises:
        ConfigError: the library onnx is missing.
    """
    if not find_spec("onnx"):
        raise ConfigError("--onnx needs the library onnx; pip install 'dpce[onnx]'")
    import torch

    from dpce_cli.core.sharing.graphs import ImageGraph, TextGraph

    image = model.config.image
    whole = image.test_view == "full"
    words = torch.ones(2, model.config.text.max_words, dtype=torch.int64)
    words[0, 1:] = 0
    # A whole photo larger than a crop in both directions, so that the graph has the window that slides.
    sides = (image.resize + 32, image.resize + 64) if whole else (image.crop, image.crop)
    photos = torch.zeros(2, 3, *sides, dtype=torch.uint8)
    axes = {0: "photos", 2: "height", 3: "width"} if whole else {0: "photos"}
    text = TextGraph(model.text_encoder, shifted=model.config.model.position_shift)
    _export(text, words, folder / TEXT, "token_ids", {0: "sentences"})
    _export(ImageGraph(model.image_encoder, mirror=image.mirror), photos, folder / IMAGE, "photos", axes)


def _export(graph: nn.Module, example: Any, path: Path, name: str, axes: dict[int, str]) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor, and every size that it takes as fixed
        torch.onnx.export(
            graph.eval(),
            (example,),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=[name],
            output_names=["embeddings"],
            dynamic_axes={name: axes, "embeddings": {0: axes[0]}},
        )


def has_onnx_runtime() -> bool:
    """Whether the library that runs ONNX graphs is installed."""
    return find_spec("onnxruntime") is not None


def text_engine(locate: Callable[[], Path], *, words: int, dim: int) -> TextEngine:
    """What embeds token ids `(sentences, words)` with a graph that is located, checked and read at the first call.

    The engine raises `CheckpointError` where the graph does something else.
    """

    @cache
    def session() -> tuple[Path, Any]:
        import onnxruntime

        path = locate()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to others
        try:
            opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many types for a damaged graph
            raise _unusable(path, str(error)) from error
        inputs = [(given.name, given.shape[1:]) for given in opened.get_inputs()]
        if inputs != [("token_ids", [words])]:
            raise _unusable(path, f"it takes {inputs}")
        return path, opened

    def embed(token_ids: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> Array:
        path, opened = session()
        parts = (token_ids[start : start + _SENTENCES] for start in range(0, len(token_ids), _SENTENCES))
        try:
            rows: Array = np.concatenate(
                [opened.run(["embeddings"], {"token_ids": part.astype(np.int64)})[0] for part in parts]
            )
        except Exception as error:  # likewise
            raise _unusable(path, str(error)) from error
        if rows.shape != (len(token_ids), dim) or rows.dtype != np.float32 or not np.isfinite(rows).all():
            raise _unusable(path, f"it gave {rows.dtype} {rows.shape}, or numbers that are not finite")
        return rows

    return embed


def _unusable(path: Path, reason: str) -> CheckpointError:
    line = " ".join(reason.split())[:200]
    return CheckpointError(f"{path}: is not a text encoder of this model ({line}); export the model again")
