"""The input of a convolution's test, with the splice of a cache, as tensors and as what the convolution sees."""

from tsm_edge.export.graph import ops


def spliced_input(rng, shape, fold, store=lambda array: array.astype("float32")):
    """(tensors by name, float64 input with the cache's channels in it, ops.Splice or None, next cache or None).

    shape : (h, w, c). fold : (start, stop) or None. store : what the tensors' type makes of values.
    """
    tensors = {"x": store(rng.standard_normal(shape))}
    source = tensors["x"].astype(float)
    if not fold:
        return tensors, source, None, None
    start, stop = fold
    tensors["cache"] = store(rng.standard_normal((*shape[:2], stop - start)))
    source[:, :, start:stop] = tensors["cache"]
    return tensors, source, ops.Splice("cache", "next", start, stop), tensors["x"][:, :, start:stop].copy()
