"""golden.npz: the frames that prove an export, and what the network gave for the first of them."""
from __future__ import annotations

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.export.proof.traces import FRAMES

GOLDEN_FRAMES, GOLDEN_FRAMES_LEAST, GOLDEN_CACHE_BYTES = 6, 3, 8 << 20


def verification_frames(manifest, count=FRAMES, seed=0):
    """Raw frames with image-like, moving content and one cut: uint8 [count, H0, W0, 3] RGB, larger than the input.

    The cut is there for trained networks: their answers move most when the scene changes.
    """
    from tsm_edge.sensitive import image_like_frames

    size = manifest["input"]
    shape = round(size["width"] * 10 / 7), round(size["height"] * 15 / 14)
    first = (count + 1) // 2
    scenes = [image_like_frames(first, shape, seed, "uint8"), image_like_frames(count - first, shape, seed + 1, "uint8")]
    return np.concatenate(scenes)


def check_frames(frames):
    """The first frames of what was given to verify with; refused where they are no moving RGB pictures."""
    try:
        frames = np.asarray(frames)
    except ValueError as error:  # frames of different sizes
        raise InputError("the frames to verify with cannot be used", found=str(error)[:200], expected="one array, uint8 [T, H, W, 3] RGB",
                         do="bring them to one size and stack them") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < FRAMES:
        raise InputError("the frames to verify with cannot be used", found=f"{frames.dtype} {list(frames.shape)}",
                         expected=f"uint8 [T, H, W, 3] RGB with T >= {FRAMES}",
                         do="pass other frames, or none to have some generated")
    frames = frames[:FRAMES]
    if (frames == frames[0]).all():
        raise InputError("the frames to verify with stand still", found=f"{len(frames)} frames, all the same",
                         expected="moving pictures", do="pass other frames, or none to have some generated")
    return frames


def network_inputs(frames, manifest):
    """Frames uint8 [T, H0, W0, 3] -> network inputs float32 [T, 3, H, W], by the manifest's preprocessing rule."""
    from tsm_edge.runtimes.preprocess import preprocess

    return np.stack([preprocess(frame, manifest["input"]) for frame in frames]).astype(np.float32)


def cache_size(manifest):
    """Bytes of all caches in float32."""
    return sum(4 * int(np.prod(cache["shape"])) for cache in manifest["caches"])


def golden_count(cache_bytes):
    """How many frames golden.npz keeps: fewer for networks with large caches."""
    return int(min(GOLDEN_FRAMES, max(GOLDEN_FRAMES_LEAST, GOLDEN_CACHE_BYTES // max(1, cache_bytes))))


def write_golden(path, frames, inputs, reference):
    """golden.npz: what `tsm-verify` and the device runner replay. The same content gives the same bytes."""
    arrays = {"frames": frames, "inputs": inputs, "logits": reference.logits, **reference.caches}
    np.savez_compressed(path, **{name: np.ascontiguousarray(value) for name, value in arrays.items()})
