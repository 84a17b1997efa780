#!/usr/bin/env python3
"""How well captions with words that no training caption held find their photo, on Flickr8k.

Both stages are trained without 150 rare words. The words are deleted from the training captions, but captions and
photos stay: the words are all that the model lacks in comparison with one that was trained on whole captions, and the
cached features of the photos can be used. Training takes about 20 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpce_cli.core.data.records import CaptionedImage, CaptionedImages
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.encoding import encode_images
from dpce_cli.core.retrieval.metrics import recall_at_k
from dpce_cli.core.retrieval.model import WORDS, Model
from dpce_cli.core.retrieval.ranks import rank_embeddings
from dpce_cli.core.sharing.finding import find_model
from dpce_cli.core.text.expansion import mapped_rows
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.text.word2vec_files import Row
from dpce_cli.core.text.word_vectors import read_word_vectors
from dpce_cli.core.training.precision import TYPES
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.feature_cache import FeatureCache, cached_features
from dpce_cli.core.workspace.preparation import prepare_dataset
from dpce_cli.core.workspace.workspace import Workspace

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NO_CONTENT = {"herself", "mostly", "themselves", "well", "without"}


def rare_words(dataset: PreparedDataset, known: Iterable[str]) -> list[str]:
    """150 words with 3 to 17 training captions and at least 4 validation captions; those with more of these first."""
    counts = {split: Counter[str]() for split in ("train", "val")}
    for split, counter in counts.items():
        for image in dataset.split(split):
            counter.update(word for text in image.captions for word in {*tokenize(text, lowercase=True)})
    words = [word for word in known if 3 <= counts["train"][word] <= 17 and counts["val"][word] >= 4 and len(word) > 3]
    words = sorted({*words} - _NO_CONTENT, key=lambda word: (-counts["val"][word], word))
    return words[:150]


def without(words: set[str], image: CaptionedImage) -> CaptionedImage:
    """The image with captions without these words; a caption of such words alone is left out."""
    texts = [" ".join(w for w in tokenize(text, lowercase=True) if w not in words) for text in image.captions]
    return CaptionedImage(
        image_id=image.image_id, path=image.path, split=image.split, captions=tuple(filter(None, texts))
    )


def prepare(whole: Workspace, target: Workspace, unknown: set[str], seed: int) -> None:
    """The data set of `whole` with these words deleted from the training captions, and the cache of `whole`."""
    dataset, config = whole.load_dataset(), replace(find_model(None, whole).config, seed=seed)
    images = tuple(without(unknown, image) if image.split == "train" else image for image in dataset.images)
    captioned = CaptionedImages(name=dataset.name, root=dataset.root, images=images)
    prepare_dataset(target, captioned, config, Reporter())
    shutil.copytree(whole.folder / "cache", target.folder / "cache", dirs_exist_ok=True)


def embedded_photos(workspace: Workspace, model: Model, precision: torch.dtype) -> Tensor:
    """The validation photos from the cached features, `(photos, dim)`."""
    import torch

    features = cached_features(
        FeatureCache(workspace, "pooled", precision), workspace.load_dataset(), model.image_encoder, model.config.image,
        split="val", workers=0, reporter=Reporter(),
    )  # fmt: skip
    return torch.cat([encode_images(model.image_encoder, rows.float()) for rows in features.split(256)])


def measure(name: str, model: Model, photos: Tensor, captions: Sequence[str], owners: Sequence[int]) -> None:
    import torch

    texts = torch.from_numpy(model.encode_text(captions))
    ranks = rank_embeddings(photos, texts, torch.tensor(owners)).text_to_image
    print(f"  {name:34}", "  ".join(f"{100 * recall_at_k(ranks, k):5.1f}" for k in (1, 5, 10)), flush=True)


def nearest_known(words: Sequence[str], known: Sequence[str], vectors: Mapping[str, Row]) -> dict[str, str]:
    """The known word with the largest cosine to each word."""
    known = [word for word in known if word in vectors]
    rows, asked = (np.stack([vectors[word] for word in some]) for some in (known, words))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return dict(zip(words, [known[index] for index in (asked @ rows.T).argmax(1)], strict=True))


def report(
    whole: Workspace, target: Workspace, words: list[str], vectors: Mapping[str, Row], precision: torch.dtype
) -> None:
    """Print R@1, R@5 and R@10 of the validation captions that have one of the words."""
    import torch

    model, all_known = find_model(None, target), find_model(None, whole)
    asked = [
        (tokenize(text, lowercase=True), owner)
        for owner, image in enumerate(whole.load_dataset().split("val"))
        for text in image.captions
        if {*tokenize(text, lowercase=True)} & {*words}
    ]
    captions, owners = [" ".join(tokens) for tokens, _ in asked], [owner for _, owner in asked]
    near = nearest_known(words, model.vocabulary.words, vectors)
    learned = model.weights[WORDS][1:].numpy()
    own = torch.from_numpy(np.stack([vectors[word] for word in words]))
    mapped = torch.from_numpy(mapped_rows(model.vocabulary, learned, vectors, words))
    photos = embedded_photos(target, model, precision)
    print(f"{len(captions)} captions with one of {len(words)} words: R@1, R@5, R@10 in percent")
    measure("dropped", model, photos, captions, owners)
    replaced = [" ".join(near.get(token, token) for token in tokens) for tokens, _ in asked]
    measure("the nearest known word", model, photos, replaced, owners)
    measure("the file's vector as it is", model.with_words(words, own), photos, captions, owners)
    measure("the file's vector through the map", model.with_words(words, mapped), photos, captions, owners)
    measure("known", all_known, embedded_photos(whole, all_known, precision), captions, owners)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="where Flickr8k was trained on all captions")
    parser.add_argument("--vectors", type=Path, required=True, help="word vectors, such as glove.6B.100d.txt")
    parser.add_argument("--output", type=Path, required=True, help="workspace for the model without the words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="fp32", choices=list(TYPES), help="of the training in --workspace, too")
    options = parser.parse_args()
    whole, target, precision = Workspace(options.workspace), Workspace(options.output), TYPES[options.precision]
    dataset = whole.load_dataset()
    vectors, _ = read_word_vectors(options.vectors, dataset.vocabulary.words, Reporter())
    words = rare_words(dataset, vectors)
    prepare(whole, target, {*words}, options.seed)
    for command in (
        ("build-word2vec", "--vectors", str(options.vectors)),
        ("train-stage1", "--precision", options.precision),
        ("train-stage2", "--precision", options.precision),
    ):
        call = [sys.executable, "-m", "dpce_cli", *command, "--workspace", str(options.output)]
        subprocess.run(call, check=True)
    report(whole, target, words, vectors, precision)


if __name__ == "__main__":
    main()
