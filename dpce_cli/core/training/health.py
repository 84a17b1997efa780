"""Signs that a run is of no use, and what to do about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpce_cli.core.config import StageConfig
from dpce_cli.core.errors import TrainingError

_STUCK_STEPS = 200
_NAMED = 8
SMALLEST_SCALE = 2.0**-14
"""A float16 loss scale below this says that gradients are not finite at any scale."""


def diverged(
    stage: StageConfig, number: int, step: int, what: str, *, last: Path, photos: Sequence[str] = ()
) -> TrainingError:
    """The error that ends a run whose numbers are no longer finite.

    Args:
        number: 1 or 2, the stage.
        last: the checkpoint of its last good state, if there is one.
        photos: image ids of the batch, if that matters.
    """
    more = f" and {len(photos) - _NAMED} more" if len(photos) > _NAMED else ""
    batch = f", for the photos {', '.join(photos[:_NAMED])}{more}" if photos else ""
    return TrainingError(
        f"stage {number}, step {step}: {what}{batch}. Run again with a lower learning rate, for instance --set "
        f"stage{number}.learning_rate={stage.learning_rate / 10:g}: training continues from the last good state, "
        f"{last if last.is_file() else 'the beginning'}"
    )


class StuckRanking:
    """Notices a ranking loss that stays at the margin, as it does when all embeddings are the same.

    Then every hinge is the margin; the loss is half the mean of the two hinges' sum, and so the margin as well.
    """

    def __init__(self, margin: float) -> None:
        self.margin, self._steps = margin, 0

    def advice(self, loss: float, steps: int) -> str:
        """What to tell a person, once, after 200 steps within 1 % of the margin; empty otherwise.

        Args:
            loss: mean ranking loss of the last `steps` steps.
        """
        before = self._steps
        self._steps = before + steps if abs(loss - self.margin) <= 0.01 * self.margin else 0
        if not before < _STUCK_STEPS <= self._steps:
            return ""
        return (
            f"the ranking loss has been at its margin, {self.margin:g}, for {self._steps} steps: the embeddings of "
            "different photos are alike, and it teaches nothing. Try stage2.negatives=random, a lower "
            "stage2.learning_rate, stage2.warmup_epochs, a larger stage2.text_weight, or more epochs of Stage I"
        )
