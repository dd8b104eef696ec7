"""Weights and training state in safetensors files: no pickle, checked, and written whole or not at all.

A file of weights holds a model's state and, in its metadata, what is needed to use it (:class:`ModelInfo`),
so that ``predict`` asks for no flags.  A file of training state holds any nest of dictionaries, lists,
numbers, strings and arrays: an optimizer's state, a schedule's, a generator's.

Both carry a SHA-256 of each tensor and one over all the rest, these digests included, which are verified on
loading: a flipped bit is noticed, and the tensor named in which it is.  Files are written beside their
target, flushed to the disk, and only then renamed over it: an interrupted save leaves the old file whole.

Files of format 1, with one SHA-256 over everything, are still read.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..kernels._devices import device_of, is_array
from ..kernels._dtypes import BFLOAT16
from ..kernels._errors import ArgumentError, CheckpointError
from .module import Module


class DamagedError(CheckpointError):
    """A file that is not as it was written."""


class OtherFormatError(CheckpointError):
    """A file that is whole, but of another version of the format, or of another kind."""


#: The version of what we keep in a file's metadata; 1 is read too.
FORMAT = 2
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
    write_packed(path, Packed(_encode(state, "state", arrays, _host), arrays))


@dataclass(frozen=True)
class Packed:
    """Training state as it was at one moment, to be written at another: see :func:`pack`."""

    skeleton: Any
    arrays: dict[str, np.ndarray]

    def state(self) -> Any:
        """The state again; its arrays are those of this object."""
        return _decode(self.skeleton, self.arrays)


def pack(state: Any) -> Packed:
    """A copy of ``state`` (as for :func:`save_state`) on the host; what is changed afterwards does not change it.

    Raises:
        ArgumentError: something in it can not be saved.
    """
    arrays: dict[str, np.ndarray] = {}
    return Packed(_encode(state, "state", arrays, _copy), arrays)


def write_packed(path: str | Path, packed: Packed, about: Mapping[str, Any] | None = None) -> None:
    """Write what :func:`pack` gave, and a few numbers that :func:`read_about` can read alone."""
    described = {"rawgrad": _version(), "skeleton": packed.skeleton, "about": dict(about or {})}
    _write(path, "state", packed.arrays, described)


def load_state(path: str | Path) -> Any:
    """Read a file of :func:`save_state`; arrays and tensors come back as NumPy arrays.

    Raises:
        CheckpointError: the file is missing, damaged or foreign; it says what and where.
    """
    return load_described(path)[0]


def load_described(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """A state as :func:`load_state` gives it, and the numbers of :func:`read_about` (none in format 1)."""
    arrays, described = _read(path, "state")
    try:
        return _decode(described["skeleton"], arrays), dict(described.get("about", {}))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the state in it is not understood: {error!r}") from None


def read_about(path: str | Path) -> dict[str, Any]:
    """The numbers that stand beside a state; the tensors of the file are not looked at.

    Raises:
        CheckpointError: the file's head is damaged, or the file is of format 1 and so has none.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            size = os.fstat(file.fileno()).st_size
            head = _head(path, start + file.read(min(length, size)), size)
    except OSError as error:
        raise _unreadable(path, error) from None
    _check_seal(path, head, "state")
    try:
        return dict(head.described["about"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not say what it is: {error!r}") from None


# ---------------------------------------------------------------- nests


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray], host: Callable[[Any], np.ndarray]) -> Any:
    """``value`` as JSON, its arrays (as ``host`` gives them) put into ``arrays`` under their path."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) or is_array(value):
        while path in arrays:  # {"a": {"b": …}, "a.b": …}
            path += "'"
        arrays[path] = host(value)
        return {"array": path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise ArgumentError(f"save_state: {path} must have strings or integers as keys; got {key!r}")
        return {"dict": [[key, _encode(item, f"{path}.{key}", arrays, host)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(item, f"{path}.{i}", arrays, host) for i, item in enumerate(value)]}
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


def _copy(value: Any) -> np.ndarray:
    """The values of an array or tensor in memory of their own on the host."""
    array = _host(value)
    return array.copy() if device_of(Tensor(value).array).array_type is np.ndarray else array


def _version() -> str:
    """rawgrad's version; asked of the root package, which is loaded, since imports go down only."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)


# ---------------------------------------------------------------- files


def _digest(array: np.ndarray) -> str:
    """SHA-256 of the array's bytes; beside it stand the name, the dtype and the shape."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _seal(form: Any, kind: Any, described: Any, tensors: Mapping[str, Any]) -> str:
    """SHA-256 over all of a file but the tensors' bytes, for which their digests stand.

    ``tensors`` gives each its (dtype, shape, digest), as JSON has them.
    """
    whole = json.dumps([form, kind, described, sorted(tensors.items())], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _seal_of_first_format(arrays: Mapping[str, np.ndarray], described: str) -> str:
    """SHA-256 over the description and all arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _write(path: str | Path, kind: str, arrays: dict[str, np.ndarray], described: dict[str, Any]) -> None:
    from safetensors.numpy import save

    names = {dtype: name for name, dtype in _DTYPES.items()}
    try:
        tensors = {name: [names[a.dtype], list(a.shape), _digest(a)] for name, a in arrays.items()}
    except KeyError as error:
        raise ArgumentError(f"save: {path} cannot hold arrays of {error}") from None
    try:
        head = {
            "format": FORMAT,
            "kind": kind,
            "description": json.loads(json.dumps(described, sort_keys=True)),
            "tensors": {name: digest for name, (_, _, digest) in sorted(tensors.items())},
        }
        head["sha256"] = _seal(FORMAT, kind, head["description"], tensors)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"save: the description of {path} must be expressible in JSON: {error}") from None
    # In one entry of the metadata, since the order of several would be another each time.
    write_atomically(path, save(arrays, metadata={_KEY: json.dumps(head)}))


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


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left half written; nobody else may be writing into ``folder``."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Head:
    """What stands before the tensors of a file.

    Attributes:
        size: of this part, in bytes.
        text, entries: of the header, as it is and understood.
        ours: what we keep in the metadata, as it is.
        form, kind, digests, seal: from there; in format 1 there are no digests.
        description, described: of what is saved, in format 1 as it is, and understood.
    """

    size: int
    text: bytes
    entries: dict[str, Any]
    ours: str
    form: Any
    kind: Any
    digests: dict[str, str]
    seal: str
    description: str
    described: dict[str, Any]


