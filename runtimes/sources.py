"""Where frames come from: cameras, network streams, files. One address, one Source.

The demo and tsm-record open the same addresses here. OpenCV is imported when something is opened.
"""
import glob
import importlib
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tsm_edge.cli import choose
from tsm_edge.errors import InputError, MissingComponentError

FLIPS = ("none", "counterclockwise", "rotate-180", "clockwise", "horizontal", "vertical", "upper-right-diagonal",
         "upper-left-diagonal")
# What nvarguscamerasrc's images go through: nvvidconv turns them in the same order of methods as FLIPS.
_CSI = ("nvarguscamerasrc sensor-id={index} ! video/x-raw(memory:NVMM), width=(int){width}, height=(int){height}, "
        "framerate=(fraction){fps}/1 ! nvvidconv flip-method={flip} ! video/x-raw, format=(string)BGRx ! videoconvert ! "
        "video/x-raw, format=(string)BGR ! appsink drop=true max-buffers=1 sync=false")
STREAMS = ("rtsp", "rtsps", "http", "https", "udp", "tcp", "rtmp")
# scheme -> "module:class" of a source that lies above this package; called with (rest of the address, size, fps, flip, **more)
BY_NAME = {"test": "tsm_edge.training.gestures.source:RenderedSource"}
EXPECTED = "0, /dev/video0, csi://0, rtsp://HOST/PATH, file://clip.mp4, clip.mp4, a folder of pictures or test://LABEL"
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FOLDER_RATE = 12.0  # frames a second of a folder of pictures, which does not say its own: Jester's


