"""Loading of state dicts of learned parts: strictly, with one error that lists every difference."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from promise.models.promise import Promise
from promise.models.sam.weights import check_values
from promise.runtime.errors import UserError


def load_learned(net: Promise, state: dict[str, Tensor], *, origin: str, target: str) -> None:
    """Load learned parts strictly; the prompter's entries are ignored if the net has no prompter (GT nets).

    Args:
        net: the net, changed in place.
        state: learned parts, as :meth:`Promise.learned_state` returns them.
        origin: where the state comes from, for error messages.
        target: the name of the net, for error messages.

    Raises:
        UserError: entries are missing, unexpected or of another shape; one error lists all of them (code
            ``checkpoint-misfit``); or as :func:`promise.models.sam.weights.check_values`.
    """
    if net.apm is None:
        state = {name: value for name, value in state.items() if not name.startswith("apm.")}
    faults = describe_mismatch(net.learned_state(), state)
    if faults:
        raise UserError(
            f"{origin} does not match the net {target}: {faults}. Pass the net that was trained with --net.",
            code="checkpoint-misfit",
        )
    check_values(net.learned_state(), state, origin=origin)
    net.load_state_dict(state, strict=False)


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The differences between two state dicts in names and shapes, as text; empty if there are none."""
    groups = {
        "missing": [k for k in expected if k not in found],
        "unexpected": [k for k in found if k not in expected],
        "of another shape": [k for k in expected if k in found and expected[k].shape != found[k].shape],
    }
    return "; ".join(
        f"{len(keys)} {kind} (of {len(expected)} entries): {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}"
        for kind, keys in groups.items()
        if keys
    )
