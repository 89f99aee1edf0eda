"""Settings of an export. Imports no torch."""

from __future__ import annotations

import dataclasses

from promise.runtime.settings import CKPT_HELP, LESION_SETTINGS_HELP, MAX_LESIONS_HELP, REQUIRED, option


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """All settings of an export."""

    ckpt: str = option(REQUIRED, CKPT_HELP, metavar="FILE", group="net")
    output: str = option(REQUIRED, "output folder", metavar="FOLDER", group="output")
    format: str = option(
        "onnx",
        "onnx: graphs for ONNX Runtime and other runtimes, needs promise-sam[export]; torch: programs of torch.export "
        "(.pt2)",
        choices=("onnx", "torch"),
        group="output",
    )
    net: str | None = option(
        None,
        "net in a checkpoint of the reference implementation; other checkpoints name it",
        metavar="NAME",
        group="net",
    )
    sam: str | None = option(
        None,
        "backbone of a checkpoint of the reference implementation; default: vit_b",
        metavar="NAME",
        group="net",
    )
    sam_checkpoint: str | None = option(
        None, "weight file of SAM; default: the published weights", metavar="FILE", group="net"
    )
    postprocess: str | None = option(
        None,
        "postprocessing of masks, as in promise-eval; default: as stored in the checkpoint, else none",
        metavar="STEPS",
        group="net",
    )
    max_lesions: int | None = option(None, MAX_LESIONS_HELP, group="net")
    lesion_settings: str | None = option(None, LESION_SETTINGS_HELP, metavar="NAME=VALUE,…", group="net")
    images: int = option(3, "number of synthetic images on which the graphs are compared with PyTorch", group="run")
    overwrite: bool = option(False, "replace an earlier export in the output folder", group="output")
    quiet: bool = option(False, "hide messages and progress bar", group="run")
