"""Strips and films of where a network looks (the maps themselves: tsm_edge.attention)."""
from __future__ import annotations

import cv2
import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.files import written_whole


def overlay(frame, evidence, scale, seen=None):
    """A frame with warm colour where the evidence is.

    Parameters
    ----------
    frame : uint8 [h, w, 3] RGB
    evidence : float [y, x]
    scale : float
        The evidence of full colour.
    seen : (top, bottom, left, right) or None
        Rows and columns of the frame that the evidence is about; None: all.
    """
    top, bottom, left, right = seen or (0, frame.shape[0], 0, frame.shape[1])
    out = frame.copy()
    frame = frame[top:bottom, left:right]
    h, w = frame.shape[:2]
    strength = np.clip(cv2.resize(evidence.astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC) / max(scale, 1e-6), 0, 1)
    warm = cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    weight = 0.15 + 0.6 * strength[..., None]
    out[top:bottom, left:right] = (frame * (1 - weight) + warm * weight).astype(np.uint8)
    return out


def check_request(path, net, name, classes):
    """Refuse what `write_attention` cannot write; returns the index of the class to show, None: each clip's own.

    Raises
    ------
    InputError
    """
    from tsm_edge.cli import choose

    if not str(path).lower().endswith((".png", ".mp4")):
        raise InputError("the attention file cannot be written", found=str(path), expected="a name ending in .png or .mp4",
                         do="for example --attention attention.png")
    if net is None:
        raise InputError("attention needs the network itself", found="a compiled or exported model", expected="a checkpoint",
                         do="pass the checkpoint that the bundle was made from")
    return None if name is None else list(classes).index(choose(name, classes, "class"))


def write_attention(path, net, clips, name=None, per_class=1, side=144):
    """Write strips (PNG: a row a clip, a column a frame) or a film (MP4: the strips' rows side by side) of attention.

    Parameters
    ----------
    path : path
        Ends in .png or .mp4.
    net : torch.nn.Module or None
        The clip-level network.
    clips : tsm_edge.training.evaluate.run.Clips
    name : str or None
        Class whose evidence is shown; None: each clip's own.
    """
    from tsm_edge.attention import attention_maps
    from tsm_edge.picture import seen
    from tsm_edge.runtimes.engines.torch import describe
    from tsm_edge.runtimes.preprocess import preprocess
    from tsm_edge.shift import set_segments
    from tsm_edge.training.gestures.cli import write_video

    shown = check_request(path, net, name, clips.classes)
    rule = describe(net, [])["input"]
    import torch

    rows = []
    for label in range(len(clips.classes)):
        for index in np.flatnonzero(clips.labels == label)[:per_class]:
            clip = clips.read(int(index))
            set_segments(net, len(clip))
            maps, logits = attention_maps(net, torch.from_numpy(np.stack([preprocess(f, rule) for f in clip])))
            which = label if shown is None else shown
            scale = float(np.abs(maps[:, which]).max())
            part = seen(*clip.shape[1:3], rule)
            painted = [overlay(f, m, scale, part) for f, m in zip(clip, maps[:, which])]
            frames = [cv2.resize(f, (side, side), interpolation=cv2.INTER_AREA) for f in painted]
            text = f"{clips.classes[which]}"
            cv2.putText(frames[0], text[:26], (4, side - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.32, (255, 255, 255), 1, cv2.LINE_AA)
            rows.append(frames)
    if str(path).lower().endswith(".mp4"):
        return write_video(path, _film(rows), max(1.0, clips.fps))
    picture = np.concatenate([np.concatenate(frames, 1) for frames in rows], 0)
    with written_whole(path) as part:
        part.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1])


def _film(rows):
    """Frames of the rows side by side, list of uint8 [h, w, 3]."""
    columns = int(np.ceil(np.sqrt(len(rows))))
    empty = [np.zeros_like(rows[0][0])] * (-len(rows) % columns)
    moments = [[*cells, *empty] for cells in zip(*rows)]
    return [np.concatenate([np.concatenate(cells[i:i + columns], 1) for i in range(0, len(cells), columns)], 0) for cells in moments]
