#!/usr/bin/env python3
"""Peak memory and time of ranking: whole similarity matrix against blocks."""

from __future__ import annotations

import argparse
import time

from measuring import in_own_process, peak_mib


def memory(options: argparse.Namespace) -> None:
    """Peak memory of ranking captions and images in both directions, without the embeddings."""
    for dim in options.dims:
        blocks, matrix = (in_own_process(rank, options.texts, options.images, dim, whole) for whole in (False, True))
        print(f"evaluation of {options.texts} texts x {options.images} images, {dim}-d")
        print(f"  whole similarity matrix  {matrix[0]:8.1f} MiB  {matrix[1]:7.2f} s")
        print(f"  blocks, as in dpce eval  {blocks[0]:8.1f} MiB  {blocks[1]:7.2f} s")
        print(f"  ratio                    {matrix[0] / blocks[0]:8.1f}      {matrix[1] / blocks[1]:7.2f}")


def rank(texts: int, images: int, dim: int, whole_matrix: bool) -> tuple[float, float]:
    """Peak memory in MiB without imports and embeddings, and seconds."""
    import torch

    from dpce_cli.core.retrieval.ranks import rank_embeddings, rank_similarity

    generator = torch.Generator().manual_seed(0)
    image_embeddings = torch.randn(images, dim, generator=generator)
    text_embeddings = torch.randn(texts, dim, generator=generator)
    for embeddings in (image_embeddings, text_embeddings):
        embeddings /= embeddings.norm(dim=1, keepdim=True)
    image_of_text = torch.arange(texts) * images // texts
    before, start = peak_mib(), time.perf_counter()
    if whole_matrix:
        rank_similarity(image_embeddings @ text_embeddings.T, image_of_text)
    else:
        rank_embeddings(image_embeddings, text_embeddings, image_of_text)
    return peak_mib() - before, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--texts", type=int, default=25_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 2048])
    memory(parser.parse_args())


if __name__ == "__main__":
    main()
