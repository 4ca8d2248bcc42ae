"""The network of a run: a trunk by its name, a head behind it, weights from a file."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from streamingcnn.models.named import load
from streamingcnn.training.batchnorm import convert_batchnorm
from streamingcnn.training.checkpoint import read_tensors
from streamingcnn.training.heads import make_head
from streamingcnn.training.settings import Settings
from streamingcnn.training.tasks import Cumulative

__all__ = ["make_network", "warm_start"]

#: The side of the image on which the shape of a trunk's result is found; no pixel of it exists.
_SIDE = 512


def make_network(settings: Settings) -> nn.Module:
    """The network that settings describe, with weights drawn from torch's generator.

    Example::

        net = make_network(Settings(model="resnet18", head="mean", classes=("normal", "tumour")))
        net.trunk, net.head

    A factory may give a trunk, whose result is a map and gets a head, or a whole network with one row of outputs per
    image, which stays as it is.

    Raises:
        ValueError: there is no such network, or its result is neither a map nor as many outputs as the task needs.
    """
    module = convert_batchnorm(load(settings.model, settings.arg), settings.norm)
    task = settings.labels_as()
    shape = _result_shape(settings.model, module)
    if len(shape) == 2:
        if shape[1] != task.outputs:
            raise ValueError(
                f"'{settings.model}' gives {shape[1]} outputs per image, and task '{task.kind}' with "
                f"{len(task.classes)} classes needs {task.outputs}"
            )
        return nn.Sequential(OrderedDict(trunk=module))
    if len(shape) != 4:
        raise ValueError(
            f"'{settings.model}' turns an image into a tensor of {len(shape)} axes; needed is a map "
            f"(N, channels, height, width) or a row per image (N, {task.outputs})"
        )
    parts: OrderedDict[str, nn.Module] = OrderedDict(trunk=module)
    parts["head"] = make_head(settings.head, shape[1], 1 if task.kind == "ordinal" else task.outputs)
    if task.kind == "ordinal":
        parts["cumulative"] = Cumulative(len(task.classes))
    return nn.Sequential(parts)


def _result_shape(name: str, module: nn.Module) -> tuple[int, ...]:
    stand_in = copy.deepcopy(module).to("meta").eval()
    try:
        with torch.no_grad():
            result = stand_in(torch.empty(1, 3, _SIDE, _SIDE, device="meta"))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"'{name}' does not take an image of 1x3x{_SIDE}x{_SIDE}: {error}") from error
    if not isinstance(result, Tensor):
        raise ValueError(f"'{name}' returns a {type(result).__name__}; needed is one tensor")
    return tuple(result.shape)


def warm_start(net: nn.Module, path: str | Path) -> str:
    """Load weights from a local file into the trunk or into all of a network; says what was taken.

    Example::

        warm_start(net, "resnet18.pth")              # '120 of 122 tensors; not in the network: fc.weight, fc.bias'

    The file is a ``state_dict`` (also inside a dict under ``state_dict``, ``model`` or ``net``), as torch saves it or
    as safetensors; its names are those of the network or of its trunk. No code in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, none of them fits, or one has another shape.
        ModuleNotFoundError: it is a safetensors file, and that library is missing.
    """
    weights = _weights(Path(path))
    trunk = net.get_submodule("trunk") if isinstance(net, nn.Sequential) else net
    target = max((net, trunk), key=lambda module: len(weights.keys() & module.state_dict().keys()))
    wanted = target.state_dict()
    fitting = weights.keys() & wanted.keys()
    if not fitting:
        here, there = (", ".join(list(names)[:3]) for names in (wanted, weights))
        raise ValueError(f"{path} has no weights of this network: it has {there}, ...; the network {here}, ...")
    wrong = [
        f"{name} is {tuple(weights[name].shape)} there and {tuple(wanted[name].shape)} here"
        for name in sorted(fitting)
        if weights[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(f"{path} is of another network:\n" + "\n".join(f"  - {line}" for line in wrong))
    target.load_state_dict({name: weights[name] for name in fitting}, strict=False)
    said = f"{len(fitting)} of {len(weights)} tensors"
    aside = sorted(weights.keys() - fitting)
    absent = sorted(wanted.keys() - fitting)
    for what, names in (("not in the network", aside), ("not in the file", absent)):
        if names:
            said += f"; {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    return said


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        if find_spec("safetensors") is None:
            raise ModuleNotFoundError(f"{path} needs safetensors; install with: pip install safetensors")
        from safetensors.torch import load_file

        found: object = load_file(path)
    else:
        found = read_tensors(path)
    for key in ("state_dict", "model", "net"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()) or not found:
        raise ValueError(f"{path} holds no state_dict, that is, no table of tensors by name")
    return dict(found)
