"""StreamingModule: the ``nn.Module`` a user sees."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils import _pytree as pytree

from .ahead import Reading
from .alone import ALONE
from .budget import Budgets, guarded, kind_of_call
from .capture import capture
from .compiled import Compiler
from .errors import StepMemoryError
from .fingerprint import capture_key
from .given import content_of, device_of, stood_in, values_given
from .graph import Graph, requiring
from .maps import Sink, SourceMap
from .ops.rule import Value
from .part import Part
from .places import Offload, parse_offload
from .plan.plan import Plan, check_tile, make_plan, possible
from .plan.saved import SavedPlan, chosen
from .predict import predict, writing
from .probe import refuse_early
from .runner import Runner
from .signature import Content, Sharing, TilesRun, share
from .sources.source import said_by
from .stream import Job, StreamFunction

if TYPE_CHECKING:
    from .distributed.partition import Partition

Made = TypeVar("Made")
#: How many captured shapes are remembered per module.
REMEMBERED = 8
#: ``memory=`` where none of memory, tile, stored and keep is given: None, "auto" or bytes.
DEFAULT_MEMORY: int | str | None = "auto"


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
            stored maps, tiles and kept stages are then chosen to be as fast as fits. "auto" is what the device has
            free when a size of image is first met, less a tenth; see :meth:`plan_state`. Not together with
            ``stored`` or ``keep``.
        plan: a plan that was made before, by ``net.plan(x)`` or ``Plan.load(path)``, in place of all the above; or
            several, for several sizes or modes, of which each call takes the one that was made for it. Of ``offload``
            it takes the directory, where it has maps on disk.
        offload: where stored maps live: "device"; "host" (pinned memory beside a GPU); "disk:/path", in a file of that
            directory that has no name and goes with the step; "auto": on the device, and beside a GPU on the host
            where that is faster within the budget. What is not on the device takes none of the budget.
        compile: run tiles that come often through ``torch.compile``: a first step of minutes, faster ones after it.
            Where the compiler is missing, a warning says so and tiles run as they are. The bytes of a plan are those of
            uncompiled tiles.
        partition: the ranks that run the module together, each a part of the image
            (:class:`~streamingcnn.distributed.Partition`); ``memory`` is then each rank's own, and "auto" what the rank
            with least has free now.

    Raises:
        UnsupportedModuleError: something in the module cannot be streamed exactly; all problems are listed. What
            shows only with an image (control flow that depends on its size, say) is refused at the first call.
        DiskFullError: (by a step) the directory has no room for its maps; nothing was computed.
        StepMemoryError: (by a step) memory ran out; gradients are as they were, and the next step takes a smaller
            plan.
    """

    def __init__(
        self,
        module: nn.Module,
        tile: int | Sequence[int] | None = None,
        stored: Sequence[str] | None = None,
        keep: Sequence[str] = (),
        memory: int | str | None = None,
        plan: Plan | SavedPlan | Sequence[Plan | SavedPlan] | None = None,
        offload: str = "auto",
        compile: bool = False,
        partition: Partition | None = None,
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
        self._offload, self.compiled = parse_offload(offload), compile
        self.given_plans = _saved(plan)
        if self.given_plans:
            if any(choice is not None for choice in (tile, stored, *keep, memory)):
                raise ValueError("plan= says all that tile=, stored=, keep= and memory= would; leave them out")
            _check_places(self.given_plans, self._offload)
        elif memory is None and tile is None and stored is None and not keep:
            memory = DEFAULT_MEMORY
        self.partition = partition if partition is not None and partition.size > 1 else None
        if self.partition is not None:
            if self._offload.where not in ("auto", "device"):
                raise ValueError(
                    f'offload="{offload}" and partition= do not go together; maps of parts are on the device'
                )
            self.partition.broadcast(module)
        found = None
        if self.partition is not None and memory == "auto":
            found = self.partition._least_available(device_of(self.module))
        self._budgets = Budgets(memory, found)
        self.training = module.training
        #: The seed that the last forward's dropouts drew, or None.
        self.last_seed: int | None = None
        #: How many tiles the last forward had, how many of them were run, what was filled outside a mask, and how
        #: long it waited for pixels.
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
        empty = {cache: OrderedDict[Any, Any]() for cache in ("_graphs", "_plans", "_runners")}
        return {**self.__dict__, **empty, "last_run": None}

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

        given = tuple(shaped(a) for a in args), {k: shaped(v) for k, v in kwargs.items()}
        graph, plan, _, content = self._planned(*given)
        return replace(plan, sharing=share(plan.steps, graph.image, content)) if content else plan

    def _planned(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], to_file: bool = False
    ) -> tuple[Graph, Plan, Any, Content]:
        leaves = pytree.tree_leaves((args, kwargs))
        args, kwargs = stood_in(args, kwargs)
        key = capture_key(self.module, args, kwargs)
        graph = _remembered(self._graphs, key, lambda: capture(self.module, args, kwargs))
        if to_file:
            key, captured = (key, "to a file"), graph
            graph = _remembered(self._graphs, key, lambda: writing(captured))
        content = content_of(graph, leaves)
        if self.partition is not None:
            content = Content(sources=content.sources)
        call, device = self._call(args, kwargs)
        if call in self._budgets.failed:
            where, size = self._offload.on(device), graph
            self._budgets.lower(call, lambda wanted: possible(size, wanted, self.tile, where, content))
        budget = self._budgets.of(call, device)
        choices = (self.tile, self.stored, self.keep, budget, self._offload.on(device))
        # A budget is searched for each source by itself: how much of it is constant decides what fits.
        ranks = None
        if self.partition is not None:
            parts = (v.name for p, v in graph.inputs.items() if v.spatial and isinstance(leaves[p], Part))
            ranks = self.partition._ranks(graph.space, frozenset(parts))
        looked_at = content.digest if content.sources and budget is not None else bool(content.constants)
        key = (key, repr(choices), self.given_plans, content.sources, looked_at, ranks and ranks.parts)
        plan = _remembered(self._plans, key, lambda: self._make_plan(graph, *choices, content, ranks))
        return graph, plan, key, content

    def _make_plan(self, graph: Graph, *choices: Any) -> Plan:
        if self.given_plans:
            saved = chosen(self.given_plans, graph)
            return Plan(graph, tuple(saved.steps(graph)), saved.budget, ranks=choices[-1])
        return make_plan(graph, *choices)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, torch.device]:
        """What kind of call this is, and the device it is for."""
        leaves = pytree.tree_leaves(stood_in(args, kwargs))
        tensors = (leaf for leaf in chain(leaves, self.module.parameters()) if isinstance(leaf, Tensor))
        device = next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))
        return kind_of_call(leaves, device, self.training), device

    # --------------------------------------------------------------------- memory

    @property
    def memory(self) -> int | str | None:
        """The budget as it was given: bytes, "auto", or None."""
        return self._budgets.given

    def plan_state(self) -> dict[str, int]:
        """The budgets that "auto" found and that steps without memory lowered, by kind of call.

        ``state_dict`` has the wrapped module's names and no others, so a checkpoint holds these beside it, and a run
        that is resumed makes the same plans::

            torch.save({"net": net.state_dict(), "plans": net.plan_state()}, path)
            net.load_plan_state(torch.load(path)["plans"])
        """
        return self._budgets.state()

    def load_plan_state(self, state: Mapping[str, int]) -> None:
        """Take budgets over from :meth:`plan_state`; what is not in them is found anew."""
        self._budgets.load(state)

    def _explained(self, call: str, plan: Plan) -> Callable[[str], StepMemoryError]:
        """How a step explains that it ran out of memory."""
        fixed = None
        if self.given_plans:
            fixed = "plan= fixes the plan: give memory= in its place, or a plan that was made for less"
        elif self.stored is not None or self.keep:
            fixed = "stored= and keep= fix the plan: give memory= in their place, or a smaller tile="
        return lambda said: self._budgets.explained(call, plan.peak_bytes, plan.tiles, fixed, said)

    def _runner(self, graph: Graph, plan: Plan, key: Any, needs: frozenset[str], device: torch.device) -> Runner:
        def make() -> Runner:
            compiler = Compiler() if self.compiled else None
            owner = ALONE if self.partition is None else self.partition._member(graph, plan.steps, device)
            return Runner(graph, list(plan.steps), needs, device.type, self._offload.folder, compiler, owner)

        return _remembered(self._runners, (key, needs, device), make)

    # ---------------------------------------------------------------------- running

    # What torch.compiler.disable does, but it imports the compiler (2 s) at the first call and not with us.
    @_disable_dynamo
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "a streamed module cannot run under torch.func transforms (vmap, grad, jvp); "
                "use loss.backward() or torch.autograd.grad"
            )
        graph, plan, key, content = self._planned(args, kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        reading = Reading()
        tensors, fixed = values_given(self.module, graph, leaves, reading)
        if graph.noises:
            self.last_seed = int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64))
            fixed["seed"] = self.last_seed
        values = tuple(tensors)
        given = tuple(tensors[value] for value in values)
        differentiable = {v.name for v, t in tensors.items() if t.requires_grad} if torch.is_grad_enabled() else set()
        needs = requiring(graph, differentiable)
        image = leaves[next(p for p, v in graph.inputs.items() if v is graph.image)]
        image = image.tensor if isinstance(image, Part) else image
        device = image.device if isinstance(image, Tensor) else device_of(self.module)
        runner = self._runner(graph, plan, key, needs, device)
        if self.partition is not None:
            drawn = self.partition._agree_on_step(graph, plan, needs, leaves, self.training, fixed.get("seed"), device)
            if graph.noises:
                self.last_seed = fixed["seed"] = drawn
        sharing = share(runner.steps, graph.image, content)
        filled = next((said for leaf in leaves if (said := said_by(leaf, "filled")) is not None), None)
        plan = replace(plan, steps=tuple(runner.steps), sharing=sharing)
        self.last_run = TilesRun(plan.tiles, plan.tiles_run, filled, reading)
        explain = self._explained(self._call(args, kwargs)[0], plan)
        returned = {o.name for o in graph.outputs if isinstance(o, Value) and isinstance(fixed.get(o.name), SourceMap)}
        if any(output.name in needs for output in runner.outputs):
            job = Job(runner, values, fixed, sharing, explain=explain)
            results = guarded(lambda: StreamFunction.apply(job, *given), explain)  # type: ignore[no-untyped-call]
            made = dict(zip((v.name for v in runner.outputs), results, strict=True))
            updates = job.results
        else:
            env = {**fixed, **{v.name: t.detach() for v, t in tensors.items()}}
            made = updates = guarded(lambda: runner.forward(env, None, sharing), explain)
        self._update_buffers(graph, updates)
        passed = {v.name: t for v, t in tensors.items()}
        passed |= {name: given.tensor for name, given in fixed.items() if name in returned}
        outputs = [
            (passed[o.name] if o.name in passed else made[o.name]) if isinstance(o, Value) else o for o in graph.outputs
        ]
        return pytree.tree_unflatten(outputs, graph.output_spec)

    def predict(self, image: Any, out: str | Path, overwrite: bool = False) -> Path:
        """Run the network and write its result to a file, box by box: for results larger than memory.

        ::

            net.eval()
            net.predict(open_image("slide.svs", mpp=0.5), out="probabilities.tif")

        A prediction that was killed goes on where it was when it is asked for again; one that is finished is known as
        finished, and nothing runs. See :mod:`streamingcnn.predict`.

        Args:
            image: a source, or a tensor of one image.
            out: the file: .zarr, .tif, .nii, .nii.gz or .npy. Beside it comes ``<out>.json``, which says what made it.
            overwrite: whether a file that was made of something else is replaced.

        Returns:
            The path of the file.

        Raises:
            ValueError: the network is in training, or its result is no map of one image; a format that does not fit.
            FileExistsError: ``out`` is there and was made of something else.
            OSError: it could not be written; what was computed is kept for the next try.
        """
        return predict(self, image, Path(out), overwrite)

    def _write(self, image: Any, into: Callable[[Graph, Plan, Sharing], Mapping[str, Sink]]) -> dict[str, Any]:
        """A forward without gradients whose result goes to sinks, for :mod:`streamingcnn.predict`."""
        with torch.no_grad():
            graph, plan, key, content = self._planned((image,), {}, to_file=True)
            reading = Reading()
            tensors, fixed = values_given(self.module, graph, [image], reading)
            if graph.noises:
                fixed["seed"] = 0
            device = image.device if isinstance(image, Tensor) else device_of(self.module)
            runner = self._runner(graph, plan, key, frozenset(), device)
            sharing = share(runner.steps, graph.image, content)
            filled = said_by(image, "filled")
            self.last_run = replace(sharing.statistics(runner.steps), filled=filled, reading=reading)
            env = {**fixed, **{v.name: t.detach() for v, t in tensors.items()}}
            sinks = into(graph, plan, sharing)
            explain = self._explained(self._call((image,), {})[0], plan)
            return guarded(lambda: runner.forward(env, None, sharing, sinks), explain)

    def _update_buffers(self, graph: Graph, updates: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, value in graph.mutations:
                self.module.get_buffer(name).copy_(updates[value.name])


def _saved(plan: Any) -> tuple[SavedPlan, ...]:
    """The plans that a user gives, without their graphs, so that copies and pickles of a module carry them along."""
    given = plan if isinstance(plan, (list, tuple)) else [] if plan is None else [plan]
    wrong = [item for item in given if not isinstance(item, (Plan, SavedPlan))]
    if wrong or (plan is not None and not given):
        raise TypeError(f"plan={plan!r}; needed is net.plan(x), Plan.load(path), or several of them in a list")
    return tuple(SavedPlan.of(item) if isinstance(item, Plan) else item for item in given)


def _check_places(plans: Sequence[SavedPlan], offload: Offload) -> None:
    """Raise where plans and ``offload=`` contradict each other."""
    on_disk = any("disk" in plan.places for plan in plans)
    if on_disk and offload.folder is None:
        raise ValueError(
            f'plan= has maps on disk, and offload="{offload}"; give the directory, offload="disk:/scratch"'
        )
    if not on_disk and offload.where != "auto":
        raise ValueError(f'plan= says where maps live, and none is on disk; leave out offload="{offload}"')


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
