"""Finding a workspace's models and embeddings, and refusing what does not belong together."""

from __future__ import annotations

from dpce_cli.core.errors import CheckpointError, WorkspaceError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.workspace.checkpoint import Checkpoint, check_belongs, load_checkpoint
from dpce_cli.core.workspace.dataset import PreparedDataset
from dpce_cli.core.workspace.features import FeatureStore, load_feature_store
from dpce_cli.core.workspace.replaced_photos import check_photos
from dpce_cli.core.workspace.workspace import Workspace


def load_best(workspace: Workspace, dataset: PreparedDataset | None, stage: int | None) -> Checkpoint:
    """The best checkpoint of `stage`, or of the last stage that was trained.

    Args:
        dataset: refuse a checkpoint that was not trained on this data set; None: take any.

    Raises:
        CheckpointError: there is none, or it was trained on another data set, or from another Stage I model than the
            workspace has.
    """
    paths = {number: workspace.stage_folder(number) / "best.pt" for number in (1, 2)}
    if stage is None:
        stage = 2 if paths[2].is_file() else 1
    checkpoint = load_checkpoint(paths[stage], remedy=f"dpce train-stage{stage}")
    if dataset:
        check_belongs(checkpoint, dataset, paths[stage])
    if checkpoint.stage == 2 and checkpoint.parent and paths[1].is_file():
        first = load_checkpoint(paths[1], remedy="dpce train-stage1")
        if checkpoint.parent != first.fingerprint:
            raise CheckpointError(
                f"{paths[2]}: was trained from another Stage I model than {paths[1]}; "
                "run 'dpce train-stage2 --fresh', or use the Stage I model: 'dpce extract-features --stage 1'"
            )
    return checkpoint


def load_features(
    workspace: Workspace, split: str, reporter: Reporter | None = None
) -> tuple[FeatureStore, Checkpoint]:
    """The extracted embeddings of a split, and the checkpoint that made them.

    Raises:
        WorkspaceError: there is no such split, or it was not extracted, or from other photos or captions, or by another
            checkpoint than the workspace has now.
    """
    path, again = workspace.features_path(split), f"run 'dpce extract-features --split {split}' again"
    if not path.is_file():
        workspace.load_dataset().split(split)
        others = sorted(p.stem for p in path.parent.glob("*.h5"))
        hint = f"; extracted are: {', '.join(others)} (choose with --split)" if others else ""
        raise WorkspaceError(f"{path}: not found; run 'dpce extract-features --split {split}'{hint}")
    store, about = load_feature_store(path), workspace.about()
    if store.meta.get("made_from") != about["splits"].get(split):
        raise WorkspaceError(
            f"{path}: its embeddings were made from other photos or captions than data set '{workspace.dataset_name}' "
            f"has now; {again}"
        )
    stage = store.meta.get("stage")
    if type(stage) is not int or stage not in (1, 2):
        raise WorkspaceError(f"{path}: does not say which stage's model made it; {again}")
    check_photos(workspace, split, store, reporter or Reporter())
    checkpoint = load_best(workspace, None, stage)
    if store.meta.get("checkpoint") != checkpoint.fingerprint:
        raise WorkspaceError(
            f"{path}: its embeddings were made by another checkpoint than {workspace.stage_folder(checkpoint.stage)}"
            f"/best.pt; {again}"
        )
    return store, checkpoint