def _unreadable(path: str | Path, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path}: there is no such file")
    return CheckpointError(f"{path}: cannot be read: {error.strerror}")


def _read(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description of a file of ours, both verified."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    return parsed(path, content, kind)


def parsed(path: str | Path, content: bytes, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description in the ``content`` of the file ``path``, both verified."""
    from safetensors import SafetensorError, deserialize

    head = _head(path, content, len(content))
    try:
        arrays = {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
            for name, entry in sorted(deserialize(content))
        }
    except (SafetensorError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise DamagedError(f"{path}: damaged: {error}") from None
    if head.form == 1:
        if _seal_of_first_format(arrays, head.description) != head.seal:
            raise DamagedError(
                f"{path}: damaged: its {len(content)} bytes do not give the SHA-256 that was written with them"
            )
        _check_kind(path, head, kind)
    else:
        _check_seal(path, head, kind)
        for name, array in arrays.items():
            if _digest(array) != head.digests[name]:
                raise DamagedError(f"{path}: damaged: tensor {name} does not give the SHA-256 that was written with it")
    return arrays, head.described


def _check_seal(path: str | Path, head: _Head, kind: str) -> None:
    """Whether all but the tensors' bytes is as it was written, and what is wanted."""
    tensors = {n: [e["dtype"], e["shape"], head.digests.get(n)] for n, e in head.entries.items()}
    whole = head.digests.keys() == tensors.keys() and head.seal == _seal(head.form, head.kind, head.described, tensors)
    if not whole or not _as_written(head.text, head.ours):
        raise DamagedError(
            f"{path}: damaged: its head (names, shapes, settings; the first {head.size} bytes) does not give the "
            "SHA-256 that was written with it"
        )
    if head.form != FORMAT:
        raise OtherFormatError(
            f"{path}: is of format {head.form!r}, written by rawgrad {head.described.get('rawgrad', 'unknown')}; this "
            f"one, {_version()}, reads formats 1 and {FORMAT}"
        )
    _check_kind(path, head, kind)


def _as_written(text: bytes, ours: str) -> bool:
    """Whether a header, and our part of it, are written in the one way that is right: then no byte was changed.

    The spaces at its end bring the tensors to an even address.
    """
    again = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
    return text.rstrip(b" ") == again.encode(errors="surrogatepass") and ours == json.dumps(json.loads(ours))


def _check_kind(path: str | Path, head: _Head, kind: str) -> None:
    if head.kind != kind:
        raise OtherFormatError(f"{path}: holds {head.kind!r}; expected {kind!r}")


def _head(path: str | Path, content: bytes, size: int) -> _Head:
    """The head of a file of ``size`` bytes that begins with ``content``; its digests are not verified yet."""
    text, header = _header(path, content, size)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or _KEY not in metadata:
        raise CheckpointError(
            f"{path}: not written by rawgrad (its metadata has no {_KEY!r}); for the tensors in it use "
            "model.load_state_dict(safetensors.numpy.load_file(path))"
        )
    try:
        head = json.loads(metadata[_KEY])
        form, kind, seal = (head[key] for key in ("format", "kind", "sha256"))
        description = metadata["description"] if form == 1 else ""
        described = dict(json.loads(description) if form == 1 else head["description"])
        digests = {} if form == 1 else dict(head["tensors"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path}: damaged: its metadata cannot be read: {error!r}") from None
    return _Head(8 + len(text), text, header, metadata[_KEY], form, kind, digests, seal, description, described)


def _header(path: str | Path, content: bytes, size: int) -> tuple[bytes, dict[str, Any]]:
    """The JSON header of a safetensors file, as it is and understood, checked against the file's size."""
    if size < 8:
        raise DamagedError(f"{path}: truncated or not a safetensors file: {size} bytes; the header's length takes 8")
    length = int.from_bytes(content[:8], "little")
    if length > size - 8:
        raise DamagedError(
            f"{path}: truncated or not a safetensors file: its header should end at byte {8 + length}; it has {size}"
        )
    text = content[8 : 8 + length]
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("not an object")
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are kinds of it
        raise DamagedError(
            f"{path}: damaged or not a safetensors file: the header in bytes 8 to {8 + length} is no JSON: {error}"
        ) from None
    except RecursionError:
        raise DamagedError(f"{path}: not a safetensors file: the header is nested too deeply") from None
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            end = int(entry["data_offsets"][1])
            _ = entry["dtype"], entry["shape"]
        except (KeyError, TypeError, IndexError, ValueError, OverflowError):
            raise DamagedError(f"{path}: damaged: the header's entry for {name!r} is not whole") from None
        if 8 + length + end > size:
            raise DamagedError(
                f"{path}: truncated: {name} should end at byte {8 + length + end}; the file has {size} bytes"
            )
    return text, header
