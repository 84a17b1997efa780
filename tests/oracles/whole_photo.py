"""The embedding of a photo larger than a training crop, one window of the CNN's last map at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import models

from dpce_cli.core.data.images import normalize
from dpce_cli.core.models.backbones import IMAGENET_STD
from dpce_cli.core.models.image_encoder import ImageEncoder


def embedding_of_windows(encoder: ImageEncoder, photo: Tensor, *, side: int) -> Tensor:
    """f_img (embedding_dim,) of a uint8 photo (3, height, width), summed over all windows of `side` x `side` cells."""
    backbone, maps = encoder.backbone, list[Tensor]()
    vgg = isinstance(backbone, models.VGG)
    last = backbone.get_submodule("features" if vgg else "layer4")
    hook = last.register_forward_hook(lambda layer, inputs, output: maps.append(output[0]))
    with torch.inference_mode():
        backbone(normalize(photo[None], mean=encoder.mean, std=IMAGENET_STD))
        hook.remove()
        (cells,) = maps
        total = torch.zeros(())
        for top in range(cells.shape[1] - side + 1):
            for left in range(cells.shape[2] - side + 1):
                window = cells[:, top : top + side, left : left + side]
                if vgg:
                    pooled = F.adaptive_avg_pool2d(window, 7)
                    feature = backbone.get_submodule("classifier")(pooled.flatten()[None])
                else:
                    feature = window.mean(dim=(1, 2))[None]
                total = total + encoder.head(feature)[0]
    return total
