from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from dpce_cli.core.errors import CheckpointError, WorkspaceError
from dpce_cli.core.retrieval.hubness import Bank
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.retrieval.relevance import Relevances
from dpce_cli.core.sharing.model_folder import load_model, save_model
from dpce_cli.core.workspace.checkpoint import Checkpoint
from tests.core.tiny import Recorder

SENTENCES = ["a mosaic of x1", "many x2 with z3"]


def read_all(folder: Path) -> Model:
    """The model, its weights read."""
    model = load_model(folder)
    assert model.weights
    return model


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        read_all(folder)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_a_folder_embeds_as_the_checkpoint_does(trained: Checkpoint, folder: Path, photos: Path) -> None:
    before, after = Model.of_checkpoint(trained), load_model(folder)

    assert np.array_equal(after.encode_text(SENTENCES), before.encode_text(SENTENCES))
    images = [photos / "val0.png", photos / "val1.png"]
    assert np.array_equal(after.encode_images(images), before.encode_images(images))
    assert after.fingerprint == before.fingerprint
    assert after.encode_text(SENTENCES).dtype == np.float32


def test_a_folder_holds_four_files_and_no_classifier(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors", "vocabulary.json"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    names = safetensors.torch.load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in names} == {"image_encoder", "text_encoder"}
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 1
    assert config["preprocessing"]["crop"] == 32
    assert config["config"]["image"]["backbone"] == "resnet34"
    assert sorted(config["files"]) == ["model.safetensors", "vocabulary.json"]


def test_the_same_model_makes_the_same_bytes(trained: Checkpoint, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_model(Model.of_checkpoint(trained), tmp_path / name, card="", half=False)
    for file in os.listdir(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def _bank(dim: int) -> Bank:
    images, texts = torch.eye(dim)[:3], F.normalize(torch.rand(5, dim, generator=torch.Generator().manual_seed(0)))
    return Bank(image_embeddings=images, text_embeddings=texts)


def test_a_bank_travels_with_the_model(trained: Checkpoint, folder: Path, tmp_path: Path) -> None:
    model = Model.of_checkpoint(trained)
    bank = _bank(model.dim)
    save_model(replace(model, load_bank=lambda: bank), tmp_path / "with", card="", half=False)

    found = load_model(tmp_path / "with")
    assert found.bank
    torch.testing.assert_close(found.bank.image_embeddings, bank.image_embeddings, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.bank.text_embeddings, bank.text_embeddings, atol=1e-3, rtol=0)
    assert found.fingerprint == load_model(folder).fingerprint
    assert load_model(folder).bank is None


def test_the_relevance_travels_with_the_model(
    trained: Checkpoint, folder: Path, tmp_path: Path, change_config: Callable[..., None]
) -> None:
    curve = {"slope": 4.5, "intercept": -1.25}
    relevances = Relevances.from_dict({"text_to_image": curve, "image_to_text": curve})
    save_model(replace(Model.of_checkpoint(trained), relevances=relevances), tmp_path / "with", card="", half=False)

    assert load_model(tmp_path / "with").relevances == relevances
    assert load_model(folder).relevances is None
    change_config(relevance={"text_to_image": curve, "image_to_text": {"slope": "steep"}})
    assert "the relevance is not two curves of two numbers" in refusal(folder)


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({"image_embeddings": torch.eye(4)}, "holds image_embeddings, and no bank"),
        ({"image_embeddings": torch.ones(3), "text_embeddings": torch.ones(3)}, r"image_embeddings is \(3,\)"),
        ({"image_embeddings": torch.eye(3), "text_embeddings": torch.eye(3)}, r"is \(3, 3\), expected rows of"),
    ],
)
def test_a_bank_of_another_kind_is_refused(
    trained: Checkpoint,
    folder: Path,
    tmp_path: Path,
    list_again: Callable[[], None],
    tensors: dict[str, torch.Tensor],
    fault: str,
) -> None:
    safetensors.torch.save_file(tensors, folder / "bank.safetensors")
    list_again()
    with pytest.raises(CheckpointError, match=rf"bank\.safetensors: .*{fault}"):
        _ = load_model(folder).bank


def test_a_bank_with_rows_of_other_lengths_is_refused(folder: Path, list_again: Callable[[], None]) -> None:
    rows = {name: 2 * value for name, value in vars(_bank(load_model(folder).dim)).items()}
    safetensors.torch.save_file(rows, folder / "bank.safetensors")
    list_again()
    with pytest.raises(CheckpointError, match=r"image_embeddings has a row that is no unit vector"):
        _ = load_model(folder).bank


def test_half_of_the_bytes_embed_almost_the_same(trained: Checkpoint, folder: Path, tmp_path: Path) -> None:
    save_model(Model.of_checkpoint(trained), tmp_path / "half", card="", half=True)
    whole, half = load_model(folder), load_model(tmp_path / "half")

    stored = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.dim() > 1} == {torch.float16}
    assert {value.dtype for value in stored.values() if value.dim() == 1} == {torch.float32}
    assert {value.dtype for value in half.weights.values()} == {torch.float32, torch.int64}
    np.testing.assert_allclose(half.encode_text(SENTENCES), whole.encode_text(SENTENCES), atol=2e-3)
    assert half.fingerprint != whole.fingerprint


