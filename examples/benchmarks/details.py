#!/usr/bin/env python3
"""What a linear probe tells of details, such as numbers and colours, from the pooled features of a frozen image CNN.

For each kind of detail, a logistic regression learns the word of the training captions from their photos alone. On the
validation captions it then chooses between the true word and each other word. This bounds what training of the encoders
can reach with a frozen CNN, except for what the rest of a caption tells. "frequency" always chooses the more common
word, whatever the photo shows. "balanced" is that of `dpce eval --details`; for it, the probe forgets which words are
common.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def probe(options: argparse.Namespace) -> None:
    import torch

    from dpce_cli.core.retrieval.details import Swap, detail_accuracy, swap_details
    from dpce_cli.core.text.details import read_details

    train, val = (read_split(options.workspace, split) for split in ("train", "val"))
    mean, spread = train[0].mean(0), train[0].std(0) + 1e-3
    print(f"{'detail':<16}{'captions':>9}{'frequency %':>13}{'linear probe %':>16}{'balanced %':>12}")
    for kind, groups in read_details(options.details).items():
        swaps, choices = list[Swap](), {name: list[bool]() for name in ("frequency", "probe", "balanced")}
        for group in groups:
            # Captions with words of two groups of the kind do not count.
            labels = {swap.caption: swap.true for swap in swap_details(train[2], groups) if swap.true in group}
            words = torch.tensor([group.index(word) for word in labels.values()])
            photos = torch.tensor([train[1][caption] for caption in labels])
            weight, bias = fit((train[0][photos] - mean) / spread, words, len(group))
            frequency = words.bincount(minlength=len(group)).log()
            scores = (val[0] - mean) / spread @ weight.T + bias
            for swap in swap_details(val[2], groups):
                if swap.true in group:
                    swaps.append(swap)
                    pair = [group.index(swap.true), group.index(swap.other)]
                    of_photo = scores[val[1][swap.caption]]
                    by_choice = {"frequency": frequency, "probe": of_photo, "balanced": of_photo - frequency}
                    for name, values in by_choice.items():
                        choices[name].append(bool(values[pair[0]] > values[pair[1]]))
        if swaps:
            found = {name: detail_accuracy(swaps, right) for name, right in choices.items()}
            balanced = found["balanced"].balanced or float("nan")
            print(
                f"{kind:<16}{found['probe'].captions:>9,}{100 * found['frequency'].accuracy:>13.1f}"
                f"{100 * found['probe'].accuracy:>16.1f}{100 * balanced:>12.1f}"
            )


def read_split(folder: Path, split: str) -> tuple[Tensor, list[int], list[list[str]]]:
    """Pooled features of the photos, and for each caption its photo and its words."""
    import torch

    from dpce_cli.core.models.image_encoder import ImageEncoder
    from dpce_cli.core.text.tokenizer import tokenize
    from dpce_cli.core.workspace.artefacts import load_best
    from dpce_cli.core.workspace.feature_cache import cached_test_features
    from dpce_cli.core.workspace.workspace import Workspace

    workspace = Workspace(folder)
    dataset, checkpoint = workspace.load_dataset(), load_best(workspace, None, None)
    encoder = ImageEncoder(
        backbone=checkpoint.config.image.backbone, embedding_dim=checkpoint.config.model.embedding_dim
    )
    prefix = "image_encoder."
    encoder.load_state_dict(
        {name.removeprefix(prefix): value for name, value in checkpoint.model.items() if name.startswith(prefix)}
    )
    features = cached_test_features(
        workspace, dataset, encoder, checkpoint.config.image, split=split, computed_in=torch.bfloat16
    )
    if features is None:
        raise SystemExit(f"{workspace.root}: no cached features of the {split} photos; train with a frozen image CNN")
    images = dataset.split(split)
    owners = [number for number, image in enumerate(images) for _ in image.captions]
    lowercase = dataset.vocabulary.lowercase
    captions = [tokenize(caption, lowercase=lowercase) for image in images for caption in image.captions]
    return features.float().mean(1), owners, captions


def fit(features: Tensor, words: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weights `(words, feature_dim)` and biases of a logistic regression with an L2 penalty, by L-BFGS."""
    import torch
    from torch.nn import functional as F

    weight = torch.zeros(count, features.shape[1], requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, words) + 0.02 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workspace", type=Path, default=Path("dpce-workspace"))
    parser.add_argument("--details", default="english", help="TOML file of words, or 'english'")
    probe(parser.parse_args())


if __name__ == "__main__":
    main()
