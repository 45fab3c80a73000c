"""Online video recognition on edge devices: networks with temporal shifts, from checkpoint to device.

>>> import tsm_edge
>>> net = tsm_edge.create_model("mobilenet_v2", num_classes=27)      # a torch network; needs the extra [export] or [train]
>>> model = tsm_edge.load("dist/nano")                               # a bundle; needs numpy only
"""

__version__ = "0.1.0"  # the one place; setup.cfg reads it here

_FACE = {"create_model": "tsm_edge.models", "load": "tsm_edge.runtimes"}

__all__ = ["__version__", "create_model", "load"]


def __getattr__(name):
    # names are handed on when first used, so that `import tsm_edge` is instant and needs neither torch nor an engine
    if name not in _FACE:
        raise AttributeError(f"module 'tsm_edge' has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(_FACE[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from .errors import MissingComponentError

        raise MissingComponentError(f"tsm_edge.{name} needs PyTorch", found="no package torch", expected="torch>=2.6,<2.14",
                                    do="pip install 'tsm-edge[export]' (or [train])") from error
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__():
    return sorted([*globals(), *__all__])
