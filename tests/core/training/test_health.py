from __future__ import annotations

from pathlib import Path

import pytest

from dpce_cli.core.models.dual_encoder import DualEncoder
from dpce_cli.core.presets import build_preset
from dpce_cli.core.training import health
from dpce_cli.core.training.health import StuckRanking, diverged
from tests.core.conftest import Trained
from tests.core.tiny import STEPS, Recorder, records, train


def test_the_error_of_a_diverged_run_names_photos_state_and_remedy(tmp_path: Path) -> None:
    stage, last = build_preset("scenes").stage2, tmp_path / "last.pt"
    photos = [f"photo{number}" for number in range(10)]
    message = str(diverged(stage, 2, 7, "the loss is nan", last=last, photos=photos))
    assert message.startswith("stage 2, step 7: the loss is nan, for the photos photo0, photo1, ")
    assert "photo7 and 2 more. Run again with a lower learning rate" in message
    assert message.endswith(", the beginning")
    last.touch()
    assert str(diverged(stage, 2, 7, "the loss is nan", last=last)).endswith(f"from the last good state, {last}")


def test_a_loss_at_the_margin_is_reported_once_after_200_steps() -> None:
    stuck = StuckRanking(0.2)
    told = [stuck.advice(0.2015, 25) for _ in range(20)]
    assert [index for index, advice in enumerate(told) if advice] == [7]
    assert told[7].startswith("the ranking loss has been at its margin, 0.2, for 200 steps: ")
    assert "stage2.negatives=random" in told[7]


def test_a_loss_that_leaves_the_margin_is_not_stuck() -> None:
    stuck = StuckRanking(1.0)
    assert not any(stuck.advice(0.98 if index % 7 == 0 else 1.0, 25) for index in range(50))
    assert not any(stuck.advice(loss, 300) for loss in (0.0, 0.98, 1.02, 2.0))


@pytest.mark.usefixtures("no_curves")
def test_embeddings_that_are_all_the_same_are_noticed_in_stage_ii(
    stage1: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DualEncoder, "ranking_embeddings", lambda self, embeddings: 0 * embeddings + 0.25)
    monkeypatch.setattr(health, "_STUCK_STEPS", 8)
    for weight, warnings in ((1, 1), (0, 0)):
        config = stage1.config.with_settings(
            [f"stage2.epochs={12 // STEPS}", "stage2.learning_rate=0", f"stage2.ranking_weight={weight}"]
        )
        reporter = Recorder()
        train(stage1.workspace, 2, config, fresh=True, reporter=reporter)
        assert records(stage1.workspace, 2, "train")[-1]["ranking_loss"] == pytest.approx(config.stage2.margin)
        assert len([warning for warning in reporter.warnings if "at its margin" in warning]) == warnings
