"""The adapter of ``SamModel`` of Hugging Face ``transformers``: the only file that uses attributes of its classes.

``transformers`` (extra ``[hf]``) is imported on first use. Weights are read from safetensors files only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from promise.models.sam.adapter import Adapter, Maps, Run, normalise_channels, run_block
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.reading import expand_home, parse_json

FILES = "model*.safetensors"
# In transformers two modules share the frequencies of the positional encoding; here only the prompt encoder has them.
_SHARED, _OWN = "shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Description:
    """The sizes of a model, from its ``config.json``."""

    config: Any  # transformers.SamConfig
    image_size: int  # S, pixels
    embedding_side: int  # E
    embedding_channels: int  # C
    width: int  # channels of the encoder's blocks
    global_blocks: tuple[int, ...]  # blocks with global attention, counted from 1


def build_from_sizes(*, width: int, blocks: int, heads: int, global_blocks: tuple[int, ...]) -> nn.Module:
    """Build a SAM of Meta's design with random weights.

    Args:
        width: channels of the encoder's blocks.
        blocks: number of blocks.
        heads: attention heads per block.
        global_blocks: blocks with global attention, counted from 1.

    Raises:
        MissingFileError: the extra ``[hf]`` is not installed (code ``missing-extra``).
    """
    vision = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "global_attn_indexes": [block - 1 for block in global_blocks],
    }
    return build_from_config(_transformers().SamConfig(vision_config=vision))


def build_from_config(config: Any) -> nn.Module:
    """Build the SAM of a ``SamConfig`` with random weights; its parts have the names that this package uses."""
    model = _transformers().SamModel(config)
    # A buffer, as in segment_anything: the frequencies do not change when the prompt encoder is trained.
    shared = model.prompt_encoder.shared_embedding
    frequencies = shared.positional_embedding.detach().clone()
    del shared.positional_embedding
    shared.register_buffer("positional_embedding", frequencies)
    sam = nn.Module()
    sam.image_encoder = model.vision_encoder
    sam.prompt_encoder = model.prompt_encoder
    sam.mask_decoder = model.mask_decoder
    return sam


def describe(source: Path | str) -> Description:
    """Read the ``config.json`` of a folder or of a model on the hub.

    Raises:
        MissingFileError: the extra ``[hf]``, the folder or its ``config.json`` is missing.
        UserError: the configuration is not that of a SAM that this adapter supports (code ``unsupported-config``).
    """
    path = expand_home(source)
    file = (path if path.is_dir() else _folder_of_hub(source)) / "config.json"
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist: {file.parent} is not a model folder of transformers.")
    config = _transformers().SamConfig
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
        kind = values.get("model_type")
        config = config.from_dict(values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as a configuration: {error}", code="unsupported-config") from error
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    faults = [
        fault
        for fault, present in (
            (f"model_type is {kind!r}, not 'sam'", kind != "sam"),
            (f"image_size is {vision.image_size!r}, not a number", not isinstance(vision.image_size, int)),
            ("encoder and prompt encoder differ in image_size", vision.image_size != prompt.image_size),
            (f"{decoder.num_multimask_outputs} multimask outputs, not 3", decoder.num_multimask_outputs != 3),
        )
        if present
    ]
    if faults:
        raise UserError(f"{file} is not supported: {'; '.join(faults)}.", code="unsupported-config")
    return Description(
        config,
        image_size=vision.image_size,
        embedding_side=vision.image_size // vision.patch_size,
        embedding_channels=vision.output_channels,
        width=vision.hidden_size,
        global_blocks=tuple(sorted(index + 1 for index in vision.global_attn_indexes)),
    )


def encode_hugging_face(encoder: Any, image: Tensor, taps: tuple[int, ...], run: Run = run_block) -> Maps:
    """Run ``SamVisionEncoder`` block by block.

    Args:
        encoder: the image encoder.
        image: (B, 3, S, S) float.
        taps: blocks whose outputs are returned, counted from 1.
        run: runs a block.

    Returns:
        The embedding (B, C, E, E) after the neck, and the taps (B, C_i, E, E) before it.
    """
    x = encoder.patch_embed(image)  # (B, E, E, C_i)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    kept = []
    for number, layer in enumerate(encoder.layers, start=1):
        x = run(partial(_output_of, layer), x)
        if number in taps:
            kept.append(x.permute(0, 3, 1, 2))
    return encoder.neck(x), tuple(kept)


def _output_of(layer: Any, x: Tensor) -> Tensor:
    out = layer(x)
    first: Tensor = out[0] if isinstance(out, tuple) else out  # a tuple up to transformers 4
    return first


class HuggingFace(Adapter):
    """``transformers``' ``SamPromptEncoder`` and ``SamMaskDecoder``, with one point batch per image."""

    def read(self, source: Path | str) -> dict[str, Tensor]:
        """Read safetensors.

        Args:
            source: a folder written by ``save_pretrained``, one safetensors file, or a model's name on the hub, such
                as ``facebook/sam-vit-base``. A model that is not in the local cache of the hub is downloaded.

        Returns:
            The weights under the names of :func:`build_from_config`.

        Raises:
            MissingFileError: the file, folder or name does not exist (code ``missing-weights``), or the folder contains
                no safetensors (code ``missing-safetensors``).
            UserError: the file is not a safetensors file (code ``unreadable-weights``).
        """
        state: dict[str, Tensor] = {}
        for file in _files(source):
            try:
                state |= load_file(file)
            except SafetensorError as error:
                raise UserError(
                    f"{file} cannot be read as safetensors: {error}. Backbones hf_… require a model folder of "
                    "transformers. Use --sam vit_b, vit_l or vit_h for Meta's .pth files.",
                    code="unreadable-weights",
                ) from error
        shared = state.pop(_SHARED, None)
        if shared is not None:
            state[_OWN] = shared
        return {re.sub(r"^vision_encoder\.", "image_encoder.", name): value for name, value in state.items()}

    def position(self, prompt_encoder: Any, xy: Tensor) -> Tensor:
        """Uses the random frequencies of ``shared_embedding``, which takes positions in [0, 1]."""
        position: Tensor = prompt_encoder.shared_embedding(xy / prompt_encoder.input_image_size)
        return position

    def label_embeddings(self, prompt_encoder: Any) -> tuple[Tensor, ...]:
        """``not_a_point_embed``, then ``point_embed``."""
        return tuple(e.weight for e in (prompt_encoder.not_a_point_embed, *prompt_encoder.point_embed))

    def mask_embedding(self, prompt_encoder: Any, masks: Tensor) -> Tensor:
        """Uses ``mask_embed``."""
        embedding: Tensor = prompt_encoder.mask_embed(masks)
        return embedding

    def no_mask_embedding(self, prompt_encoder: Any) -> Tensor:
        """``no_mask_embed``."""
        embedding: Tensor = prompt_encoder.no_mask_embed.weight
        return embedding

    def dense_position(self, prompt_encoder: Any) -> Tensor:
        """Uses ``shared_embedding`` at the centres of the cells."""
        side = prompt_encoder.image_embedding_size[0]
        shared = prompt_encoder.shared_embedding
        centres = (torch.arange(side, device=shared.positional_embedding.device, dtype=torch.float32) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        position: Tensor = shared(torch.stack((x, y), dim=-1)).permute(2, 0, 1)[None]
        return position

    def tokens(self, mask_decoder: Any) -> Tensor:
        """``iou_token``, then ``mask_tokens``."""
        return torch.cat((mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight))

    def transform(
        self, mask_decoder: Any, embedding: Tensor, position: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Uses ``transformer``; its second axis is the point batch, of size 1."""
        tokens, updated, *_ = mask_decoder.transformer(
            point_embeddings=tokens[:, None],
            image_embeddings=embedding,
            image_positional_embeddings=position,
            attention_similarity=None,
        )
        return tokens[:, 0], updated[:, 0].transpose(1, 2).reshape(embedding.shape)

    def upscale(self, mask_decoder: Any, embedding: Tensor) -> Tensor:
        """Uses ``upscale_conv1``, ``upscale_layer_norm`` and ``upscale_conv2``."""
        x = normalise_channels(mask_decoder.upscale_conv1(embedding), mask_decoder.upscale_layer_norm)
        upscaled: Tensor = mask_decoder.activation(mask_decoder.upscale_conv2(mask_decoder.activation(x)))
        return upscaled

    def mask_weights(self, mask_decoder: Any, channel: int, token: Tensor) -> Tensor:
        """Uses ``output_hypernetworks_mlps``."""
        weights: Tensor = mask_decoder.output_hypernetworks_mlps[channel](token)
        return weights

    def quality(self, mask_decoder: Any, token: Tensor) -> Tensor:
        """Uses ``iou_prediction_head``."""
        quality: Tensor = mask_decoder.iou_prediction_head(token)
        return quality


def _transformers() -> Any:
    try:
        import transformers

        transformers.SamModel  # noqa: B018 - loaded lazily; missing if torch is too old for it
    except (ImportError, AttributeError) as error:
        raise MissingFileError(
            "Hugging Face's SAM requires the package transformers: pip install 'promise-sam[hf]', or choose another "
            f"backbone with --sam. ({error})",
            code="missing-extra",
        ) from error
    return transformers


def _files(source: Path | str) -> list[Path]:
    """The safetensors files of a source: a folder, a file, or a name on the hub."""
    path = expand_home(source)
    if path.is_file():
        return [path]
    folder = path if path.is_dir() else _folder_of_hub(source)
    files = sorted(folder.glob(FILES))
    if not files:
        raise MissingFileError(
            f"{folder} contains no {FILES}. Older models have .bin files, which are not read because loading can "
            "execute code. Convert such a model once: "
            "transformers.SamModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER).",
            code="missing-safetensors",
        )
    return files


def _folder_of_hub(source: Path | str) -> Path:
    """The folder of a model on the hub: from the local cache, else downloaded."""
    name = str(source)
    reason = "it is not a valid name on the hub"
    if _HUB_NAME.fullmatch(name):
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise MissingFileError(
                f"{name} is not a folder, and names on the hub require the package huggingface_hub: pip install "
                "'promise-sam[hf]', or pass a folder with --sam-checkpoint.",
                code="missing-extra",
            ) from error
        for cached in (True, False):
            try:
                folder = Path(snapshot_download(name, allow_patterns=["config.json", FILES], local_files_only=cached))
            except Exception as error:
                reason = (
                    f"the hub did not provide it ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
                )
            else:
                if not cached or any(folder.glob(FILES)):
                    return folder
    raise MissingFileError(
        f"no weights of SAM found at {name}: the folder does not exist, and {reason}. On a machine with network "
        "access, install the extra promise-sam[hf] and run "
        f"`hf download {name if _HUB_NAME.fullmatch(name) else 'facebook/sam-vit-base'} --local-dir FOLDER`. "
        "Then copy FOLDER to this machine and pass it with --sam-checkpoint.",
        code="missing-weights",
    )
