"""Figures of an evaluation as tables and pictures."""
from __future__ import annotations

import numpy as np

from tsm_edge.cli import columns
from tsm_edge.errors import InputError
from tsm_edge.files import written_whole

from . import films, streams


def import_pyplot():
    """matplotlib's pyplot, without a screen.

    Raises
    ------
    MissingComponentError
    """
    try:
        import matplotlib
    except ImportError as error:
        from tsm_edge.errors import MissingComponentError

        raise MissingComponentError("matplotlib is not installed", found=str(error), expected="matplotlib",
                                    do="pip install 'tsm-edge[train]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def write_confusion(path, table, classes):
    """The confusion matrix as a picture: rows the truth, in shares of the row."""
    plt = import_pyplot()
    share = table / np.maximum(1, table.sum(1, keepdims=True))
    side = 3 + 0.32 * len(classes)
    figure, axes = plt.subplots(figsize=(side + 1, side), dpi=110)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    for i, j in zip(*np.nonzero(table)):
        axes.text(j, i, table[i, j], ha="center", va="center", fontsize=7, color="white" if share[i, j] > 0.5 else "black")
    figure.tight_layout()
    try:
        with written_whole(path) as part:
            figure.savefig(part)
    except ValueError as error:
        raise InputError(f"{path} cannot be written", found=str(error).splitlines()[0], expected="a name that ends in .png",
                         do="name another file") from error
    finally:
        plt.close(figure)


def print_figures(result, per_clip=False):
    if result["clips"]:
        _print_classes(result)
    if "stream" in result:
        print("\n" + streams.sentence(result["stream"]))
    if "clip_events" in result:
        print("\nplayed as a camera would give them: " + films.sentence(result["clip_events"]))
        if result["rates"]:
            print("", *films.by_rate(result["clip_events"], result["rates"]), sep="\n")
    if per_clip and "results" in result:
        print("", *films.per_clip(result["results"]), sep="\n")
    print()


def _print_classes(result):
    print(f"{result['model']} ({result['engine']}): {result['clips']} clips of {result['frames']} frames ({result['sampling']}), "
          f"{len(result['classes'])} classes")
    how = {"online": "online", "offline": "whole clips, offline"}.get(result["shift"], "whole clips, without shifts")
    print(f"{how}: top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}"
          + (f"; the same weights over whole clips {result['clip_top1']:.2%}" if "clip_top1" in result else "")
          + (f"; the same weights run online {result['online_top1']:.2%}" if "online_top1" in result else ""))
    print("early recognition: " + ", ".join(f"{part} {value:.0%}" for part, value in result["early"].items()))
    table = [("class", "clips", "recall", "precision", "most often taken for")]
    for row in result["per_class"]:
        if not row["clips"] and row["precision"] is None:
            continue
        numbers = [f"{row[k]:.0%}" if row[k] is not None else "-" for k in ("recall", "precision")]
        table.append((row["class"], str(row["clips"]), *numbers, row["confused_with"] or ""))
    print("", *columns(table), sep="\n")
    if "backwards" in result and result["backwards"]["per_class"]:
        print(f"\nplayed backwards, taken for the opposite gesture: {result['backwards']['opposite']:.0%}")
        print(", ".join(f"{name} {value:.0%}" for name, value in result["backwards"]["per_class"].items()))
