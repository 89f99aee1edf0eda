"""The parts of a run from its configuration: net, optimiser, loss, loaders, metadata of the checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from accelerate import Accelerator

from promise.data.table import SplitTable
from promise.features.loader import CacheOptions, LoaderOptions
from promise.features.store import cache_folder
from promise.models.checkpoint import Metadata, load_initial, read_metadata
from promise.models.cpu import optimize_for_cpu
from promise.models.promise import Promise
from promise.models.prompters.lesions import check_settings
from promise.models.registry import NETS, build_net, change_lesions
from promise.models.sam.weights import weights_setting
from promise.models.token_shift import IncrementalPatternShifting
from promise.prompts.sampling import AUTO, GROUND_TRUTH, prompt_batch
from promise.runtime.reading import expand_home
from promise.training.build import LoaderBuilder, Stage, TrainerOptions, TrainingData
from promise.training.config import TrainConfig, parse_labels
from promise.training.feature_warp import warp_batch
from promise.training.losses import Criterion, get_loss
from promise.training.noisy_prompts import NoisyPromptNet, draw_noisy
from promise.training.optim import Schedule, build_optimizer, parse_schedule
from promise.training.prompt_loss import build_criterion
from promise.training.selection import Selection

log = logging.getLogger(__name__)


def net_of(config: TrainConfig) -> Promise:
    """The net, on the CPU; its learned parts are fresh, or those of ``init_from``."""
    net = build_net(
        config.net,
        sam=config.sam,
        num_points=config.num_points,
        point_labels=parse_labels(config.point_labels),
        sam_checkpoint=weights_setting(config.sam_checkpoint),
        freeze=config.freeze,
        precision=config.precision,
        seed=config.seed,
        pretrained=config.init_from is None or read_metadata(config.init_from).net != config.net,
    )
    if config.init_from is not None:
        load_initial(net, config.init_from, net_name=config.net)
    if NETS[config.net].two_stages and isinstance(net.ips, IncrementalPatternShifting):
        net.ips.zero_()  # the first stage trains and validates the map without a shift
    if config.lesion_settings is not None:
        change_lesions(net, check_settings(config.lesion_settings), net_name=config.net)
    net = optimize_for_cpu(net)
    net.sam.gradient_checkpointing = config.gradient_checkpointing
    return net


def optimizer_of(config: TrainConfig, net: Promise, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of the net's trainable parameters; ``device``: where the net will be trained."""
    return build_optimizer(
        config.optimizer,
        net.parameters(),
        slow=[] if net.apm is None else net.apm.slow_parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        fused=device.type in ("cpu", "cuda"),
    )


def schedule_of(config: TrainConfig, epochs: int) -> Schedule:
    """The learning rate of a stage as a function of time."""
    return parse_schedule(
        config.scheduler,
        lr=config.lr,
        epochs=epochs,
        min_lr=config.min_lr,
        cycle=config.restart_epochs,
        warmup=config.warmup_epochs,
    )


def criterion_of(config: TrainConfig) -> Criterion:
    """The loss of the net; of a net that trains in two stages, the sum of both, which validation computes."""
    return build_criterion(NETS[config.net], get_loss(config.loss), location_weight=config.prompt_loss)


def stages_of(config: TrainConfig) -> tuple[Stage, ...]:
    """The stages of training: one, or the map of lesions and then the token shift."""
    augment = warp_batch if config.feature_augment == "affine" else None
    first = Stage(config.epochs, schedule_of(config, config.epochs), augment=augment)
    if not NETS[config.net].two_stages:
        return (first,)
    assert config.seed is not None
    assert config.shift_epochs is not None
    both = criterion_of(config)
    return (
        dataclasses.replace(
            first, name="map of lesions", trains=("apm.", "sam."), criterion=Criterion(None, both.prompts)
        ),
        Stage(
            config.shift_epochs,
            schedule_of(config, config.shift_epochs),
            name="token shift",
            trains=("ips.",),
            criterion=Criterion(both.mask),
            draw_prompts=partial(draw_noisy, seed=config.seed),
            wrap=NoisyPromptNet,
        ),
    )


def options_of(config: TrainConfig) -> TrainerOptions:
    """How the trainer trains."""
    assert config.seed is not None
    return TrainerOptions(
        stages=stages_of(config),
        selection=Selection(config.select, config.early_stopping),
        seed=config.seed,
        clip_norm=config.clip_norm,
        ema=config.ema,
        validate_every=config.validate_every,
        save_every=config.save_every,
        skip_bad_batches=config.skip_bad_batches,
        quiet=config.quiet,
    )


def prompt_source_of(config: TrainConfig) -> str:
    """The prompts of training, a row of :data:`promise.prompts.sampling.SOURCES`."""
    return GROUND_TRUTH if NETS[config.net].prompts == "oracle" else AUTO


def data_of(config: TrainConfig, table: SplitTable, net: Promise, accelerator: Accelerator) -> TrainingData:
    """Loaders of the train and val rows; cached features are computed here."""
    assert config.seed is not None
    builder = LoaderBuilder(
        net,
        accelerator,
        LoaderOptions(
            config.batch_size,
            config.workers,
            shuffle=config.shuffle,
            drop_last=config.drop_last,
            pin_memory=config.pin_memory,
        ),
        CacheOptions(
            config.cache,
            cache_folder(config.cache_dir),
            config.cache_dtype,
            views=config.cache_views,
            memory=config.cache_memory,
            augment=config.feature_augment,
            workers=config.workers,
            batch_size=config.batch_size,
            quiet=config.quiet,
        ),
        recipe=config.augment,
        seed=config.seed,
    )
    return TrainingData(
        builder.train(table.split("train")),
        builder.val(table.split("val")),
        partial(prompt_batch, prompt_source_of(config), num_points=config.num_points, seed=config.seed),
    )


def metadata_of(config: TrainConfig, *, sam_sha256: str, seen: Mapping[str, Sequence[str]]) -> Metadata:
    """Metadata of the checkpoints, without epoch and metrics.

    Args:
        config: all settings.
        sam_sha256: SHA-256 of SAM's weights before training.
        seen: split → content hashes of its images.
    """
    assert config.sam is not None
    return Metadata(
        net=config.net,
        sam=config.sam,
        num_points=config.num_points,
        point_labels=parse_labels(config.point_labels),
        sam_sha256=sam_sha256,
        sam_checkpoint=_sam_origin(config.sam_checkpoint),
        freeze=config.freeze,
        seed=config.seed,
        config=dataclasses.asdict(config),
        seen=seen,
    )


def log_settings(config: TrainConfig, net: Promise, accelerator: Accelerator) -> None:
    """Log in one line what is about to be trained."""
    count = accelerator.num_processes
    log.info(
        "%s %s on %s, %s trainable parameters, %d process%s, %s, %s, seed %d → %s",
        "resuming" if config.resume else "training",
        config.net,
        config.sam,
        f"{sum(p.numel() for p in net.parameters() if p.requires_grad):,}",
        count,
        "es" if count > 1 else "",
        accelerator.device,
        config.precision,
        config.seed,
        config.output,
    )


def _sam_origin(sam_checkpoint: str | None) -> str:
    if sam_checkpoint in (None, "random"):
        return sam_checkpoint or "auto"
    path = expand_home(sam_checkpoint)
    return str(path.resolve()) if path.exists() else sam_checkpoint  # the name of a repository of a hub
