"""Convert MatConvNet's parameters into the entries of a PyTorch state dict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dpce_cli.core.errors import CheckpointError
from dpce_cli.core.models.matconvnet.network import Array, Network

EPSILON = 1e-5  # of all batch norms; PyTorch's default
_NAMED = 12
"""Problems that an error message names."""


class Conversion:
    """Fills a state dict with a network's parameters; `finish` checks that all fit and none is left.

    Args:
        shapes: the shape of each entry of the state dict.
    """

    def __init__(self, network: Network, shapes: Mapping[str, torch.Size]) -> None:
        self.network, self.shapes = network, shapes
        self.state: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._problems: list[str] = []

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        """Parameter `name`, or zeros if it does not fit; dimensions of size 1 are ignored in the comparison."""
        self._used.add(name)
        value = self.network.params.get(name)
        if value is None:
            self._problems.append(f"{name} {_text(shape)} is missing")
        elif not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            self._problems.append(f"{name} is not an array of numbers")
        elif [side for side in value.shape if side != 1] != [side for side in shape if side != 1]:
            self._problems.append(f"{name} is {_text(value.shape)}, not {_text(shape)}")
        elif not np.isfinite(value).all():
            self._problems.append(f"{name} has a value that is not finite")
        else:
            return value.reshape(shape)
        return np.zeros(shape)

    def put(self, key: str, value: Array) -> None:
        self.state[key] = torch.from_numpy(np.ascontiguousarray(value, np.float32)).reshape(self.shapes[key])

    def vector(self, key: str, name: str) -> None:
        """Convert a bias or a scale."""
        self.put(key, self.take(name, tuple(self.shapes[key])))

    def filters(self, key: str, name: str, *, side: int = 1) -> None:
        """Convert the filters (height, width, in, out) of a 1-D or 2-D convolution, or of a linear layer.

        Args:
            side: side of the feature map that is the input of a linear layer; PyTorch flattens it as
                (in, height, width).
        """
        out, into, *window = self.shapes[key]
        height, width = window if len(window) == 2 else (1, window[0]) if window else (side, side)
        channels = into if window else into // side**2
        self.put(key, self.take(name, (height, width, channels, out)).transpose(3, 2, 0, 1))

    def batch_norm(self, key: str, scale: str, shift: str, moments: str, *, bias_before: Array | float = 0.0) -> None:
        """Convert a batch norm; its moments are a mean and the standard deviation that MatConvNet divides by.

        This deviation is sqrt(variance + MatConvNet's epsilon); the converted batch norm divides by the same number.
        If the deviation is smaller than sqrt(`EPSILON`), the scale is changed instead of the variance.

        Args:
            bias_before: bias of the convolution before, which has no bias in PyTorch.
        """
        channels = self.shapes[f"{key}.running_mean"][0]
        mean, deviation = self.take(moments, (channels, 2)).astype(np.float64).T
        if moments in self.network.params and (deviation <= 0).any() and not self._has_problem(moments):
            self._problems.append(f"{moments} has a standard deviation that is not above 0")
        deviation = np.where(deviation > 0, deviation, 1.0)
        variance = np.maximum(deviation**2 - EPSILON, 0)
        self.put(f"{key}.weight", self.take(scale, (channels,)) * np.sqrt(variance + EPSILON) / deviation)
        self.vector(f"{key}.bias", shift)
        self.put(f"{key}.running_mean", mean - bias_before)
        self.put(f"{key}.running_var", variance)
        self.state[f"{key}.num_batches_tracked"] = torch.tensor(0)

    def _has_problem(self, name: str) -> bool:
        return any(problem.startswith(f"{name} ") for problem in self._problems)

    def finish(self) -> dict[str, Tensor]:
        """The filled state dict.

        Raises:
            CheckpointError: names the parameters that are missing, unknown, not finite or of another shape.
        """
        unknown = [
            f"{name} {_text(np.shape(value))} is unknown"
            for name, value in self.network.params.items()
            if name not in self._used
        ]
        if problems := [*self._problems, *unknown]:
            rest = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise CheckpointError(
                f"{self.network.path}: {len(problems)} parameters do not fit: {'; '.join(problems[:_NAMED])}{rest}. "
                "Only the networks of the paper's authors and vlfeat's ResNet-50, VGG-16 and VGG-19 can be imported"
            )
        assert self.state.keys() == self.shapes.keys(), self.state.keys() ^ self.shapes.keys()
        return self.state


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
