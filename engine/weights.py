"""Weights and training state in safetensors files: no pickle, checked, and written whole or not at all.

A file of weights holds a model's state and, in its metadata, what is needed to use it (:class:`ModelInfo`),
so that ``predict`` asks for no flags.  A file of training state holds any nest of dictionaries, lists,
numbers, strings and arrays: an optimizer's state, a schedule's, a generator's.

Both carry a SHA-256 over everything in them, which is verified on loading, so a flipped bit is noticed.
Files are written beside their target, flushed to the disk, and only then renamed over it: an
interrupted save leaves the old file whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..kernels._devices import device_of, is_array
from ..kernels._dtypes import BFLOAT16
from ..kernels._errors import ArgumentError, CheckpointError
from .module import Module

#: The version of what we keep in a file's metadata.
FORMAT = 1
_KEY = "rawgrad"
#: The dtypes of the format, as it calls them (safetensors.numpy does not read bfloat16).
_DTYPES = {n: np.dtype(f"{n[0]}{int(n[1:]) // 8}".lower()) for n in "F16 F32 F64 I8 I16 I32 I64 U8 U16 U32 U64".split()}
_DTYPES |= {"BF16": BFLOAT16, "BOOL": np.dtype(np.bool_)}


@dataclass
class ModelInfo:
    """What a file of weights says about its model.

    Attributes:
        architecture: the name under which the model can be built again.
        arguments: what it is built with.
        input_size: shape of one input, without the batch: (1, 28, 28).
        normalization: how raw pixels become inputs, for example ``{"scale": 1/255, "mean": 0.13, "std": 0.31}``.
        classes: the names of the outputs, in order.
        extra: anything else worth keeping (accuracy, epoch).
        rawgrad: the version of rawgrad that wrote the file; filled in when saving.
    """

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, ...] = ()
    normalization: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    rawgrad: str = ""


def save_weights(path: str | Path, model: Module | Mapping[str, Any], info: ModelInfo) -> None:
    """Write a model's state and its description.

    Args:
        path: the file; an old one is replaced at once or not at all.
        model: the model, or its state: arrays or tensors by name.
        info: see :class:`ModelInfo`; must be expressible in JSON.

    Raises:
        ArgumentError: ``info`` is no JSON.
        OSError: the file cannot be written.
    """
    state = model.state_dict() if isinstance(model, Module) else model
    described = {**asdict(info), "rawgrad": _version()}
    _write(path, "weights", {name: _host(value) for name, value in state.items()}, described)


def load_weights(path: str | Path, model: Module | None = None) -> tuple[dict[str, np.ndarray], ModelInfo]:
    """Read a file of :func:`save_weights`.

    Args:
        path: the file.
        model: a model to copy the values into, strictly; None to read only.

    Returns:
        The arrays by name, and the description.

    Raises:
        CheckpointError: the file is missing, damaged or foreign (it says what and where), or its
            weights do not fit ``model``.
    """
    arrays, described = _read(path, "weights")
    try:
        info = ModelInfo(**described)
        info.input_size = tuple(info.input_size)
    except TypeError as error:
        raise CheckpointError(f"{path}: the description of the model is not understood: {error}") from None
    if model is not None:
        try:
            model.load_state_dict(arrays)
        except CheckpointError as error:
            raise CheckpointError(f"{path} holds weights of {info.architecture}({info.arguments}): {error}") from None
    return arrays, info


def save_state(path: str | Path, state: Any) -> None:
    """Write training state: any nest of dictionaries, lists, tuples, numbers, strings, None, arrays and tensors.

    Args:
        path: the file; an old one is replaced at once or not at all.
        state: for example ``{"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}``.

    Raises:
        ArgumentError: something in it is of another kind.
    """
    arrays: dict[str, np.ndarray] = {}
    skeleton = _encode(state, "state", arrays)
    _write(path, "state", arrays, {"rawgrad": _version(), "skeleton": skeleton})


def load_state(path: str | Path) -> Any:
    """Read a file of :func:`save_state`; arrays and tensors come back as NumPy arrays.

    Raises:
        CheckpointError: the file is missing, damaged or foreign; it says what and where.
    """
    arrays, described = _read(path, "state")
    try:
        return _decode(described["skeleton"], arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the state in it is not understood: {error!r}") from None


# ---------------------------------------------------------------- nests


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` as JSON, its arrays put into ``arrays`` under their path."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) or is_array(value):
        while path in arrays:  # {"a": {"b": …}, "a.b": …}
            path += "'"
        arrays[path] = _host(value)
        return {"array": path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise ArgumentError(f"save_state: {path} must have strings or integers as keys; got {key!r}")
        return {"dict": [[key, _encode(item, f"{path}.{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]}
    raise ArgumentError(
        f"save_state: {path} must be numbers, strings, arrays or nests of them; got {type(value).__qualname__}"
    )


def _decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _decode(item, arrays) for key, item in content}
    return {"list": list, "tuple": tuple}[kind](_decode(item, arrays) for item in content)


def _host(value: Any) -> np.ndarray:
    """The values of an array or tensor, in C order, on the host."""
    array = Tensor(value).array
    return np.asarray(device_of(array).to_host(array), order="C")


def _version() -> str:
    """rawgrad's version; asked of the root package, which is loaded, since imports go down only."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)


# ---------------------------------------------------------------- files


def _digest(arrays: Mapping[str, np.ndarray], described: str) -> str:
    """SHA-256 over the description and all arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _write(path: str | Path, kind: str, arrays: dict[str, np.ndarray], described: dict[str, Any]) -> None:
    from safetensors.numpy import save

    try:
        text = json.dumps(described, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"save: the description of {path} must be expressible in JSON: {error}") from None
    head = {"format": FORMAT, "kind": kind, "sha256": _digest(arrays, text)}
    write_atomically(path, save(arrays, metadata={_KEY: json.dumps(head), "description": text}))


def write_atomically(path: str | Path, content: bytes) -> None:
    """Make ``content`` the content of the file ``path``, or leave everything as it was.

    The new file is complete on the disk before it takes the old one's name.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # without this the rename itself may be lost with the power
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description of a file of ours, both verified."""
    from safetensors import SafetensorError, deserialize

    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    header = _header(path, content)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or _KEY not in metadata or "description" not in metadata:
        raise CheckpointError(
            f"{path}: not written by rawgrad (its metadata has no {_KEY!r}); for the tensors in it use "
            "model.load_state_dict(safetensors.numpy.load_file(path))"
        )
    try:
        head = json.loads(metadata[_KEY])
        found_format, found_kind, digest = (head[key] for key in ("format", "kind", "sha256"))
        described = json.loads(metadata["description"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: its metadata cannot be read: {error!r}") from None
    if found_format != FORMAT:
        raise CheckpointError(f"{path}: is of format {found_format!r}; this rawgrad reads format {FORMAT}")
    if found_kind != kind:
        raise CheckpointError(f"{path}: holds {found_kind!r}; expected {kind!r}")
    try:
        arrays = {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
            for name, entry in sorted(deserialize(content))
        }
    except (SafetensorError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    if _digest(arrays, metadata["description"]) != digest:
        raise CheckpointError(
            f"{path}: damaged: its {len(content)} bytes do not give the SHA-256 that was written with them ({digest})"
        )
    return arrays, described


def _header(path: str | Path, content: bytes) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked against the file's size."""
    size = len(content)
    if size < 8:
        raise CheckpointError(f"{path}: truncated or not a safetensors file: {size} bytes; the header's length takes 8")
    length = int.from_bytes(content[:8], "little")
    if length > size - 8:
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file: its header should end at byte {8 + length}; it has {size}"
        )
    try:
        header = json.loads(content[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError("not an object")
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are kinds of it
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file: the header in bytes 8 to {8 + length} is no JSON: {error}"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{path}: not a safetensors file: the header is nested too deeply") from None
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            end = int(entry["data_offsets"][1])
        except (KeyError, TypeError, IndexError, ValueError):
            raise CheckpointError(f"{path}: damaged: the header's entry for {name!r} has no data_offsets") from None
        if 8 + length + end > size:
            raise CheckpointError(
                f"{path}: truncated: {name} should end at byte {8 + length + end}; the file has {size} bytes"
            )
    return header
