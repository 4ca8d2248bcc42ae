"""One step of a plan: its stages forward, tile by tile, and back again.

NOTE [Backward of a tile]

    y_t = f_t(x[box_t]; w)                       forward, without autograd
    ...
    x' = x[box_t].detach().requires_grad_()      backward: the same tile again, on aliases,
    w' = w.detach().requires_grad_()             so that no hook of the user's fires once per tile
    y' = f_t(x'; w')
    dx', dw' = torch.autograd.grad(y', (x', w'), g[box_t])
    G[x][box_t] += dx';  G[w] += dw'             in float32 or wider

Rule 1. Inside backward it is always ``torch.autograd.grad``, never ``.backward()``: under DDP the latter is
        wrong without an error.
Rule 2. Parameters come from ``save_for_backward``, not from the module: a weight changed between forward and
        backward gives plain PyTorch's version error.
Rule 3. Maps are freed where backward passes them, unless the caller retains the graph.
Rule 4. What runs plainly (heads, statistics to scale and shift) keeps a small autograd graph of its own from
        forward to backward; a random draw in it happens once.
Rule 5. A tile that stands for n (see signature.py) runs once. Its state enters sums n times, and so does the gradient
        of sums over it; the gradients of the n places add up in the one page of its map before it is pulled back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .alone import ALONE, Alone
from .boxes import Box
from .compiled import Compiler
from .graph import Given, Graph, Plain
from .layout import brought_to_channels_last
from .maps import DenseMap, Gradients, Map, Sink
from .ops.reductions import repeated
from .ops.rule import Value, replace_values
from .places import DEVICE, Place, Wanted, open_places
from .plan.cost import map_bytes
from .plan.stages import Globals, Program, Stage
from .reading import reading_ahead
from .record import Pull, Record, RunTile
from .remaining import remaining
from .sides import Sides, leaf
from .signature import Sharing
from .tile import run_tile


@dataclass(eq=False)
class Runner:
    """One plan and one set of values that need gradients; it holds no tensor between calls.

    Args:
        graph: the captured network.
        steps: its plan.
        needs: the names of the values that need a gradient (:func:`requiring`).
        device_type: where it runs; autocast is off there, since capture made its casts nodes of the graph.
        folder: where maps live that the plan puts on disk.
        compiler: what compiles tiles; None: they run as they are.
        owner: who runs it, and what becomes of a map that is made.
    """

    graph: Graph
    steps: list[Stage | Globals]
    needs: frozenset[str]
    device_type: str
    folder: str | None = None
    compiler: Compiler | None = None
    owner: Alone = ALONE

    def __post_init__(self) -> None:
        #: The step that runs, and whether backward.
        self.now: tuple[Stage | Globals, bool] = (self.steps[0], False)
        self.outputs = tuple(
            dict.fromkeys(
                v
                for v in self.graph.outputs
                if isinstance(v, Value) and not isinstance(self.graph.nodes[v.name], Given)
            )
        )
        self.used_after = [self._reads_of(step) for step in self.steps]
        #: Whether tiles are brought into channels_last, and the maps that are contiguous all the same.
        self.reorders = brought_to_channels_last(self.graph)
        plainly = (value for step in self.steps if isinstance(step, Globals) for value in step.reads)
        self.contiguous = frozenset(v.name for v in (*plainly, *self.outputs) if self.reorders and v.spatial)
        trained = [step for step in self.steps if isinstance(step, Stage) and self._trains(step)]
        # The gradient of statistics needs the map's own values, which a ghost leaves out.
        self.read_in_backward = {value.name for step in trained for value in step.frontier} | {
            step.target.name for step in trained if step.reductions
        }

    def _reads_of(self, step: Stage | Globals) -> set[str]:
        if isinstance(step, Globals):
            return {value.name for value in step.reads if value.spatial}
        return {value.name for value in step.frontier}

    def _trains(self, stage: Stage) -> bool:
        return any(value.name in self.needs for value in (*stage.frontier, *stage.side))

    @contextlib.contextmanager
    def _own_autocast(self) -> Iterator[None]:
        with torch.autocast(self.device_type, enabled=False):
            yield

    # ---------------------------------------------------------------- forward

    def forward(
        self,
        env: dict[str, Any],
        record: Record | None,
        sharing: Sharing | None = None,
        into: Mapping[str, Sink] | None = None,
    ) -> dict[str, Any]:
        """Run the plan.

        Args:
            env: given values by name: detached tensors of inputs, parameters, buffers, constants; the seed. An input
                may also be a map, read by box from where its pixels are.
            record: filled with what backward needs; None where nothing needs a gradient.
            sharing: which tiles run, and for how many each stands; None: every one, for itself.
            into: by name, where the results go that the graph has ``written``; tiles that are there are not run.

        Returns:
            Outputs (but for those) and new buffer values by name.
        """
        sharing = Sharing() if sharing is None else sharing
        maps: dict[str, Map] = {
            v.name: self.owner.input(v, env[v.name]) for v in self.graph.inputs.values() if v.spatial
        }
        wanted = {v.name for v in self.outputs} - self.graph.written | {v.name for _, v in self.graph.mutations}
        results: dict[str, Any] = {}
        left = remaining(self.steps, sharing, into) if into else {}
        places = self._places(env[self.graph.image.name].device, record is not None, sharing)
        with self.owner.answering(self), torch.no_grad(), self._own_autocast():
            for k, step in enumerate(self.steps):
                self.now = step, False
                if isinstance(step, Globals):
                    self._forward_globals(step, env, maps, record)
                else:
                    self._forward_stage(step, env, maps, record, sharing, places, into or {}, left.get(step))
                for name in self._finished(k, maps, record):
                    if name in wanted:
                        results[name] = self.owner.result(maps[name])
                    del maps[name]
        results.update({name: env[name] for name in wanted if name in env})
        results.update({name: self.owner.result(maps[name]) for name in wanted if name in maps})
        if record is not None:
            for output in self.outputs:
                if output.name in maps:
                    # The very tensor that is returned must not be held: it would hold its own graph.
                    maps[output.name] = maps[output.name].detached()
                    record.versions[output.name] = maps[output.name].version
            record.maps, record.env, record.places, record.sharing = maps, env, places, sharing
        return results

    def _places(self, device: torch.device, recording: bool, sharing: Sharing) -> dict[str, Place]:
        """Where the maps of one step live that are not on the device, with all the room they will need."""
        # A map with shared pages stays on the device all the same.
        outside = [s for s in self._outside() if s.name not in sharing.tables and s.name not in self.graph.written]
        with_gradient = [1 + (recording and stage.name in self.needs) for stage in outside]
        wanted = {
            stage.name: Wanted(stage.place, (map_bytes(stage.target),) * count)
            for stage, count in zip(outside, with_gradient, strict=True)
        }
        return open_places(wanted, device, self.folder) if wanted else {}

    def _outside(self) -> list[Stage]:
        """The stages whose maps the plan puts elsewhere than on the device."""
        return [s for s in self.steps if isinstance(s, Stage) and s.stored and s.place != "device"]

    def _finished(self, k: int, maps: dict[str, Map], record: Record | None) -> list[str]:
        """Maps that nothing reads after step k, in forward or (when recording) in backward."""
        later: set[str] = set().union(*self.used_after[k + 1 :]) if k + 1 < len(self.steps) else set()
        keep = later | (self.read_in_backward if record is not None else set())
        return [name for name in maps if name not in keep]

    def _forward_stage(
        self,
        stage: Stage,
        env: dict[str, Any],
        maps: dict[str, Map],
        record: Record | None,
        sharing: Sharing,
        places: dict[str, Place],
        into: Mapping[str, Sink],
        left: Container[Box] | None,
    ) -> None:
        keep = stage.way == "keep" and record is not None and self._trains(stage)
        sides = Sides(stage, env, self.needs if keep else ())
        sink = into.get(stage.name)
        made = self._made(stage, sharing, places) if sink is None else None

        def todo() -> Iterator[tuple[Box, int]]:
            return (each for each in self.owner.tiles(stage, sharing) if left is None or each[0] in left)

        states: list[Any] = [None] * len(stage.reductions)
        kept: dict[Box, RunTile] = {}
        with reading_ahead(stage, maps, (box for box, _ in todo())):
            for box, count in todo():
                done = self._forward_tile(stage, box, maps, sides, keep)
                if keep:
                    kept[box] = done
                tile = done.result.detach()
                for i, reduced in enumerate(stage.reductions):
                    partial = repeated(reduced.reduction, reduced.reduction.partial(tile), count)
                    states[i] = partial if states[i] is None else reduced.reduction.merge(states[i], partial)
                for taker in (made, sink):
                    if taker is not None:
                        taker.write(box, tile)
                del done, tile  # or they would live on while the next tile is computed
        if made is not None:
            maps[stage.target.name] = made
            self.owner.pass_on(made)
        if keep and record is not None:
            record.kept[stage] = (sides, kept)
        for reduced, state in zip(stage.reductions, states, strict=True):
            env[reduced.value.name] = reduced.reduction.finish(self.owner.merged(reduced.reduction, state))

    def _made(self, stage: Stage, sharing: Sharing, places: dict[str, Place]) -> Any:
        """The map that a stage writes, if it stores one."""
        if not stage.stored:
            return None
        table = sharing.tables.get(stage.name)
        if table is not None and stage.name not in self.graph.written:
            return table.map_of(stage.target, stage.name in self.contiguous)
        return self.owner.made(stage.target, places.get(stage.name, DEVICE), stage.name in self.contiguous)

    def _forward_tile(
        self,
        stage: Stage,
        box: Box,
        maps: dict[str, Map],
        sides: Sides,
        keep: bool,
    ) -> RunTile:
        program = stage.program(box)
        with torch.set_grad_enabled(keep):
            parts = [(v, b, maps[v.name].read(b)) for v, b in program.reads]
            reads = [(v, b, leaf(part, v.name in self.needs)) for v, b, part in parts] if keep else parts
            if self.compiler is not None:
                made = self.compiler.forward(stage, box, program, [tensor for _, _, tensor in reads], sides)
                if made is not None:
                    return RunTile(reads, made)
            held = {(v.name, b): tensor for v, b, tensor in reads}
            return RunTile(reads, run_tile(program, held, sides.get))

    def _forward_globals(
        self, group: Globals, env: dict[str, Any], maps: dict[str, Map], record: Record | None
    ) -> None:
        leaves: dict[str, Any] = {}
        for value in group.reads:
            tensor = maps[value.name].tensor if value.spatial else env[value.name]
            leaves[value.name] = leaf(tensor, value.name in self.needs) if record is not None else tensor
        made = dict(leaves)

        def get(value: Value) -> Any:
            return made[value.name]

        with torch.set_grad_enabled(record is not None):
            for node in group.nodes:
                made[node.value.name] = run_plain(node, get)
        for value in group.results:
            result = made[value.name]
            detached = result.detach() if isinstance(result, Tensor) else result
            if value.spatial:
                maps[value.name] = DenseMap(value, detached)
            else:
                env[value.name] = detached
        if record is not None:
            results = {v.name: made[v.name] for v in group.results if _has_graph(made[v.name])}
            record.groups[group] = ({n: leaf for n, leaf in leaves.items() if n in self.needs}, results)

    # --------------------------------------------------------------- backward

    def backward(self, record: Record, gradients: Gradients, retain: bool) -> None:
        """Run the plan in reverse: ``gradients`` comes with the outputs' and leaves with the inputs'."""
        for name, version in record.versions.items():
            if name in record.maps and record.maps[name].version != version:
                raise RuntimeError(
                    f"the result '{name}' of a streamed module was changed by an in-place operation, but the "
                    "gradient needs it; clone() it before changing it"
                )
        if self.reorders:
            gradients.contiguous = frozenset(value.name for value in self.graph.inputs.values())
        with self.owner.answering(self), self._own_autocast():
            for step in reversed(self.steps):
                self.now = step, True
                if isinstance(step, Globals):
                    self._backward_globals(step, record, gradients, retain)
                else:
                    self._backward_stage(step, record, gradients, retain)
                    if not retain:
                        record.maps.pop(step.target.name, None)
                        record.kept.pop(step, None)

    def _backward_globals(self, group: Globals, record: Record, gradients: Gradients, retain: bool) -> None:
        leaves, results = record.groups[group]
        pairs = []
        gradients.settle(group.results)
        for value in group.results:
            gradient = gradients.pop(value)
            if gradient is not None and value.name in results:
                pairs.append((results[value.name], gradient.to(results[value.name].dtype)))
        if pairs and leaves:
            outputs, given = zip(*pairs, strict=True)
            pulled = torch.autograd.grad(outputs, tuple(leaves.values()), given, retain_graph=retain, allow_unused=True)
            values = {value.name: value for value in group.reads}
            for name, gradient in zip(leaves, pulled, strict=True):
                gradients.add_by_all(values[name], gradient)
        if not retain:
            del record.groups[group]

    def _backward_stage(self, stage: Stage, record: Record, gradients: Gradients, retain: bool) -> None:
        of_map = gradients.pop_map(stage.target)
        gradients.settle([reduced.value for reduced in stage.reductions])
        of_sums = [
            (reduced.reduction, record.env[reduced.value.name], gradient)
            for reduced in stage.reductions
            if (gradient := gradients.pop(reduced.value)) is not None
        ]
        if (of_map is None and not of_sums) or stage.target.name not in self.needs:
            return
        if not of_sums and stage.nodes and not retain:
            record.maps.pop(stage.target.name, None)  # all its readers are done, and its own gradient needs no value
        pull = Pull(stage.target, of_map, of_sums, record.maps.get(stage.target.name))
        read = (*stage.frontier, *stage.side) if stage.nodes else (stage.target,)
        gradients.reach(value for value in read if value.name in self.needs)
        if not stage.nodes:
            # A reduction of an input or of a plainly made map: its gradient goes straight to that map.
            for box, count in self.owner.tiles(stage, record.sharing):
                gradients.add_box(stage.target, box, pull.at(box, record.maps[stage.target.name].read(box), count))
            return
        sides, kept = record.kept.get(stage) or (Sides(stage, record.env, self.needs), {})
        again = () if kept else (box for box, _ in self.owner.tiles(stage, record.sharing))
        with reading_ahead(stage, record.maps, again):
            for box, count in self.owner.tiles(stage, record.sharing):
                if box not in kept and self._backward_compiled(stage, box, record, pull, count, sides, gradients):
                    continue
                tile = kept.get(box) or self._recomputed(stage, box, record, sides)
                if not retain:
                    kept.pop(box, None)
                self._backward_tile(stage, box, tile, pull, count, sides, gradients, retain and box in kept)
                del tile  # or it would live on while the next one is computed
        sides.pull(gradients, retain)

    def _backward_compiled(
        self, stage: Stage, box: Box, record: Record, pull: Pull, count: int, sides: Sides, gradients: Gradients
    ) -> bool:
        """Compute a tile again and pull its gradient, as one compiled program; False where there is none."""
        if self.compiler is None or (pull.of_sums and pull.map is None):
            return False
        program = stage.program(box)
        reads = self._reads(program, record)
        tensors = [tensor for _, _, tensor in reads]
        pulled = self.compiler.backward(stage, box, program, tensors, sides, lambda: pull.at(box, None, count))
        if pulled is None:
            return False
        wanted = [(value, part) for value, part, tensor in reads if tensor.requires_grad]
        for (value, part), one in zip(wanted, pulled, strict=False):
            gradients.add_box(value, part, one)
        sides.add(pulled[len(wanted) :])
        return True

    def _reads(self, program: Program, record: Record) -> list[tuple[Value, Box, Tensor]]:
        """What a tile reads, to differentiate by where a gradient is needed."""
        return [(v, b, leaf(record.maps[v.name].read(b), v.name in self.needs)) for v, b in program.reads]

    def _recomputed(self, stage: Stage, box: Box, record: Record, sides: Sides) -> RunTile:
        program = stage.program(box)
        with torch.enable_grad():
            reads = self._reads(program, record)
            held = {(v.name, b): tensor for v, b, tensor in reads}
            # Backward can do without the values of the target, unless sums over them need them and no map has them.
            ghost = stage.stored or not stage.reductions
            return RunTile(reads, run_tile(program, held, sides.get, ghost))

    def _backward_tile(
        self,
        stage: Stage,
        box: Box,
        tile: RunTile,
        pull: Pull,
        count: int,
        sides: Sides,
        gradients: Gradients,
        retain: bool,
    ) -> None:
        if not tile.result.requires_grad:
            return
        leaves = [(v, b, t) for v, b, t in tile.reads if t.requires_grad]
        pulled = torch.autograd.grad(
            tile.result,
            (*(t for _, _, t in leaves), *sides.leaves),
            pull.at(box, tile.result, count),
            retain_graph=retain,
            allow_unused=True,
        )
        for (value, part, _), one in zip(leaves, pulled, strict=False):
            gradients.add_box(value, part, one)
        sides.add(pulled[len(leaves) :])


def run_plain(node: Plain, get: Callable[[Value], Any]) -> Any:
    """Run a plain node on the tensors behind its values."""
    return node.run(*replace_values(node.arguments, get), **replace_values(node.keywords, get))


def _has_graph(result: Any) -> bool:
    return isinstance(result, Tensor) and result.requires_grad
