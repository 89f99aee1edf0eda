"""What a run leaves behind: learned state in safetensors, and the original's key names in and out; knows no commands.

A checkpoint is what was learned plus how to build it again: net, backbone, SAM's SHA-256, configuration and
metrics stand in the file's metadata as JSON.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from promise.models.promise import Promise
from promise.models.reference_names import is_reference_name, own_name, reference_name
from promise.models.registry import DEFAULT_POINTS, NETS, NetSpec, build_net, parse_net_name
from promise.models.sam.weights import read_state_dict, weights_setting
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.files import atomic_path

log = logging.getLogger(__name__)

FORMAT = "promise-sam/1"
SAM_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


@dataclass(frozen=True)
class Metadata:
    """How to build a checkpoint's net again, and what it is worth."""

    net: str
    sam: str
    num_points: int
    sam_sha256: str  # of the base SAM's weights before training
    point_labels: tuple[int, ...] | None = None
    freeze: str = "FZ0"
    seed: int | None = None
    epoch: int | None = None
    sam_checkpoint: str = "auto"  # "auto", "random", or the name of the file
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    # split → content hashes of its images; "tune": those that the postprocessing was chosen on
    seen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    postprocess: str | None = None  # chosen by promise-eval --tune-postprocess
    tuning: Mapping[str, Any] = field(default_factory=dict)  # how it was chosen


def save(net: Promise, path: Path, metadata: Metadata) -> None:
    """Write the learned parts, all or nothing: a kill leaves the file that was there before."""
    _write({name: value.detach().cpu().contiguous() for name, value in net.learned_state().items()}, path, metadata)


def rewrite_metadata(path: Path, metadata: Metadata) -> None:
    """Give a checkpoint other metadata, all or nothing; its weights keep every bit."""
    _write(safetensors.torch.load(path.read_bytes()), path, metadata)


def _write(state: dict[str, Tensor], path: Path, metadata: Metadata) -> None:
    labels = {"format": FORMAT, "promise": json.dumps(vars(metadata), sort_keys=True, default=str)}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata=labels)


def require(path: Path | str) -> None:
    """Raise ``MissingFileError`` where there is no such file; opens nothing."""
    if not Path(path).is_file():
        raise MissingFileError(f"no checkpoint at {path}. Is the path right?", code="missing-checkpoint")


def read_metadata(path: Path) -> Metadata:
    """The metadata of a checkpoint.

    Raises:
        MissingFileError: no such file.
        UserError: not a checkpoint of this package.
    """
    require(path)
    try:
        with safe_open(path, framework="pt") as stream:
            labels = stream.metadata() or {}
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}). Was its writing cut off?",
            code="unreadable-checkpoint",
        ) from error
    if labels.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of this package (format {labels.get('format')!r}, not {FORMAT!r}).",
            code="not-a-checkpoint",
        )
    values = json.loads(labels["promise"])
    if values["point_labels"] is not None:
        values["point_labels"] = tuple(values["point_labels"])
    return Metadata(**values)


def load(
    path: Path | str,
    *,
    net_name: str | None = None,
    sam: str | None = None,
    sam_checkpoint: Path | str | None = None,
    precision: str = "fp32",
) -> tuple[Promise, Metadata]:
    """Build the net of a checkpoint again, on its own SAM, and load what was learned, strictly.

    Args:
        path: a ``.safetensors`` checkpoint of ours, or a ``.pt``/``.pth`` file of the original's.
        net_name: another net that uses (part of) the same learned state, such as ``APM_IPS_GT_resnet`` from an
            ``APM_IPS_resnet`` checkpoint; required for the original's files, which do not name their net.
        sam: the backbone of an original file (default ``vit_b``); ours name their own.
        sam_checkpoint: SAM's weight file where it is not the published one.
        precision: see :func:`promise.models.registry.build_net`.

    Raises:
        UserError: a file that cannot be read, of another net, or trained on another SAM.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return _load_original(path, net_name, sam, precision)
    metadata = read_metadata(path)
    if sam is not None and sam != metadata.sam:
        raise UserError(
            f"{path} was trained on {metadata.sam}, but --sam says {sam}: drop --sam.", code="another-backbone"
        )
    wanted = _wanted_net(path, metadata, net_name)
    net = build_net(
        wanted.name,
        sam=metadata.sam,
        num_points=metadata.num_points,
        point_labels=metadata.point_labels,
        sam_checkpoint=sam_checkpoint or _sam_source(metadata),
        freeze=metadata.freeze,
        precision=precision,
        seed=0,
    )
    found = net.sam.weights_sha256()
    if found != metadata.sam_sha256:
        raise UserError(
            f"{path} was trained on another {metadata.sam}: its SAM has SHA-256 {metadata.sam_sha256[:12]}…, this "
            f"one {found[:12]}…. Pass the SAM it was trained on with --sam-checkpoint.",
            code="another-sam",
        )
    load_learned(net, safetensors.torch.load_file(path), origin=f"{path} (net {metadata.net})", target=wanted.name)
    net.eval()
    return net, metadata


def _wanted_net(path: Path, metadata: Metadata, net_name: str | None) -> NetSpec:
    """The net to build: the checkpoint's own, or one that takes its token shift from it."""
    if net_name is None:
        return NETS[metadata.net]
    wanted, spelt = parse_net_name(net_name)
    if spelt is not None and not metadata.sam.endswith(spelt):
        raise UserError(
            f"{path} was trained on {metadata.sam}, but --net {net_name} names {spelt}: use its short name.",
            code="another-backbone",
        )
    if wanted.name != metadata.net and metadata.net not in wanted.learned_by:
        takers = [spec.name for spec in NETS.values() if metadata.net in spec.learned_by]
        other = f", or use {' or '.join(takers)} for ground-truth points" if takers else ""
        raise UserError(
            f"{path} was trained as {metadata.net}, not {wanted.name}: drop --net{other}.", code="another-net"
        )
    return wanted


