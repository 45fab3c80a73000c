"""tsm_edge.export: a network with temporal shifts in, a verified bundle for one device out."""


def export_bundle(net, target="host", output=None, **options):
    """Compile `net` for `target` and write the bundle; see `tsm_edge.export.pipeline.export_bundle`."""
    from .pipeline import export_bundle as export

    return export(net, target, output, **options)


__all__ = ["export_bundle"]
