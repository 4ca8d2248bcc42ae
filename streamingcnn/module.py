"""StreamingModule: the ``nn.Module`` a user sees."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .capture import capture
from .constant import constant_blocks_in
from .fingerprint import capture_key
from .graph import Given, Graph
from .maps import SourceMap
from .ops.rule import Value
from .plan.align import align
from .plan.plan import Plan, check_tile, make_plan
from .plan.search import parse_bytes
from .probe import refuse_early
from .runner import Runner, requiring
from .signature import TilesRun, share
from .sources.source import ConstantBlocks, Source, constant_blocks_of
from .stream import Job, StreamFunction

Made = TypeVar("Made")
#: How many captured shapes are remembered per module.
REMEMBERED = 8


class StreamingModule(nn.Module):
    """Run a module tile by tile, forward and backward, with exactly the gradient plain PyTorch would give.

    ::

        net = StreamingModule(nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 1, 3)), tile=512)
        net(torch.rand(1, 3, 4096, 4096)).mean().backward()

    It shares the wrapped module's parameters, buffers and submodules: ``state_dict`` keys, optimisers, ``.to()``,
    ``.train()`` and hooks on parameters work as without it.

    Args:
        module: a trunk or a whole network; its first tensor input is the image, (batch, channels, *space) with 1, 2
            or 3 spatial axes. Further tensors with the same spatial sizes are streamed too. In place of any of them
            it takes a source (:class:`~streamingcnn.sources.Source`), which is read box by box.
        tile: pixels of the image that a tile covers, halo not counted: one size, or one per axis. None chooses per
            stage.
        stored: paths of layers whose results are stored between stages. None chooses: the network's own blocks
            and scales.
        keep: paths of stored layers whose tiles keep their autograd graph instead of being computed again: more
            memory, less time.
        memory: bytes (or "4GiB") that one training step may take beside parameters, their gradients and the input;
            stored maps, tiles and kept stages are then chosen to be as fast as fits. Not together with ``stored``
            or ``keep``.

    Raises:
        UnsupportedModuleError: something in the module cannot be streamed exactly; all problems are listed. What
            shows only with an image (control flow that depends on its size, say) is refused at the first call.
    """

    def __init__(
        self,
        module: nn.Module,
        tile: int | Sequence[int] | None = None,
        stored: Sequence[str] | None = None,
        keep: Sequence[str] = (),
        memory: int | str | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"StreamingModule wraps an nn.Module; got {type(module).__name__}")
        if isinstance(module, StreamingModule):
            raise TypeError("this module is streamed already; wrap net.module to change its plan")
        super().__init__()
        if tile is not None:
            check_tile(tile)
        refuse_early(module)
        # The wrapped module is no submodule of this one: both share the same dicts, so no name changes.
        self.__dict__["module"] = module
        for shared in _SHARED:
            self.__dict__[shared] = module.__dict__[shared]
        if memory is not None and (stored is not None or keep):
            raise ValueError("memory= chooses stored maps and kept stages itself; leave out stored= and keep=")
        self.tile, self.stored, self.keep = tile, stored, tuple(keep)
        self.memory = None if memory is None else parse_bytes(memory)
        self.training = module.training
        #: The seed that the last forward's dropouts drew, or None.
        self.last_seed: int | None = None
        #: How many tiles the last forward had, and how many of them were run.
        self.last_run: TilesRun | None = None
        self._graphs: OrderedDict[Any, Graph] = OrderedDict()
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._runners: OrderedDict[Any, Runner] = OrderedDict()

    # ------------------------------------------------------------- an ordinary module

    def train(self, mode: bool = True) -> StreamingModule:
        self.module.train(mode)
        self.training = mode
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("module")
            if module is None:
                raise
            return getattr(module, name)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.module._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.module._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **{cache: OrderedDict() for cache in ("_graphs", "_plans", "_runners")}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for shared in _SHARED:
            self.__dict__[shared] = self.module.__dict__[shared]

    def extra_repr(self) -> str:
        return f"tile={self.tile}" if self.stored is None else f"tile={self.tile}, stored={self.stored}"

    # ------------------------------------------------------------------------ plans

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The plan for an input, a source, or a shape: ``net.plan(x)``, ``net.plan((1, 3, 8192, 8192))``.

        Nothing runs and nothing of the image's size is allocated.
        """
        dtype = next((p.dtype for p in self.module.parameters() if p.dtype.is_floating_point), torch.float32)

        def shaped(given: Any) -> Any:
            if isinstance(given, (tuple, list, torch.Size)) and given and all(isinstance(s, int) for s in given):
                return torch.empty(tuple(given), dtype=dtype, device="meta")
            return given

        args, kwargs = tuple(shaped(a) for a in args), {k: shaped(v) for k, v in kwargs.items()}
        graph, plan, key = self._planned(args, kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        constants = _constants(graph, leaves, {v.name for p, v in graph.inputs.items() if _trained(leaves[p])})
        if not constants:
            return plan
        steps = self._aligned(graph, plan, key)[0].steps
        return Plan(graph, steps, share(steps, graph.image, constants))

    def _planned(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Graph, Plan, Any]:
        args, kwargs = pytree.tree_map_only(Source, _stand_in, (args, kwargs))
        key = capture_key(self.module, args, kwargs)
        graph = _remembered(self._graphs, key, lambda: capture(self.module, args, kwargs))
        choices = (self.tile, self.stored, self.keep, self.memory)
        key = (key, repr(choices))
        return graph, _remembered(self._plans, key, lambda: make_plan(graph, *choices)), key

    def _aligned(self, graph: Graph, plan: Plan, key: Any) -> tuple[Plan, Any]:
        """The plan with its tiles on a common grid, so that constant parts of an image can be shared."""
        key = (key, "aligned")
        chosen = self.tile is not None
        return _remembered(self._plans, key, lambda: Plan(graph, tuple(align(plan.steps, chosen)))), key

    def _runner(self, graph: Graph, plan: Plan, key: Any, needs: frozenset[str], device: str) -> Runner:
        return _remembered(self._runners, (key, needs, device), lambda: Runner(graph, list(plan.steps), needs, device))

    # ---------------------------------------------------------------------- running

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "a streamed module cannot run under torch.func transforms (vmap, grad, jvp); "
                "use loss.backward() or torch.autograd.grad"
            )
        graph, plan, key = self._planned(args, kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        tensors, fixed = self._given(graph, leaves)
        if graph.noises:
            self.last_seed = int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64))
            fixed["seed"] = self.last_seed
        values = tuple(tensors)
        given = tuple(tensors[value] for value in values)
        differentiable = {v.name for v, t in tensors.items() if t.requires_grad} if torch.is_grad_enabled() else set()
        needs = requiring(graph, differentiable)
        constants = _constants(graph, leaves, needs)
        if constants:
            plan, key = self._aligned(graph, plan, key)
        image = leaves[next(p for p, v in graph.inputs.items() if v is graph.image)]
        device = image.device if isinstance(image, Tensor) else self._device()
        runner = self._runner(graph, plan, key, needs, device.type)
        sharing = share(runner.steps, graph.image, constants)
        self.last_run = sharing.statistics(runner.steps)
        returned = {o.name for o in graph.outputs if isinstance(o, Value) and isinstance(fixed.get(o.name), SourceMap)}
        if any(output.name in needs for output in runner.outputs):
            job = Job(runner, values, fixed, sharing)
            results = StreamFunction.apply(job, *given)  # type: ignore[no-untyped-call]
            made = dict(zip((v.name for v in runner.outputs), results, strict=True))
            updates = job.results
        else:
            env = {**fixed, **{v.name: t.detach() for v, t in tensors.items()}}
            made = updates = runner.forward(env, None, sharing)
        self._update_buffers(graph, updates)
        passed = {v.name: t for v, t in tensors.items()}
        passed |= {name: given.tensor for name, given in fixed.items() if name in returned}
        outputs = [
            (passed[o.name] if o.name in passed else made[o.name]) if isinstance(o, Value) else o for o in graph.outputs
        ]
        return pytree.tree_unflatten(outputs, graph.output_spec)

    def _given(self, graph: Graph, leaves: Sequence[Any]) -> tuple[dict[Value, Tensor], dict[str, Any]]:
        """The tensors behind the graph's given values: those autograd saves, and the rest."""
        mutated = {name for name, _ in graph.mutations}
        tensors: dict[Value, Tensor] = {}
        fixed: dict[str, Any] = {}
        for node in graph.nodes.values():
            if not isinstance(node, Given) or node.source == "seed":
                continue
            if node.source == "input" and isinstance(leaves[node.key], Tensor):
                tensors[node.value] = leaves[node.key]
            elif node.source == "input":
                fixed[node.value.name] = SourceMap(node.value, leaves[node.key], self._device())
            elif node.source == "parameter":
                tensors[node.value] = self.module.get_parameter(node.key)
            elif node.source == "buffer" and node.key not in mutated:
                tensors[node.value] = self.module.get_buffer(node.key)
            elif node.source == "buffer":
                fixed[node.value.name] = self.module.get_buffer(node.key)
            else:
                fixed[node.value.name] = node.key
        return tensors, fixed

    def _device(self) -> torch.device:
        """Where tiles of a source run: where the parameters are."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def _update_buffers(self, graph: Graph, updates: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, value in graph.mutations:
                self.module.get_buffer(name).copy_(updates[value.name])


def _stand_in(source: Source) -> Tensor:
    """A tensor of the shape and dtype of a source, without pixels."""
    shape = tuple(source.shape) if source.axes.startswith("N") else (1, *source.shape)
    return torch.empty(shape, dtype=source.dtype, device="meta")


def _trained(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _constants(graph: Graph, leaves: Sequence[Any], needs: Collection[str]) -> dict[str, ConstantBlocks]:
    """The constant blocks of the spatial inputs; of one whose own gradient is needed every pixel counts by itself."""
    found: dict[str, ConstantBlocks] = {}
    for position, value in graph.inputs.items():
        if not value.spatial or value.name in needs:
            continue
        leaf = leaves[position]
        if isinstance(leaf, Tensor):
            blocks = None if leaf.is_meta else constant_blocks_in(leaf, value.axes or ())
        else:
            blocks = constant_blocks_of(leaf)
        if blocks is not None and blocks.share > 0:
            blocks.check(value.extents)
            found[value.name] = blocks
    return found


def _remembered(cache: OrderedDict[Any, Made], key: Any, make: Callable[[], Made]) -> Made:
    """The cached value of a key; the least recently used is forgotten."""
    if key not in cache:
        cache[key] = make()
    cache.move_to_end(key)
    while len(cache) > REMEMBERED:
        cache.popitem(last=False)
    return cache[key]


#: What wrapper and wrapped module have in common, so that no name, hook or device differs between them.
_SHARED = (
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_modules",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def stream(model: nn.Module, name: str, **options: Any) -> nn.Module:
    """Swap a named submodule for its streamed twin, in place; ``state_dict`` keys stay the same.

    ::

        stream(model, "backbone", tile=1024)

    Args:
        model: the model that holds it.
        name: the path of the submodule.
        options: those of :class:`StreamingModule`.

    Returns:
        The same model.
    """
    paths = [path for path, _ in model.named_modules()]  # the model itself is ""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        above = name
        while above not in paths:
            above = above.rpartition(".")[0]
        children = [path for path in paths if path and path.rpartition(".")[0] == above]
        raise ValueError(f"no submodule '{name}' in {type(model).__name__}; it has: {', '.join(children)}") from None
    if not name:
        raise ValueError("stream() swaps a submodule; wrap the whole model with StreamingModule(model)")
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, StreamingModule(module, **options))
    return model