def natural(name: str) -> "list[Any]":
    """Sort key that counts: "img_10.jpg" comes after "img_9.jpg"."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", str(name))]


def import_cv2():
    """The module cv2.

    Raises
    ------
    MissingComponentError
    """
    try:
        import cv2
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):  # libGL.so.1 for example: OpenCV with windows on a machine without a desktop
            raise MissingComponentError("OpenCV cannot be loaded", found=str(error), expected="the libraries that its windows need",
                                        do="apt install libgl1 libglib2.0-0; or, without windows, pip install --force-reinstall "
                                           "opencv-python-headless") from error
        raise MissingComponentError("OpenCV is not installed", found=str(error), expected="the package opencv",
                                    do="pip install 'tsm-edge[demo]' (on a board: apt install python3-opencv)") from error
    return cv2


class Source:
    """Frames in order.

    name : str, for people. live : bool, frames come when they come and the newest counts; else every frame counts.
    fps : float, frame rate as announced (0: not known). frames : int, how many there will be (0: not known).
    note : str, in words, where the rate is not the source's own.
    """

    name, live, fps, frames, note = "", False, 0.0, 0, ""

    def read(self):
        """The next frame: (uint8 [h, w, 3] BGR, seconds), or None at the end.

        Seconds are the video's own time for files, a monotonic clock for live sources; both begin at 0.
        """
        raise NotImplementedError

    def close(self):
        """Let go of the device or file."""


class VideoSource(Source):
    """A camera, network stream or file through OpenCV. `rate`: frames a second of a file, whatever it says itself."""

    def __init__(self, capture, name, live, flip, size=None, rate=None):
        cv2 = import_cv2()
        self._capture, self.name, self.live, self._flip = capture, name, live, flip
        self._size = None if live else size
        said = capture.get(cv2.CAP_PROP_FPS)
        self.fps, self._rate = said if 0 < said < 1000 else 0.0, rate
        if rate:
            self.note = "as --input-rate has it; the file says " + (f"{self.fps:.3g}" if self.fps else "nothing")
            self.fps = float(rate)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frames = int(count) if not live and 0 < count < 1e9 else 0
        self._time, self._first, self._count = -1.0, None, 0

    def read(self):
        cv2 = import_cv2()
        good, frame = self._capture.read()
        if not good or frame is None:
            return None
        if frame.ndim == 2:
            frame = cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)
        if self.live:
            now = time.monotonic()
        elif self._rate:
            now = self._count / self._rate
        else:
            now = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if not now > self._time:  # some containers have no times, or odd ones: then by the frame rate
                now = 0.0 if self._count == 0 else self._time + 1 / (self.fps or 30.0)
        if self._first is None:
            self._first = now
        self._time, self._count = now, self._count + 1
        if self._size and self._size != (frame.shape[1], frame.shape[0]):
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        return flip_frame(frame, self._flip), now - self._first

    def close(self):
        self._capture.release()


class FolderSource(Source):
    """A folder of pictures, in the order of the numbers in their names, as Jester ships its clips."""

    def __init__(self, path, names, flip, size=None, rate=None):
        self._paths, self.name, self._flip, self._size = [os.path.join(path, name) for name in names], str(path), flip, size
        self.fps, self.frames = float(rate or FOLDER_RATE), len(names)
        self.note = "as --input-rate has it" if rate else "assumed: a folder does not say; --input-rate does"
        self._count, self._shape = 0, None

    def read(self):
        if self._count == len(self._paths):
            return None
        cv2, path = import_cv2(), self._paths[self._count]
        frame = cv2.imread(path, cv2.IMREAD_COLOR)
        if frame is None:
            raise InputError("a picture cannot be read", found=path, expected="a whole picture",
                             do="repair it, or take it out of the folder")
        if frame.shape != (self._shape or frame.shape):
            sizes = "{1}x{0} in {2}, {4}x{3} before it".format(*frame.shape[:2], path, *self._shape)
            raise InputError("pictures of different sizes", found=sizes,
                             expected="the frames of one film", do="take the others out of the folder")
        self._shape, self._count = frame.shape, self._count + 1
        if self._size and self._size != (frame.shape[1], frame.shape[0]):
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        return flip_frame(frame, self._flip), (self._count - 1) / self.fps


def flip_frame(frame, method):
    """Turn or mirror a frame [h, w, 3]; `method` is one of FLIPS (contiguous result, or the frame itself)."""
    if method == "none":
        return frame
    cv2 = import_cv2()
    if method in ("clockwise", "counterclockwise", "rotate-180"):
        codes = {"clockwise": cv2.ROTATE_90_CLOCKWISE, "counterclockwise": cv2.ROTATE_90_COUNTERCLOCKWISE,
                 "rotate-180": cv2.ROTATE_180}
        return cv2.rotate(frame, codes[method])
    if method in ("horizontal", "vertical"):
        return cv2.flip(frame, 1 if method == "horizontal" else 0)
    turned = cv2.transpose(frame)
    return cv2.rotate(turned, cv2.ROTATE_180) if method == "upper-right-diagonal" else turned


def kind_of(address: str) -> str:
    """What an address names: "camera", "csi", "stream", "file" or "test".

    Raises
    ------
    InputError
        An unknown scheme.
    """
    scheme = address.split("://")[0].lower() if "://" in address else ""
    if scheme in STREAMS:
        return "stream"
    if scheme == "v4l2" or re.fullmatch(r"\d+", address) or address.startswith("/dev/video"):
        return "camera"
    return choose(scheme, ["file", "csi", "v4l2", *BY_NAME, *STREAMS], "kind of source") if scheme else "file"


def file_of(address):
    """The path of the file that an address names; None where it names none."""
    if kind_of(address) != "file":
        return None
    if "://" not in address:
        return address
    parts = urlparse(address)
    path = unquote(parts.netloc + parts.path)
    return path.lstrip("/") if os.name == "nt" and re.match("/[A-Za-z]:", path) else path  # file:///C:/clip.mp4


def masked(address: str) -> str:
    """The address without its user and password, to be shown."""
    return re.sub(r"//[^/]*@", "//***@", address)


def frames_in(path):
    """How many frames lie in a video file; 0 where it cannot be read."""
    cv2 = import_cv2()
    film, count = _quietly(cv2, lambda: cv2.VideoCapture(str(path))), 0
    film.set(cv2.CAP_PROP_FORMAT, -1)  # where this OpenCV can: packets as they lie there, which need no decoding
    while film.grab():
        count += 1
    film.release()
    return count


def add_options(parser):
    """Add what to ask a source for to an argparse parser: --input-width, --input-height, --input-rate, --input-flip."""
    add = parser.add_argument_group("the camera").add_argument
    add("--input-width", type=int, metavar="N", help="pixels to ask the camera for, or to scale a file to (default: its own)")
    add("--input-height", type=int, metavar="N", help="likewise (default: its own)")
    add("--input-rate", type=float, metavar="FPS",
        help="frames a second to ask the camera for, or that a file really has (default: its own; a folder of pictures: 12)")
    add("--input-flip", default="none", metavar="NAME",
        help="none, rotate-180, clockwise, counterclockwise, horizontal, vertical, ... (default: none)")


def asked_for(options):
    """Keywords of `open_source` from parsed options of `add_options`."""
    return {"width": options.input_width, "height": options.input_height, "fps": options.input_rate, "flip": options.input_flip}


def open_source(address: str, *, width: "int | None" = None, height: "int | None" = None, fps: "float | None" = None,
                flip: str = "none", **more: Any) -> Source:
    """Open what an address names.

    Parameters
    ----------
    address : str
        0, /dev/video0, csi://0, rtsp://... (also http, https, udp, tcp), file://clip.mp4, clip.mp4, FOLDER, test://LABEL.
    width, height : int or None
        Size to ask a camera for; files and rendered gestures are brought to it.
    fps : float or None
        Frame rate to ask a camera for; the true one of a file or of a folder of pictures.
    flip : str
        One of FLIPS.
    **more :
        What a source of the table BY_NAME takes beside: seed, seconds for test://.

    Returns
    -------
    Source

    Raises
    ------
    InputError, MissingComponentError
    """
    choose(flip, FLIPS, "flip method")
    if (width is None) != (height is None):
        raise InputError("half a size", found=f"width {width}, height {height}", expected="both or neither",
                         do="give --input-width and --input-height together")
    for name, value in (("width", width), ("height", height)):
        if value is not None and not 16 <= value <= 16384:
            raise InputError(f"the {name} cannot be used", found=str(value), expected="16 to 16384", do="pick another")
    if fps is not None and not (math.isfinite(fps) and 0 < fps <= 1000):
        raise InputError("the frame rate cannot be used", found=str(fps), expected="above 0, up to 1000", do="leave --input-rate out")
    size, kind = (width, height) if width else None, kind_of(address)
    if kind in BY_NAME:
        return _by_name(kind)(unquote(address.split("://", 1)[1]), size, fps, flip, **more)
    if more:
        raise TypeError(f"{kind} sources do not take {', '.join(more)}")
    if kind == "csi":
        return _open_csi(address, size, fps, flip)
    if kind == "stream":
        return _open_stream(address, flip)
    if kind == "camera":
        return _open_camera(address.replace("v4l2://", ""), size, fps, flip)
    path = file_of(address)
    return _open_folder(path, size, fps, flip) if os.path.isdir(path) else _open_file(path, size, fps, flip)


def _by_name(scheme):
    module, name = BY_NAME[scheme].split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise MissingComponentError(f"{scheme}:// sources cannot be loaded", found=str(error), expected=f"{module} with OpenCV",
                                    do="pip install 'tsm-edge[train]', or give a camera or a file") from error


def _open_folder(path, size, fps, flip):
    names = [name for name in os.listdir(path) if name.lower().endswith(PICTURES) and not name.startswith(".")]
    if not names:
        raise InputError("the folder holds no pictures", found=path, expected="the frames of one film: " + ", ".join(PICTURES),
                         do="check the path; of a data set name one clip")
    names.sort(key=natural)
    return FolderSource(path, names, flip, size, fps)


def _open_file(path, size, fps, flip):
    cv2 = import_cv2()
    if not Path(path).is_file():
        near = sorted(p.name for p in Path(path).parent.glob("*")
                      if p.suffix.lower() in (".mp4", ".avi", ".mkv", ".mov", ".webm"))[:5] if Path(path).parent.is_dir() else []
        raise InputError("there is no such video", found=f"no file {path}" + (f"; there are {', '.join(near)}" if near else ""),
                         expected=EXPECTED, do="check the path")
    capture = _quietly(cv2, lambda: cv2.VideoCapture(str(path)))
    if not capture.isOpened():
        raise InputError("the video cannot be read", found=f"{path}, {os.path.getsize(path)} bytes, which OpenCV does not know",
                         expected="a video file (mp4, avi, mkv, webm, ...)",
                         do="play it elsewhere to see whether it is whole, or convert it to mp4")
    return VideoSource(capture, str(path), False, flip, size, fps)


def _open_camera(address, size, fps, flip):
    cv2 = import_cv2()
    there = ""
    if sys.platform.startswith("linux"):
        names = sorted(glob.glob("/dev/video*"))
        there = f"; there are {', '.join(names)}" if names else "; no /dev/video* at all"
    if address.startswith("/dev/") and not os.path.exists(address):
        raise InputError("there is no such camera", found=f"no {address}{there}", expected=EXPECTED,
                         do="plug the camera in; v4l2-ctl --list-devices names them" if there else "cameras are numbers here: --source 0")
    which = int(address) if address.isdigit() else address
    capture = _quietly(cv2, lambda: cv2.VideoCapture(which))
    if not capture.isOpened():
        may = "you may read it (group video)" if there else "the system's settings let programs use it"
        raise InputError("the camera cannot be opened", found=f"camera {address} does not open{there}", expected=EXPECTED,
                         do=f"see that it is plugged in, that no other program uses it, and that {may}; or give a video file")
    if size:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
    if fps:
        capture.set(cv2.CAP_PROP_FPS, fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver knows it: the newest frame, not the oldest
    return VideoSource(capture, f"camera {address}", True, flip)


def csi_pipeline(index, size=None, fps=None, flip="none"):
    """The GStreamer pipeline of a Jetson's CSI camera."""
    width, height = size or (1280, 720)
    return _CSI.format(index=index, width=width, height=height, fps=int(fps or 30), flip=FLIPS.index(flip))