def _sam_source(metadata: Metadata) -> Path | str | None:
    """Where to look for the base SAM: the file of the training, if it is here, else the published weights."""
    here = metadata.sam_checkpoint == "random" or Path(metadata.sam_checkpoint).exists()
    return weights_setting(metadata.sam_checkpoint if here else None)


def load_learned(net: Promise, state: dict[str, Tensor], *, origin: str, target: str) -> None:
    """Load learned parts strictly; parts that the net has no use for (APM in a GT net) are left aside.

    Raises:
        UserError: entries missing, unknown or of another shape, as one readable report.
    """
    if net.apm is None:
        state = {name: value for name, value in state.items() if not name.startswith("apm.")}
    wanted = net.learned_state()
    faults = _misfits(wanted, state)
    if faults:
        raise UserError(
            f"{origin} does not fit the net {target}: {faults}. Is --net the net it was trained as?",
            code="checkpoint-misfit",
        )
    net.load_state_dict(state, strict=False)


def _misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    groups = {
        "missing": [k for k in wanted if k not in found],
        "unknown": [k for k in found if k not in wanted],
        "of another shape": [k for k in wanted if k in found and wanted[k].shape != found[k].shape],
    }
    return "; ".join(
        f"{len(keys)} of {len(wanted)} entries {what}: {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}"
        for what, keys in groups.items()
        if keys
    )


def load_reference_state(net: Promise, state_dict: Mapping[str, Tensor]) -> None:
    """Load the original's full state dict, strictly, old key names too.

    ``module.`` prefixes and ``{"state_dict": …}`` are unwrapped. Entries that the original holds but this net has
    no use for (its second linear head, ``norm2``, the prompter of an APM_IPS checkpoint in a GT net) are kept
    aside, so that :func:`to_reference_state` gives them back unchanged.

    Raises:
        UserError: entries missing, unknown or of another shape, as one readable report.
    """
    inner = state_dict.get("state_dict", state_dict)
    assert isinstance(inner, Mapping)
    state = {name.removeprefix("module."): value for name, value in inner.items()}
    ours: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    strangers = {}
    wanted = net.state_dict()
    for name, value in state.items():
        own = f"sam.{name}" if name.startswith(SAM_PARTS) else own_name(name)
        if own is not None and own in wanted:
            ours[own] = value
        elif is_reference_name(name):
            unused[name] = value
        else:
            strangers[name] = value
    faults = _misfits(wanted, {**ours, **strangers})
    if faults:
        raise UserError(
            f"the original's state dict does not fit this net: {faults}. Is it the right net and backbone?",
            code="checkpoint-misfit",
        )
    if net.ips is None and any(name.startswith("ips.") for name in map(own_name, unused) if name):
        log.warning("the original's file holds an IPS, which this net has not: it is left aside.")
    net.load_state_dict(ours)
    net.reference_unused = unused


def to_reference_state(net: Promise) -> dict[str, Tensor]:
    """The net's full state dict under the original's names.

    Entries that only the original has are those that were loaded, or absent where none were.
    """
    state = {}
    for name, value in net.state_dict().items():
        state[name.removeprefix("sam.") if name.startswith("sam.") else reference_name(name)] = value
    return {**state, **net.reference_unused}


def _load_original(path: Path, net_name: str | None, sam: str | None, precision: str) -> tuple[Promise, Metadata]:
    if path.is_dir():
        best = path / "best.safetensors"
        hint = f" Did you mean {best}?" if best.is_file() else ""
        raise UserError(f"{path} is a folder, not a checkpoint.{hint}", code="is-a-folder")
    if path.name == "resume.pt":
        raise UserError(
            f"{path} is what --resume starts from; evaluate best.safetensors or last.safetensors beside it.",
            code="resume-state",
        )
    state = read_state_dict(path)
    if all(name.startswith(SAM_PARTS) for name in state):
        raise UserError(
            f"{path} holds SAM's own weights and no learned parts: pass it with --sam-checkpoint.",
            code="sam-weights-only",
        )
    if net_name is None:
        raise UserError(
            f"{path} does not say which net it holds: name it with --net ({', '.join(NETS)}).", code="net-not-named"
        )
    spec, spelt = parse_net_name(net_name)
    points = _count_points(state)
    sam_name = sam or spelt or "vit_b"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the file brings SAM's weights with it
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
