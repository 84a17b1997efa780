"""Signs that a run has failed, and what to do then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpce_cli.core.config import StageConfig
from dpce_cli.core.errors import TrainingError

_STUCK_STEPS = 200
_NAMED = 8
SMALLEST_SCALE = 2.0**-14
"""Below this loss scale, the gradients are not finite in float16 at any scale."""


def diverged(
    stage: StageConfig, number: int, step: int, what: str, *, last: Path, photos: Sequence[str] = ()
) -> TrainingError:
    """The error of a run whose numbers are no longer finite.

    Args:
        number: 1 or 2, the stage.
        last: path of last.pt, which may not exist.
        photos: image ids of the batch, if they matter.
    """
    more = f" and {len(photos) - _NAMED} more" if len(photos) > _NAMED else ""
    batch = f", for the photos {', '.join(photos[:_NAMED])}{more}" if photos else ""
    return TrainingError(
        f"stage {number}, step {step}: {what}{batch}. Run again with a lower learning rate, for instance --set "
        f"stage{number}.learning_rate={stage.learning_rate / 10:g}: training continues from the last good state, "
        f"{last if last.is_file() else 'the beginning'}"
    )


class StuckRanking:
    """Detects a ranking loss that stays at the margin because all embeddings are the same.

    Then both hinges of each triplet are equal to the margin, and so is the loss, half of their sum.
    """

    def __init__(self, margin: float) -> None:
        self.margin, self._steps = margin, 0

    def advice(self, loss: float, steps: int) -> str:
        """Advice for the user, once after 200 steps within 1 % of the margin; empty otherwise.

        Args:
            loss: mean ranking loss of the last `steps` steps.
        """
        before = self._steps
        self._steps = before + steps if abs(loss - self.margin) <= 0.01 * self.margin else 0
        if not before < _STUCK_STEPS <= self._steps:
            return ""
        return (
            f"the ranking loss has been at its margin, {self.margin:g}, for {self._steps} steps: the embeddings of "
            "different photos are almost equal, and nothing is learnt. Try stage2.negatives=random, a lower "
            "stage2.learning_rate, stage2.warmup_epochs, a larger stage2.text_weight, or more epochs of Stage I"
        )
