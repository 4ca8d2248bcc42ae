"""Predictions larger than memory: a result goes to a file tile by tile, and a killed one goes on where it was.

    stages before the last     run as ever, in the bytes of their plan
    the last stage             each tile goes to `.pred.tif.partial/` (outputs/blocks.py), and is forgotten
    when all are there         the tiles are put into the format, beside; `pred.tif.json` says of what; one rename

The result is that of ``net(image)`` to the bit: it is the same tiles. What a run that goes on computes again is what
the missing tiles need of the stages before the last one, whose maps were in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .boxes import full
from .files import whole_file
from .graph import Graph, Local
from .maps import Sink
from .ops.rule import Value
from .outputs.blocks import Blocks, own_pages, unfinished
from .outputs.formats import Described, format_of
from .outputs.geometry import geometry
from .plan.identity import graph_hash
from .plan.plan import Plan
from .signature import Sharing
from .sources.source import Source, said_by

if TYPE_CHECKING:
    from .module import StreamingModule

__all__ = ["predict", "writing"]

logger = logging.getLogger(__name__)


def writing(graph: Graph) -> Graph:
    """The same graph, its result written to a file where tiles make it.

    Raises:
        ValueError: the result is no map of one image.
    """
    (result,) = graph.outputs if len(graph.outputs) == 1 else (None,)
    if not isinstance(result, Value) or not result.spatial or result is graph.image:
        raise ValueError(
            "predict() writes one map of pixels, and this network gives "
            f"{[getattr(one, 'shape', one) for one in graph.outputs]}; call net(image) for what is no map, and wrap "
            "the part that makes the map where there are several results"
        )
    if prod(result.shape) // result.depth != prod(result.extents) or graph.image.shape[0] != 1:
        raise ValueError(f"predict() takes one image, and was given {graph.image.shape[0]}; call it for each by itself")
    tiled = isinstance(graph.nodes[result.name], Local) and not graph.readers[result.name]
    return replace(graph, written=frozenset({result.name} if tiled else ()))


def predict(net: StreamingModule, image: Any, out: Path, overwrite: bool = False) -> Path:
    """Run a network and write its result to a file; see :meth:`streamingcnn.StreamingModule.predict`."""
    if net.partition is not None:
        raise ValueError(
            "predict() writes a file from one process, and this network runs on several; wrap net.module in a "
            'StreamingModule of its own on one of them, or call net(image) with gather="none" and write the parts'
        )
    if net.training:
        raise ValueError(
            "predict() of a network in training would change its running statistics, and dropout would draw anew; "
            "call net.eval() first"
        )
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    side, folder = out.with_name(f"{out.name}.json"), out.with_name(f".{out.name}.partial")
    made_of = hashlib.sha256(json.dumps([_of_module(net), _of_image(image)]).encode()).hexdigest()
    if out.exists() and _made_of(side) == made_of:
        logger.info("%s is finished; nothing to do", out)
        return out
    if out.exists() and not overwrite:
        raise FileExistsError(
            f"{out} is there already, and was made of another network, image or weights"
            + ("" if side.exists() else f" (there is no {side.name} that says of what)")
            + "; delete it, choose another name, or overwrite=True"
        )
    blocks: list[Blocks] = []
    described: list[Described] = []
    graphs: list[Graph] = []

    def opened(graph: Graph, plan: Plan, sharing: Sharing) -> Mapping[str, Sink]:
        result: Value = graph.outputs[0]
        format_of(out, len(result.extents))
        stage = next((stage for stage in plan.stages if stage.name == result.name), None)
        steps = result.extents if stage is None else stage.tile
        table = sharing.tables.get(result.name) or own_pages(result.extents, steps)
        dtype = torch.float32 if result.dtype in (torch.bfloat16, torch.float16) else result.dtype
        about = {"made_of": made_of, "graph": graph_hash(graph), "tile": list(steps), "dtype": str(dtype)}
        made = Blocks(folder, about, result.depth, table, result.axes or (), dtype)
        blocks.append(made)
        graphs.append(graph)
        described.append(_described(graph, result, image, net, made_of))
        if made.taken_over:
            logger.info("%s goes on: %d tiles are there, %d are not", out, made.taken_over, made.missing)
        return {result.name: made} if graph.written else {}

    try:
        results = net._write(image, opened)
        if not graphs[0].written:
            value = graphs[0].outputs[0]
            blocks[0].write(full(value.extents), results[value.name])
        blocks[0].settle()
        try:
            _finish(blocks[0], described[0], out, side, folder)
        except OSError as error:
            raise unfinished(error, folder) from error
    finally:
        for made in blocks:
            made.close()
    shutil.rmtree(folder, ignore_errors=True)
    return out


def _finish(blocks: Blocks, described: Described, out: Path, side: Path, folder: Path) -> None:
    """Put the tiles into the format, say of what they are made, and give the file its name."""
    ready = folder / out.name
    _remove(ready)
    format_of(out, len(blocks.extents))(blocks, ready, described)
    _remove(out)
    with whole_file(side) as partial:
        partial.write_text(json.dumps(described.about, indent=1) + "\n")
    os.replace(ready, out)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _made_of(side: Path) -> str | None:
    try:
        found = json.loads(side.read_text())["made_of"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def _described(graph: Graph, result: Value, image: Any, net: StreamingModule, made_of: str) -> Described:
    where = geometry(graph, result)
    mpp = said_by(image, "mpp") if isinstance(image, Source) else None
    if mpp is not None:
        mpp = tuple(size * scale for size, scale in zip(mpp, where.scale, strict=True))
    affine = said_by(image, "affine") if isinstance(image, Source) else None
    if affine is not None:
        step = np.diag([*where.scale[::-1], 1.0])
        step[:3, 3] = where.offset[::-1]
        affine = np.asarray(affine) @ step
    about = {
        "made_of": made_of,
        "image": f"{image!r}" if isinstance(image, Source) else f"a tensor of {tuple(image.shape)}",
        "shape": list(result.shape[-len(result.extents) - 1 :]),
        "um_per_pixel": mpp,
        "scale": where.scale,
        "offset": where.offset,
        "outside_the_mask": net.last_run.filled if net.last_run else None,
    }
    return Described(mpp, affine, about)


# ------------------------------------------------------------------------------------- of what a result is made


def _of_module(net: StreamingModule) -> str:
    """A hash of the network as it prints itself, of what its layers' `forward` does, and of its weights."""
    found = hashlib.sha256(repr(net.module).encode())
    for module in net.module.modules():
        code = getattr(type(module).forward, "__code__", None)
        if code is not None:
            plain = [constant for constant in code.co_consts if isinstance(constant, (int, float, str, tuple))]
            found.update(code.co_code + repr((code.co_names, plain)).encode())
    for name, tensor in net.module.state_dict().items():
        found.update(name.encode())
        if isinstance(tensor, Tensor):
            found.update(_bytes_of(tensor))
    return found.hexdigest()


def _of_image(image: Any) -> list[str]:
    """What an image is: the files it comes from, or its numbers."""
    if isinstance(image, Tensor):
        return [str(tuple(image.shape)), hashlib.sha256(_bytes_of(image)).hexdigest()]
    found, each = [], image
    while each is not None:
        found.append(repr(each))
        for name in ("path", "array", "mask", "mean", "std", "fill"):
            found.append(f"{name}: {_of_part(getattr(each, name, None))}")
        each = getattr(each, "source", None)
    return found


def _of_part(part: Any) -> str:
    if isinstance(part, np.memmap) and part.filename is not None:
        part = Path(str(part.filename))
    if isinstance(part, (str, Path)) and Path(part).exists():
        seen = Path(part).stat()
        return f"{Path(part).absolute()}, {seen.st_size} bytes, {seen.st_mtime_ns}"
    if isinstance(part, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()
    return hashlib.sha256(_bytes_of(part)).hexdigest() if isinstance(part, Tensor) else repr(type(part))


def _bytes_of(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().flatten()
    numbers: Any = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return memoryview(numbers)
