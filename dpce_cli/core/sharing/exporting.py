"""From a workspace's best model to a model folder, with its card."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from dpce_cli.core.errors import ConfigError, WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.evaluation import Evaluation, evaluate_split
from dpce_cli.core.retrieval.hubness import BANK_PHOTOS
from dpce_cli.core.sharing.expanding import with_more_words
from dpce_cli.core.sharing.finding import workspace_model
from dpce_cli.core.sharing.model_folder import BANK, check_replaceable, save_model
from dpce_cli.core.workspace.artefacts import load_best, load_features
from dpce_cli.core.workspace.checkpoint import Checkpoint
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.workspace import Workspace


def export_model(
    workspace: Workspace,
    folder: Path,
    *,
    stage: int | None,
    half: bool,
    onnx: bool = False,
    licence: str,
    vectors: Path | None = None,
    words: int = 0,
    reporter: Reporter,
) -> Checkpoint:
    """Write the best model of `stage`, or of the last stage that was trained, as a model folder.

    The card states the recalls of every split whose embeddings this model made.

    Args:
        half, onnx: as in `save_model`.
        licence: an identifier of the Hugging Face hub's, such as "apache-2.0" or "unknown".
        vectors, words: add the `words` first words of this file of word vectors; see `with_more_words`.

    Returns:
        The checkpoint that was exported.

    Raises:
        CheckpointError: there is no such model, or it is of another data set.
        ConfigError: `licence` is no identifier.
        VocabularyError: `vectors` cannot be used.
        WorkspaceError: `folder` holds other files, or cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise ConfigError(f"--licence {licence!r}: expected an identifier such as apache-2.0, cc-by-4.0 or unknown")
    check_replaceable(folder)
    dataset = workspace.load_dataset()
    checkpoint = load_best(workspace, dataset, stage)
    model = workspace_model(workspace, checkpoint)
    if not model.load_bank:
        reporter.note(
            "the exported model cannot correct for hubs in galleries; run 'dpce extract-features' and "
            "export it again, and it can"
        )
    measured = _measured(workspace, dataset, checkpoint, reporter)
    card = _card(checkpoint, dataset, measured, licence, has_bank=bool(model.load_bank))
    if vectors:
        model = with_more_words(model, vectors, words, reporter)
        added = len(model.vocabulary) - len(checkpoint.vocabulary)
        reporter.note(f"{added:,} more words from {vectors.name}")
        card += _MORE_WORDS.format(added=added, file=vectors.name)
    save_model(model, folder, card=card, half=half, onnx=onnx)
    return checkpoint


def _measured(
    workspace: Workspace, dataset: PreparedDataset, checkpoint: Checkpoint, reporter: Reporter
) -> dict[str, Evaluation]:
    """The evaluation of each split that was extracted with this model."""
    measured = {}
    for split in sorted(dataset.split_fingerprints):
        if not workspace.features_path(split).is_file():
            continue
        try:
            store, made_by = load_features(workspace, split, reporter)
        except WorkspaceError as error:
            reporter.warn(f"the model card leaves out the {split} split: {error}")
            continue
        if made_by.fingerprint == checkpoint.fingerprint and store.captions:
            measured[split] = evaluate_split(store, None)
    if not measured:
        reporter.note(
            "the model card states no recalls; for those of the test split, run 'dpce extract-features' first"
        )
    return measured


