"""Begin Stage I with the encoders of a trained model, to teach it new words and photos."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpce_cli.core.config import Config
from dpce_cli.core.errors import ConfigError, VocabularyError
from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.retrieval.model import WORDS, Model
from dpce_cli.core.seeding import generator_for
from dpce_cli.core.text.expansion import mapped_rows
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.text.word2vec_files import Row
from dpce_cli.core.text.word_vectors import WordVectors
from dpce_cli.core.training.batches import TrainingSet
from dpce_cli.core.training.options import WordTable
from dpce_cli.core.workspace.dataset import PreparedDataset

_PHOTOS = 256


def config_to_continue(config: Config, start: Model, *, feature_cache: bool) -> Config:
    """`config` with everything that decides what the weights of `start` mean: its photos, words and sizes.

    The other settings of Stage I stay, but the image CNN is frozen, and so are the classes, if they begin at the
    photos' embeddings (see `start_classes_at_photos`): when the classes learnt, too, the encoders followed them
    and forgot what they knew.
    """
    multipliers = replace(config.stage1.multipliers, backbone=0.0, backbone_bias=0.0)
    if feature_cache and start.config.model.classifier_scale:
        multipliers = replace(multipliers, classifier=0.0, classifier_bias=0.0)
    stage1 = replace(config.stage1, multipliers=multipliers)
    text = replace(config.text, max_words=start.config.text.max_words, lowercase=start.vocabulary.lowercase)
    return replace(config, image=start.config.image, text=text, model=start.config.model, stage1=stage1)


def model_to_continue(
    start: Model, dataset: PreparedDataset, config: Config, word_vectors: WordVectors | None
) -> tuple[DualEncoder, WordTable]:
    """A dual encoder with the encoders of `start`, and rows for the new words of the captions.

    The vocabulary is the words of `start` and those of the captions. The row of a new word is its word vector through
    the map of `expansion.mapped_rows`; if there is none, it is drawn from a normal distribution with the mean and the
    deviation of the known rows.

    Raises:
        ConfigError: `config` has other sizes than `start`.
    """
    words = words_to_continue(start, dataset)
    known, new = start.vocabulary, list(words.vocabulary.words[len(start.vocabulary) :])
    model = DualEncoder(
        config, vocabulary_size=len(words.vocabulary), word_dim=start.word_dim, instances=dataset.instances
    )
    model.shared_classifier.keep_share()
    model.shared_classifier.reset_parameters(generator_for(config.seed, "weights"))
    weights = dict(start.weights)
    rows = weights[WORDS]
    added = torch.from_numpy(_new_rows(known, rows[1:].numpy(), new, word_vectors, config.seed))
    weights[WORDS] = torch.cat([rows, added])
    own = model.state_dict()
    wrong = [key for key, value in weights.items() if key not in own or own[key].shape != value.shape]
    if wrong:
        raise ConfigError(f"{start.name}: its weights do not fit these settings (first: {wrong[0]}); leave out --set")
    model.load_state_dict({**own, **weights})
    return model, words


def words_to_continue(start: Model, dataset: PreparedDataset) -> WordTable:
    """The words of `start`, and after them the new words of the captions."""
    known = start.vocabulary
    captions = (word.lower() if known.lowercase else word for word in dataset.vocabulary.words)
    new = [word for word in dict.fromkeys(captions) if word not in known]
    return WordTable(
        vocabulary=Vocabulary((*known.words, *new), known.lowercase),
        word_dim=start.word_dim,
        source=f"{start.name}, and {len(new)} new words",
    )


def _new_rows(known: Vocabulary, learned: Row, new: list[str], word_vectors: WordVectors | None, seed: int) -> Row:
    random = np.random.default_rng(seed).normal(learned.mean(0), learned.std(0), (len(new), learned.shape[1]))
    rows: Row = random.astype(np.float32)
    if word_vectors and new:
        vectors = _vectors(word_vectors, known.lowercase)
        have = [index for index, word in enumerate(new) if word in vectors]
        with suppress(VocabularyError):  # if few words are shared, random rows stay
            rows[have] = mapped_rows(known, learned, vectors, [new[index] for index in have])
    return rows


def _vectors(word_vectors: WordVectors, lowercase: bool) -> Mapping[str, Row]:
    pairs = zip(word_vectors.vocabulary.words, word_vectors.matrix, strict=True)
    return {word.lower() if lowercase else word: row for word, row in pairs}


def start_classes_at_photos(model: DualEncoder, training_set: TrainingSet) -> None:
    """Set the weights of each class to the mean direction of its photos' embeddings (Qi et al. 2018, imprinting).

    With random weights, the first steps would pull the encoders away from what they have learnt. Needs cached features
    of the photos and cosines in the classifier; without them, the weights stay random, and learn.

    Qi et al.: Low-Shot Learning with Imprinted Weights, CVPR 2018.
    """
    classifier, encoder = model.shared_classifier, model.image_encoder.eval()
    if training_set.features is None or not classifier.scale:
        return
    sums = torch.zeros(training_set.instances, classifier.weight.shape[1], device=classifier.weight.device)
    with torch.inference_mode():
        for rows in training_set.usable.split(_PHOTOS):
            views = training_set.features[rows].float().to(sums.device)
            embeddings: Tensor = sum(F.normalize(encoder(view), dim=1) for view in views.unbind(1))  # type: ignore[assignment]
            sums.index_add_(0, training_set.instance_of_image[rows].to(sums.device), embeddings)
    own = sums[classifier.classes.start : classifier.classes.stop]
    with torch.no_grad():
        classifier.weight[own.any(1)] = F.normalize(own[own.any(1)], dim=1).clone()
