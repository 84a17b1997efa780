"""Fitting the relevance of results on the validation split.

For each query, the agreement of its first results is known from their captions. Logistic regression with these as soft
labels (Platt 1999, Probabilistic Outputs for Support Vector Machines) maps the score, corrected for hubs, to it. The
exact photo as the only right answer would be too strict: other photos fit a sentence, too.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from dpce_cli.core.retrieval.ranks import SAME_SIMILARITY
from dpce_cli.core.retrieval.relevance import Relevance, Relevances
from dpce_cli.core.text.tokenizer import tokenize
from dpce_cli.core.workspace.features import FeatureStore

_IMAGES = 1000
_RESULTS = 5
"""How many results per query are fitted: as many as a person looks at."""
_ROUNDS = 50


def fit_relevance(store: FeatureStore) -> Relevances | None:
    """Fit both curves on up to 1,000 images of a split; None if no image has several captions.

    Args:
        store: embeddings and hubness of photos that are used neither for training nor for testing.
    """
    labelled = labelled_results(store)
    if labelled is None:
        return None
    (photo_scores, photo_labels), (caption_scores, caption_labels) = labelled
    return Relevances(
        text_to_image=_fit(photo_scores, photo_labels), image_to_text=_fit(caption_scores, caption_labels)
    )


def labelled_results(store: FeatureStore) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Scores of the first results per query, and their agreement with the query from 0 to 1; text to image first.

    Queries are up to 1,000 images that have several captions, and these captions. None: there are no such images.
    """
    counts = torch.bincount(store.image_of_text, minlength=len(store.image_ids))
    images = (counts > 1).nonzero().squeeze(1)[:_IMAGES]
    if not len(images):
        return None
    new_index = torch.full((len(counts),), -1)
    new_index[images] = torch.arange(len(images))
    texts = (new_index[store.image_of_text] >= 0).nonzero().squeeze(1)
    owner, counts = new_index[store.image_of_text[texts]], counts[images]
    words = _word_vectors([store.captions[text] for text in texts.tolist()])
    members = F.one_hot(owner, len(images)).float()
    sums = words @ (words.T @ members)  # (texts, images): agreement with all captions of each image
    own = (sums.gather(1, owner[:, None]).squeeze(1) - words.square().sum(1)) / (counts[owner] - 1)
    agreement = sums / counts
    cosines = store.image_embeddings[images] @ store.text_embeddings[texts].T
    of_captions = _labels(agreement, own[:, None], owner[:, None] == torch.arange(len(images)))
    own_of_image = torch.zeros(len(images)).index_add_(0, owner, own) / counts
    of_images = _labels(agreement.T, own_of_image[:, None], torch.arange(len(images))[:, None] == owner)
    return (
        _first((cosines - store.image_hubness[images, None]).T, of_captions),
        _first(cosines - store.text_hubness[texts], of_images),
    )


def _word_vectors(captions: list[str]) -> Tensor:
    """L2-normalised tf-idf vectors (captions, words)."""
    tokens = [tokenize(caption, lowercase=True) for caption in captions]
    documents = Counter(word for words in tokens for word in set(words))
    column = {word: index for index, word in enumerate(documents)}
    vectors = torch.zeros(len(captions), len(column))
    for row, words in enumerate(tokens):
        for word in words:
            vectors[row, column[word]] += math.log(len(captions) / documents[word])
    return F.normalize(vectors, dim=1)


def _labels(agreement: Tensor, own: Tensor, is_own: Tensor) -> Tensor:
    """Agreement of each query (row) with each item, as a fraction of that with its own; 1 for its own items."""
    fraction = torch.where(own > SAME_SIMILARITY, agreement / own.clamp(min=SAME_SIMILARITY), (agreement > 0).float())
    return torch.where(is_own, 1.0, fraction.clamp(0, 1))


def _first(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and labels of the first results of each query (row)."""
    best = scores.topk(min(_RESULTS, scores.shape[1]), dim=1)
    return best.values.flatten(), labels.gather(1, best.indices).flatten()


def _fit(scores: Tensor, labels: Tensor) -> Relevance:
    """Logistic regression with soft labels by Newton's method; a little weight decay keeps it finite."""
    inputs = torch.stack([scores, torch.ones_like(scores)], 1).double()
    weights, decay = torch.zeros(2, dtype=torch.float64), 1e-3 * torch.eye(2, dtype=torch.float64)
    for _ in range(_ROUNDS):
        expected = torch.sigmoid(inputs @ weights)
        gradient = inputs.T @ (expected - labels) + decay @ weights
        curvature = inputs.T @ (inputs * (expected * (1 - expected))[:, None]) + decay
        weights = weights - torch.linalg.solve(curvature, gradient)
    slope, intercept = weights.tolist()
    return Relevance(slope=slope, intercept=intercept)
