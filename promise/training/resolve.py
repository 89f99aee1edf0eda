"""Complete a training configuration, and reject settings that cannot work before anything slow; writes nothing."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Collection
from functools import partial
from pathlib import Path

import torch

from promise.data.transforms.recipes import recipe_code
from promise.models.checkpoint import check_initial
from promise.models.prompters.base import fixed_labels
from promise.models.prompters.lesions import check_settings
from promise.models.registry import NetSpec, build_parts, net_without_lesions, parse_net_name, resolve_sam
from promise.models.sam.backbones import get_backbone
from promise.runtime.device import resolve_device, resolve_precision
from promise.runtime.errors import UserError, all_of
from promise.runtime.settings import freeze_code, read_yaml
from promise.training.config import TrainConfig, check_train, parse_labels
from promise.training.losses import bce, get_loss
from promise.training.optim import check_optimizer, parse_schedule
from promise.training.prompt_loss import build_criterion
from promise.training.run_folder import RunFolder
from promise.training.selection import check_score

# Settings that a resumed run may change: none of them alters the result, except for that of a run that diverged.
FREE_TO_CHANGE = (
    "workers",
    "pin_memory",
    "check",
    "resume",
    "overwrite",
    "quiet",
    "skip_bad_batches",
    "save_every",
    "tensorboard",
    "output",
    "cache_dir",
    "cache_memory",
)
PATHS = ("split_csv", "data_root", "sam_checkpoint", "init_from")  # may be edited in a run folder that was moved
SHIFT_EPOCHS = 2  # default of --shift-epochs, for nets that train in two stages


def resolve_config(
    config: TrainConfig, explicit: Collection[str] = (), *, extra_scores: Collection[str] = ()
) -> TrainConfig:
    """Complete a configuration: names in the spelling that is stored, backbone, precision, seed, output folder.

    Args:
        config: the settings. A resumed run takes its own from its folder.
        explicit: names of settings that the user set; a resumed run rejects those that differ from its own.
        extra_scores: names of validation scores that callbacks add.

    Raises:
        UserError: settings that cannot work, all in one error; for a resumed run, other settings than its own, code
            ``changed-settings``.
    """
    if config.resume:
        config = _resumed(config, explicit)
    all_of(
        partial(check_train, config),
        partial(_check_net, config),
        partial(freeze_code, config.freeze),
        partial(_check_points, config),
        partial(_check_prompt_loss, config),
        partial(_check_shift, config),
        partial(_check_lesions, config),
        partial(_check_initial, config),
        partial(_check_warp, config),
        partial(_check_names, config),
        partial(_check_device, config),
        partial(_check_select, config, extra_scores),
    )
    sam = resolve_sam(config.net, config.sam)  # a long spelling of the net names its backbone
    config = _with_stored_names(config)
    two_stages = parse_net_name(config.net)[0].two_stages
    return dataclasses.replace(
        config,
        sam=sam,
        shift_epochs=config.shift_epochs or (SHIFT_EPOCHS if two_stages else None),
        precision=resolve_precision(config.precision, resolve_device(config.device)),
        seed=random.SystemRandom().randrange(2**31) if config.seed is None else config.seed,
        output=config.output or f"runs/{config.net}-{sam}",
    )


def _check_net(config: TrainConfig) -> None:
    spec, _ = parse_net_name(config.net)
    if not spec.trainable:
        raise UserError(
            f"{spec.name} is for evaluation only: train {' or '.join(spec.learned_by) or 'another net'} and pass it to "
            "promise-eval.",
            code="not-trainable",
        )
    get_backbone(resolve_sam(config.net, config.sam))


def _known_net(config: TrainConfig) -> NetSpec | None:
    """The row of the net; ``None`` if its name is unknown, which :func:`_check_net` reports."""
    try:
        return parse_net_name(config.net)[0]
    except UserError:
        return None


def _check_points(config: TrainConfig) -> None:
    labels = fixed_labels(config.num_points, parse_labels(config.point_labels))
    spec = _known_net(config)
    if spec is not None and spec.trains_map and labels != fixed_labels(config.num_points):
        raise UserError(
            f"--point-labels has no effect on {spec.name}, which places its points on a map of lesions. Drop it.",
            code="point-labels",
        )


def _check_prompt_loss(config: TrainConfig) -> None:
    """Raise ``UserError`` (code ``no-point-prompter``) if there is nothing that the loss of the points could train."""
    if not config.prompt_loss > 0:
        return
    try:
        spec, _ = parse_net_name(config.net)
        backbone, labels = get_backbone(resolve_sam(config.net, config.sam)), parse_labels(config.point_labels)
        with torch.device("meta"):
            prompter, _ = build_parts(spec, backbone, num_points=config.num_points, point_labels=labels)
    except UserError:
        return  # reported by _check_net and _check_points
    if spec.prompts != "auto" or prompter is None or not prompter.regresses_points:
        raise UserError(
            f"--prompt-loss requires a net that predicts points, which {spec.name} does not. Drop --prompt-loss, or "
            "use another net, such as APM_IPS_resnet.",
            code="no-point-prompter",
        )


def _check_shift(config: TrainConfig) -> None:
    """Raise ``UserError`` (code ``no-second-stage``) if --shift-epochs is set for a net that trains in one stage."""
    spec = _known_net(config)
    if spec is not None and config.shift_epochs is not None and not spec.two_stages:
        raise UserError(
            f"--shift-epochs has no effect on {spec.name}, which trains in one stage. Drop it, or use a net with a map "
            "of lesions and a token shift, such as APM_IPS_dense.",
            code="no-second-stage",
        )


def _check_warp(config: TrainConfig) -> None:
    """Raise ``UserError`` (code ``feature-augment-without-map``) if features are to be warped for another net."""
    spec = _known_net(config)
    if spec is not None and config.feature_augment == "affine" and not spec.trains_map:
        raise UserError(
            f"--feature-augment affine is for nets that predict a map of lesions, such as APM_dense; {spec.name} does "
            "not. Use symmetries.",
            code="feature-augment-without-map",
        )


def _check_lesions(config: TrainConfig) -> None:
    values = check_settings(config.lesion_settings)
    spec = _known_net(config)
    if spec is not None and values and not spec.trains_map:
        raise net_without_lesions(spec.name, values)


def _check_initial(config: TrainConfig) -> None:
    spec = _known_net(config)
    if config.init_from is not None and spec is not None:
        check_initial(config.init_from, net_name=spec.name, sam=resolve_sam(config.net, config.sam))


def _check_names(config: TrainConfig) -> None:
    all_of(
        partial(get_loss, config.loss),
        partial(check_optimizer, config.optimizer),
        partial(parse_schedule, config.scheduler, lr=config.lr, epochs=config.epochs),
        partial(recipe_code, config.augment),
    )


def _check_device(config: TrainConfig) -> None:
    resolve_precision(config.precision, resolve_device(config.device))


def _check_select(config: TrainConfig, extra_scores: Collection[str]) -> None:
    spec = _known_net(config)
    if spec is None:
        return
    # The names do not depend on the loss of the mask.
    losses = build_criterion(spec, bce, location_weight=config.prompt_loss).names
    check_score(config.select, ("iou", "dice", *losses, *extra_scores))


def _with_stored_names(config: TrainConfig) -> TrainConfig:
    """The configuration with the names that run folders, checkpoints and caches store."""
    return dataclasses.replace(
        config,
        net=parse_net_name(config.net)[0].name,
        freeze=freeze_code(config.freeze),
        augment=recipe_code(config.augment),
    )


def _resumed(config: TrainConfig, explicit: Collection[str]) -> TrainConfig:
    if config.output is None:
        spec, _ = parse_net_name(config.net)
        config = dataclasses.replace(config, output=f"runs/{spec.name}-{resolve_sam(config.net, config.sam)}")
    folder = RunFolder(Path(config.output or ""))
    folder.check(resume=True, overwrite=False)
    before = _with_stored_names(_read_settings(folder))
    config, defaults = _with_stored_names(config), _with_stored_names(TrainConfig())
    kept = {name: getattr(config, name) for name in FREE_TO_CHANGE}
    changed = [
        f"--{name.replace('_', '-')} is {getattr(config, name)} now and was {getattr(before, name)}"
        for name in (field.name for field in dataclasses.fields(config))
        if name not in FREE_TO_CHANGE
        and not (name == "batch_size" and before.auto_batch_size)  # found by the run
        and (name in explicit or getattr(config, name) != getattr(defaults, name))
        and getattr(config, name) != getattr(before, name)
    ]
    if changed:
        raise UserError(
            f"cannot resume {folder.path} with other settings: {'; '.join(changed)}. Drop them, or start a new run "
            "with another --output.",
            code="changed-settings",
        )
    return dataclasses.replace(before, **kept)


def _read_settings(folder: RunFolder) -> TrainConfig:
    """The settings of a run that is resumed, from its config.yaml, if they are those that its state was saved with."""
    saved, advice = folder.load_settings(), "Restore this file, or start again with --overwrite."
    try:
        config = TrainConfig(**read_yaml(folder.config, TrainConfig))
    except UserError as error:
        raise UserError(f"{error} {advice}", code=error.code, errors=error.errors) from error
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = [
        f"{name} is {now[name]} and was {saved[name]}"
        for name in now
        if name in saved and now[name] != saved[name] and name not in (*FREE_TO_CHANGE, *PATHS)
    ]
    if changed:
        raise UserError(
            f"{folder.config} has other settings than those that the run was started with: {'; '.join(changed)}. "
            f"{advice}",
            code="changed-settings",
        )
    return config