def _card(
    checkpoint: Checkpoint,
    dataset: PreparedDataset,
    measured: dict[str, Evaluation],
    licence: str,
    *,
    has_bank: bool,
) -> str:
    photos, captions = Counter[str](), Counter[str]()
    for image in dataset.images:
        photos[image.split] += 1
        captions[image.split] += len(image.captions)
    counts = "\n".join(f"| {split} | {photos[split]:,} | {captions[split]:,} |" for split in sorted(photos))
    title = f"dpce, {dataset.name}"
    return f"""---
license: {licence}
library_name: dpce
pipeline_tag: feature-extraction
tags:
- image-text-retrieval
- image-feature-extraction
{_model_index(title, dataset.name, measured)}---

# {title}

An image encoder ({checkpoint.config.image.backbone}) and a text encoder (a convolutional network over words) that put
photos and sentences into one space of {checkpoint.config.model.embedding_dim} dimensions. Their cosine similarity says
how well a photo and a sentence fit. The method is that of Zheng et al., *Dual-Path Convolutional Image-Text Embeddings
with Instance Loss* (ACM TOMM 2020).

## Use

```sh
dpce index ~/photos --model THIS_FOLDER
dpce retrieve --gallery photos --query "two dogs in the snow"
dpce encode --model THIS_FOLDER --query "two dogs in the snow"
```

```python
import dpce_cli

model = dpce_cli.load_model("THIS_FOLDER")
similarity = model.encode_images(["rex.jpg"]) @ model.encode_text(["two dogs in the snow"]).T
```

`THIS_FOLDER` is the folder of this file, or `hf:USER/NAME` if it is on the Hugging Face hub.

## Training

{_training(checkpoint, dataset)}

The model knows {len(checkpoint.vocabulary):,} words of its training captions. It reads the
first {checkpoint.config.text.max_words} of them in a sentence.

| split | photos | captions |
|---|---|---|
{counts}

## Results

{_recalls(measured)}
{_HUBS if has_bank else ""}"""


_HUBS = f"""
## Hubs

Some photos are near to every sentence. `{BANK}` has embeddings of up to {BANK_PHOTOS:,} training photos and of their
captions, with which dpce finds such photos and lowers their scores in galleries. The results above are without this
correction.
"""


_MORE_WORDS = """
## Words beyond the captions

{added:,} more words have a row that was computed from their vectors in `{file}`, by the linear map from these vectors
to the rows of the words of the captions (Kiros et al. 2015). No caption had them: expect less of them.
"""


def _training(checkpoint: Checkpoint, dataset: PreparedDataset) -> str:
    if not checkpoint.step:
        return (
            f"Imported ({checkpoint.word_vectors}), with {checkpoint.instances:,} classes; used on data set "
            f"`{dataset.name}`, which may differ from its training data."
        )
    return (
        f"Data set `{dataset.name}`, preset `{checkpoint.config.preset}`, seed {checkpoint.config.seed}, Stage "
        f"{checkpoint.stage}, {checkpoint.step:,} steps, {checkpoint.instances:,} classes. Word vectors: "
        f"{checkpoint.word_vectors}."
    )


def _model_index(title: str, dataset: str, measured: dict[str, Evaluation]) -> str:
    """The results as the hub reads them; JSON strings are YAML strings."""
    if not measured:
        return ""
    lines = ["model-index:", f"- name: {json.dumps(title)}", "  results:"]
    for split, evaluation in measured.items():
        lines += [
            "  - task:",
            "      type: image-text-retrieval",
            "    dataset:",
            f"      name: {json.dumps(dataset)}",
            f"      type: {json.dumps(dataset)}",
            f"      split: {json.dumps(split)}",
            "    metrics:",
        ]
        for direction, recalls in evaluation.directions.items():
            for k, recall in zip((1, 5, 10), (recalls.r1, recalls.r5, recalls.r10), strict=True):
                lines += [
                    f"    - name: {direction.replace('_', '-')} R@{k} ({evaluation.protocol})",
                    f"      type: recall_at_{k}",
                    f"      value: {100 * recall:.2f}",
                ]
    return "\n".join(lines) + "\n"


def _recalls(measured: dict[str, Evaluation]) -> str:
    if not measured:
        return "No split was evaluated before the export."
    head = "| split | protocol | photos | captions | direction | R@1 | R@5 | R@10 | median rank |\n"
    return f"{head}{'|---' * head.count(' | ')}|---|\n" + "\n".join(
        f"| {split} | {evaluation.protocol} | {evaluation.images:,} | {evaluation.captions:,} | "
        f"{direction.replace('_', '-')} | "
        + " | ".join(f"{100 * recall:.1f}" for recall in (d.r1, d.r5, d.r10))
        + f" | {d.median_rank:g} |"
        for split, evaluation in measured.items()
        for direction, d in evaluation.directions.items()
    )
