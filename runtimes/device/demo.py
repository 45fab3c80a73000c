#!/usr/bin/env python3
"""Recognise gestures on the board: Python 3.6 or newer, numpy, and the system's OpenCV.

    python3 demo.py --source csi://0                          # a Jetson's CSI camera
    python3 demo.py --source /dev/video0 --headless           # a USB camera, no window
    python3 demo.py --source clip.mp4 --headless --events -   # a file; every frame at the video's own times

Keys: Q or Esc ends, F switches full screen.
"""
from __future__ import print_function

import argparse
import collections
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tsm_device  # noqa: E402
from tsm_device import DeviceError  # noqa: E402

FLIPS = ("none", "counterclockwise", "rotate-180", "clockwise", "horizontal", "vertical")
CSI = ("nvarguscamerasrc sensor-id={index} ! video/x-raw(memory:NVMM), width=(int){width}, height=(int){height}, "
       "framerate=(fraction){fps}/1 ! nvvidconv flip-method={flip} ! video/x-raw, format=(string)BGRx ! videoconvert ! "
       "video/x-raw, format=(string)BGR ! appsink drop=true max-buffers=1 sync=false")
SILENCE_SECONDS = 10.0
TITLE = "tsm-edge"


def import_cv2():
    try:
        import cv2
    except ImportError as error:
        raise DeviceError("OpenCV is not installed", error, "the system's OpenCV for Python",
                          "sudo apt install python3-opencv (JetPack brings it)") from error
    return cv2


def masked(address):
    """The address without its user and password, to be shown."""
    return re.sub(r"//[^/]*@", "//***@", address)


def path_of(source):
    """The path that --source names as a file; None where it names a camera or a stream."""
    if source.isdigit() or source.startswith("/dev/video") or ("://" in source and not source.startswith("file://")):
        return None
    return source[7:] if source.startswith("file://") else source


def check(options):
    """Refuse what cannot be, before anything is opened."""
    if options.max_frames is not None and options.max_frames < 1:
        raise DeviceError("--max-frames cannot be used", options.max_frames, "1 or more", "leave it out for no limit")
    size, rate, path = (options.input_width, options.input_height), options.input_rate, path_of(options.source)
    if size != (None, None) and not all(side is not None and 16 <= side <= 16384 for side in size):
        raise DeviceError("the size cannot be used", "--input-width %s --input-height %s" % size, "both, 16 to 16384",
                          "leave both out, or give both")
    if rate is not None and not 0 < rate <= 1000:
        raise DeviceError("the frame rate cannot be used", rate, "above 0, up to 1000", "leave --input-rate out")
    if size != (None, None) and (path or "://" in options.source and not options.source.startswith("csi://")):
        raise DeviceError("only a camera can be asked for a size", masked(options.source), "0, /dev/video0, csi://0",
                          "leave --input-width and --input-height out: every picture is scaled for the network anyway")
    if path and options.events and os.path.exists(path) and os.path.exists(options.events) and \
            os.path.samefile(path, options.events):
        raise DeviceError("--events would write over --source", options.events + " for both", "a file of its own",
                          "write elsewhere")


def open_capture(cv2, options):
    """(cv2.VideoCapture, live) of --source."""
    source = options.source
    if source.startswith("csi://"):
        if "GStreamer:" in cv2.getBuildInformation() and \
                "YES" not in cv2.getBuildInformation().split("GStreamer:")[1].split("\n")[0]:
            raise DeviceError("this OpenCV cannot open CSI cameras", "OpenCV %s without GStreamer" % cv2.__version__,
                              "the board's own OpenCV", "remove pip's OpenCV, so that JetPack's is found")
        # the pipeline turns the picture: nvvidconv's methods in its own order
        methods = {"none": 0, "counterclockwise": 1, "rotate-180": 2, "clockwise": 3, "horizontal": 4, "vertical": 5}
        index = source[6:].strip("/") or "0"
        if not index.isdigit():
            raise DeviceError("this is no CSI camera", source, "csi://0, csi://1, ...", "give its number")
        pipeline = CSI.format(index=index, width=options.input_width or 1280,
                              height=options.input_height or 720, fps=int(options.input_rate or 30),
                              flip=methods[options.input_flip])
        options.input_flip = "none"
        capture, live = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), True
    elif source.isdigit() or source.startswith("/dev/video"):
        capture, live = cv2.VideoCapture(int(source) if source.isdigit() else source), True
        if options.input_width and options.input_height:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.input_width)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.input_height)
        if options.input_rate:
            capture.set(cv2.CAP_PROP_FPS, options.input_rate)
    elif path_of(source) is None:
        capture, live = cv2.VideoCapture(source), True
    else:
        path = path_of(source)
        if not os.path.isfile(path):
            raise DeviceError("there is no such video", "no file " + path, "0, /dev/video0, csi://0, rtsp://..., clip.mp4",
                              "check the path")
        capture, live = cv2.VideoCapture(path), False
    if not capture.isOpened():
        raise DeviceError("the source cannot be opened", masked(source), "a camera that answers, or a video file",
                          "check plug, cable and path, and that no other program uses the camera")
    return capture, live