def test_whatever_decides_an_embedding_decides_the_fingerprint(folder: Path) -> None:
    model = load_model(folder)
    config = model.config
    others = [
        replace(model, weights_id="other"),
        replace(model, vocabulary=replace(model.vocabulary, lowercase=False)),
        replace(model, config=replace(config, text=replace(config.text, max_words=9))),
        replace(model, config=replace(config, model=replace(config.model, position_shift=False))),
        *(
            replace(model, config=replace(config, image=replace(config.image, **change)))
            for change in ({"mirror": not config.image.mirror}, {"test_view": "full"}, {"resize": 41})
        ),
    ]
    assert len({model.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1
    assert replace(model, config=replace(config, seed=5), name="another").fingerprint == model.fingerprint


def test_an_older_model_is_replaced_as_a_whole(trained: Checkpoint, folder: Path) -> None:
    before = load_model(folder).fingerprint
    save_model(Model.of_checkpoint(trained), folder, card="new", half=True)

    assert (folder / "README.md").read_text() == "new"
    assert read_all(folder).fingerprint != before
    assert os.listdir(folder.parent) == [folder.name]


def test_an_export_that_fails_leaves_the_older_model(
    trained: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(WorkspaceError, match="cannot be written \\(No space left on device\\)"):
        save_model(Model.of_checkpoint(trained), folder, card="new", half=True)
    read_all(folder)
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("file", ["notes.txt", "README.md", "model.safetensors"])
def test_a_folder_of_something_else_is_not_replaced(trained: Checkpoint, tmp_path: Path, file: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file).write_text("mine")
    with pytest.raises(WorkspaceError, match=rf"{file}.*choose a new folder"):
        save_model(Model.of_checkpoint(trained), tmp_path / "mine", card="", half=False)
    assert (tmp_path / "mine" / file).read_text() == "mine"


def test_a_file_is_not_replaced_by_a_folder(trained: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(WorkspaceError, match="is a file; choose a new folder"):
        save_model(Model.of_checkpoint(trained), tmp_path / "mine", card="", half=False)


def test_the_folder_that_the_command_runs_in_is_not_replaced(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError, match="is the folder that dpce runs in and cannot be replaced; name a folder"):
        save_model(Model.of_checkpoint(trained), Path(), card="", half=False)


def test_unknown_words_of_a_query_are_named(folder: Path) -> None:
    reporter = Recorder()
    load_model(folder, reporter=reporter).encode_text(["a zebra mosaic"])
    assert reporter.warnings == ["unknown words are ignored: zebra"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "vocabulary.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert f"{folder / file}: there is no such file, so this is no model folder" in refusal(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "vocabulary.json"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(folder: Path, file: str) -> None:
    (folder / file).rename(folder.parent / "secret")
    (folder / file).symlink_to(folder.parent / "secret")
    assert f"{folder / file}: is a link that leads out of the folder" in refusal(folder)


def test_a_device_is_not_read(folder: Path) -> None:
    (folder / "vocabulary.json").unlink()
    os.mkfifo(folder / "vocabulary.json")
    assert "there is no such file" in refusal(folder)


def test_files_that_are_cut_off_or_changed_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert f"has {len(content) - 1} bytes, and config.json lists {len(content)}" in refusal(folder)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "model.safetensors: is damaged, or not the file that config.json lists" in refusal(folder)
    weights.write_bytes(content)
    words = folder / "vocabulary.json"
    words.write_bytes(words.read_bytes().replace(b"mosaic", b"mosaik"))
    assert "vocabulary.json: is damaged, or not the file that config.json lists" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"\x00", "cannot be read"),
        (struct.pack("<Q", 2**62) + b"{}", "cannot be read"),
        (struct.pack("<Q", 2) + b"{}", "tensors are missing or foreign"),
        (struct.pack("<Q", 4) + b"\xff" * 4, "cannot be read"),
        (
            struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}'.ljust(64),
            "cannot be read",
        ),
    ],
)
def test_what_is_no_safetensors_file_is_refused(
    folder: Path, content: bytes, reason: str, list_again: Callable[[], None]
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    list_again()
    assert reason in refusal(folder)


def test_a_pickle_is_refused_and_not_executed(folder: Path, tmp_path: Path, list_again: Callable[[], None]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"image_encoder.x": Payload()}, folder / "model.safetensors")
    list_again()
    assert "model.safetensors: cannot be read" in refusal(folder)
    assert not (tmp_path / "executed").exists()


def _without(state: dict[str, torch.Tensor]) -> None:
    del state["text_encoder.bn.bias"]


def _foreign(state: dict[str, torch.Tensor]) -> None:
    state["shared_classifier.weight"] = torch.zeros(3)


def _other_shape(state: dict[str, torch.Tensor]) -> None:
    state["text_encoder.bn.bias"] = torch.zeros(17)


def _other_type(state: dict[str, torch.Tensor]) -> None:
    state["text_encoder.bn.bias"] = torch.zeros(16, dtype=torch.float64)


def _halved_counter(state: dict[str, torch.Tensor]) -> None:
    state["text_encoder.bn.num_batches_tracked"] = torch.tensor(1.0).half()


def _not_finite(state: dict[str, torch.Tensor]) -> None:
    state["text_encoder.bn.bias"][3] = torch.nan


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without, "1 tensors are missing or foreign, the first is 'text_encoder.bn.bias'"),
        (_foreign, "1 tensors are missing or foreign, the first is 'shared_classifier.weight'"),
        (_other_shape, "text_encoder.bn.bias is torch.float32 (17,), expected torch.float32 (16,)"),
        (_other_type, "text_encoder.bn.bias is torch.float64 (16,), expected torch.float32 (16,)"),
        (_halved_counter, "text_encoder.bn.num_batches_tracked is torch.float16 (), expected torch.int64 ()"),
        (_not_finite, "text_encoder.bn.bias holds numbers that are not finite"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], reason: str, list_again: Callable[[], None]
) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    change(state)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    list_again()
    assert reason in refusal(folder)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"format": 2}, "has format 2, this dpce reads 1"),
        ({"format": [1] * 10**5}, "has format [1, 1"),
        ({"config": {}}, "lacks or does not know image, model, preset, seed, stage1, stage2, text; it was written by "),
        ({"config": "x"}, "describes no model that this dpce can read"),
        ({"word_dim": "12"}, "describes no model that this dpce can read"),
        ({"word_dim": 2**31 - 1}, "expected torch.float32"),
        ({"name": 3}, "describes no model that this dpce can read"),
        ({"files": []}, "describes no model that this dpce can read"),
        ({"files": {"model.safetensors": 3}}, "describes no model that this dpce can read"),
        ({"files": {}}, "does not list model.safetensors"),
    ],
)
def test_a_description_of_another_kind_is_refused(
    folder: Path, change_config: Callable[..., None], values: dict[str, Any], reason: str
) -> None:
    change_config(**values)
    assert reason in refusal(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "run.py"])
