"""Kiln: Clay embeddings of whole Earth-observation archives.

    import kiln

    shards = kiln.plan("naip", manifest="manifest.txt", states=["nd"])
    result = kiln.embed(kiln.open_source(shards[0]), weights="clay.safetensors", output="shard.parquet")
    chips = kiln.read_product("results/conus/naip-1a2b3c4d/products/nd-2019/0123456789abcdef")
    kiln.export("results/conus/naip-1a2b3c4d/products/nd-2019/0123456789abcdef.json", "chips.gpkg")
    explorer = kiln.open_explorer("s3://bucket/results/conus/explorer")

`import kiln` registers the archives and imports nothing heavy: a name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kiln.archives.registry import archives as _archives
from kiln.version import __version__

if TYPE_CHECKING:
    from kiln.api import open_source, plan
    from kiln.engine.job import ShardResult
    from kiln.engine.job import embed_shard as embed
    from kiln.engine.options import EmbedOptions
    from kiln.explorer.api import open_explorer
    from kiln.formats.plan_file import ShardPlan
    from kiln.product.export.export_chips import ExportResult
    from kiln.product.export.export_chips import export_chips as export
    from kiln.product.read import read_product
    from kiln.product.rows.row_filter import RowFilter

__all__ = [
    "EmbedOptions",
    "ExportResult",
    "RowFilter",
    "ShardPlan",
    "ShardResult",
    "__version__",
    "embed",
    "export",
    "open_explorer",
    "open_source",
    "plan",
    "read_product",
    "verify",
]
_PUBLIC = {  # module and attribute by public name
    "EmbedOptions": ("kiln.engine.options", "EmbedOptions"),
    "ExportResult": ("kiln.product.export.export_chips", "ExportResult"),
    "RowFilter": ("kiln.product.rows.row_filter", "RowFilter"),
    "ShardPlan": ("kiln.formats.plan_file", "ShardPlan"),
    "ShardResult": ("kiln.engine.job", "ShardResult"),
    "embed": ("kiln.engine.job", "embed_shard"),
    "export": ("kiln.product.export.export_chips", "export_chips"),
    "open_explorer": ("kiln.explorer.api", "open_explorer"),
    "open_source": ("kiln.api", "open_source"),
    "plan": ("kiln.api", "plan"),
    "read_product": ("kiln.product.read", "read_product"),
    "verify": ("kiln.report.verify.run", "verify"),
}

_archives()  # registers the archives and their buckets


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kiln' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
