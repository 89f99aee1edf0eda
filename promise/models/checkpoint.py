"""Saving and loading of checkpoints.

A checkpoint is a safetensors file of the learned parameters and buffers. Its metadata, a JSON object, holds what is
needed to rebuild the net (name, backbone, SHA-256 of SAM's weights), the configuration and the metrics.
"""

from __future__ import annotations

import json
import math
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
from promise.models.reference_files import load_reference_file, load_reference_state, to_reference_state
from promise.models.registry import NETS, NetSpec, build_net, parse_net_name
from promise.models.sam.backbones import get_backbone
from promise.models.sam.weights import weights_setting
from promise.models.state_dicts import load_learned
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
    "load_reference_state",
    "read_metadata",
    "require",
    "rewrite_metadata",
    "save",
    "to_reference_state",
]

FORMAT = "promise-sam/1"


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
        return load_reference_file(path, net_name=net_name, sam=sam, precision=precision)
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
    if metadata.net != net_name and metadata.net not in NETS[net_name].head_parts:
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

    If the net of the checkpoint is a part of this one (``APM_dense`` of ``APM_hybrid``), the other parts stay.

    Raises:
        UserError: the checkpoint was trained on other weights of SAM (``another-sam``); or as :func:`load_learned`.
    """
    path, metadata = require(ckpt), read_metadata(ckpt)
    _check_same_weights(path, metadata, net)
    state = _read_state(path)
    part = NETS[net_name].head_parts.get(metadata.net)
    if part is not None:
        inner = f"apm.head.{part}."
        others = {name: value for name, value in net.learned_state().items() if not name.startswith(inner)}
        state = others | {inner + name.removeprefix("apm.head."): value for name, value in state.items()}
    load_learned(net, state, origin=f"{path} (net {metadata.net})", target=net_name)


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
