"""The graph of a network: what capture makes, plans are about and the engine runs.

Four kinds of node. *Given* values come from outside; *local* nodes run by box; *reductions* sum over tiles;
*plain* nodes run once, on whole tensors, under ordinary autograd. Everything is data except the functions that
rules and plain nodes carry.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from .errors import Problem, UnsupportedModuleError
from .ops.rule import Call, Rule, Value, values_in

if TYPE_CHECKING:
    from .ops.flat import Flat
    from .ops.reductions import Reduction


@dataclass(frozen=True, eq=False)
class Given:
    """A value from outside: an input (its position), a parameter or buffer (its name), a constant, the seed."""

    value: Value
    source: str
    key: Any


@dataclass(frozen=True, eq=False)
class Local:
    """An operation that runs by box."""

    value: Value
    rule: Rule
    layer: str
    op: str
    #: The layers whose work became part of this operation.
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Reduced:
    """A sum over the tiles of a map; its result is global."""

    value: Value
    reduction: Reduction
    layer: str
    op: str


@dataclass(frozen=True, eq=False)
class Plain:
    """An operation that runs once, on whole tensors."""

    value: Value
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    layer: str
    op: str

    @cached_property
    def uses(self) -> tuple[Value, ...]:
        return tuple(dict.fromkeys(values_in((self.arguments, self.keywords))))


Node = Given | Local | Reduced | Plain


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured network.

    Attributes:
        nodes: by name, in an order in which each node follows what it reads.
        inputs: the flattened inputs that are tensors, as values, by their position.
        outputs: the flattened outputs: values, or constants.
        output_spec: how the outputs fold back into what ``forward`` returned.
        mutations: buffers that the forward updates: (name on the module, new value).
        space: how many spatial axes the image has.
        noises: how many dropouts draw from the forward's seed.
        device: where it runs.
        strides: of the given tensors, by name, as they were at capture.
        trained: the given values whose gradient is wanted: none where autograd was off at capture.
    """

    nodes: dict[str, Node]
    inputs: dict[int, Value]
    outputs: tuple[Any, ...]
    output_spec: pytree.TreeSpec
    mutations: tuple[tuple[str, Value], ...]
    space: int
    noises: int
    device: torch.device
    strides: dict[str, tuple[int, ...]] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()
    #: The results that are written to a file tile by tile and never held.
    written: frozenset[str] = frozenset()

    @cached_property
    def draws(self) -> bool:
        """Whether a plain node draws random numbers."""
        seeded = torch.Tag.nondeterministic_seeded
        return any(seeded in getattr(node.run, "tags", ()) for node in self.nodes.values() if isinstance(node, Plain))

    @cached_property
    def image(self) -> Value:
        """The first spatial input."""
        return next(value for value in self.inputs.values() if value.spatial)

    @cached_property
    def locals(self) -> dict[str, Local]:
        return {name: node for name, node in self.nodes.items() if isinstance(node, Local)}

    @cached_property
    def readers(self) -> dict[str, list[Node]]:
        """By value name the nodes that use it."""
        found: dict[str, list[Node]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for value in uses(node):
                found[value.name].append(node)
        return found

    def result_of(self, layer: str) -> Local | None:
        """The last local node made by a layer, or by anything inside it."""
        inside = [
            node
            for node in self.locals.values()
            if any(path == layer or path.startswith(layer + ".") for path in (node.layer, *node.parts))
        ]
        return inside[-1] if inside else None


def uses(node: Node) -> Iterator[Value]:
    """The values a node reads."""
    if isinstance(node, Local):
        yield from (read.value for read in node.rule.reads)
        yield from node.rule.side
    elif isinstance(node, Reduced):
        yield node.reduction.value
    elif isinstance(node, Plain):
        yield from node.uses


def requiring(graph: Graph, given: set[str]) -> frozenset[str]:
    """The values that need a gradient, from the given ones that do."""
    found = set(given)
    for name, node in graph.nodes.items():
        if isinstance(node, Given) or node.op == "detach" or not node.value.dtype.is_floating_point:
            continue
        if any(value.name in found for value in uses(node)):
            found.add(name)
    return frozenset(found)


@dataclass
class GraphBuilder:
    """Where lowerings put their nodes; also collects every problem, so that all are reported at once."""

    module: torch.nn.Module
    device: torch.device
    nodes: dict[str, Node] = field(default_factory=dict)
    mutations: list[tuple[str, Value]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    noises: int = 0
    #: By name of a flattened map what it is made of.
    flat: dict[str, Flat] = field(default_factory=dict)
    #: Stands for a result that nothing may use, and that nothing needs to.
    ignored: object = field(default_factory=object)

    def _name(self, call: Call) -> str:
        name, count = call.name, 1
        while name in self.nodes:
            count += 1
            name = f"{call.name}.{count}"
        return name

    def given(self, value: Value, source: str, key: Any) -> Value:
        self.nodes[value.name] = Given(value, source, key)
        return value

    def local(
        self, call: Call, rule: Rule, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None
    ) -> Value:
        """Add a local node; its result has the call's shape and dtype unless others are given."""
        value = Value(self._name(call), call.shape if shape is None else shape, dtype or call.dtype, rule.axes)
        self.nodes[value.name] = Local(value, rule, call.layer, op_name(call.target))
        return value

    def reduce(
        self, call: Call, reduction: Reduction, shape: tuple[int, ...], dtype: torch.dtype | None = None
    ) -> Value:
        value = Value(self._name(call), shape, dtype or call.dtype)
        self.nodes[value.name] = Reduced(value, reduction, call.layer, op_name(call.target))
        return value

    def plain(
        self,
        call: Call,
        run: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any] | None = None,
        axes: tuple[int, ...] | None = None,
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Value:
        value = Value(self._name(call), call.shape if shape is None else shape, dtype or call.dtype, axes)
        self.nodes[value.name] = Plain(value, run, arguments, keywords or {}, call.layer, op_name(call.target))
        return value

    def item(self, call: Call, several: Value, index: int, shape: tuple[int, ...]) -> Value:
        return self.plain(call, operator.getitem, (several, index), shape=shape)

    def mutate(self, buffer: Value, new: Value) -> None:
        """Let the forward end with ``buffer.copy_(new)``."""
        node = self.nodes[buffer.name]
        assert isinstance(node, Given) and node.source == "buffer"
        self.mutations.append((node.key, new))

    def averaging_counter(self, call: Call) -> Value | None:
        """The batch counter of a layer with ``momentum=None``, whose running statistics are plain averages."""
        layer = self.module.get_submodule(call.layer)
        if not getattr(layer, "averages_by_count", False):
            return None
        key = f"{call.layer}.num_batches_tracked".lstrip(".")
        return next(n.value for n in self.nodes.values() if isinstance(n, Given) and n.key == key)

    def next_noise(self) -> tuple[int, Value]:
        """The number of the next dropout, and the forward's seed."""
        seed = "seed"
        if not self.noises:
            self.given(Value(seed, (), torch.int64), "seed", None)
        self.noises += 1
        return self.noises - 1, self.nodes[seed].value

    def refusal(self, call: Call, reason: str, instead: str) -> Problem:
        """A problem that counts only if the result it stands for is used."""
        return Problem(call.layer, op_name(call.target), reason, instead)

    def refuse(self, problem: Problem) -> None:
        self.problems.append(problem)

    def check(self) -> None:
        if self.problems:
            raise UnsupportedModuleError(self.problems)


def op_name(target: Any) -> str:
    """``aten.conv2d.default`` -> ``conv2d``."""
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet)).removesuffix(".default")
