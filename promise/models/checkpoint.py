"""Saving and loading of checkpoints, and conversion from and to state dicts of the reference implementation.

A checkpoint is a safetensors file of the learned parameters and buffers. Its metadata, a JSON object, holds what is
needed to rebuild the net (name, backbone, SHA-256 of SAM's weights), the configuration and the metrics.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from promise.models.bundled import checkpoint_path, read_cards
from promise.models.metadata import Metadata, has_type, parse_metadata
from promise.models.promise import Promise
from promise.models.prompters.lesions import LesionSettings, change_settings
from promise.models.quality import FEATURES, QualityEstimate
from promise.models.reference_names import is_reference_name, own_name, reference_name
from promise.models.registry import DEFAULT_POINTS, NETS, NetSpec, build_net, parse_net_name
from promise.models.sam.backbones import get_backbone
from promise.models.sam.weights import check_values, read_state_dict, weights_setting
from promise.runtime.errors import MissingFileError, UserError, unknown_name
from promise.runtime.files import atomic_path
from promise.runtime.reading import as_path, require_file

__all__ = [
    "Metadata",
    "check_initial",
    "find",
    "is_readable",
    "load",
    "load_initial",
    "load_learned",
    "load_reference_state",
    "read_metadata",
    "require",
    "rewrite_metadata",
    "save",
    "to_reference_state",
]

log = logging.getLogger(__name__)

FORMAT = "promise-sam/1"
SAM_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def save(net: Promise, path: Path, metadata: Metadata) -> None:
    """Write the learned parts atomically: if the process is interrupted, an existing file stays unchanged.

    The net's lesion settings and its estimate of quality are stored in its metadata.
    """
    lesions, quality = (None if one is None else asdict(one) for one in (net.lesions, net.quality))
    metadata = replace(metadata, lesions=lesions, quality=quality)
    _write({name: value.detach().cpu().contiguous() for name, value in net.learned_state().items()}, path, metadata)


def rewrite_metadata(path: Path, metadata: Metadata) -> None:
    """Replace the metadata of a checkpoint atomically; the weights stay bit-identical."""
    _write(safetensors.torch.load(path.read_bytes()), path, metadata)


def _write(state: dict[str, Tensor], path: Path, metadata: Metadata) -> None:
    values = dict(vars(metadata))
    for name in ("lesions", "quality"):
        if values[name] is None:  # earlier versions, which do not know the key, can then read the file
            del values[name]
    header = {"format": FORMAT, "promise": json.dumps(values, sort_keys=True, default=str)}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata=header)


def find(ckpt: Path | str) -> Path:
    """The path of a checkpoint: ``ckpt`` itself, or the file of the bundled checkpoint of this name.

    A name has neither folder nor extension. A file of that name takes precedence. A path may not exist.

    Raises:
        UserError: no path (``not-a-path``), and the errors of :func:`promise.models.bundled.checkpoint_path`.
    """
    path = as_path(ckpt, "the checkpoint")
    is_name = path.name == str(ckpt) and not path.suffix and not path.is_file()
    if is_name and (not path.is_dir() or path.name in read_cards()):
        return checkpoint_path(path.name)
    return path


def require(ckpt: Path | str) -> Path:
    """:func:`find` a checkpoint, and check that it exists and is a regular file; it is not opened.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the path is a folder, such as a run folder (``is-a-folder``), or as :func:`find` and
            :func:`promise.runtime.reading.require_file`.
    """
    path = find(ckpt)
    if path.is_dir():
        best = path / "best.safetensors"
        hint = f"Did you mean {best}?" if best.is_file() else "Name a file, such as best.safetensors of a run folder."
        raise UserError(f"{path} is a folder, not a checkpoint. {hint}", code="is-a-folder")
    require_file(path, MissingFileError(f"no checkpoint at {path}. Is the path right?", code="missing-checkpoint"))
    return path


def read_metadata(ckpt: Path | str) -> Metadata:
    """Read the metadata of a checkpoint.

    Args:
        ckpt: path of the file, or name of a bundled checkpoint.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is damaged, is not a checkpoint of this package, or its metadata are invalid
            (``invalid-metadata``).
    """
    path = require(ckpt)
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of this package (format {header.get('format')!r}, not {FORMAT!r}).",
            code="not-a-checkpoint",
        )
    return parse_metadata(path, header.get("promise", ""))


def is_readable(path: Path) -> bool:
    """Whether a file is a complete checkpoint; its weights are not read."""
    try:
        read_metadata(path)
    except UserError:
        return False
    return True


def _unreadable(path: Path | str, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a readable safetensors file ({error}). It may be truncated.", code="unreadable-checkpoint"
    )


def load(
    path: Path | str,
    *,
    net_name: str | None = None,
    sam: str | None = None,
    sam_checkpoint: Path | str | None = None,
    precision: str = "fp32",
) -> tuple[Promise, Metadata]:
    """Rebuild the net of a checkpoint on the SAM it was trained on, and load the learned parts strictly.

    Args:
        path: a ``.safetensors`` checkpoint, or a ``.pt``/``.pth`` file of the reference implementation; or the name of
            a bundled checkpoint.
        net_name: another net that uses (part of) the same learned parts, such as ``APM_IPS_GT_resnet`` for an
            ``APM_IPS_resnet`` checkpoint. Required for files of the reference implementation, which do not contain
            the name of the net.
        sam: the backbone of a file of the reference implementation (default ``vit_b``); checkpoints contain its name.
        sam_checkpoint: SAM's weight file if it is not the published one.
        precision: see :func:`promise.models.registry.build_net`.

    Returns:
        The net in evaluation mode, on the CPU, and the metadata of the checkpoint.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file cannot be read, holds another net or invalid settings, or was trained on another SAM.
    """
    path = require(path)
    if path.suffix != ".safetensors":
        return _load_reference_file(path, net_name, sam, precision)
    metadata = read_metadata(path)
    if sam is not None and sam != metadata.sam:
        raise UserError(
            f"{path} was trained on {metadata.sam}, but --sam is {sam}. Drop --sam.", code="another-backbone"
        )
    spec = _select_net(path, metadata, net_name)
    try:
        get_backbone(metadata.sam)
    except UserError as error:
        raise UserError(f"{path}: {error}", code=error.code) from error
    net = build_net(
        spec.name,
        sam=metadata.sam,
        num_points=metadata.num_points,
        point_labels=metadata.point_labels,
        sam_checkpoint=sam_checkpoint or _sam_source(metadata),
        freeze=metadata.freeze,
        precision=precision,
        seed=0,
        pretrained=False,
    )
    _check_same_weights(path, metadata, net)
    if net.apm is not None and net.apm.lesions is not None:
        if metadata.lesions is not None:
            net.apm.lesions = _lesion_settings(path, metadata.lesions)
        if metadata.quality is not None:
            net.quality = _quality_estimate(path, metadata.quality)
    load_learned(net, _read_state(path), origin=f"{path} (net {metadata.net})", target=spec.name)
    net.eval()
    return net, metadata


def check_initial(ckpt: Path | str, *, net_name: str, sam: str) -> None:
    """Check the metadata of a checkpoint that a training is to start from.

    Raises:
        UserError: it holds another net (``another-net``) or was trained on another backbone (``another-backbone``); or
            as :func:`read_metadata`.
    """
    metadata = read_metadata(ckpt)
    if metadata.net != net_name:
        raise UserError(
            f"--init-from {ckpt} holds the net {metadata.net}, not {net_name}. Pass --net {metadata.net}, or drop "
            "--init-from.",
            code="another-net",
        )
    if metadata.sam != sam:
        raise UserError(
            f"--init-from {ckpt} was trained on {metadata.sam}, not on {sam}. Pass --sam {metadata.sam}, or drop "
            "--init-from.",
            code="another-backbone",
        )


def load_initial(net: Promise, ckpt: Path | str, *, net_name: str) -> None:
    """Load the learned parts of a checkpoint into a net that is to be trained further; its settings stay.

    Raises:
        UserError: the checkpoint was trained on other weights of SAM (``another-sam``); or as :func:`load_learned`.
    """
    path, metadata = require(ckpt), read_metadata(ckpt)
    _check_same_weights(path, metadata, net)
    load_learned(net, _read_state(path), origin=f"{path} (net {metadata.net})", target=net_name)


def _check_same_weights(path: Path, metadata: Metadata, net: Promise) -> None:
    found = net.sam.weights_sha256()
    if found != metadata.sam_sha256:
        raise UserError(
            f"{path} was trained with other weights of {metadata.sam}: their SHA-256 is {metadata.sam_sha256[:12]}…, "
            f"that of the loaded weights is {found[:12]}…. Pass the weights used in training with --sam-checkpoint.",
            code="another-sam",
        )


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # data types that torch does not have
        raise _unreadable(path, error) from error


def _lesion_settings(path: Path, values: Mapping[str, Any]) -> LesionSettings:
    """The settings in a checkpoint; those that it does not contain keep their defaults."""
    try:
        return change_settings(LesionSettings(), values)
    except UserError as error:
        text = f"{path}: {str(error).rstrip('.')}. The checkpoint may be of a later version of this package."
        raise UserError(text, code=error.code) from error


def _quality_estimate(path: Path, values: Mapping[str, Any]) -> QualityEstimate:
    known = {one.name for one in fields(QualityEstimate)}
    weights = values.get("weights")
    if (
        values.keys() != known
        or not isinstance(weights, Mapping)
        or weights.keys() != set(FEATURES)
        or not all(has_type(one, float) and abs(one) < math.inf for one in (values["intercept"], *weights.values()))
    ):
        raise UserError(
            f"{path} contains an estimate of quality that this version cannot compute. It may be of a later version of "
            "this package.",
            code="unknown-quality-estimate",
        )
    return QualityEstimate(**values)


def _select_net(path: Path, metadata: Metadata, net_name: str | None) -> NetSpec:
    """The net to build: that of the checkpoint, or one that takes its token shift from the checkpoint."""
    if net_name is None:
        if metadata.net not in NETS:
            error = unknown_name("net", metadata.net, NETS)
            raise UserError(f"{path}: {error} Was it written by a later version of this package?", code=error.code)
        return NETS[metadata.net]
    requested, backbone = parse_net_name(net_name)
    if backbone is not None and not metadata.sam.endswith(backbone):
        raise UserError(
            f"{path} was trained on {metadata.sam}, but --net {net_name} names the backbone {backbone}. "
            f"Use --net {requested.name}.",
            code="another-backbone",
        )
    if requested.name != metadata.net and metadata.net not in requested.learned_by:
        compatible = [spec.name for spec in NETS.values() if metadata.net in spec.learned_by]
        other = f", or pass --net {' or '.join(compatible)} for ground-truth points" if compatible else ""
        raise UserError(
            f"{path} holds the net {metadata.net}, not {requested.name}. Drop --net{other}.", code="another-net"
        )
    return requested


def _sam_source(metadata: Metadata) -> Path | str | None:
    """The base SAM's weights: the file used in training if it exists on this machine, else the published weights."""
    available = metadata.sam_checkpoint == "random" or Path(metadata.sam_checkpoint).exists()
    return weights_setting(metadata.sam_checkpoint if available else None)


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
    faults = _describe_mismatch(net.learned_state(), state)
    if faults:
        raise UserError(
            f"{origin} does not match the net {target}: {faults}. Pass the net that was trained with --net.",
            code="checkpoint-misfit",
        )
    check_values(net.learned_state(), state, origin=origin)
    net.load_state_dict(state, strict=False)


def _describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
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
    faults = _describe_mismatch(expected, {**known, **unexpected})
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


def _load_reference_file(path: Path, net_name: str | None, sam: str | None, precision: str) -> tuple[Promise, Metadata]:
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