def turn(cv2, frame, method):
    codes = {"clockwise": "ROTATE_90_CLOCKWISE", "counterclockwise": "ROTATE_90_COUNTERCLOCKWISE",
             "rotate-180": "ROTATE_180"}
    if method in codes:
        return cv2.rotate(frame, getattr(cv2, codes[method]))
    return frame if method == "none" else cv2.flip(frame, 1 if method == "horizontal" else 0)


class Reader(object):
    """Reads in its own thread: the newest frame of a camera, every frame of a file. Holds one frame."""

    def __init__(self, cv2, capture, live, flip):
        self.cv2, self.capture, self.live, self.flip = cv2, capture, live, flip
        self.dropped, self.ended, self.error, self._stop, self._slot = 0, False, None, False, None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.daemon = True
        self._thread.start()

    def _run(self):
        first, last, count = None, -1.0, 0
        rate = self.capture.get(self.cv2.CAP_PROP_FPS)
        period = 1.0 / rate if 0 < rate < 1000 else 1.0 / 30
        try:
            while not self._stop:
                good, frame = self.capture.read()
                if not good:
                    break
                now = time.monotonic() if self.live else self.capture.get(self.cv2.CAP_PROP_POS_MSEC) / 1000
                if not self.live and not now > last:
                    now = 0.0 if count == 0 else last + period
                first = now if first is None else first
                last, count = now, count + 1
                item = (turn(self.cv2, frame, self.flip), now - first, count - 1)
                with self._changed:
                    while self._slot is not None and not self.live and not self._stop:
                        self._changed.wait(0.5)
                    self.dropped += self._slot is not None
                    self._slot = item
                    self._changed.notify_all()
        except Exception as error:  # handed to the thread that asks for frames
            self.error = error
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def next(self, timeout=0.25):
        """(frame BGR, seconds, number), or None."""
        with self._changed:
            if self._slot is None and not self.ended:
                self._changed.wait(timeout)
            item, self._slot = self._slot, None
            self._changed.notify_all()
        if item is None and self.error:
            raise self.error
        return item

    def close(self):
        self._stop = True
        self._thread.join(2.0)
        if not self._thread.is_alive():
            self.capture.release()


class EventLog(object):
    """Events as JSON lines into a file or stdout ("-"); unless that is stdout, finished ones there as plain lines."""

    def __init__(self, target, trained):
        self.count, self._target, self._trained, self._file = 0, target or "stdout", trained, None
        if target == "-":
            self._file = sys.stdout
        elif target:
            with self._words():
                self._file = open(target, "w")

    def write(self, event):
        record = {"event": event.kind, "label": event.label, "index": event.index, "start": round(event.start, 4),
                  "start_frame": event.start_frame, "score": round(event.score, 4)}
        if event.kind == "end":
            self.count += 1
            record.update(end=round(event.end, 4), end_frame=event.end_frame, duration=round(event.end - event.start, 4))
        if not self._trained:
            record["trained"] = False
        with self._words():
            if self._file:
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
            if self._file is not sys.stdout and event.kind == "end":
                print("%8.2f - %8.2f  %s  %.2f" % (event.start, event.end, event.label, event.score))
                sys.stdout.flush()

    def close(self):
        if self._file and self._file is not sys.stdout:
            with self._words():
                self._file.close()

    @contextlib.contextmanager
    def _words(self):
        try:
            yield
        except BrokenPipeError:  # demo.py --events - | head
            raise
        except OSError as error:
            raise DeviceError("the events cannot be written", "%s: %s" % (self._target, error.strerror),
                              "a file in an existing folder with room on its disk, or -", "write elsewhere") from error


def draw(cv2, image, model, events, rate, step_ms):
    """Label, five score bars and rates over the picture, in place."""
    height, width = image.shape[:2]
    unit = max(0.5, min(height / 480.0, width / 640.0))
    font, white, grey, accent = cv2.FONT_HERSHEY_DUPLEX, (255, 255, 255), (190, 186, 180), (180, 205, 60)
    thin, top = max(1, int(unit)), int(height - 136 * unit)
    panel = image[top:]
    panel[:] = cv2.addWeighted(panel, 0.3, np.full_like(panel, 24), 0.7, 0)

    def put(text, x, y, size, colour):
        cv2.putText(image, text.encode("ascii", "replace").decode(), (int(x), int(y)), font, size * unit, colour, thin,
                    cv2.LINE_AA)

    active = events.active
    put(active.label if active else events.label or "waiting", 14 * unit, top + 62 * unit, 0.8, accent if active else grey)
    put("%.1f fps  %.1f ms" % (rate, step_ms), 14 * unit, top + 92 * unit, 0.45, grey)
    if not model.manifest.get("trained"):
        put("UNTRAINED: labels mean nothing", 14 * unit, top + 116 * unit, 0.45, (40, 170, 250))
    left, right = width * 0.52, width - 14 * unit
    bar = left + (right - left) * 0.62
    for place, index in enumerate(np.argsort(-events.scores)[:5]):
        y = top + (28 + 23 * place) * unit
        put(model.classes[index][:26], left, y, 0.42, white if place == 0 else grey)
        cv2.rectangle(image, (int(bar), int(y - 9 * unit)), (int(right), int(y)), (70, 64, 58), -1)
        cv2.rectangle(image, (int(bar), int(y - 9 * unit)), (int(bar + (right - bar) * float(events.scores[index])), int(y)),
                      accent if place == 0 else grey, -1)


