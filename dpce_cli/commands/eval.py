"""dpce eval"""

from __future__ import annotations

from dpce_cli.commands.options import DEFAULT_WORKSPACE, JsonOption, SplitOption, WorkspaceOption


def evaluate(
    split: SplitOption = "test",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Measure retrieval in both directions on an extracted split.

    Example: dpce eval --split val --json
    """
    from dpce_cli.commands.console import print_json, print_table
    from dpce_cli.core.artefacts import load_features
    from dpce_cli.core.metrics import evaluate as measure
    from dpce_cli.core.workspace import Workspace

    place = Workspace(workspace)
    store, checkpoint = load_features(place, split)
    metrics = measure(store.image_embeddings, store.text_embeddings, store.image_of_text)
    if as_json:
        about = {
            "dataset": checkpoint.dataset,
            "split": split,
            "stage": checkpoint.stage,
            "checkpoint": checkpoint.fingerprint,
        }
        print_json({**about, **metrics.to_dict()})
        return
    title = (
        f"{checkpoint.dataset}, {split} split: {len(store.image_ids)} images, {len(store.captions)} captions; "
        f"Stage {checkpoint.stage} model {checkpoint.fingerprint[:12]}; RSUM {metrics.rsum:.1f}"
    )
    rows = [
        (name, *(f"{100 * value:.1f}" for value in (d.r1, d.r5, d.r10)), f"{d.median_rank:g}", f"{d.mean_rank:.1f}",
         f"{100 * d.map:.1f}")
        for name, d in (("image-to-text", metrics.image_to_text), ("text-to-image", metrics.text_to_image))
    ]  # fmt: skip
    columns = ("direction", "R@1 %", "R@5 %", "R@10 %", "median rank", "mean rank", "mAP %")
    print_table(title, columns, rows, text_columns=0)
