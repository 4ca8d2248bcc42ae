"""From a module and the shapes of its inputs to a graph.

Every operation of the exported program is lowered to nodes of our graph, runs plainly on stored maps, or is refused.
Parameters and buffers are only *named*; they are looked up on the live module at every forward.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from .errors import Problem
from .export import device_of, exported
from .fold import fold
from .graph import Given, Graph, GraphBuilder, Node, op_name, uses
from .joint import joined
from .ops import convolution, flat, labels, layout, losses, noise, norms, pointwise, reductions, resample, windows
from .ops.registry import lowering_of
from .ops.rule import Call, Value, values_in

aten = torch.ops.aten
FAMILIES = (convolution, windows, resample, pointwise, layout, norms, reductions, losses, labels, noise)

#: Operations that need whole maps and give one of the same shape: they run plainly, their result is stored.
WHOLE_SAME_SHAPE = {
    aten.flip, aten.roll, aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax, aten.cumsum,
    aten.layer_norm,
}  # fmt: skip
#: Operations that need whole maps in any other way: they run plainly on stored maps, and so does what follows.
WHOLE = {
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool1d,
    aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.amax, aten.amin, aten.max, aten.min, aten.mean,
    aten.sum, aten.var, aten.std, aten.var_mean, aten.logsumexp, aten.norm, aten.linalg_vector_norm, aten.argmax,
    aten.argmin, aten.prod, aten.topk, aten.sort, aten.kthvalue, aten.median, aten.matmul, aten.bmm, aten.mm,
    aten.addmm, aten.baddbmm, aten.linear, aten.einsum, aten.scaled_dot_product_attention, aten.view, aten.reshape,
    aten.flatten, aten._unsafe_view, aten.unflatten, aten.squeeze, aten.unsqueeze, aten.permute, aten.transpose,
    aten.select, aten.slice, aten.index, aten.index_select, aten.gather, aten.take_along_dim, aten.grid_sampler,
    aten._fft_r2c, aten._fft_c2r, aten._fft_c2c, aten.fft_fft2, aten.fft_ifft2, aten.fft_fftn, aten.fft_ifftn,
    aten.fft_rfft2, aten.fft_irfft2, aten.fft_rfftn, aten.fft_irfftn, aten.numel, aten.sym_size, aten.unbind,
    aten.split, aten.chunk, aten.split_with_sizes, aten.cat, aten.stack, aten.expand, aten.repeat, aten.pad,
    aten.convolution, aten.conv1d, aten.conv2d, aten.conv3d, aten.movedim, aten.mse_loss, aten.l1_loss,
    aten.binary_cross_entropy, aten.binary_cross_entropy_with_logits, aten.cross_entropy_loss, aten.nll_loss_nd,
    aten.nll_loss2d, aten.smooth_l1_loss, aten.huber_loss, aten.dist, aten.cumsum, aten.any, aten.all,
    aten.bilinear, aten.cosine_similarity, aten.ones_like, aten.zeros_like, aten.full_like, aten.new_zeros,
    aten.new_ones, aten.new_full, aten.new_empty, aten.empty_like, aten.upsample_nearest1d, aten.upsample_nearest2d,
    aten.upsample_nearest3d, aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d,
    aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, aten.avg_pool1d,
    aten.avg_pool2d, aten.avg_pool3d, aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.batch_norm,
    aten.instance_norm, aten.group_norm, aten.pixel_shuffle, aten.pixel_unshuffle,
}  # fmt: skip


def _batch_norm_on_copies(*arguments: Any) -> Any:
    """A batch norm that trains keeps the statistics that it is given for its gradient, and they are then updated."""
    copies = (each.clone() if isinstance(each, Tensor) else each for each in arguments[3:5])
    return aten._native_batch_norm_legit_functional(*arguments[:3], *copies, *arguments[5:])


#: What stands for an operation where it runs plainly.
RUN_AS = {aten._native_batch_norm_legit_functional.default: _batch_norm_on_copies}


def space_of(tensor: Tensor) -> int:
    """How many spatial axes an image has: it is (batch, channels, *space)."""
    if tensor.dim() < 3 or tensor.dim() > 5:
        raise ValueError(
            f"the image has shape {tuple(tensor.shape)}; needed is (batch, channels, *space) with 1 to 3 spatial "
            "axes; add a batch axis with x[None] or a channel axis with x[:, None]"
        )
    if 0 in tensor.shape:
        raise ValueError(f"the image has shape {tuple(tensor.shape)}; an axis of size 0 holds no pixels")
    return tensor.dim() - 2


def axes_of(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Where an input's spatial axes lie: last, after batch and channels or after the batch alone; None for neither.

    >>> image = (1, 3, 64, 48)
    >>> axes_of((1, 1, 64, 48), image), axes_of((1, 64, 48), image), axes_of((1, 8), image)
    ((2, 3), (1, 2), None)

    The sizes decide: a map of classes (batch, *space) is spatial, and so is a tensor whose last sizes happen to be
    the image's. That is no harm: spatial says that it may be cut into boxes, and what it means is up to the operations.
    """
    space = len(image_shape) - 2
    leading = len(shape) - space
    spatial = leading in (1, 2) and shape[leading:] == image_shape[2:]
    return tuple(range(leading, len(shape))) if spatial else None


