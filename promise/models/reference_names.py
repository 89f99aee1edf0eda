"""Conversion of the state-dict names of learned parts to and from those of the reference implementation."""

from __future__ import annotations

import re

# Own name → name in the reference implementation; the first match applies. Names of SAM's entries are the same.
_TO_REFERENCE = (
    (r"ips\.(.+)", r"ips_ffn.\1"),
    (r"apm\.head\.(fusion_conv\d\..+)", r"apm_feature_map.\1"),
    (r"apm\.head\.resnet\.(.+)\.downsample\.(.+)", r"apm_resnet.\1.shortcut.\2"),
    (r"apm\.head\.resnet\.(.+)", r"apm_resnet.\1"),
    (r"apm\.head\.enlarge\.1\.0\.(.+)", r"apm_cross.deconv1.\1"),
    (r"apm\.head\.enlarge\.2\.0\.(.+)", r"apm_cross.deconv2.\1"),
    (r"apm\.head\.enlarge\.2\.1\.(.+)", r"apm_cross.deconv3.\1"),
    (r"apm\.head\.(layers\.\d)\.(lin\d\..+)", r"apm_cross.\1.ffn.\2"),
    (r"apm\.head\.score\.(.+)", r"apm_cross_prompt.\1"),
    (r"apm\.head\.(.+)", r"apm_cross.\1"),
)
_FROM_REFERENCE = (
    (r"(?:ips_)?ffn\.(.+)", r"ips.\1"),  # ffn. in older checkpoints
    (r"apm_feature_map\.(.+)", r"apm.head.\1"),
    (r"apm_resnet\.(.+)\.shortcut\.(.+)", r"apm.head.resnet.\1.downsample.\2"),
    (r"apm_resnet\.(.+)", r"apm.head.resnet.\1"),
    (r"apm_cross\.deconv1\.(.+)", r"apm.head.enlarge.1.0.\1"),
    (r"apm_cross\.deconv2\.(.+)", r"apm.head.enlarge.2.0.\1"),
    (r"apm_cross\.deconv3\.(.+)", r"apm.head.enlarge.2.1.\1"),
    (r"apm_cross\.(layers\.\d)\.ffn\.(.+)", r"apm.head.\1.\2"),
    (r"apm_cross_prompt\.(.+)", r"apm.head.score.\1"),
    (r"apm_cross\.(.+)", r"apm.head.\1"),
)
# Entries that the reference implementation registers and never uses.
_UNUSED = re.compile(r"apm_resnet\.fc2\.|apm_cross\.layers\.\d\.norm2\.")


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in table:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None


def reference_name(own: str) -> str:
    """The reference implementation's name of a learned entry; a name without a counterpart is returned unchanged."""
    return _rename(own, _TO_REFERENCE) or own


def own_name(reference: str) -> str | None:
    """The own name of a learned entry; ``None`` if the entry is unknown, or unused in the reference implementation."""
    return None if _UNUSED.match(reference) else _rename(reference, _FROM_REFERENCE)


def is_reference_name(name: str) -> bool:
    """Whether the reference implementation has a learned entry of this name, used or not."""
    return _rename(name, _FROM_REFERENCE) is not None
