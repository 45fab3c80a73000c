"""Writing the picture with its overlay to a video file, and events to JSON lines."""
import contextlib
import json
import sys
from pathlib import Path

from tsm_edge.errors import InputError
from tsm_edge.runtimes.sources import frames_in, import_cv2

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".m4v": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}


class VideoRecorder:
    """A video file at a constant frame rate.

    Opened at the first frame, for its size. Frames carry times: where the source is slower than the file's rate the last
    picture is repeated, where it is faster pictures are left out, so that the film runs at the speed of the scene.
    """

    MOST_REPEATS = 300  # a gap longer than that (10 s at 30 fps) is cut

    def __init__(self, path, fps):
        self.path, self.fps = Path(path), float(fps) if fps and fps > 0 else 30.0
        if self.path.suffix.lower() not in CODECS:
            raise InputError("the output's kind is unknown", found=self.path.suffix or "no suffix",
                             expected=", ".join(CODECS), do="name it, for example, out.mp4")
        if not self.path.parent.is_dir():
            raise InputError("the output cannot be written", found=f"no folder {self.path.parent} to write to",
                             expected="an existing folder", do="make the folder, or write elsewhere")
        try:
            new = not self.path.exists()
            open(self.path, "ab").close()
            if new:
                self.path.unlink()
        except OSError as error:
            raise InputError("the output cannot be written", found=f"{self.path}: {error.strerror}", expected="a file that can be made",
                             do="write elsewhere") from error
        self._writer, self._size, self._first, self.frames = None, None, None, 0

    def write(self, image, time):
        """Add uint8 [h, w, 3] BGR taken at `time` seconds."""
        cv2 = import_cv2()
        if self._writer is None:
            self._size, self._first = (image.shape[1] // 2 * 2, image.shape[0] // 2 * 2), time  # the codec wants even sides
            code = cv2.VideoWriter_fourcc(*CODECS[self.path.suffix.lower()])
            self._writer = cv2.VideoWriter(str(self.path), code, self.fps, self._size)
            if not self._writer.isOpened():
                raise InputError("the output cannot be written", found=f"{self.path}: OpenCV has no encoder for it",
                                 expected="an OpenCV with FFmpeg or GStreamer", do="try .avi, or leave --output out")
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size) if abs(image.shape[1] - self._size[0]) > 1 or \
                abs(image.shape[0] - self._size[1]) > 1 else image[:self._size[1], :self._size[0]]
        due = int(round((time - self._first) * self.fps)) + 1
        if due - self.frames > self.MOST_REPEATS or due < self.frames:  # a gap, or the source's clock began anew
            self._first = time - self.frames / self.fps
            due = self.frames + 1
        while self.frames < due:
            self._writer.write(image)
            self.frames += 1

    def close(self):
        if self._writer is not None:
            self._writer.release()

    def check(self):
        """Once it is closed: are all frames in the file? OpenCV does not say when a disk is full.

        Raises
        ------
        InputError
        """
        found = frames_in(self.path) if self.frames else 0
        if found != self.frames:
            raise InputError("the film could not be written", found=f"{found} of {self.frames} frames in {self.path}",
                             expected="all of them", do="make room on the disk, or write elsewhere")


class EventLog:
    """Gesture events as they happen: JSON lines to a file or stdout, plain lines to stdout.

    Parameters
    ----------
    target : str or None
        A file's path, "-" for JSON lines on stdout, None for plain lines on stdout.
    trained : bool
        Where False every JSON line says so.
    """

    def __init__(self, target, trained, out=None):
        self._out, self._trained, self.count, self._target = out or sys.stdout, trained, 0, target or "stdout"
        self._plain, self._file = target != "-", None
        if target not in (None, "-"):
            with self._words():
                self._file = open(target, "w", encoding="utf-8", newline="\n")
        elif target == "-":
            self._file = self._out

    def write(self, event):
        """Write one Event."""
        self.count += event.kind == "end"
        with self._words():
            if self._plain and event.kind == "end":
                print(f"{_clock(event.start)} - {_clock(event.end)}  {event.label}  {event.score:.2f}", file=self._out, flush=True)
            if self._file:
                self._file.write(json.dumps(event_record(event, self._trained)) + "\n")
                self._file.flush()

    def close(self):
        if self._file and self._file is not self._out:
            with self._words():
                self._file.close()

    @contextlib.contextmanager
    def _words(self):
        """What the system says, in ours. A reader that is gone (tsm-demo | head) is no error."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InputError("the events cannot be written", found=f"{self._target}: {error.strerror}",
                             expected="a file in an existing folder with room on its disk, or - for stdout",
                             do="write elsewhere") from error


def event_record(event, trained=True):
    """An Event as a JSON-ready dict; times in seconds, frames by number."""
    record = {"event": event.kind, "label": event.label, "index": event.index, "start": round(event.start, 4),
              "start_frame": event.start_frame, "score": round(event.score, 4)}
    if event.kind == "end":
        record.update(end=round(event.end, 4), end_frame=event.end_frame, duration=round(event.end - event.start, 4))
    if not trained:
        record["trained"] = False
    return record


def _clock(seconds):
    minutes, seconds = divmod(max(0.0, seconds), 60)
    return f"{int(minutes):02d}:{seconds:06.3f}"
