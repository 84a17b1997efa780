"""Model folders: a trained model as the Hugging Face hub lays models out, for anyone to use.

    model.safetensors   weights of both encoders, without W_share, which only training needs
    config.json         format, configuration, preprocessing, and size and SHA-256 of the other files
    vocabulary.json     the words, in the order of their rows
    README.md           the model card, which may be edited
    bank.safetensors    embeddings of some training photos and captions, to correct for hubs; see `retrieval.hubness`
    text.onnx           both encoders with their test protocol, if `onnx` was set; see `core.sharing.onnx`
    image.onnx

Nothing in a folder is executed. The same checkpoint makes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpce_cli.core.config import Config
from dpce_cli.core.errors import CheckpointError, DpceError, VocabularyError, WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model, empty_weights
from dpce_cli.core.retrieval.relevance import Relevances
from dpce_cli.core.sharing.onnx import IMAGE, TEXT, has_onnx_runtime, text_engine, write_onnx
from dpce_cli.core.storage.files import replacing_folder
from dpce_cli.core.text.vocabulary import Vocabulary

if TYPE_CHECKING:  # a text search with ONNX Runtime needs no torch
    import torch
    from torch import Tensor

    from dpce_cli.core.retrieval.hubness import Bank

FORMAT = 1
WEIGHTS, CONFIG, VOCABULARY, CARD = "model.safetensors", "config.json", "vocabulary.json", "README.md"
BANK = "bank.safetensors"
_CHECKED = (WEIGHTS, VOCABULARY, BANK, TEXT, IMAGE)
"""Files that config.json lists."""
FILES = (CONFIG, CARD, *_CHECKED)
"""All that can be in a folder."""
_MOST_JSON = 2**26
_MOST_POSITIONS = 10_000
"""Largest number of words per sentence, and of pixels per side: more would take all memory."""
_AGAIN = "export the model again, or get the folder again"


def save_model(model: Model, folder: Path, *, card: str, half: bool, onnx: bool = False) -> None:
    """Write a model folder in one step; an older model in `folder` is replaced.

    Args:
        card: text of the model card.
        half: keep filters, matrices and word vectors as float16; biases and batch norms stay float32.
        onnx: write both encoders as ONNX graphs, too, with the same weights in float32.

    Raises:
        ConfigError: `onnx` needs a library that is missing.
        WorkspaceError: the folder holds something else than a model, or cannot be written.
    """
    check_replaceable(folder)
    with replacing_folder(folder) as temporary:
        stored = {name: _stored(value, half) for name, value in sorted(model.weights.items())}
        _write_tensors(temporary / WEIGHTS, stored)
        if model.bank:
            _write_tensors(temporary / BANK, {name: rows.half() for name, rows in vars(model.bank).items()})
        if onnx:
            write_onnx(replace(model, load_weights=lambda: _as_used(stored), device=None), temporary)
        _write_json(temporary / VOCABULARY, model.vocabulary.to_json())
        _write_json(temporary / CONFIG, _description(model, temporary, half))
        (temporary / CARD).write_text(card, encoding="utf-8")


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    import safetensors.torch

    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(tensors, path)
    path.chmod(mode)  # safetensors lets nobody else read it


def check_replaceable(folder: Path) -> None:
    """Check that `folder` is new or empty, or holds an older model.

    Raises:
        WorkspaceError: it holds something else.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise WorkspaceError(f"{folder}: is a file; choose a new folder") from None
    except OSError as error:
        raise WorkspaceError(f"{folder}: cannot be read ({error.strerror}); choose a new folder") from error
    if folder.resolve() == Path.cwd():
        raise WorkspaceError(f"{folder}: is the folder that dpce runs in and cannot be replaced; name a folder in it")
    if other := sorted(names - set(FILES)):
        raise WorkspaceError(
            f"{folder}: holds other files than a model's (first: {other[0]}); choose a new folder, or remove them"
        )
    if names and CONFIG not in names:
        raise WorkspaceError(f"{folder}: holds {min(names)} and no model; choose a new folder")


