"""Where the network's input lies in a camera's picture: scale and crop, in whole pixels.

`spec` is the manifest's "input": width, height, resize, shorter_side. "crop" scales the shorter side to `shorter_side` and
the longer one in proportion (rounded half up), or, where width x height would not fit into that, both in proportion until
it just does, and cuts the centre; "squash" scales to width x height.
"""


def shorter_side(width: int, height: int) -> int:
    """Pixels that a frame's shorter side is scaled to before the crop, unless told otherwise: 256 for 224, and so on."""
    return round(min(width, height) * 256 / 224)


def geometry(height: int, width: int, spec: dict) -> "tuple[int, int, int, int]":
    """Where the network's input lies in the scaled picture.

    Parameters
    ----------
    height, width : int
        Of the source, pixels.
    spec : dict
        The manifest's "input".

    Returns
    -------
    (scaled_height, scaled_width, top, left) : ints, pixels
    """
    out_h, out_w = spec["height"], spec["width"]
    if spec["resize"] == "squash":
        return out_h, out_w, 0, 0
    up, down = spec["shorter_side"], min(height, width)  # the scale is up / down
    for wanted, side in ((out_h, height), (out_w, width)):
        if wanted * down > up * side:  # the crop would not fit: larger, but never out of proportion
            up, down = wanted, side
    scaled_h, scaled_w = (max(1, (side * up * 2 + down) // (down * 2)) for side in (height, width))
    return scaled_h, scaled_w, (scaled_h - out_h) // 2, (scaled_w - out_w) // 2


def seen(height: int, width: int, spec: dict) -> "tuple[int, int, int, int]":
    """The part of a frame that the network sees.

    Parameters
    ----------
    height, width : int
        Of the frame, pixels.
    spec : dict
        The manifest's "input".

    Returns
    -------
    (top, bottom, left, right) : ints
        Rows [top, bottom) and columns [left, right) of the frame, to the nearest pixel.
    """
    scaled_h, scaled_w, top, left = geometry(height, width, spec)
    y, x = height / scaled_h, width / scaled_w  # frame pixels for one of the scaled picture
    edges = top * y, (top + spec["height"]) * y, left * x, (left + spec["width"]) * x
    first, last, leftmost, rightmost = (int(round(e)) for e in edges)
    return first, last, leftmost, rightmost
