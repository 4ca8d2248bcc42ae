"""A module as a program of ATen operations, through ``torch.export`` on fake tensors.

The module's own Python runs once, without memory and without arithmetic, so branches, shape sums and custom blocks
come out as the module means them. What export would lose without a word is watched for here: a custom gradient, a
hook, a ``no_grad`` region, a tensor left on the module. The module is given back as it was.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import config as fx_config
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from .errors import Problem, UnsupportedModuleError
from .functional import made_functional

aten = torch.ops.aten

#: One thread captures at a time; a module inside a module's forward is captured by the same thread.
CAPTURING = RLock()


@contextlib.contextmanager
def exported(module: nn.Module, leaves: list[Any], spec: pytree.TreeSpec) -> Iterator[tuple[Any, list[Problem]]]:
    """The exported program of a module and what is wrong with it; inside the block the module is as export left it.

    Args:
        module: the module.
        leaves, spec: its flattened arguments (args, kwargs); the first tensor is the image.

    Raises:
        UnsupportedModuleError: export itself fails for a reason that no other input would mend.
        ValueError: the module does not take this input.
    """
    image = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
    problems = _hook_problems(module)
    watch = _Watch(module)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = [
            torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=device_of(leaf, module))
            if isinstance(leaf, Tensor)
            else leaf
            for leaf in leaves
        ]
    args, kwargs = pytree.tree_unflatten(fakes, spec)
    # Capture changes what all threads share: warnings, loggers, autograd.Function, the module.
    with CAPTURING, _quiet(), _untraced(), _unchanged(module), watch.active(), _CountedAxes():
        try:
            program = torch.export.export(module, args, kwargs, strict=False)
        except UnsupportedModuleError:
            raise
        except Exception as error:
            if watch.problems:
                raise UnsupportedModuleError(problems + watch.problems) from error
            raise _explained(error, image) from error
        _without_idle_dropout(program.graph)
        # Autocast's casts come with torch's tracing.
        if torch.is_autocast_enabled(device_of(image, module).type) or not made_functional(program):
            _mark_no_grad_regions(program.graph_module)
            _dropout_out_of_place(program.graph_module)
            program = program.run_decompositions({})
        yield program, problems + watch.problems


@torch.library.custom_op("streamingcnn::no_gradient", mutates_args=())
def no_gradient(x: Tensor) -> Tensor:
    """Marks, during capture, where a ``torch.no_grad()`` region gives its result to the outside."""
    return x.detach().clone()


@no_gradient.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _mark_no_grad_regions(graph_module: torch.fx.GraphModule) -> None:
    """Decomposition inlines ``no_grad`` regions and forgets them; a marker on each result keeps the meaning."""
    for child in graph_module.children():
        if isinstance(child, torch.fx.GraphModule):
            _mark_no_grad_regions(child)
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled or node.args[0]:
            continue
        for item in list(node.users):
            value = item.meta.get("val")
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            with graph.inserting_after(item):
                marker = graph.call_function(torch.ops.streamingcnn.no_gradient.default, (item,))
            marker.meta = dict(item.meta)
            item.replace_all_uses_with(marker, delete_user_cb=lambda user, m=marker: user is not m)
    graph_module.recompile()


#: They give back their input itself where they drop nothing, and export takes that for a tensor of its own.
DROPOUTS = {
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default
}  # fmt: skip


def _without_idle_dropout(graph: torch.fx.Graph) -> None:
    """Names for the input of a dropout that drops nothing become the input, so that writes to either reach both."""
    for node in list(graph.nodes):
        if node.target in DROPOUTS and (not node.args[2] or node.args[1] == 0):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _dropout_out_of_place(graph_module: torch.fx.GraphModule) -> None:
    """``dropout_`` would decompose into random numbers over the whole map; as ``copy_`` of a dropout it does not."""
    for node in graph_module.graph.nodes:
        if node.target is aten.dropout_.default:
            with graph_module.graph.inserting_before(node):
                dropped = graph_module.graph.call_function(aten.dropout.default, node.args, node.kwargs)
            dropped.meta = dict(node.meta)
            node.target, node.args, node.kwargs = aten.copy_.default, (node.args[0], dropped), {}
    graph_module.recompile()


class _CountedAxes(TorchFunctionMode):
    """Lets ``torch.arange(2, x.dim()).tolist()`` be the list it is; export takes it for numbers that depend on data.

    MONAI's losses name so the axes that they sum over.
    """

    SEEN = frozenset({torch.arange, Tensor.item, Tensor.unbind})

    def __init__(self) -> None:
        super().__init__()
        self.known = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in self.SEEN:  # capture asks for shapes and dtypes a thousand times
            return func(*args, **(kwargs or {}))
        known = self.known.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if func is Tensor.item and isinstance(known, int):
            return known
        result = func(*args, **(kwargs or {}))
        if func is torch.arange and all(isinstance(bound, int) for bound in args):
            self.known[result] = list(range(*args))
        elif func is Tensor.unbind and isinstance(known, list):  # a fake tensor's tolist() takes it apart
            self.known.update(zip(result, known, strict=True))
        return result


#: Functions of torch's own, which capture goes through: of its tracing, and of custom operations.
INTERNAL = ("torch._functorch", "torch._dynamo", "torch._export", "torch.fx", "torch._library")


class _Watch:
    """Sees ``torch.autograd.Function.apply`` during capture: export would keep only its forward."""

    def __init__(self, module: nn.Module) -> None:
        self.problems: list[Problem] = []
        self.paths = {id(child): path for path, child in module.named_modules()}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        original = torch.autograd.Function.__dict__["apply"]
        watch, thread = self, get_ident()

        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            ours = cls.__module__.startswith(INTERNAL) or cls.__name__.startswith("GeneratedBackwardFor")
            if get_ident() == thread and not ours:  # other threads train meanwhile
                watch.report(cls)
            return original.__get__(None, cls)(*args, **kwargs)

        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            torch.autograd.Function.apply = original  # type: ignore[method-assign]

    def report(self, cls: type) -> None:
        frame, layer = sys._getframe(2), ""
        while frame is not None:
            owner = frame.f_locals.get("self")
            if id(owner) in self.paths and isinstance(owner, nn.Module):
                layer = self.paths[id(owner)]
                break
            frame = frame.f_back  # type: ignore[assignment]
        if cls.__name__ == "BackwardHookFunction":
            return  # a hook on a submodule is refused by itself, on the wrapper's root it is ours
        if cls.__name__ == "CheckpointFunction":
            reason = "a reentrant checkpoint comes out of capture without a gradient"
            instead = "remove it (streaming recomputes anyway) or pass use_reentrant=False"
        else:
            reason = "capture keeps only the forward of a custom autograd.Function, not its gradient"
            instead = (
                "write it as torch.library.custom_op with register_autograd, and give it a rule with "
                "streamingcnn.register_rule"
            )
        self.problems.append(Problem(layer, f"autograd.Function {cls.__name__}", reason, instead))


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Give every submodule's attributes back after the forward on fake tensors; name what would be lost."""
    before = [(path, m, dict(m.__dict__), dict(m._buffers)) for path, m in module.named_modules()]
    averaging = [m for _, m, _, _ in before if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is None]
    for m in averaging:
        # A data-dependent momentum does not export: a number stands in, and the count is read live instead.
        m.momentum = 0.1
        m.__dict__["averages_by_count"] = True
    problems: list[Problem] = []
    try:
        yield
        for path, m, attributes, _ in before:
            for name, now in m.__dict__.items():
                if isinstance(now, Tensor) and now is not attributes.get(name):
                    problems.append(
                        Problem(
                            path,
                            f"attribute '{name}'",
                            "forward stores a tensor on the module, which would be a fake one",
                            "return it from forward instead",
                        )
                    )
    finally:
        for _, m, attributes, buffers in before:
            m.__dict__.clear()
            m.__dict__.update(attributes)
            m._buffers.update(buffers)
    if problems:
        raise UnsupportedModuleError(problems)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Export logs the traceback of an error that it raises as well, and warns of its own deprecated calls."""
    loggers = [logging.getLogger(n) for n in ("torch._subclasses.fake_tensor", "torch.fx.experimental")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"copyreg|torch\.")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|copyreg")
            # Our windows pad by themselves and make no such copy.
            warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
            # Where "error" is the filter, this warning would be raised in place of our own refusal.
            warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """No stack trace of each node: nobody reads them (problems name layers), and they take a fifth of the time."""
    before = getattr(fx_config, "do_not_emit_stack_traces", None)
    if before is None:  # a torch without the switch
        yield
        return
    fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = before


def _hook_problems(module: nn.Module) -> list[Problem]:
    return [
        Problem(
            path,
            type(m).__name__,
            "a full backward hook on a submodule would never fire",
            "put the hook on the streamed module itself, or on a parameter",
        )
        for path, m in module.named_modules()
        if path and (m._backward_hooks or m._backward_pre_hooks)
    ]


def device_of(tensor: Tensor, module: nn.Module) -> torch.device:
    """Shapes given as meta tensors stand for the module's device."""
    if tensor.device.type != "meta":
        return tensor.device
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _explained(error: Exception, image: Tensor) -> Exception:
    """Torch's own error where a shape does not fit; a refusal where the control flow depends on the pixels."""
    text = str(error)
    if "data-dependent" in text.lower() or "DataDependent" in type(error).__name__:
        line = next((x.strip() for x in text.splitlines() if x.strip()), type(error).__name__)
        problem = Problem(
            "",
            "forward",
            f"its control flow or its shapes depend on pixel values ({line[:200]})",
            "decide from shapes, or move that part out of the streamed module",
        )
        return UnsupportedModuleError([problem])
    if isinstance(error, ValueError):
        return ValueError(text.splitlines()[0] if text else type(error).__name__)
    first = text.split("\n\nWhile executing")[0].strip()
    return ValueError(f"the module does not take an image of shape {tuple(image.shape)}: {first}")