def _description(model: Model, folder: Path, half: bool) -> dict[str, Any]:
    """What config.json holds."""
    image = replace(model.config.image, backbone_weights="none")  # perhaps a path of the person who trained it
    return {
        "format": FORMAT,
        "architecture": "dual-path text CNN and image CNN with instance loss (Zheng et al. 2020)",
        "name": model.name,
        "weights": f"{model.weights_id}{'-half' if half else ''}",
        "extends": list(model.extends),
        "word_dim": model.word_dim,
        "embedding_dim": model.dim,
        "preprocessing": {
            "resize_short_side": image.resize,
            "squash": image.squash,
            "crop": image.crop if image.test_view == "crop" else None,
            "mean": list(model.image_encoder.mean),
            "std": list(model.image_encoder.std),
            "interpolation": "bicubic",
            "average_with_mirror_image": image.mirror,
        },
        "config": replace(model.config, image=image).to_dict(),
        "relevance": model.relevances and model.relevances.to_dict(),
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())
        },
    }


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if half and value.is_floating_point() and value.dim() > 1 else value.clone()


def _as_used(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32, also those that are stored as float16; counters as they are."""
    return {name: value.float() if value.is_floating_point() else value for name, value in stored.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Folder:
    """Files of a model folder, each of which is checked before it is used."""

    path: Path
    listed: Mapping[str, tuple[int, str]]
    """Size and SHA-256 of each."""

    def checked(self, name: str) -> Path:
        """Raises `CheckpointError` where the file is not the one that is listed."""
        path = self.path / name
        try:
            if _digest(path) == self.listed[name][1]:
                return path
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
        raise CheckpointError(f"{path}: is damaged, or not the file that {CONFIG} lists; {_AGAIN}")


def load_model(folder: Path, *, device: torch.device | None = None, reporter: Reporter | None = None) -> Model:
    """Read a model folder; the weights are read, and checked against their SHA-256, when they are first needed.

    Where no device is given, and the folder and the machine allow it, ONNX Runtime embeds sentences: it needs no torch.

    Raises:
        CheckpointError: a file is missing, not as long as it was, a link that leads out of the folder, or of another
            format.
    """
    path = folder / CONFIG
    about = _read_json(_inside(folder, CONFIG))
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path}: has format {about.get('format')!r:.40}, this dpce reads {FORMAT}; {_AGAIN}")
    try:
        config = Config.from_dict(about["config"], str(path))
        name, weights, word_dim = about["name"], about["weights"], about["word_dim"]
        extends = tuple(map(str, about.get("extends", ())))
        listed = {file: (entry["bytes"], entry["sha256"]) for file, entry in about["files"].items()}
        if not (type(name) is type(weights) is str and type(word_dim) is int and 0 < word_dim < 2**31):
            raise TypeError("a value has another type than it should have")
        relevances = Relevances.from_dict(about["relevance"]) if about.get("relevance") else None
        if max(config.text.max_words, config.image.resize) > _MOST_POSITIONS:
            raise TypeError("it states more words or pixels than dpce allows")
    except (KeyError, TypeError, ValueError, AttributeError, DpceError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else _without_advice(str(error), path)
        raise CheckpointError(f"{path}: describes no model that this dpce can read ({reason}); {_AGAIN}") from error
    if missing := [file for file in (WEIGHTS, VOCABULARY) if file not in listed]:
        raise CheckpointError(f"{path}: does not list {missing[0]}; {_AGAIN}")
    if unknown := sorted(listed.keys() - set(_CHECKED)):
        raise CheckpointError(f"{path}: lists {unknown[0]!r:.100}, which this dpce does not know; update dpce")
    for file, (size, _) in listed.items():
        if (found := _inside(folder, file).stat().st_size) != size:
            raise CheckpointError(f"{folder / file}: has {found} bytes, and {CONFIG} lists {size!r:.40}; {_AGAIN}")
    parts = _Folder(folder, listed)
    try:
        vocabulary = Vocabulary.from_json(_read_json(parts.checked(VOCABULARY)), str(folder / VOCABULARY))
    except VocabularyError as error:
        reason = _without_advice(str(error), folder / VOCABULARY)
        raise CheckpointError(f"{folder / VOCABULARY}: {reason}; {_AGAIN}") from error
    engine = None
    if TEXT in listed and device is None and has_onnx_runtime():
        words, dim = config.text.max_words, config.model.embedding_dim
        engine = text_engine(lambda: parts.checked(TEXT), words=words, dim=dim)
    return Model(
        name=name,
        config=config,
        vocabulary=vocabulary,
        word_dim=word_dim,
        weights_id=weights,
        extends=extends,
        text_engine=engine,
        load_weights=lambda: _load_weights(parts.checked(WEIGHTS), config, len(vocabulary), word_dim),
        load_bank=(lambda: _load_bank(parts.checked(BANK), config.model.embedding_dim)) if BANK in listed else None,
        relevances=relevances,
        device=device,
        reporter=reporter or Reporter(),
    )


def _without_advice(message: str, path: Path) -> str:
    """The problem of a file, without the advice that only helps in a workspace."""
    return re.sub("(; |: )[^;:]*(prepare-vocab|--set).*", "", message.removeprefix(f"{path}: "))


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder, which may be a link within it, or within the folder of a model in the hub's cache."""
    path = folder / name
    home = folder.resolve()
    if home.parent.name == "snapshots":  # of the hub's cache, which keeps the files in a folder beside "snapshots"
        home = home.parent.parent
    target = path.resolve()
    if not target.is_relative_to(home):
        raise CheckpointError(f"{path}: is a link that leads out of the folder; {_AGAIN}")
    if not target.is_file():
        raise CheckpointError(f"{path}: there is no such file, so this is no model folder; {_AGAIN}")
    return path


def _load_weights(path: Path, config: Config, vocabulary_size: int, word_dim: int) -> dict[str, Tensor]:
    """The weights of a folder, where they are those of the configured model."""
    import torch

    weights = _read_tensors(path)
    try:
        expected = empty_weights(config, vocabulary_size, word_dim)
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:  # sizes that no tensor can have
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path.parent / CONFIG}: has sizes of no network ({reason}); {_AGAIN}") from error
    if differing := sorted(expected.keys() ^ weights.keys()):
        raise CheckpointError(
            f"{path}: {len(differing)} tensors are missing or foreign, the first is {differing[0]!r:.100}; {_AGAIN}"
        )
    for name, empty in expected.items():
        value = weights[name]
        halved = value.dtype == torch.float16 and empty.is_floating_point()
        if value.shape != empty.shape or (value.dtype != empty.dtype and not halved):
            raise CheckpointError(
                f"{path}: {name} is {value.dtype} {tuple(value.shape)}, expected {empty.dtype} {tuple(empty.shape)}; "
                f"{_AGAIN}"
            )
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite; {_AGAIN}")
    return _as_used(weights)


def _load_bank(path: Path, dim: int) -> Bank:
    """The bank of a folder, whose embeddings must have the model's length."""
    from dpce_cli.core.retrieval.hubness import Bank

    rows = {name: value.float() for name, value in _read_tensors(path).items()}
    if rows.keys() != {"image_embeddings", "text_embeddings"}:
        raise CheckpointError(f"{path}: holds {', '.join(sorted(rows))[:200]}, and no bank; {_AGAIN}")
    for name, value in rows.items():
        if value.ndim != 2 or not len(value) or value.shape[1] != dim:
            raise CheckpointError(f"{path}: {name} is {tuple(value.shape)}, expected rows of {dim}; {_AGAIN}")
        if not bool(((value.norm(dim=1) - 1).abs() < 1e-2).all()):
            raise CheckpointError(f"{path}: {name} has a row that is no unit vector; {_AGAIN}")
    return Bank(**rows)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"it has more than {_MOST_JSON >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: does not hold a JSON object; {_AGAIN}")
    return value


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
