from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.command_line import check_arguments, dpce, succeed


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a model card."""
    _, matter, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(matter), text


def test_the_best_model_is_written_as_a_folder(workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    outcome = succeed("export", folder, "--licence", "cc-by-4.0", workspace=workspace)

    assert re.fullmatch(
        rf"Stage 2 model of data set 'scenes': {re.escape(str(folder))} \(\d+\.\d MB, resnet10, \d+ words\)\n",
        outcome.stdout,
    )
    assert outcome.stderr == ""
    matter, text = card_of(folder)
    assert matter["license"] == "cc-by-4.0"
    assert matter["library_name"] == "dpce"
    measured = json.loads(succeed("eval", "--json", workspace=workspace).stdout)
    recalls = {metric["name"]: metric["value"] for metric in matter["model-index"][0]["results"][0]["metrics"]}
    assert recalls["text-to-image R@1 (full)"] == pytest.approx(100 * measured["text_to_image"]["r1"], abs=0.01)
    assert recalls["image-to-text R@10 (full)"] == pytest.approx(100 * measured["image_to_text"]["r10"], abs=0.01)
    assert len(recalls) == 6
    assert "| test | 6 | 30 |" in text
    assert f"| test | full | 6 | 30 | text-to-image | {100 * measured['text_to_image']['r1']:.1f} |" in text
    assert "Data set `scenes`, preset `scenes`, seed 0, Stage 2, 3 steps, 12 classes." in text


def test_the_hubs_library_reads_the_card(workspace: Path, tmp_path: Path) -> None:
    succeed("export", tmp_path / "model", workspace=workspace)
    data = ModelCard.load(tmp_path / "model" / "README.md").data

    assert data.license == "unknown"
    assert data.eval_results is not None
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert {result.metric_type for result in data.eval_results} == {"recall_at_1", "recall_at_5", "recall_at_10"}


def test_the_commands_of_the_card_exist(workspace: Path, tmp_path: Path) -> None:
    succeed("export", tmp_path / "model", workspace=workspace)
    lines = re.findall(r"^dpce (.+)$", card_of(tmp_path / "model")[1], flags=re.MULTILINE)
    assert lines
    for line in lines:
        check_arguments(line)


def test_the_card_states_every_split_that_this_model_embedded(workspace: Path, tmp_path: Path) -> None:
    succeed("extract-features", "--split", "val", "--workers", "0", workspace=workspace)
    succeed("export", tmp_path / "two", workspace=workspace)
    results = card_of(tmp_path / "two")[0]["model-index"][0]["results"]
    assert [result["dataset"]["split"] for result in results] == ["test", "val"]

    outcome = succeed("export", tmp_path / "one", "--stage", "1", workspace=workspace)
    assert (
        "the model card states no recalls; for those of the test split, run 'dpce extract-features' first"
        in outcome.stderr
    )
    matter, text = card_of(tmp_path / "one")
    assert "model-index" not in matter
    assert "No split was evaluated before the export." in text
    assert "Stage 1" in text


def test_embeddings_of_another_checkpoint_are_left_out_of_the_card(workspace: Path, tmp_path: Path) -> None:
    succeed("train-stage2", "--fresh", "--workers", "0", "--set", "stage2.epochs=2", workspace=workspace)
    outcome = succeed("export", tmp_path / "model", workspace=workspace)
    assert "the model card leaves out the test split: " in outcome.warnings[0]
    assert "made by another checkpoint" in outcome.warnings[0]


def test_the_same_workspace_makes_the_same_bytes(workspace: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        succeed("export", tmp_path / name, "--half", workspace=workspace)
    for file in os.listdir(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_nothing_of_this_machine_is_in_a_folder(workspace: Path, tmp_path: Path) -> None:
    succeed("export", tmp_path / "model", workspace=workspace)
    for file in ("README.md", "config.json", "vocabulary.json"):
        assert str(workspace.parent) not in (tmp_path / "model" / file).read_text(encoding="utf-8")


def test_an_export_that_is_not_possible_says_why(workspace: Path, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    other = dpce("export", tmp_path / "mine", workspace=workspace).error
    assert "holds other files than a model's (first: photo.jpg); choose a new folder" in other
    licence = dpce("export", tmp_path / "model", "--licence", "mine\nx", workspace=workspace).error
    assert "expected an identifier such as apache-2.0" in licence
    assert "run 'dpce train-stage1' first" in dpce("export", tmp_path / "model", workspace=prepared).error
    assert not (tmp_path / "model").exists()


def test_onnx_graphs_are_written_on_demand(workspace: Path, tmp_path: Path) -> None:
    succeed("export", tmp_path / "model", "--onnx", workspace=workspace)
    assert sorted(os.listdir(tmp_path / "model")) == [
        "README.md",
        "bank.safetensors",
        "config.json",
        "image.onnx",
        "model.safetensors",
        "text.onnx",
        "vocabulary.json",
    ]
    with_onnx = succeed("encode", "--model", tmp_path / "model", "-q", "a man in red", workspace=workspace)
    by_torch = succeed("encode", "-q", "a man in red", workspace=workspace)
    vectors = [json.loads(outcome.stdout)["embedding"] for outcome in (with_onnx, by_torch)]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-5)


def test_words_that_no_caption_held_are_added_from_a_file_of_word_vectors(workspace: Path, tmp_path: Path) -> None:
    known = json.loads(next((workspace / "scenes").glob("vocabulary-*.json")).read_text(encoding="utf-8"))["words"]
    lines = [f"{word} {index % 7} {index % 5}" for index, word in enumerate([*known, "frisbee"])]
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    outcome = succeed("export", tmp_path / "model", "--vectors", tmp_path / "vectors.txt", workspace=workspace)
    assert "1 more words from vectors.txt" in outcome.stderr
    assert "## Words beyond the captions\n\n1 more words have a row" in card_of(tmp_path / "model")[1]
    assert "frisbee" in (tmp_path / "model" / "vocabulary.json").read_text(encoding="utf-8")
    encoded = succeed("encode", "--query", "frisbee", "--model", tmp_path / "model")
    assert len(json.loads(encoded.stdout)["embedding"]) > 1

    (tmp_path / "few.txt").write_text("frisbee 1 2\n", encoding="utf-8")
    refused = dpce("export", tmp_path / "other", "--vectors", tmp_path / "few.txt", workspace=workspace)
    assert (refused.code, "share 0 words" in refused.error) == (1, True)
    assert not (tmp_path / "other").exists()