def test_a_description_that_lists_other_files_is_refused(
    folder: Path, change_config: Callable[..., None], name: str
) -> None:
    files = json.loads((folder / "config.json").read_text())["files"]
    change_config(files={**files, name: {"bytes": 1, "sha256": ""}})
    assert f"lists '{name}', which this dpce does not know" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("embedding_dim", 10**15, "expected torch.float32"),
        ("embedding_dim", 10**30, "expected a number below 2^63"),
        ("embedding_dim", 17, "expected torch.float32"),
        ("text_width", 1e300, "sizes of no network"),
        ("text_blocks", [10**9], "text_blocks with 1 to 4 numbers from 1 to 100); export the model again"),
        ("text_blocks", [1, 1], "tensors are missing or foreign"),
    ],
)
def test_a_description_with_sizes_of_another_network_is_refused(
    folder: Path, change_config: Callable[..., None], key: str, value: Any, reason: str
) -> None:
    config = json.loads((folder / "config.json").read_text())["config"]
    config["model"][key] = value
    change_config(config=config)
    assert reason in refusal(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 10**5, "\ud800", '{"format": NaN}'])
def test_a_description_that_is_no_json_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert f"{folder / 'config.json'}: " in refusal(folder)


@pytest.mark.parametrize(("section", "key"), [("text", "max_words"), ("image", "resize")])
def test_a_description_that_would_take_all_memory_is_refused(
    folder: Path, change_config: Callable[..., None], section: str, key: str
) -> None:
    config = json.loads((folder / "config.json").read_text())["config"]
    config[section][key] = 10**12
    change_config(config=config)
    assert "more words or pixels than dpce allows" in refusal(folder)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "not a vocabulary: 'words' is"),
        ("abc", "not a vocabulary: 'words' is"),
        (["a", 3], "words[1] is 3, not a word"),
        (["a", "a"], "the word 'a' is"),
    ],
)
def test_a_list_that_is_no_vocabulary_is_refused(
    folder: Path, words: Any, reason: str, list_again: Callable[[], None]
) -> None:
    (folder / "vocabulary.json").write_text(json.dumps({"lowercase": True, "words": words}))
    list_again()
    message = refusal(folder)
    assert message.startswith(f"{folder / 'vocabulary.json'}: {reason}")
    assert message.endswith("; export the model again, or get the folder again")
    assert "prepare-vocab" not in message


def test_a_vocabulary_of_another_length_is_refused(folder: Path, list_again: Callable[[], None]) -> None:
    (folder / "vocabulary.json").write_text(json.dumps({"lowercase": True, "words": ["a", "mosaic"]}))
    list_again()
    assert "text_encoder.words.weight is torch.float32" in refusal(folder)