def _open_csi(address, size, fps, flip):
    cv2 = import_cv2()
    index = address[len("csi://"):].strip("/") or "0"
    if not index.isdigit():
        raise InputError("this is no CSI camera", found=address, expected="csi://0, csi://1, ...", do="give its number")
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise InputError("this OpenCV cannot open CSI cameras", found=f"OpenCV {cv2.__version__} without GStreamer",
                         expected="the board's own OpenCV (JetPack's has GStreamer; pip's has not)",
                         do="pip uninstall opencv-python-headless, use the system's python3-opencv; or a USB camera")
    capture = cv2.VideoCapture(csi_pipeline(index, size, fps, flip), cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise InputError("the CSI camera cannot be opened", found=address, expected="a camera on the CSI port",
                         do="check the cable; sudo systemctl restart nvargus-daemon after another program crashed with it")
    return VideoSource(capture, address, True, "none")  # the pipeline has turned the picture already


def _open_stream(address, flip):
    cv2 = import_cv2()
    reader = cv2.CAP_FFMPEG if re.search(r"FFMPEG:\s+YES", cv2.getBuildInformation()) else cv2.CAP_ANY
    capture = _quietly(cv2, lambda: cv2.VideoCapture(address, reader))
    if not capture.isOpened():
        raise InputError("the stream cannot be opened", found=masked(address),
                         expected="a stream that answers", do="try the address in a player; check user, password and path")
    return VideoSource(capture, masked(address), True, flip)


def _quietly(cv2, opening):
    """OpenCV warns at length about what our own message says in a line."""
    try:
        logging = cv2.utils.logging
        level = logging.getLogLevel()
        logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    except AttributeError:
        return opening()
    try:
        return opening()
    finally:
        logging.setLogLevel(level)
