"""``Optimizer``: parameter groups, state, and the way from parameters to one kernel call.

A kernel takes lists of arrays that have one learning rate and one step count.  Both are one-element
arrays on the parameters' device.  Parameters without a gradient are skipped, so within a group the
step counts may part: parameters that have always been stepped together share one count array, and a
count is split when only some of its parameters get a step.  Nothing here reads from the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ...autograd import Tensor, enable_grad
from ...kernels import _graph
from ...kernels._devices import Device, device_of
from ...kernels._dtypes import kind_of
from ...kernels._errors import ArgumentError, CaptureError, CheckpointError
from ..module import clear_gradients

Group = dict[str, Any]


def require(optimizer: str, argument: str, value: Any, valid: bool, expected: str) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is a real number and ``valid``."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not valid:
        raise ArgumentError(f"{optimizer}: {argument} must be {expected}; got {value!r}")


def require_not_negative(optimizer: str, group: Group, *arguments: str) -> None:
    """Each of ``arguments`` in ``group`` must be a finite real number that is not negative."""
    for argument in arguments:
        value = group[argument]
        valid = isinstance(value, int | float | np.number) and bool(math.isfinite(value) and value >= 0)
        require(optimizer, argument, value, valid, "a real number, not negative")


class Optimizer:
    """Base of all optimizers.

    A subclass gives its options' defaults, checks a group in :meth:`_check`, names the state arrays
    of a parameter in :meth:`_slots` and calls its kernel in :meth:`_update`.

    Args:
        params: tensors to be changed, or mappings with ``"params"`` and options of their own, each a
            group.
        defaults: the options of groups that do not give them.

    Attributes:
        param_groups: one dictionary per group; ``"params"`` and the options.  ``group["lr"]`` may be
            read and set at any time.
        state: for each parameter that was stepped: its arrays by name, and ``"step"``, the
            one-element count it shares with those always stepped with it.

    Raises:
        ArgumentError: no parameters, one given twice, something that is not a leaf tensor, or an
            option outside its domain.
    """

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        self.defaults = dict(defaults)
        self.param_groups: list[Group] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self._rates: dict[tuple[int, str], tuple[float, Any]] = {}  # (group, device): written value, array
        if isinstance(params, Tensor | str | Mapping):
            raise ArgumentError(
                f"{self._name}: params must be an iterable of tensors or of groups; got {type(params).__qualname__}"
            )
        given = list(params)
        if not given:
            raise ArgumentError(f"{self._name}: params must not be empty")
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    @property
    def _name(self) -> str:
        return type(self).__name__

    # ------------------------------------------------------------ what a subclass defines

    def _check(self, group: Group) -> None:
        """Raise :class:`ArgumentError` if an option of ``group`` is outside its domain."""
        raise NotImplementedError

    def _slots(self, group: Group) -> tuple[str, ...]:
        """Names of the state arrays that each parameter of ``group`` has, each of its shape."""
        raise NotImplementedError

    def _initial(self, slot: str, group: Group) -> float:
        """What the state array ``slot`` is filled with at first."""
        return 0.0

    def _update(
        self, group: Group, params: list[Any], grads: list[Any], slots: dict[str, list[Any]], lr: Any, step: Any
    ) -> None:
        """Call the kernel on raw arrays; ``slots`` has those that :meth:`_slots` names."""
        raise NotImplementedError

    # ------------------------------------------------------------ groups

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group: a mapping with ``"params"`` (one tensor or several) and any options."""
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise ArgumentError(f"{self._name}: a parameter group must be a mapping with 'params'; got {param_group!r}")
        group = {**self.defaults, **param_group}
        unknown = set(group) - set(self.defaults) - {"params", "initial_lr", "name"}
        if unknown:
            raise ArgumentError(f"{self._name}: unknown options {sorted(unknown)}; there are {sorted(self.defaults)}")
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        if not params:
            raise ArgumentError(f"{self._name}: params must not be empty")
        known = {id(p) for other in self.param_groups for p in other["params"]}
        for number, param in enumerate(params):
            if not isinstance(param, Tensor):
                raise ArgumentError(f"{self._name}: params[{number}] must be a tensor; got {type(param).__qualname__}")
            if not param.is_leaf:
                raise ArgumentError(
                    f"{self._name}: params[{number}] of shape {tuple(param.shape)} must be a leaf; it was computed "
                    "from others (give those, or detach it)"
                )
            if kind_of(param.dtype) != "f":
                raise ArgumentError(f"{self._name}: params[{number}] must be of a floating dtype; got {param.dtype}")
            if id(param) in known:
                raise ArgumentError(f"{self._name}: params[{number}] of shape {tuple(param.shape)} is given twice")
            known.add(id(param))
        group["params"] = params
        self._check(group)
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or (``set_to_none=False``) fill them with zeros."""
        clear_gradients((p for group in self.param_groups for p in group["params"]), set_to_none)

    # ------------------------------------------------------------ the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every parameter that has a gradient.

        Args:
            closure: computes the loss anew, gradients included; called first.

        Returns:
            What ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            slots = self._slots(group)
            for count, params in self._buckets(group, slots):
                if _graph.under_way:
                    self._captured(number, group, params, count)
                count.array += 1
                self._update(
                    group,
                    [p.array for p in params],
                    [p.grad.array for p in params],  # type: ignore[union-attr]
                    {slot: [self.state[p][slot] for p in params] for slot in slots},
                    self._rate(number, group, device_of(params[0].array)),
                    count.array,
                )
                for p in params:
                    p.written()  # a graph that saved the old values must not be used any more
        return loss

    def _buckets(self, group: Group, slots: tuple[str, ...]) -> list[tuple[Count, list[Tensor]]]:
        """The parameters of ``group`` that have gradients, by their common step count."""
        buckets: dict[tuple[type, np.dtype, Count | None], list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state.setdefault(p, {"step": None})
            for slot in slots:
                if slot not in state:
                    with _graph.outside():  # once, not in each replay
                        state[slot] = p.array_module.full_like(p.array, self._initial(slot, group))
            buckets.setdefault((type(p.array), p.dtype, state["step"]), []).append(p)
        counted = []
        for (_, _, count), params in buckets.items():
            if count is None or count.members != len(params):
                with _graph.outside():
                    count = Count.split(device_of(params[0].array), count, len(params))
                for p in params:
                    self.state[p]["step"] = count
            counted.append((count, params))
        return counted

    def _rate(self, number: int, group: Group, device: Device) -> Any:
        """The learning rate of a group as a one-element array on ``device``, written where it changed."""
        value = group["lr"]
        known = self._rates.get((number, device.name))
        if known is not None and known[0] == value:
            return known[1]
        require_not_negative(self._name, group, "lr")
        with _graph.outside():
            array = device.array_module.zeros(1, np.float64) if known is None else known[1]
            array[...] = value
        self._rates[number, device.name] = float(value), array
        return array

    def _captured(self, number: int, group: Group, params: list[Tensor], count: Count) -> None:
        """If this step is being captured: have the learning rate written before each replay, and what must stay
        looked at.  The optimizer, and so its state, lives as long as the graph."""
        graph = _graph.current()
        if graph is None:
            return
        options = {name: group[name] for name in self.defaults if name != "lr"}
        device = device_of(params[0].array)

        def before_replay() -> None:
            changed = [name for name, value in options.items() if group[name] != value]
            if changed:
                name = changed[0]
                raise CaptureError(
                    f"replay: {self._name}'s {name} was {options[name]!r} when the step was captured and is now "
                    f"{group[name]!r}; only the learning rate may change: capture again"
                )
            if any(self.state.get(p, {}).get("step") is not count for p in params):
                raise CaptureError(f"replay: {self._name}'s state was replaced since the capture; capture again")
            self._rate(number, group, device)

        graph.before_replay.append(before_replay)

    # ------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """A copy of the options of all groups and the state of all parameters.

        Returns:
            ``{"optimizer": "Adam", "param_groups": [{option: value, …, "params": [number, …]}, …],
            "state": {number: {"step": int, name: array, …}, …}}``; parameters are numbered through
            all groups.  Step counts are read from the device.
        """
        groups: list[Group] = []
        state = {}
        number = 0
        for group in self.param_groups:
            slots = self._slots(group)
            numbers = list(range(number, number + len(group["params"])))
            groups.append({**group, "params": numbers})
            for number, p in zip(numbers, group["params"], strict=True):
                if (known := self.state.get(p)) is not None:
                    arrays = {slot: known[slot].copy() for slot in slots if slot in known}
                    state[number] = {"step": known["step"].read(), **arrays}
            number += 1
        return {"optimizer": self._name, "param_groups": groups, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; all of it or, on an error, nothing.

        Raises:
            CheckpointError: the optimizer, the groups, the parameters' number, or the shapes of the state do not fit.
        """
        if isinstance(state_dict, Mapping) and state_dict.get("optimizer", self._name) != self._name:
            raise CheckpointError(f"{self._name}.load_state_dict: the state is of {state_dict['optimizer']}")
        try:
            groups, states = list(state_dict["param_groups"]), dict(state_dict["state"])
            numbered = [n for group in groups for n in group["params"]]
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{self._name}.load_state_dict: not the state of an optimizer: {error!r}") from None
        sizes, own = [len(g["params"]) for g in groups], [len(g["params"]) for g in self.param_groups]
        if sizes != own:
            raise CheckpointError(
                f"{self._name}.load_state_dict: groups must have {own} parameters; the state has {sizes}"
            )
        for new, group in zip(groups, self.param_groups, strict=True):
            if set(new) - {"initial_lr"} != set(group) - {"initial_lr"}:
                raise CheckpointError(
                    f"{self._name}.load_state_dict: a group must have the options {sorted(group)}; got {sorted(new)}"
                )
            try:
                self._check(new)
            except ArgumentError as error:
                raise CheckpointError(f"{self._name}.load_state_dict: {error}") from None
        params = dict(zip(numbered, (p for group in self.param_groups for p in group["params"]), strict=True))
        group_of = {n: i for i, group in enumerate(groups) for n in group["params"]}
        loaded: dict[Tensor, dict[str, Any]] = {}
        counts: dict[tuple[int, str, np.dtype, int], Count] = {}
        for n, saved in states.items():
            if n not in params:
                raise CheckpointError(f"{self._name}.load_state_dict: the state is of a parameter {n!r} in no group")
            p, slots = params[n], self._slots(groups[group_of[n]])
            if set(saved) != {"step", *slots} or not isinstance(saved["step"], int):
                raise CheckpointError(
                    f"{self._name}.load_state_dict: parameter {n} must have the state step, {', '.join(slots)}; "
                    f"got {', '.join(map(str, saved))}"
                )
            device = device_of(p.array)
            # Parameters of a group with equal counts take their steps together from now on.
            key = (group_of[n], device.name, p.dtype, saved["step"])
            if key not in counts:
                counts[key] = Count(device, saved["step"])
            counts[key].members += 1
            count = counts[key]
            loaded[p] = {"step": count}
            for slot in slots:
                value = Tensor(saved[slot]).array
                if tuple(value.shape) != tuple(p.shape) or value.dtype != p.dtype:
                    raise CheckpointError(
                        f"{self._name}.load_state_dict: {slot} of parameter {n} must be {p.dtype} of shape "
                        f"{tuple(p.shape)}; got {value.dtype} of shape {tuple(value.shape)}"
                    )
                loaded[p][slot] = device.from_host(np.array(device_of(value).to_host(value)))
        for new, group in zip(groups, self.param_groups, strict=True):
            group.update({key: value for key, value in new.items() if key != "params"})
        self.state = loaded

    def __repr__(self) -> str:
        lines = [self._name + " ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {number}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])


class Count:
    """How many steps some parameters have taken, on their device.

    Attributes:
        array: one int64.
        members: the number of parameters that share this count.
    """

    def __init__(self, device: Device, value: int = 0, members: int = 0) -> None:
        self.array = device.array_module.full(1, value, np.int64)
        self.members = members

    @classmethod
    def split(cls, device: Device, old: Count | None, members: int) -> Count:
        """A count of its own for ``members`` of the parameters of ``old`` (None: for new ones)."""
        new = cls(device, members=members)
        if old is not None:
            old.members -= members
            new.array[...] = old.array
        return new

    def read(self) -> int:
        """The count, read from the device."""
        return int(device_of(self.array).to_host(self.array)[0])
