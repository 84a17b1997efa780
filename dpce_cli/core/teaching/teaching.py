"""Teaching the model of a gallery the new words of a person's captions.

    teaching/photos/
      base/         the model that teaching begins with, if it was the workspace's best
      model-2/      the taught model that the gallery uses
      teaching.lock held by the process that teaches

Teaching always begins with the same base model and uses all captions of the train split, so that a caption that is
removed is forgotten. The gallery gets the new model in one step at the end; a process that is killed before that
changes nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from dpce_cli.core.errors import DataError, WorkspaceError
from dpce_cli.core.galleries.gallery import about_gallery, change_model
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.hubness import BANK_PHOTOS
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.sharing.exporting import export_model
from dpce_cli.core.sharing.finding import HUB, find_model, locate_model
from dpce_cli.core.sharing.model_folder import CARD, save_model
from dpce_cli.core.sharing.onnx import TEXT
from dpce_cli.core.storage.locks import exclusive
from dpce_cli.core.teaching.captions import CaptionsOfGallery, TaughtModel, WrittenCaption
from dpce_cli.core.teaching.evaluation import GalleryEvaluation, evaluate_gallery, rows_of_photos
from dpce_cli.core.teaching.words import FEWEST_PHOTOS, NewWords, learn_words, new_words
from dpce_cli.core.workspace.workspace import Workspace

_SECTION = "\n## Taught words\n"


@dataclass(frozen=True, kw_only=True)
class TeachingResult:
    """What the gallery's model has learnt."""

    words: NewWords
    captions: int
    """Captions of the train split."""
    photos: int
    """Their photos."""
    model: str
    """Folder or hub name of the model that the gallery uses now."""
    evaluation: GalleryEvaluation | None
    """On the photos that it was not trained on; None if they are too few."""


def teach_gallery(workspace: Workspace, name: str, reporter: Reporter) -> TeachingResult:
    """Have the model of a gallery learn the new words of the captions that were written for it.

    If no word is left to learn because captions were removed, the gallery gets its base model again.

    Raises:
        DataError: there is no word to learn.
        WorkspaceError: there is no such gallery, another process teaches or indexes it, or its base model is gone.
    """
    gallery, captions = workspace.gallery_folder(name), CaptionsOfGallery(workspace.teaching_folder(name))
    about = about_gallery(gallery)
    if about.kind != "photos":
        raise WorkspaceError(f"{gallery}: holds sentences; teach a gallery of photos")
    busy = "another process teaches this gallery; wait for it, then run again"
    with exclusive(captions.folder / "teaching.lock", busy):
        base_name, base = _base(workspace, captions, about.model, about.fingerprint, reporter)
        contents, rows = rows_of_photos(gallery)
        lessons = [one for one in captions.read() if one.split == "train" and one.content in contents]
        photos = list(dict.fromkeys(one.content for one in lessons))
        texts, owners = [one.caption for one in lessons], [photos.index(one.content) for one in lessons]
        words = new_words(base.vocabulary, texts, owners)
        evaluation = None
        if words.enough:
            embeddings = rows[[contents[content] for content in photos], :-1]
            others = base.bank.image_embeddings if base.bank else _other_photos(contents, rows, captions.read())
            taught = learn_words(
                replace(base, reporter=reporter), list(words.enough), texts, owners, embeddings, others,
                reporter=reporter,
            )  # fmt: skip
            taught = replace(taught, name=f"{base.name}, taught for gallery {name}")
            seen = TaughtModel(base=base_name, base_fingerprint=base.fingerprint, photos=frozenset(photos))
            captions.remember_model(taught.fingerprint, seen)
            evaluation = _evaluation(gallery, taught, captions, reporter)
            folder = _next_folder(captions.folder)
            original = locate_model(base_name)
            onnx = (original / TEXT).is_file() and find_spec("onnx") is not None
            card = _card(original, base, words, len(texts), len(photos), evaluation)
            save_model(taught, folder, card=card, half=False, onnx=onnx)
            used, source = taught, str(folder.resolve())
        elif about.fingerprint != base.fingerprint:
            used, source = base, base_name
        else:
            raise DataError(_nothing_to_learn(name, words, texts))
        change_model(gallery, about.fingerprint, used, source)
        _remove_other_models(captions.folder, Path(source))
    return TeachingResult(words=words, captions=len(texts), photos=len(photos), model=source, evaluation=evaluation)


