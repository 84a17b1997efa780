"""From captioned images to a prepared data set: tokens, vocabulary, token ids."""

from __future__ import annotations

from dataclasses import dataclass

from dpce_cli.core.config import Config
from dpce_cli.core.data.records import SPLITS, CaptionedImages
from dpce_cli.core.errors import DataError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.vocabulary import build_vocabulary, check_no_leak
from dpce_cli.core.workspace.dataset import PreparedDataset, PreparedImage
from dpce_cli.core.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What a split holds."""

    split: str
    images: int
    captions: int
    cut_captions: int
    """Captions with more than `max_words` known words; only the first `max_words` are read."""
    unknown_words: float
    """Share of the split's words that are not in the vocabulary."""


def prepare_dataset(
    workspace: Workspace,
    captioned: CaptionedImages,
    config: Config,
    reporter: Reporter,
    *,
    with_split_ids: bool = False,
) -> tuple[PreparedDataset, list[SplitSummary]]:
    """Tokenize every caption, build the vocabulary from the training captions alone, and make the data set current.

    Raises:
        DataError: there is no training image.
        VocabularyError: no training word occurs often enough.
        WorkspaceError: the workspace cannot be written.
    """
    tokens: list[list[list[str]]] = []
    with reporter.track("tokenizing captions", len(captioned.images)) as advance:
        for image in captioned.images:
            tokens.append([tokenize(caption, lowercase=config.text.lowercase) for caption in image.captions])
            advance()
    training = [
        caption
        for image, captions in zip(captioned.images, tokens, strict=True)
        if image.split == "train"
        for caption in captions
    ]
    if not training:
        raise DataError(f"{captioned.root}: no image is in the train split; assign some to it and run again")
    vocabulary = build_vocabulary(training, lowercase=config.text.lowercase, min_count=config.text.min_count)
    check_no_leak(vocabulary, training)
    images = [
        PreparedImage(
            image_id=image.image_id,
            path=image.path,
            split=image.split,
            captions=image.captions,
            identity=image.identity,
            extent=image.extent,
            token_ids=tuple(tuple(vocabulary.token_ids(caption)) for caption in captions),
        )
        for image, captions in zip(captioned.images, tokens, strict=True)
    ]
    summaries = []
    for split in SPLITS:
        members = [i for i, image in enumerate(images) if image.split == split]
        if members:
            words = sum(len(caption) for i in members for caption in tokens[i])
            known = [len(ids) for i in members for ids in images[i].token_ids]
            summaries.append(
                SplitSummary(
                    split=split,
                    images=len(members),
                    captions=len(known),
                    cut_captions=sum(length > config.text.max_words for length in known),
                    unknown_words=1 - sum(known) / words if words else 0.0,
                )
            )
    dataset = workspace.save_dataset(
        name=captioned.name,
        root=captioned.root.resolve(),
        config=config,
        vocabulary=vocabulary,
        images=images,
        source=(captioned.source or captioned.root).resolve(),
        with_split_ids=with_split_ids,
    )
    return dataset, summaries
