"""Every refusal of rawgrad is one of these exceptions.

Each is also the built-in kind that a caller would catch anyway, so ``except ValueError`` keeps
working.  A message names the operation, the argument, what was expected and what came; inside a
model it also carries the path of the layer (``encoder.conv1``), which the modules add while the
exception travels outwards.
"""

from __future__ import annotations

from typing import Any


class RawgradError(Exception):
    """Base of all errors that rawgrad raises on purpose.

    Attributes:
        layer: dotted path of the layer in which the error arose, ``""`` outside a model.
    """

    layer: str = ""

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} [in layer {self.layer}]" if self.layer else message


class ShapeError(RawgradError, ValueError):
    """Shapes, ranks or strides that do not fit together."""


class DtypeError(RawgradError, TypeError):
    """A dtype that the operation does not take, or dtypes that may not be mixed."""


class DeviceError(RawgradError, ValueError):
    """Arrays on different devices, or a device that does not exist here."""


class ArgumentError(RawgradError, ValueError):
    """An option outside its domain (a stride of 0, a probability of 2, an unknown reduction)."""


class IndexRangeError(RawgradError, IndexError):
    """An index, a label or a token outside the range it selects from."""


class BackendError(RawgradError, RuntimeError):
    """A backend or version that was asked for by name cannot run here; the message says why."""


class LaunchError(RawgradError, RuntimeError):
    """A kernel could not be compiled or launched, or failed on the device.

    Attributes:
        findings: what the emulator found wrong with the launch, if it was that.
    """

    findings: tuple[Any, ...] = ()


class CaptureError(RawgradError, RuntimeError):
    """A step that cannot be captured into a graph, or a graph that cannot be replayed any more."""


class GradientError(RawgradError, RuntimeError):
    """The graph cannot be differentiated as asked (freed, modified in place, not recorded)."""


class NonFiniteError(GradientError, ArithmeticError):
    """Anomaly mode met the first NaN or infinity; the message names function, layer and line."""


class DataError(RawgradError, ValueError):
    """Data that is not what its format or its labels promise."""


class CheckpointError(RawgradError, ValueError):
    """Saved weights or state that are damaged or belong to something else."""


class OutOfMemoryError(RawgradError, MemoryError):
    """The GPU's memory (or that of the simulated one) does not suffice; the message says what was asked for."""
