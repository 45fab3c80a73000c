"""A jointed hand: pose vectors in, 3D joints out. Everything is vectorised over frames.

Lengths are in hands (wrist to middle fingertip is about 1). The camera looks along +z; x points right and y down, as in
the picture. A pose is a row of 16 numbers:

    0:3    palm centre x, y, z     z = 0 is the performer's usual distance; negative is nearer to the camera
    3:6    yaw, pitch, roll        radians; all zero: palm to the camera, fingers up. Yaw spins the hand about its long
                                   axis (pi: back of the hand to the camera), pitch tips the fingertips towards the
                                   camera, roll turns clockwise in the picture
    6:11   flex                    thumb, index, middle, ring, little finger: 0 straight, 1 curled up
    11     spread                  0 fingers together, 1 fanned out
    12     thumb_out               0 beside the palm, 1 fully out
    13:16  elbow                   elbow minus wrist, x, y, z
"""
import numpy as np

POSE_SIZE = 16
POSITION, ROTATION, FLEX, SPREAD, THUMB_OUT, ELBOW = slice(0, 3), slice(3, 6), slice(6, 11), 11, 12, slice(13, 16)

# Joint order: 0 wrist, 1-4 thumb, 5-8 index, 9-12 middle, 13-16 ring, 17-20 little finger (base to tip),
# 21 elbow, 22 end of the sleeve, 23/24 sides of the wrist.
N_JOINTS = 25
_KNUCKLES = np.array([[0.17, 0.49, 0.0], [0.06, 0.52, 0.0], [-0.055, 0.50, 0.0], [-0.16, 0.45, 0.0]])
_PHALANGES = np.array([[0.235, 0.14, 0.105], [0.26, 0.16, 0.11], [0.24, 0.15, 0.11], [0.185, 0.11, 0.095]])
_BEND = np.radians([86.0, 100.0, 62.0])  # angle of each joint at flex 1
_FAN = np.radians([15.0, 3.0, -9.0, -22.0])  # sideways angle of each finger at spread 1
_THUMB = (0.23, 0.18, 0.14)
_THUMB_BASE = np.array([0.13, 0.10, 0.03])
_THUMB_FOLD = np.array([-0.75, 0.15, 0.64])  # where the thumb bends to: across the palm

PALM_JOINTS = (23, 24, 1, 2, 5, 9, 13, 17)
PALM_RADII = np.array([0.085, 0.085, 0.09, 0.05, 0.066, 0.066, 0.062, 0.058])
# (from, to, radius at from, radius at to)
BONES = (
    (1, 2, 0.098, 0.078), (2, 3, 0.068, 0.062), (3, 4, 0.060, 0.047),
    *((b + i, b + i + 1, r0 * s, r1 * s) for b, s in ((5, 1.0), (9, 1.04), (13, 1.0), (17, 0.86))
      for i, r0, r1 in ((0, 0.066, 0.060), (1, 0.059, 0.054), (2, 0.054, 0.042))),
)
TIPS = (2, 5, 8, 11, 14)  # bones that carry a nail


def rotation(angles):
    """Rotation matrices [n, 3, 3] from (yaw, pitch, roll) [n, 3]: hand axes to camera axes."""
    n = len(angles)
    cy, cp, cr = np.cos(angles).T
    sy, sp, sr = np.sin(angles).T
    zero, one = np.zeros(n), np.ones(n)

    def matrix(*rows):
        return np.stack([np.stack(r, -1) for r in rows], -2)

    spin = matrix((cy, zero, sy), (zero, one, zero), (-sy, zero, cy))
    # Hand x, y (to the fingertips), z (out of the palm) are right, up, towards the camera.
    base = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])
    tip = matrix((one, zero, zero), (zero, cp, -sp), (zero, sp, cp))
    turn = matrix((cr, -sr, zero), (sr, cr, zero), (zero, zero, one))
    return turn @ tip @ base @ spin


def joints(pose, handed=1, proportions=None):
    """Joint positions of one hand.

    Parameters
    ----------
    pose : float array [n, 16]
        See the module's text.
    handed : int
        1: the thumb is at the picture's right when the palm faces the camera; -1: at the left.
    proportions : float array [5], optional
        Length factor of thumb, index, ... little finger.

    Returns
    -------
    points : float array [n, 25, 3]
    axes : float array [n, 3, 3]
        Columns: the hand's x, y and z (out of the palm) axes in camera axes.
    """
    n = len(pose)
    size = np.ones(5) if proportions is None else proportions
    local = np.zeros((n, N_JOINTS, 3))
    fan = pose[:, SPREAD, None] * _FAN + np.radians([1.5, 0.0, -1.0, -3.0])
    side = np.stack([np.sin(fan), np.cos(fan), np.zeros_like(fan)], -1)  # [n, 4, 3]
    bend = np.cumsum(pose[:, 7:11, None] * _BEND, -1)  # [n, 4, 3 joints]
    point = np.broadcast_to(_KNUCKLES, (n, 4, 3)).copy()
    out = np.array([0.0, 0, 1.0])
    for j in range(4):
        local[:, 5 + j:21:4] = point
        if j < 3:
            angle = bend[:, :, j, None]
            point = point + (np.cos(angle) * side + np.sin(angle) * out) * (_PHALANGES[:, j] * size[1:])[:, None]
    away = np.radians(12 + 48 * pose[:, THUMB_OUT, None])
    first = np.concatenate([np.sin(away), np.cos(away), np.full((n, 1), 0.22)], 1)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    thumb = np.broadcast_to(_THUMB_BASE, (n, 3))
    local[:, 1] = thumb
    for j, (length, factor) in enumerate(zip(_THUMB, (0.25, 0.95, 1.75))):
        angle = np.radians(62.0) * pose[:, 6, None] * factor
        way = np.cos(angle) * first + np.sin(angle) * _THUMB_FOLD
        thumb = thumb + way / np.linalg.norm(way, axis=1, keepdims=True) * length * size[0]
        local[:, 2 + j] = thumb
    local[:, 23] = (0.085, 0.0, 0.0)
    local[:, 24] = (-0.085, 0.0, 0.0)
    local[:, :, 1] -= 0.38  # the palm's centre is the origin
    local[:, :, 0] *= handed
    axes = rotation(pose[:, ROTATION])
    points = np.einsum("nij,nkj->nki", axes, local) + pose[:, None, POSITION]
    points[:, 21] = points[:, 0] + pose[:, ELBOW]
    points[:, 22] = points[:, 0] + 0.42 * pose[:, ELBOW]
    return points, axes