def _main(argv=None):
    parser = argparse.ArgumentParser(description="Recognise gestures on this board.", epilog=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bundle", help="folder of the bundle (default: the one this file lies in)")
    add("--source", default="0", help="0, /dev/video0, csi://0, rtsp://..., clip.mp4 (default: 0)")
    add("--headless", action="store_true", help="no window")
    add("--events", metavar="FILE", help="events as JSON lines into FILE; - for stdout")
    add("--max-frames", type=int, metavar="N", help="end after N frames")
    add("--threads", type=int, default=0, metavar="N", help="threads (default: the model's)")
    add("--input-width", type=int, metavar="W")
    add("--input-height", type=int, metavar="H")
    add("--input-rate", type=float, metavar="FPS")
    add("--input-flip", default="none", choices=FLIPS)
    options = parser.parse_args(argv)
    check(options)
    model = tsm_device.load(options.bundle, options.threads)
    if not model.manifest.get("trained"):
        sys.stderr.write("UNTRAINED: this network has random weights; its labels mean nothing.\n")
    cv2 = import_cv2()
    if not options.headless and sys.platform.startswith("linux") and \
            not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise DeviceError("there is no display", "neither DISPLAY nor WAYLAND_DISPLAY is set", "a desktop session",
                          "add --headless; or on the board itself: export DISPLAY=:0")
    cv2.setNumThreads(1)  # OpenCV's own threads only get in the way of the network's
    capture, live = open_capture(cv2, options)
    rate = capture.get(cv2.CAP_PROP_FPS)
    log = EventLog(options.events, model.manifest.get("trained"))
    stream, events = model.stream("BGR"), model.events(rate if 0 < rate < 1000 else 0.0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    times, moments = collections.deque(maxlen=5000), collections.deque(maxlen=30)
    taken = frames = 0
    full, reason, heard = False, "end of file", time.monotonic()
    reader = Reader(cv2, capture, live, options.input_flip)  # last: from here on a thread is inside OpenCV
    try:
        while True:
            item = reader.next()
            if item is None:
                if reader.ended or (live and time.monotonic() - heard > SILENCE_SECONDS):
                    reason = "source lost" if live else reason
                    break
                continue
            heard = time.monotonic()
            frame, when, number = item
            result = stream.step(frame, when)
            taken += 1
            if not result.skipped:
                frames += 1
                moments.append(time.monotonic())
                times.append((result.timings["preprocess_ms"], result.timings["step_ms"]))
                for event in events.update(result, when, number):
                    log.write(event)
            if not options.headless:
                span = moments[-1] - moments[0] if len(moments) > 1 else 0
                draw(cv2, frame, model, events, (len(moments) - 1) / span if span else 0.0, result.timings["step_ms"])
                cv2.imshow(TITLE, frame)
                key = cv2.waitKey(1) & 0xFF
                if key in (ord("q"), ord("Q"), 27):
                    reason = "key"
                    break
                if key in (ord("f"), ord("F")):
                    full = not full
                    cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)
                    cv2.setWindowProperty(TITLE, cv2.WND_PROP_FULLSCREEN,
                                          cv2.WINDOW_FULLSCREEN if full else cv2.WINDOW_NORMAL)
            if taken == options.max_frames:
                reason = "frame limit"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    finally:
        with contextlib.ExitStack() as closing:  # the last first; each of them, whatever another one raises
            if not options.headless:
                closing.callback(cv2.destroyAllWindows)
            closing.callback(log.close)
            closing.callback(lambda: [log.write(event) for event in events.finish()])
            closing.callback(stream.close)
            closing.callback(reader.close)
    if times:
        for name, column in zip(("preprocess", "step"), np.array(times).T):
            sys.stderr.write("%-10s p50 %.2f ms, p90 %.2f ms, p99 %.2f ms\n" % (
                (name,) + tuple(np.percentile(column, [50, 90, 99]))))
    sys.stderr.write("%d frames, %d dropped, %d skipped by the model's frame rate\n" % (
        frames, reader.dropped, taken - frames))
    if reason == "source lost":
        raise DeviceError("the camera is gone", "%d frames, then none" % taken, "frames until you end it",
                          "check plug and cable, then start again")
    if taken == 0 and reason == "end of file":
        raise DeviceError("the video has no frames", "%s: none could be decoded" % options.source, "at least one",
                          "play it elsewhere to see whether it is whole")
    sys.stderr.write("PASSED %s: %d frames, %d events\n" % (reason, frames, log.count))
    return 0


if __name__ == "__main__":
    tsm_device.main(run=_main)
