"""The networks that have a name: those of this package, and any factory that can be imported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from streamingcnn.models.resnet import resnet18, resnet34, resnet50
from streamingcnn.models.unet3d import UNet3D

__all__ = ["MODELS", "load"]

#: The networks that have a name of their own.
MODELS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "unet3d": UNet3D}


def load(path: str, arguments: dict[str, Any] | None = None) -> nn.Module:
    """Make the network that a name, `module.path:factory` or `folder/file.py:factory` stands for.

    >>> load("torch.nn:ReLU"), load("torch.nn:LeakyReLU", {"negative_slope": 0.1})
    (ReLU(), LeakyReLU(negative_slope=0.1))
    >>> load("resnet18", {"num_classes": 2}).fc
    Linear(in_features=512, out_features=2, bias=True)

    Raises ValueError, with the reason, where there is none.
    """
    made = MODELS[path] if path in MODELS else _found(path)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ValueError(f"'{path}' is a {type(made).__name__}; it must be a network or make one")
        try:
            made = made(**(arguments or {}))
        except TypeError as error:
            given = ", ".join(f"{key}={value!r}" for key, value in (arguments or {}).items())
            raise ValueError(f"{path}({given}) cannot be called so: {error}; give arguments with --arg") from error
        except Exception as error:  # whatever a stranger's code raises
            raise ValueError(f"{path}() failed: {type(error).__name__}: {error}") from error
    elif arguments:
        raise ValueError(f"'{path}' is a network already, which takes no --arg")
    if not isinstance(made, nn.Module):
        raise ValueError(f"{path}() returned a {type(made).__name__}, and not an nn.Module")
    return made


def _found(path: str) -> Any:
    place, _, name = path.partition(":")
    if not name:
        raise ValueError(
            f"'{path}' is neither MODULE.PATH:FACTORY, as in mynets.py:UNet, nor one of {', '.join(MODELS)}"
        )
    if place.endswith(".py"):
        folder, place = str(Path(place).resolve().parent), Path(place).stem
    else:
        folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(place)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot find '{path}' from {Path.cwd()}: {error}") from error
    except Exception as error:  # whatever a stranger's file raises while it is imported
        raise ValueError(f"importing '{path}' failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return found
