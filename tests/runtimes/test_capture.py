"""Live sources: the newest frame wins. Files: every frame, in order."""
import threading
import time

import numpy as np
import pytest

from tsm_edge.demo.timing import Rate, Stages
from tsm_edge.runtimes.capture import Capture


def pictures(count):
    return [np.full((2, 2, 3), i % 256, np.uint8) for i in range(count)]


def drain(capture, slow=0.0):
    seen = []
    while not (capture.ended and capture._slot is None):
        frame = capture.next(0.05)
        if frame is not None:
            seen.append(int(frame.image[0, 0, 0]))
            time.sleep(slow)
    return seen


def test_a_file_gives_all_frames_however_slow_the_reader_is(make_source):
    capture = Capture(make_source(pictures(40)))
    assert drain(capture, slow=0.002) == list(range(40)) and capture.dropped == 0
    capture.close()
    assert capture.source.closed


def test_a_camera_gives_the_newest_frame_and_counts_the_others(make_source):
    hold = threading.Event()
    source = make_source([*pictures(10), hold, *pictures(1)], live=True)
    capture = Capture(source)
    while len(source.items) > 1:
        time.sleep(0.005)
    time.sleep(0.05)
    frame = capture.next()
    assert frame.image[0, 0, 0] == 9 and frame.index == 9 and capture.dropped == 9
    hold.set()
    assert drain(capture) == [0] and capture.dropped == 9
    capture.close()


def test_an_error_while_reading_reaches_the_one_who_asks(make_source):
    capture = Capture(make_source([*pictures(1), RuntimeError("cable pulled")]))
    assert capture.next() is not None
    with pytest.raises(RuntimeError, match="cable pulled"):
        for _ in range(100):
            capture.next(0.05)
    capture.close()


def test_closing_does_not_wait_for_a_driver_that_hangs(make_source):
    hold = threading.Event()
    source = make_source([hold], live=True)
    capture = Capture(source)
    begin = time.monotonic()
    assert capture.next(0.01) is None
    capture.close(timeout=0.1)
    assert time.monotonic() - begin < 2 and not source.closed
    hold.set()


def test_closing_early_stops_a_file(make_source):
    capture = Capture(make_source(pictures(1000)))
    capture.next()
    capture.close()
    assert capture.source.closed and capture.source.given < 10


def test_percentiles_are_of_the_latest_values_and_memory_stays():
    stages = Stages(keep=100)
    for value in range(1, 1001):
        stages.add("step", value)
    (name, count, p50, p90, p99), = stages.rows()
    assert (name, count) == ("step", 1000)
    assert (p50, p90, p99) == pytest.approx(tuple(np.percentile(np.arange(901, 1001), (50, 90, 99))))
    stages.add("few", 3.0)
    assert stages.rows()[1] == ("few", 1, 3.0, 3.0, 3.0)


def test_rate_is_per_second_over_the_window():
    rate = Rate(window=5)
    assert rate.value == 0
    for t in (0, 10, 10.5, 11, 11.5, 12):
        rate.tick(t)
    assert rate.value == pytest.approx(2)
