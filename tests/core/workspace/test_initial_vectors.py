from __future__ import annotations

from pathlib import Path

import pytest

from dpce_cli.core.errors import WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.workspace.initial_vectors import build_initial_vectors, load_initial_vectors
from dpce_cli.core.workspace.workspace import Workspace
from tests.core.tiny import Recorder
from tests.core.workspace.test_preparation import IMAGES, prepare_own


def test_vectors_are_trained_on_training_captions_in_the_configured_dimension(tmp_path: Path) -> None:
    dataset, _ = prepare_own(tmp_path)
    built = build_initial_vectors(Workspace(tmp_path), None, oov="random", reporter=Reporter())

    assert built.vocabulary == dataset.vocabulary
    assert built.matrix.shape == (6, 5)
    assert (built.coverage, built.token_coverage) == (1.0, 1.0)
    loaded = load_initial_vectors(Workspace(tmp_path), dataset)
    assert loaded.source == "word2vec trained on the captions"
    assert (loaded.matrix == built.matrix).all()


def test_vectors_from_a_file_tell_how_much_of_the_captions_they_cover(tmp_path: Path) -> None:
    dataset, _ = prepare_own(tmp_path)
    file = tmp_path / "vectors.txt"
    file.write_text("dog 1 2\ncat 3 4\nbird 5 6\n")
    reporter = Recorder()
    built = build_initial_vectors(Workspace(tmp_path), file, oov="drop", reporter=reporter)

    assert built.vocabulary.words == ("dog", "cat")
    assert built.matrix.tolist() == [[1, 2], [3, 4]]
    assert built.coverage == pytest.approx(2 / 6)
    assert built.token_coverage == pytest.approx(4 / 11)
    assert reporter.notes == ["vectors.txt: 2 of 6 words have a vector of 2 numbers (0 of them only in lower case)"]
    assert load_initial_vectors(Workspace(tmp_path), dataset).vocabulary == built.vocabulary


def test_vectors_need_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no data set is prepared here"):
        build_initial_vectors(Workspace(tmp_path), None, oov="random", reporter=Reporter())


def test_missing_vectors_are_to_be_built(tmp_path: Path) -> None:
    dataset, _ = prepare_own(tmp_path)

    with pytest.raises(WorkspaceError, match=r"there are no word vectors; run 'dpce build-word2vec', or not$"):
        load_initial_vectors(Workspace(tmp_path), dataset, otherwise=", or not")


def test_vectors_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    prepare_own(tmp_path)
    build_initial_vectors(Workspace(tmp_path), None, oov="random", reporter=Reporter())
    dataset, _ = prepare_own(tmp_path, IMAGES[1:])

    with pytest.raises(WorkspaceError, match=r"another vocabulary than data set 'own' has now; run 'dpce build-word2"):
        load_initial_vectors(Workspace(tmp_path), dataset)
