"""tsm_edge.export: a network with temporal shifts in, a verified bundle for one device out."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from tsm_edge.export.targets.target import Target

    from .pipeline import Bundle


def export_bundle(net: nn.Module, target: str | Target = "host", output: str | os.PathLike[str] | None = None, **options: Any) -> Bundle:
    """Compile `net` for `target` and write the bundle; see `tsm_edge.export.pipeline.export_bundle`."""
    from .pipeline import export_bundle as export

    return export(net, target, output, **options)


__all__ = ["export_bundle"]
