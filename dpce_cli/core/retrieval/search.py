"""Search in a gallery of embeddings, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dpce_cli.core.errors import QueryError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.combining import Term, combined
from dpce_cli.core.retrieval.hits import Hit, Kind, with_relevance
from dpce_cli.core.retrieval.hubness import has_hubness
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.retrieval.relevance import load_relevances
from dpce_cli.core.workspace.artefacts import load_features
from dpce_cli.core.workspace.features import FeatureStore
from dpce_cli.core.workspace.workspace import Workspace

_BLOCK = 2**14


class ExtractedSplit:
    """An extracted split of the workspace's data set: sentences find photos, photos find captions.

    Raises:
        WorkspaceError: see `load_features`.
    """

    def __init__(self, workspace: Workspace, split: str, *, reporter: Reporter) -> None:
        self._store, checkpoint = load_features(workspace, split, reporter)
        self._model = Model.of_checkpoint(checkpoint, reporter=reporter)
        self.title = f"{checkpoint.dataset}, {split} split, Stage {checkpoint.stage}"
        self.root = Path(workspace.about()["root"])
        self._relevances = None
        if has_hubness(self._store):
            path = workspace.relevance_path(checkpoint.stage)
            self._relevances = load_relevances(path, checkpoint.fingerprint)

    def answers(self, query: str | Path) -> Kind:
        return "photos" if isinstance(query, str) else "sentences"

    def search(self, query: str | Path, top_k: int, terms: Sequence[Term] = ()) -> list[Hit]:
        is_photo = not isinstance(query, str)
        (vector,) = self._model.encode_text([query]) if isinstance(query, str) else self._model.encode_images([query])
        embedding = torch.from_numpy(combined(self._model, vector, terms, is_photo=is_photo))
        hits = (search_captions if is_photo else search_images)(self._store, embedding, top_k)
        known = self._relevances if not terms else None
        return with_relevance(hits, known.of_answers(self.answers(query)) if known else None)


def rank_gallery(
    query_embedding: Tensor, gallery: Tensor, top_k: int, *, hubness: Tensor | None = None
) -> list[tuple[int, float]]:
    """Index and score of the `top_k` best rows of `gallery` (items, dim) for a query (dim,).

    Both are L2-normalised. The score is the cosine similarity less the item's `hubness` (items,), if given. Equal items
    keep their order; a `top_k` beyond the gallery means all of it.

    Raises:
        QueryError: `top_k` is below 1.
    """
    if top_k < 1:
        raise QueryError(f"--top-k {top_k}: ask for at least 1 result")
    # A matrix product may round equal rows differently, and a product of the whole gallery takes as much memory again.
    similarity = torch.cat([(rows * query_embedding).sum(dim=1) for rows in gallery.split(_BLOCK)])
    if hubness is not None:
        similarity -= hubness
    scores, order = similarity.sort(descending=True, stable=True)
    return list(zip(order[:top_k].tolist(), scores[:top_k].tolist(), strict=True))


def search_images(store: FeatureStore, query_embedding: Tensor, top_k: int) -> list[Hit]:
    """Images for the embedding (dim,) of a text, best first.

    Raises:
        QueryError: `top_k` is below 1.
    """
    return [
        Hit(
            rank=rank,
            score=score,
            image_id=store.image_ids[image],
            path=store.image_paths[image],
            caption=_nearest_caption(store, image, query_embedding),
        )
        for rank, (image, score) in enumerate(
            rank_gallery(query_embedding, store.image_embeddings, top_k, hubness=store.image_hubness), 1
        )
    ]


def _nearest_caption(store: FeatureStore, image: int, query_embedding: Tensor) -> str:
    own = (store.image_of_text == image).nonzero().squeeze(1)
    if not len(own):
        return ""
    ((nearest, _),) = rank_gallery(query_embedding, store.text_embeddings[own], 1)
    return store.captions[int(own[nearest])]


def search_captions(store: FeatureStore, query_embedding: Tensor, top_k: int) -> list[Hit]:
    """Captions for the embedding (dim,) of an image, best first.

    Raises:
        QueryError: `top_k` is below 1.
    """
    owners = store.image_of_text.tolist()
    return [
        Hit(
            rank=rank,
            score=score,
            image_id=store.image_ids[owners[text]],
            path=store.image_paths[owners[text]],
            caption=store.captions[text],
        )
        for rank, (text, score) in enumerate(
            rank_gallery(query_embedding, store.text_embeddings, top_k, hubness=store.text_hubness), 1
        )
    ]
