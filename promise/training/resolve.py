"""What a training configuration leaves open is settled, and what cannot work refused, before anything slow.

Knows no loop and writes nothing.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection
from pathlib import Path

from promise.data.transforms.recipes import build_transform
from promise.models.prompters.base import fixed_labels
from promise.models.registry import parse_net_name, resolve_sam
from promise.models.sam.backbones import get_backbone
from promise.runtime.device import resolve_device, resolve_precision
from promise.runtime.errors import UserError
from promise.runtime.settings import read_yaml
from promise.training.config import TrainConfig, check_train, parse_labels
from promise.training.losses import get_loss
from promise.training.optim import check_optimizer, parse_schedule
from promise.training.run_folder import RunFolder

# What a resumed run may change: none of it alters the result.
FREE_TO_CHANGE = (
    "workers",
    "pin_memory",
    "check",
    "resume",
    "overwrite",
    "quiet",
    "tensorboard",
    "output",
    "cache_dir",
)


def resolve_config(config: TrainConfig, given: Collection[str] = ()) -> TrainConfig:
    """Fill in what a configuration leaves open, and refuse what cannot work, before anything slow.

    Names, seed, precision, device and folder are settled; a resumed run takes its settings from its folder, and
    refuses those among ``given`` that differ.
    """
    if config.resume:
        config = _resumed(config, given)
    faults: list[str] = []
    for check in (check_train, _check_net, _check_points, _check_names, _check_device):
        try:
            check(config)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n  ".join(faults))
    spec, _ = parse_net_name(config.net)
    sam = resolve_sam(config.net, config.sam)
    precision = resolve_precision(config.precision, resolve_device(config.device))
    return dataclasses.replace(
        config,
        net=spec.name,
        sam=sam,
        precision=precision,
        seed=random.SystemRandom().randrange(2**31) if config.seed is None else config.seed,
        output=config.output or f"runs/{spec.name}-{sam}",
    )


def _check_net(config: TrainConfig) -> None:
    spec, _ = parse_net_name(config.net)
    if not spec.trainable:
        raise UserError(
            f"{spec.name} is for evaluation only: train {' or '.join(spec.learned_by) or 'another net'} and pass it to "
            "promise-eval."
        )
    get_backbone(resolve_sam(config.net, config.sam))


def _check_points(config: TrainConfig) -> None:
    fixed_labels(config.num_points, parse_labels(config.point_labels))


def _check_names(config: TrainConfig) -> None:
    get_loss(config.loss)
    check_optimizer(config.optimizer)
    parse_schedule(config.scheduler, lr=config.lr, epochs=config.epochs)
    build_transform(config.augment, image_size=64, pixels="imagenet")


def _check_device(config: TrainConfig) -> None:
    resolve_precision(config.precision, resolve_device(config.device))


def _resumed(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    if config.output is None:
        spec, _ = parse_net_name(config.net)
        config = dataclasses.replace(config, output=f"runs/{spec.name}-{resolve_sam(config.net, config.sam)}")
    folder = RunFolder(Path(config.output or ""))
    folder.check(resume=True, overwrite=False)
    then = TrainConfig(**read_yaml(folder.config, TrainConfig))
    config = dataclasses.replace(config, net=parse_net_name(config.net)[0].name)
    kept = {name: getattr(config, name) for name in FREE_TO_CHANGE}
    changed = [
        f"--{f.name.replace('_', '-')} is {getattr(config, f.name)} now and was {getattr(then, f.name)}"
        for f in dataclasses.fields(config)
        if f.name not in FREE_TO_CHANGE
        and (f.name in given or getattr(config, f.name) != f.default)
        and getattr(config, f.name) != getattr(then, f.name)
    ]
    if changed:
        raise UserError(
            f"cannot resume {folder.path} with other settings: {'; '.join(changed)}. Drop them, or start a new run "
            "with another --output."
        )
    return dataclasses.replace(then, **kept)
