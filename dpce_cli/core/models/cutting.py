"""Cut an image CNN in two parts at a named place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, fx, nn

from dpce_cli.core.errors import ConfigError

_OWN = ("call_module", "get_attr")
"""Operations of a graph that use tensors of the network."""


@dataclass(frozen=True)
class CutNetwork:
    """Two parts of a network that share its modules; the second one takes what the first one gives."""

    network: nn.Module
    lower: fx.Graph
    upper: fx.Graph
    lower_tensors: frozenset[str]
    """Names of the lower part's tensors in the network's state dict."""

    def run_lower(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, fx.Interpreter(self.network, graph=self.lower).run(pixels))

    def run_upper(self, maps: Tensor) -> Tensor:
        return cast(Tensor, fx.Interpreter(self.network, graph=self.upper).run(maps))


def cut(network: nn.Module, place: str) -> CutNetwork:
    """Cut a network after the module called `place`, one of its children, or a part of one such as "layer3.5".

    Raises:
        ConfigError: there is no such place, or the network cannot be cut there.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # torch.fx raises many types for code that it cannot follow
        raise ConfigError(
            f"image.frozen_until={place}: this image CNN cannot be cut, because its forward pass depends on the photos "
            f"({str(error).splitlines()[0][:100]}); choose another one, or leave the setting empty"
        ) from error
    ends = _ends(graph)
    if place in ends and (parts := _cut_after(network, graph, ends[place])) and _can_learn(parts):
        return parts
    places = [name for name, parts in _places(network, graph) if _can_learn(parts)]
    children = [name for name in places if "." not in name]
    part = f", or a part of one, such as {places[-1]}" if children and "." in places[-1] else ""
    instead = f"choose one of {', '.join(children or places)}{part}" if places else "leave the setting empty"
    raise ConfigError(f"image.frozen_until={place}: this image CNN cannot be cut there; {instead}")


def places(network: nn.Module) -> list[str]:
    """Names of the children, and of their parts, after which only their output is needed, not what came before it.

    Empty if torch.fx cannot follow the network's forward pass.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception:  # as in `cut`
        return []
    return [name for name, _ in _places(network, graph)]


class _Tracer(fx.Tracer):
    """Follows sequences and what the network's children do with sequences, and takes other modules as a whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_child = "." not in module_qualified_name
        has_sequence = any(type(part) is nn.Sequential for part in m.children())
        return type(m) is not nn.Sequential and not (is_child and has_sequence)


def _ends(graph: fx.Graph) -> dict[str, fx.Node]:
    """The last call of each module and of the modules in it."""
    ends = {}
    for node in graph.nodes:
        if node.op == "call_module":
            for name in _with_parents(cast(str, node.target)):
                ends[name] = node
    return ends


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _places(network: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, CutNetwork]]:
    for name, end in _ends(graph).items():
        if name.count(".") < 2 and (parts := _cut_after(network, graph, end)):
            yield name, parts


def _can_learn(parts: CutNetwork) -> bool:
    """Whether the upper part has parameters."""
    upper = {str(node.target) for node in parts.upper.nodes if node.op in _OWN}
    return any(upper.intersection(_with_parents(name)) for name, _ in parts.network.named_parameters())


def _cut_after(network: nn.Module, graph: fx.Graph, end: fx.Node) -> CutNetwork | None:
    """Cut after the node `end`; None if more than its output is needed after it."""
    lower, upper = fx.Graph(), fx.Graph()
    below: dict[fx.Node, fx.Node] = {}
    above = {end: upper.placeholder("maps")}
    nodes = list(graph.nodes)
    first_above = nodes.index(end) + 1
    for node in nodes[:first_above]:
        below[node] = lower.node_copy(node, below.__getitem__)
    lower.output(below[end])
    for node in nodes[first_above:]:
        for value in node.all_input_nodes:
            is_constant = value.op == "get_attr" or (value.op == "placeholder" and value.args)  # a default value
            if is_constant and value not in above:
                above[value] = upper.node_copy(value)
        if not above.keys() >= {*node.all_input_nodes}:
            return None
        above[node] = upper.node_copy(node, above.__getitem__)
    in_lower = {str(node.target) for node in lower.nodes if node.op in _OWN}
    own = (name for name in network.state_dict() if in_lower.intersection(_with_parents(name)))
    return CutNetwork(network, lower, upper, frozenset(own))
