"""Loss scaling: gradients that float16 would lose are multiplied on their way, and divided again."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...autograd import Tensor
from ...kernels._errors import ArgumentError, CheckpointError
from .optimizer import Optimizer


class GradScaler:
    """Dynamic loss scaling (Micikevicius et al., "Mixed Precision Training", 2018, section 3.2), as torch's::

        scaler = optim.GradScaler()
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            opt.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(opt)  # divides the gradients; leaves the step out if one is infinite or NaN
            scaler.update()  # the scale for the next one

    A step reads from the device whether all gradients are finite, so it cannot be captured.

    Args:
        init_scale: what the loss is multiplied by at first.
        growth_factor: the scale is multiplied by it after ``growth_interval`` steps without an overflow.
        backoff_factor: and by this after one.
        growth_interval: steps.
        enabled: False makes all of it do nothing.

    Raises:
        ArgumentError: a factor that is on the wrong side of 1, or a scale or interval that is not positive.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        for name, value, right, expected in (
            ("init_scale", init_scale, 0 < init_scale < np.inf, "positive"),
            ("growth_factor", growth_factor, 1 < growth_factor < np.inf, "above 1"),
            ("backoff_factor", backoff_factor, 0 < backoff_factor < 1, "between 0 and 1"),
            ("growth_interval", growth_interval, growth_interval >= 1, "at least 1"),
        ):
            if not right:
                raise ArgumentError(f"GradScaler: {name} must be {expected}; got {value!r}")
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.enabled = growth_interval, enabled
        self._scale, self._good = float(init_scale), 0
        self._divided: set[int] = set()  # optimizers whose gradients are divided already
        self._overflow: bool | None = None  # of this step; None before it is known

    def get_scale(self) -> float:
        """What the loss is multiplied by; 1 if this is not enabled."""
        return self._scale if self.enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """``loss`` times the scale."""
        return loss * self._scale if self.enabled else loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, as :meth:`step` would; before clipping.

        Raises:
            ArgumentError: they are divided already.
        """
        if not self.enabled:
            return
        if id(optimizer) in self._divided:
            raise ArgumentError("GradScaler: unscale_() was called already since the last update()")
        self._divided.add(id(optimizer))
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = []
        for gradient in gradients:
            array = gradient.array
            array *= array.dtype.type(1 / self._scale)
            gradient.written()
            finite.append(gradient.array_module.isfinite(array).all())
        if finite:
            whole = bool(functools.reduce(lambda a, b: a & b, finite))  # one read from the device
            self._overflow = bool(self._overflow) or not whole

    def step(self, optimizer: Optimizer) -> bool:
        """``optimizer.step()``, unless a gradient is infinite or NaN; whether it was done."""
        if not self.enabled:
            optimizer.step()
            return True
        if id(optimizer) not in self._divided:
            self.unscale_(optimizer)
        if not self._overflow:
            optimizer.step()
        return not self._overflow

    def update(self) -> None:
        """Choose the scale of the next step.

        Raises:
            ArgumentError: there was no step since the last one.
        """
        if not self.enabled:
            return
        if not self._divided:
            raise ArgumentError("GradScaler: update() must come after step()")
        if self._overflow:
            self._scale, self._good = self._scale * self.backoff_factor, 0
        else:
            self._good += 1
            if self._good == self.growth_interval:
                self._scale, self._good = self._scale * self.growth_factor, 0
        self._divided.clear()
        self._overflow = None

    def state_dict(self) -> dict[str, Any]:
        """Scale and steps since it last changed."""
        return {"scale": self._scale, "good_steps": self._good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            scale, good = float(state["scale"]), state["good_steps"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not the state of a GradScaler: {error!r}") from None
        if not 0 < scale < np.inf or type(good) is not int or good < 0:
            raise CheckpointError(f"not the state of a GradScaler: {dict(state)}")
        self._scale, self._good = scale, good