def _base(
    workspace: Workspace, captions: CaptionsOfGallery, source: str, fingerprint: str, reporter: Reporter
) -> tuple[str, Model]:
    """The model that teaching begins with, and what names it.

    Args:
        source, fingerprint: of the gallery's model.
    """
    taught = captions.taught_models().get(fingerprint)
    expected = taught.base_fingerprint if taught else fingerprint
    name = taught.base if taught else source
    if not name:  # the workspace's best model, which may be another one tomorrow
        name = str((captions.folder / "base").resolve())
        if find_model(None, workspace).fingerprint == expected:
            export_model(workspace, Path(name), stage=None, half=False, licence="unknown", reporter=reporter)
    elif not name.startswith(HUB):
        name = str(Path(name).expanduser().resolve())
    base = find_model(name, workspace)
    if base.fingerprint != expected:
        raise WorkspaceError(
            f"{name}: is not the model any more that gallery '{captions.folder.name}' was made with; run 'dpce index "
            "FOLDER --rebuild --model MODEL', then teach again"
        )
    return name, base


def _other_photos(contents: dict[str, int], rows: Tensor, written: Sequence[WrittenCaption]) -> Tensor:
    """Embeddings of photos of the gallery without captions, if the model has no bank."""
    described = {contents[one.content] for one in written if one.content in contents}
    others = torch.tensor([row for row in range(len(rows)) if row not in described], dtype=torch.long)
    chosen = torch.randperm(len(others), generator=generator_for(0, "other photos"))[:BANK_PHOTOS]
    return rows[others[chosen], :-1]


def _evaluation(
    gallery: Path, model: Model, captions: CaptionsOfGallery, reporter: Reporter
) -> GalleryEvaluation | None:
    try:
        return evaluate_gallery(gallery, model, captions, reporter)
    except DataError as error:
        reporter.note(str(error))
        return None


def _nothing_to_learn(name: str, words: NewWords, texts: Sequence[str]) -> str:
    if not texts:
        return f"gallery '{name}': no caption is written for its photos; write some, or name a table with --captions"
    rare = f", except words in captions of fewer than {FEWEST_PHOTOS} photos ({', '.join(words.too_few)})"
    return (
        f"gallery '{name}': there is nothing to learn: the model knows each word of the {len(texts)} captions"
        f"{rare if words.too_few else ''}; give what the model should learn a name of its own, in captions of at least "
        f"{FEWEST_PHOTOS} photos"
    )


def _models(folder: Path) -> dict[int, Path]:
    found = ((re.fullmatch(r"model-(\d+)", path.name), path) for path in folder.glob("model-*"))
    return {int(match[1]): path for match, path in found if match}


def _next_folder(folder: Path) -> Path:
    return folder / f"model-{max(_models(folder), default=0) + 1}"


def _remove_other_models(folder: Path, kept: Path) -> None:
    for path in _models(folder).values():
        if path.resolve() != kept:
            shutil.rmtree(path, ignore_errors=True)


def _card(
    base_folder: Path,
    base: Model,
    words: NewWords,
    captions: int,
    photos: int,
    evaluation: GalleryEvaluation | None,
) -> str:
    """The base model's card, and what was learnt since."""
    path = base_folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    learnt = ", ".join(f"`{word}` ({count} photos)" for word, count in words.enough.items())
    section = (
        f"{_SECTION}\nThis is the model `{base.name}` ({base.fingerprint[:12]}), which has learnt new words from "
        f"{captions:,} captions of {photos:,} photos of its owner: {learnt}. Everything else is "
        "unchanged; the results above are the base model's.\n"
    )
    return f"{text.rstrip()}\n{section}{_results(evaluation) if evaluation else ''}"


def _results(measured: GalleryEvaluation) -> str:
    ways = {"": measured.plain, ", hubs corrected": measured.hubs_corrected or {}}
    rows = [
        f"| {direction.replace('_', '-')}{way} | "
        + " | ".join(f"{100 * r.value:.1f} ({100 * r.low:.0f} to {100 * r.high:.0f})" for r in (d.r1, d.r5, d.r10))
        + f" | {d.queries:,} in {d.gallery:,} |"
        for way, directions in ways.items()
        for direction, d in directions.items()
    ]
    return (
        f"\nOn the owner's gallery, with {measured.captions:,} captions of {measured.photos:,} photos that the model "
        "was not trained on, in percent with intervals of 95 % confidence:\n\n"
        "| direction | R@1 | R@5 | R@10 | queries |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