def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """Capture a module as a graph of nodes, without running it on data.

    Args:
        module: any module; it is left as it was.
        args, kwargs: what ``forward`` gets; tensors may be on any device, also ``meta``. The first tensor is the image.

    Raises:
        UnsupportedModuleError: something in it cannot be streamed exactly; every problem is listed.
        ValueError: no tensor of (batch, channels, *space) among the inputs.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    image = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    if image is None:
        raise TypeError(f"no tensor among the inputs; got {[type(leaf).__name__ for leaf in leaves]}")
    space = space_of(image)
    with exported(module, leaves, spec) as (program, problems):
        builder = GraphBuilder(module, device_of(image, module), problems=problems)
        return _Lowering(builder, program, space, image.shape).graph(leaves)


class _Lowering:
    """Walks an exported graph and lowers each call."""

    def __init__(self, builder: GraphBuilder, exported: Any, space: int, image_shape: tuple[int, ...]) -> None:
        self.builder, self.exported, self.space = builder, exported, space
        self.image_shape = tuple(image_shape)
        self.made: dict[torch.fx.Node, Any] = {}

    def graph(self, leaves: list[Any]) -> Graph:
        tensors = iter(k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        inputs: dict[int, Value] = {}
        signature = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self.made[node] = self._placeholder(node, signature[node.name], tensors, inputs)
            elif node.op == "call_function":
                self.made[node] = self._call(node)
            elif node.op == "get_attr":
                self.made[node] = node
        outputs = self._outputs()
        self.builder.check()
        nodes = self._needed(outputs)
        if all(isinstance(node, Given) for node in nodes.values()):
            outputs = tuple(map(self._copied, outputs))
            nodes = self._needed(outputs)
        nodes = joined(nodes)
        given = dict(_tensors_behind(nodes, self.builder.module, leaves))
        wanted = torch.is_grad_enabled()
        return fold(
            Graph(
                nodes=nodes,
                inputs=inputs,
                outputs=outputs,
                output_spec=self.exported.call_spec.out_spec,
                mutations=tuple(self.builder.mutations),
                space=self.space,
                noises=self.builder.noises,
                device=self.builder.device,
                strides={name: tensor.stride() for name, tensor in given.items()},
                trained=frozenset(name for name, tensor in given.items() if wanted and tensor.requires_grad),
            )
        )

    def _needed(self, outputs: tuple[Any, ...]) -> dict[str, Node]:
        wanted = [*values_in(outputs), *(value for _, value in self.builder.mutations)]
        return _pruned(self.builder.nodes, wanted)

    def _placeholder(self, node: torch.fx.Node, spec: Any, tensors: Iterator[int], inputs: dict[int, Value]) -> Any:
        fake = node.meta.get("val")
        if not isinstance(fake, Tensor):
            return fake
        shape = tuple(fake.shape)
        if spec.kind is InputKind.USER_INPUT:
            position = next(tensors)
            value = Value(node.name, shape, fake.dtype, axes_of(shape, self.image_shape))
            inputs[position] = self.builder.given(value, "input", position)
            return value
        value = Value(node.name, shape, fake.dtype)
        if spec.kind is InputKind.PARAMETER:
            return self.builder.given(value, "parameter", spec.target)
        if spec.kind is InputKind.BUFFER:
            return self.builder.given(value, "buffer", spec.target)
        return self.builder.given(value, "constant", self.exported.constants[spec.target])

    def _outputs(self) -> tuple[Any, ...]:
        output = next(n for n in self.exported.graph.nodes if n.op == "output")
        results = []
        for spec, made in zip(self.exported.graph_signature.output_specs, output.args[0], strict=True):
            result = self.made[made] if isinstance(made, torch.fx.Node) else made
            if spec.kind is OutputKind.BUFFER_MUTATION:
                if result is not self.builder.ignored:
                    self.builder.mutations.append((spec.target, result))
            elif spec.kind is OutputKind.USER_OUTPUT:
                if isinstance(result, Problem):
                    self.builder.refuse(result)
                results.append(result)
            else:
                problem = Problem("", str(spec.kind), f"forward writes to '{spec.target}'", "return it instead")
                self.builder.refuse(problem)
        return tuple(results)

    def _copied(self, result: Any) -> Any:
        """A result of a network that computes nothing, as a copy of its input: a step has at least one stage."""
        if not isinstance(result, Value):
            return result
        call = Call(aten.alias.default, {"self": result}, result.shape, result.dtype, "", f"{result.name}_copy")
        if result.spatial:
            return pointwise.apply_in_place(self.builder, call)
        return self.builder.plain(call, call.target, (result,))

    def _call(self, node: torch.fx.Node) -> Any:
        layer = _layer_of(node)
        given = pytree.tree_map_only(torch.fx.Node, lambda n: self.made[n], (node.args, dict(node.kwargs)))
        positional, keywords = given
        if node.target is aten._assert_tensor_metadata.default:
            return None  # export's own check of a cast's input, as in x.float(); the dtypes are in the key
        if node.target is operator.getitem and isinstance(positional[0], tuple):
            item = positional[0][positional[1]]
            return item
        for leaf in pytree.tree_leaves(given):
            if isinstance(leaf, Problem):
                self.builder.refuse(leaf)
                return leaf
        call = _bound(node, positional, keywords, layer)
        if node.target is torch.ops.streamingcnn.no_gradient.default:
            call = Call(aten.detach.default, {"self": positional[0]}, call.shape, call.dtype, layer, node.name)
            positional, keywords = (positional[0],), {}
        if any(value.name in self.builder.flat for value in values_in(given)):
            lowered = flat.before_flattening(self.builder, call)
            if lowered is not None:
                return lowered
        if not any(value.spatial for value in values_in(given)):
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                self.builder.refuse(_unknown(call))
            return self.builder.plain(call, RUN_AS.get(call.target, call.target), positional, keywords)
        lowering = lowering_of(call.target)
        if lowering is not None:
            lowered = lowering(self.builder, call)
            if lowered is not None:
                return lowered
        elif pointwise.is_pointwise(call.target):
            lowered = pointwise.apply_in_place(self.builder, call)
            if lowered is not None:
                return lowered
        return self._whole(call, positional, keywords)

    def _whole(self, call: Call, positional: Any, keywords: Any) -> Any:
        """What is not local runs plainly on stored maps, if it is known to be a function of them."""
        view = flat.flattened(self.builder, call)
        if view is not None:
            return view
        packet = getattr(call.target, "overloadpacket", call.target)
        tags = getattr(call.target, "tags", ())
        same = packet in WHOLE_SAME_SHAPE and call.shape == call.spatial[0].shape
        if torch.Tag.nondeterministic_seeded in tags:
            problem = self.builder.refusal(
                call,
                "random numbers over space would depend on the tiling",
                "use nn.Dropout, or draw the noise outside and pass it as a second input",
            )
            self.builder.refuse(problem)
            return problem
        known = packet in WHOLE or same or call.target is operator.getitem or pointwise.is_pointwise(call.target)
        if not known:
            problem = _unknown(call)
            self.builder.refuse(problem)
            return problem
        axes = call.spatial[0].axes if same else None
        return self.builder.plain(call, RUN_AS.get(call.target, call.target), positional, keywords, axes)


def _unknown(call: Call) -> Problem:
    return Problem(
        call.layer,
        op_name(call.target),
        "streamingcnn has no rule for this operation",
        "register one with streamingcnn.register_rule, or move it out of the streamed module",
    )


def _layer_of(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _bound(node: torch.fx.Node, positional: Any, keywords: dict[str, Any], layer: str) -> Call:
    """A call with its arguments under the names of the operation's schema."""
    fake = node.meta.get("val")
    first = next((leaf for leaf in pytree.tree_leaves(fake) if isinstance(leaf, Tensor)), None)
    shape = tuple(first.shape) if first is not None else ()
    dtype = first.dtype if first is not None else torch.float32
    arguments: dict[str, Any] = {}
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        arguments = {str(k): v for k, v in enumerate(positional)} | keywords
    else:
        for k, argument in enumerate(schema.arguments):
            if k < len(positional):
                arguments[argument.name] = positional[k]
            elif argument.name in keywords:
                arguments[argument.name] = keywords[argument.name]
            elif argument.has_default_value():
                arguments[argument.name] = argument.default_value
    return Call(node.target, arguments, shape, dtype, layer, node.name)


def _tensors_behind(nodes: dict[str, Node], module: nn.Module, leaves: list[Any]) -> Iterator[tuple[str, Tensor]]:
    """The inputs, parameters and buffers that the graph names, as they are at capture."""
    for name, node in nodes.items():
        if not isinstance(node, Given):
            continue
        if node.source == "input" and isinstance(leaves[node.key], Tensor):
            yield name, leaves[node.key]
        elif node.source == "parameter":
            yield name, module.get_parameter(node.key)
        elif node.source == "buffer":
            yield name, module.get_buffer(node.key)


def _pruned(nodes: dict[str, Node], wanted: list[Value]) -> dict[str, Node]:
    """Only what the outputs and the buffer updates need."""
    alive: set[str] = set()
    todo = [value.name for value in wanted]
    while todo:
        name = todo.pop()
        if name not in alive:
            alive.add(name)
            todo += [value.name for value in uses(nodes[name])]
    return {n: node for n, node in nodes.items() if n in alive or (isinstance(node, Given) and node.source == "input")}
