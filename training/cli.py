"""Entry points of the training room's commands. Each imports its own part, so that none needs the others' packages."""


def train_main(argv=None):
    """tsm-train."""
    from .train import main

    return main(argv)


def eval_main(argv=None):
    """tsm-eval."""
    from .evaluate import main

    return main(argv)


def record_main(argv=None):
    """tsm-record."""
    from .record import main

    return main(argv)


def gestures_main(argv=None):
    """tsm-gestures."""
    from .gestures_cli import main

    return main(argv)
