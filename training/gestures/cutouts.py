"""A photographed hand in place of the drawn one, moved along the same track."""
import cv2
import numpy as np

from .people import CANVAS, LENGTH

_MOMENTS = np.array([-0.5, -0.25, 0.0, 0.25, 0.5])  # of the exposure, for hands that move fast


class CutOut:
    """One hand of `people.People`, in this performer's colours.

    people : People; index : which of its hands; look : draw.Look, for skin and sleeve
    """

    def __init__(self, rng, people, index, look):
        rgba = people.hands[index].astype(np.float32)
        rgb, self.alpha = rgba[..., :3], rgba[..., 3:] / 255
        value = rgb.max(2, keepdims=True)
        cloth = np.clip((110 - value) / 30, 0, 1)  # the sleeves that were photographed are black and grey
        dyed = look.sleeve * np.clip(value / 60, 0.4, 1.3)
        skin = rgb * rng.uniform(0.45, 1.15) * rng.uniform(0.88, 1.12, 3)
        self.rgb = np.clip(skin * (1 - cloth) + dyed * cloth if rng.random() < 0.7 else skin, 0, 255) * self.alpha
        self.side = int(people.sides[index])

    def layer(self, rows, handed, camera, roll, size):
        """Premultiplied colours and alpha float32 [h, w, 4], the mean over poses [k, 16] (of one exposure)."""
        pixel, scale = camera.project(rows[:, :3])
        source = np.dstack([self.rgb, self.alpha])
        total = np.zeros((size[1], size[0], 4), np.float32)
        flip = 1 if handed == self.side else -1
        for row, at, pixels in zip(rows, pixel, scale):
            angle = row[5] - roll
            c, s = np.cos(angle), np.sin(angle)
            across = flip * max(0.45, abs(np.cos(row[3])))
            matrix = np.array([[c, -s], [s, c]]) @ np.diag([across, 1.0]) * (pixels / LENGTH)
            matrix = np.column_stack([matrix, at - matrix @ [CANVAS / 2, CANVAS / 2]])
            total += cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR)
        return total / len(rows)

    def draw(self, picture, *where):
        """uint8 RGB picture with the hand before it; `where` as in `layer`, without the size."""
        h, w = picture.shape[:2]
        found = self.layer(*where, (w, h))
        return np.clip(picture * (1 - found[..., 3:]) + found[..., :3], 0, 255).astype(np.uint8)


def moments(track_poses, local, fps, shutter):
    """Poses [n, k, 16] at k moments of each frame's exposure.

    track_poses : callable (seconds of the performance [m]) -> [m, 16]
    """
    times = local[:, None] + _MOMENTS * shutter / fps
    return track_poses(times.ravel()).reshape(len(local), len(_MOMENTS), -1)
