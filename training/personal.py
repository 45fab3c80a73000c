"""Fine-tuning on a few clips of one's own: what is chosen where the options say nothing, what is mixed in, what is told at the end."""
from __future__ import annotations

import copy

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.training.data.mixed import rendered_names

FEW = 400
"""With so many clips or fewer, and --init, the recipe for few clips is taken."""

USUAL = {"optimizer": "sgd", "lr": 0.01, "lr_batch": 32, "weight_decay": 1e-4, "warmup_epochs": 1.0, "freeze": 0, "batch_norm": "train",
         "sampling": "uniform", "rate_jitter": 0.0, "mix": 0.0}
RECIPE = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.02, "warmup_epochs": 0.5, "batch_norm": "frozen", "rate_jitter": 0.3}
"""What stands for options that were left out, usually and with few clips. lr is for whatever batch then. Early layers, trained on many
pictures, stay as they are, and so do all batch norms' statistics: a few clips of one room have statistics of their own."""
FROZEN_PARTS = {"mobilenet_v2": 7, "resnet18": 2, "resnet50": 2}


def choose_recipe(args, card, clips, names=()):
    """Fill in the options that were left out; returns whether the recipe for few clips was taken.

    args : namespace, changed. card : of --init, or None. clips : how many there are; names : of their classes.
    """
    few = card is not None and args.data != "gestures" and clips <= FEW
    if args.mix is None:
        args.mix = 1.0 if few and rendered_names(names) else 0.0
    if few and args.sampling is None and card.fps:
        args.sampling, args.fps = "rate", args.fps or card.fps
    if few and args.freeze is None and not args.head_only:
        args.freeze = FROZEN_PARTS.get(args.arch, 0)
    if few and args.lr_batch is None and args.lr is None:
        args.lr_batch = args.batch or _batch(args, clips)
    for name, usual in USUAL.items():
        if getattr(args, name) is None:
            setattr(args, name, RECIPE.get(name, usual) if few else usual)
    if few and args.batch is None:
        args.batch = _batch(args, clips)
    return few


def _batch(args, clips):
    return (8 if args.mix else max(2, min(8, clips // 2))) * args.accumulate


def classes_to_keep(before, names):
    """All classes of a model where the clips' are among them: what it can, it shall not forget. Else those of the clips alone, as a new
    name may mean what the model calls otherwise."""
    from tsm_edge.training.data.listing import class_finder

    find = class_finder(before) if before else lambda name: None
    return list(names) if any(find(name) is None for name in names) else list(before)


def told(classes, before, after, counts):
    """What to say at the end, in lines.

    before, after : (labels, answers), of the held-out clips by the network that training began with (None: it had other classes)
    and by the trained one. counts : training clips of each class.
    """
    labels, answers = after
    if not len(labels):
        return ["no clip was held out (classes of five clips and more lend one in five): measure with tsm-eval on others"]
    first = "" if before is None else f", before {int((before[0] == before[1]).sum())}"
    lines = [f"held out: {int((labels == answers).sum())} of {len(labels)} right{first}"]
    table = np.zeros((len(classes), len(classes)), int)
    np.add.at(table, (labels, answers), 1)
    wrong = [(table[i, j], classes[i], classes[j]) for i, j in zip(*np.nonzero(table)) if i != j]
    lines += [f"  {a} was taken for {b} ({n} of {table[classes.index(a)].sum()})" for n, a, b in sorted(wrong, reverse=True)[:5]]
    few = [name for i, name in enumerate(classes) if 0 < counts[i] < 5]
    weak = [name for i, name in enumerate(classes) if table[i].sum() and table[i, i] < 0.7 * table[i].sum()]
    if few or weak:
        lines.append("more clips would help: " + ", ".join(dict.fromkeys(weak + few)))
    return lines


ENOUGH = 4  # held-out clips of gestures, to choose when their scores are events


def settle_events(net, items):
    """When a score becomes an event, as held-out films have it: (settings for the card, a sentence), or (None, why not).

    net : clip-level network, online. items : listing.Item of the held-out clips, played whole, as a camera gives them.
    """
    from tsm_edge.runtimes.engines.torch import TorchModel
    from tsm_edge.training.evaluate import films
    from tsm_edge.training.evaluate.clips import Films

    rest = net.card.events["background"]
    gestures = [item for item in items if item.label not in rest]
    if len(gestures) < ENOUGH:
        return None, (f"events begin as before, at {net.card.events['on']:g}: fewer than {ENOUGH} clips of gestures were held out to "
                      "choose by")
    try:
        settings, best, before = films.best_threshold(TorchModel(copy.deepcopy(net).cpu().eval()), Films(items))
    except InputError as error:  # the network is trained and saved: not the end of it
        return None, f"events begin as before, at {net.card.events['on']:g}: {error.problem} ({error.found})"
    false = f", {best['false_events']} false in {best['false_seconds']:.0f} s of others" if best["false_seconds"] else ""
    return settings, (f"events begin at {settings['on']:g} (before: {net.card.events['on']:g}), by the held-out clips: right in "
                      f"{best['right']} of {best['clips']}, wrong in {best['wrong'] + best['mixed']}{false} (before: right in "
                      f"{before['right']}, wrong in {before['wrong'] + before['mixed']})")
