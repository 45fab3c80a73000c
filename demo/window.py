"""The window, and its keys: Q or Esc ends, F switches full screen."""
import os
import re
import sys

from tsm_edge.errors import InputError
from tsm_edge.runtimes.sources import import_cv2

TITLE = "tsm-edge"


class Window:
    """Shows frames.

    Raises
    ------
    InputError
        This OpenCV has no windows, or there is no display.
    """

    def __init__(self):
        cv2 = self._cv2 = import_cv2()
        toolkit = re.search(r"GUI:\s*(\S+)", cv2.getBuildInformation())
        if toolkit and toolkit.group(1) == "NONE":
            raise InputError("this OpenCV cannot open a window", found=f"OpenCV {cv2.__version__} built without windows (headless)",
                             expected="an OpenCV with GTK, Qt or Cocoa",
                             do="add --headless (and --output out.mp4 to look at it later), or pip install 'tsm-edge[window]': "
                                "opencv-python takes the place of opencv-python-headless")
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise InputError("there is no display", found="neither DISPLAY nor WAYLAND_DISPLAY is set",
                             expected="a desktop session", do="add --headless (and --output out.mp4 to look at it later), or "
                                                              "ssh -X; on the board itself: export DISPLAY=:0")
        self._full, self._shown = False, False

    def show(self, image):
        """Show a frame; returns False when the user wants to end."""
        cv2 = self._cv2
        if not self._shown:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)
            cv2.resizeWindow(TITLE, image.shape[1], image.shape[0])
        cv2.imshow(TITLE, image)
        self._shown = True
        return self.poll()

    def poll(self):
        """Look at the keys; returns False when the user wants to end."""
        cv2 = self._cv2
        if not self._shown:
            return True
        key = cv2.waitKey(1) & 0xFF
        closed = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        if key in (ord("f"), ord("F")):
            self._full = not self._full
            cv2.setWindowProperty(TITLE, cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN if self._full else cv2.WINDOW_NORMAL)
        return not (key in (ord("q"), ord("Q"), 27) or closed)

    def close(self):
        if self._shown:
            self._cv2.destroyAllWindows()
