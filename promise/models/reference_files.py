"""State dicts and files of the reference implementation, which contain SAM's weights and use other names."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from promise.models.metadata import Metadata
from promise.models.promise import Promise
from promise.models.reference_names import is_reference_name, own_name, reference_name
from promise.models.registry import DEFAULT_POINTS, NETS, build_net, parse_net_name
from promise.models.sam.weights import check_values, read_state_dict
from promise.models.state_dicts import describe_mismatch
from promise.runtime.errors import UserError

log = logging.getLogger(__name__)

SAM_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def load_reference_state(net: Promise, state_dict: Mapping[str, Tensor]) -> None:
    """Load a full state dict of the reference implementation strictly; its older key names are accepted.

    ``module.`` prefixes and ``{"state_dict": …}`` are unwrapped. Entries of the reference implementation that this
    net does not use (the second linear head, ``norm2``, the prompter of an APM_IPS checkpoint in a GT net) are
    stored in ``net.reference_unused``, and :func:`to_reference_state` returns them unchanged.

    Raises:
        UserError: entries are missing, unexpected or of another shape; one error lists all of them (code
            ``checkpoint-misfit``); or as :func:`promise.models.sam.weights.check_values`.
    """
    inner = state_dict.get("state_dict", state_dict)
    assert isinstance(inner, Mapping)
    state = {name.removeprefix("module."): value for name, value in inner.items()}
    known: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    unexpected: dict[str, Tensor] = {}
    expected = net.state_dict()
    for name, value in state.items():
        own = f"sam.{name}" if name.startswith(SAM_PARTS) else own_name(name)
        if own is not None and own in expected:
            known[own] = value
        elif is_reference_name(name):
            unused[name] = value
        else:
            unexpected[name] = value
    faults = describe_mismatch(expected, {**known, **unexpected})
    if faults:
        raise UserError(
            f"the state dict of the reference implementation does not match this net: {faults}. "
            "Pass its net and backbone with --net and --sam.",
            code="checkpoint-misfit",
        )
    if net.ips is None and any(name.startswith("ips.") for name in map(own_name, unused) if name):
        log.warning("the file contains an IPS module, which this net does not use: it is ignored.")
    check_values(expected, known, origin="the state dict of the reference implementation")
    net.load_state_dict(known)
    net.reference_unused = unused


def to_reference_state(net: Promise) -> dict[str, Tensor]:
    """The net's full state dict under the names of the reference implementation.

    Entries that only the reference implementation has are included if :func:`load_reference_state` read them.
    """
    state = {}
    for name, value in net.state_dict().items():
        state[name.removeprefix("sam.") if name.startswith("sam.") else reference_name(name)] = value
    return {**state, **net.reference_unused}


def load_reference_file(
    path: Path, *, net_name: str | None, sam: str | None, precision: str
) -> tuple[Promise, Metadata]:
    """Rebuild the net of a file of the reference implementation; see :func:`promise.models.checkpoint.load`."""
    if path.name == "resume.pt":
        raise UserError(
            f"{path} is the training state for --resume. Use best.safetensors or last.safetensors in the same folder.",
            code="resume-state",
        )
    state = read_state_dict(path)
    if all(name.startswith(SAM_PARTS) for name in state):
        raise UserError(
            f"{path} holds weights of SAM and no learned parts. Pass it with --sam-checkpoint.",
            code="sam-weights-only",
        )
    if net_name is None:
        raise UserError(
            f"{path} does not contain the name of its net. Pass --net ({', '.join(NETS)}).", code="net-not-named"
        )
    spec, backbone = parse_net_name(net_name)
    points = _count_points(state)
    sam_name = sam or backbone or "vit_b"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the file contains SAM's weights
        net = build_net(spec.name, sam=sam_name, num_points=points, sam_checkpoint=None, precision=precision, seed=0)
    try:
        load_reference_state(net, state)
    except UserError as error:
        raise UserError(f"{path}: {error}", code=error.code) from error
    net.eval()
    metadata = Metadata(spec.name, sam_name, points, net.sam.weights_sha256(), sam_checkpoint=str(path))
    return net, metadata


def _count_points(state: Mapping[str, Tensor]) -> int:
    if "apm_resnet.fc.weight" in state:
        return state["apm_resnet.fc.weight"].shape[0] // 2
    if "apm_cross.query_feat.weight" in state:
        return state["apm_cross.query_feat.weight"].shape[0]
    return DEFAULT_POINTS
