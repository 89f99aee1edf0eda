"""The largest batch that fits into the memory, by halving; found before the learning rates, which depend on it."""

from __future__ import annotations

import dataclasses
import gc
import logging
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from promise.models.promise import Promise
from promise.prompts.sampling import prompt_batch
from promise.runtime.errors import UserError
from promise.runtime.memory import explain_out_of_memory
from promise.training import from_config
from promise.training.config import TrainConfig
from promise.training.loop import DrawPrompts, predict
from promise.training.resume_state import generator_states, restore_generators
from promise.types import Batch

log = logging.getLogger(__name__)


def find_batch_size(config: TrainConfig, net: Promise, accelerator: Accelerator) -> TrainConfig:
    """Halve the batch size until a training step of every stage and a validation fit into the memory.

    Args:
        config: all settings.
        net: the net, which is moved to the device of the accelerator; otherwise it does not change.
        accelerator: devices and processes; all processes get the same batch size.

    Returns:
        The configuration with the batch size that fits.

    Raises:
        UserError: not even one image fits, code ``out-of-memory``.
    """
    while True:
        failed: UserError | None = None
        try:
            with explain_out_of_memory(config.batch_size):
                _rehearse(config, net.to(accelerator.device), accelerator.device)
        except UserError as error:
            if error.code != "out-of-memory":
                raise
            failed = error.with_traceback(None)
            failed.__cause__ = failed.__context__ = None  # their frames hold the memory
        if not accelerator.reduce(torch.tensor(float(failed is not None), device=accelerator.device)) > 0:
            log.info("--batch-size %d fits into the memory", config.batch_size)
            return config
        if config.batch_size == 1:
            raise failed or UserError("out of memory in another process.", code="out-of-memory")
        gc.collect()
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = config.batch_size // 2
        log.warning("out of memory with --batch-size %d; trying %d", config.batch_size, smaller)
        config = dataclasses.replace(config, batch_size=smaller)


def _rehearse(config: TrainConfig, net: Promise, device: torch.device) -> None:
    """Train and validate on a batch of artificial images in every stage, without other processes, and undo it."""
    side = net.sam.backbone.image_size
    mask = torch.zeros(config.batch_size, 1, side, side)
    mask[..., side // 4 : side // 2, side // 4 : side // 2] = 1
    names = tuple(f"rehearsal {i}" for i in range(config.batch_size))
    batch = Batch(torch.zeros(config.batch_size, 3, side, side), mask, names, torch.arange(config.batch_size))
    source = from_config.prompt_source_of(config)
    assert config.seed is not None
    draw: DrawPrompts = partial(prompt_batch, source, num_points=config.num_points, seed=config.seed, epoch=0)
    generators = generator_states(device)
    before = {name: value.clone() for name, value in net.learned_state().items()}
    learning = {parameter: parameter.requires_grad for parameter in net.parameters()}
    optimizer = from_config.optimizer_of(config, net, device)
    try:
        for stage in from_config.stages_of(config):
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(learning[parameter] and name.startswith(stage.trains))
            model: nn.Module = net if stage.wrap is None else stage.wrap(net)
            criterion = stage.criterion or from_config.criterion_of(config)
            model.train()
            prompts: DrawPrompts = draw if stage.draw_prompts is None else partial(stage.draw_prompts, epoch=1)
            prediction, moved = predict(model, batch, prompts, device, decode=criterion.decodes)
            torch.autograd.backward(criterion(prediction, moved).total)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del prediction, moved
            model.eval()
            with torch.inference_mode():
                predict(model, batch, draw, device)
    finally:
        for parameter, learns in learning.items():
            parameter.requires_grad_(learns)
            parameter.grad = None
        net.load_state_dict(before, strict=False)
        restore_generators(generators, device)
