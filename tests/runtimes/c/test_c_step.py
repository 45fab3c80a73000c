"""The C runtime steps a model, keeps its state and says what is wrong."""
import ctypes as ct
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

OK, ARGUMENT, SIZE, IMAGE, BUSY, PLAN, CPU, KERNEL = 0, 1, 2, 3, 6, 7, 8, 9


def close(got, want, tolerance=1e-5):
    assert np.max(np.abs(got - want)) <= tolerance * max(1, np.max(np.abs(want)))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_chained_steps_equal_the_numpy_network(toy, kit, threads):
    frames = kit.toy_frames(12)
    stream = toy.stream(threads=threads)
    assert stream.status == OK and toy.lib.tsm_stream_threads(stream.handle) == threads
    seen = []
    for frame, (logits, a, b) in zip(frames, kit.toy_reference(frames)):
        seen.append(stream.logits(frame))
        close(seen[-1], logits)
        close(stream.cache(0), a)
        close(stream.cache(1), b)
    assert np.std(seen, axis=0).min() > 1e-3, "the logits do not move: the comparison proves nothing"
    stream.close()


def test_half_precision_blocks_are_converted_in_software(kit, tmp_path):
    toy = kit.Toy(kit.build_toy(tmp_path, BITS=16))
    assert toy.create() == (OK, "")
    info = toy.info()
    assert (info.frame_bits, info.logits_bits, info.precision) == (16, 16, b"fp16")
    frames = kit.toy_frames(6)
    stream = toy.stream(threads=1)
    for frame, (logits, a, b) in zip(frames, kit.toy_reference(frames, half=True)):
        close(stream.logits(frame), logits, 2e-3)
        close(stream.cache(0), a, 1e-3)
        close(stream.cache(1), b, 1e-3)
    values = np.random.default_rng(1).normal(size=(2, kit.HEIGHT, kit.WIDTH)).astype(np.float32)
    values.ravel()[:8] = [0, -0.0, 65504, 1e-8, 6e-8, 65519, -1e-5, np.inf]
    assert stream.set_cache(0, values) == OK
    assert np.array_equal(stream.cache(0), values.astype(np.float16).astype(np.float32))
    everything = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    everything = everything[~np.isnan(everything)]
    for start in range(0, everything.size, values.size):
        part = np.zeros_like(values)
        chunk = everything[start:start + values.size]
        part.ravel()[:chunk.size] = chunk
        assert stream.set_cache(0, part) == OK
        assert np.array_equal(stream.cache(0), part)
    stream.close()


def test_result_carries_label_softmax_and_names(toy, kit):
    stream = toy.stream(timings=1)
    status, result = stream.step_tensor(kit.toy_frames(1)[0])
    logits = np.ctypeslib.as_array(result.logits, (5,)).astype(np.float64)
    scores = np.ctypeslib.as_array(result.scores, (5,))
    want = np.exp(logits - logits.max())
    close(scores, want / want.sum(), 1e-6)
    assert result.label_index == np.argmax(logits) and result.score == pytest.approx(scores.max())
    assert result.label == toy.lib.tsm_model_class_name(toy.model, result.label_index)
    assert result.num_classes == 5 and not result.reset and not result.skipped
    assert 0 < result.step_ns < 1e9
    stream.close()


def test_introspection_tells_the_plan(toy, kit):
    info = toy.info()
    assert (info.name, info.precision, info.manifest, info.trained) == (b"toy", b"fp32", b'{"schema": 1}', 0)
    assert (info.width, info.height, info.num_classes, info.num_caches, info.num_calls) == (28, 20, 5, 2, 3)
    assert info.macs == 28 * 20 * 88 + 40 and info.fps == 15
    # what the splice kernel takes at most: 4096, 100 and one row of 8 channels, each with its header
    assert info.scratch_bytes == (4096 + 64) + (128 + 64) + (28 * 8 * 4 + 64)
    cache = kit.CacheInfo()
    assert toy.lib.tsm_model_get_cache_info(toy.model, 1, ct.byref(cache)) == OK
    assert (cache.name, cache.channels, cache.height, cache.width, cache.bits) == (b"cache.b", 3, 20, 28, 32)
    assert toy.lib.tsm_model_get_cache_info(toy.model, 2, ct.byref(cache)) == ARGUMENT
    assert toy.lib.tsm_model_class_name(toy.model, 5) is None and toy.lib.tsm_model_class_name(toy.model, -1) is None


def test_reset_and_restored_state_repeat_the_past(toy, kit):
    frames = kit.toy_frames(6)
    stream, other = toy.stream(), toy.stream()
    first = [stream.logits(frame) for frame in frames]
    toy.lib.tsm_stream_reset(stream.handle)
    assert not stream.cache(0).any()
    for frame in frames[:3]:
        stream.logits(frame)
    for index in (0, 1):
        assert other.set_cache(index, stream.cache(index)) == OK
    for stepped in (stream, other):
        for t in (3, 4, 5):
            assert np.array_equal(stepped.logits(frames[t]), first[t])
        stepped.close()


def test_stateless_step_equals_stream_and_leaves_its_inputs(toy, kit):
    info, frames = toy.info(), kit.toy_frames(4)

    def block(size):
        raw = np.zeros(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start:start + size]

    frame, logits, workspace = block(info.frame_bytes), block(info.logits_bytes), block(info.workspace_bytes)
    caches = [block(info.cache_bytes), block(info.cache_bytes)]

    def at(array):
        return ct.c_void_p(array.ctypes.data)

    stream, times = toy.stream(), (ct.c_int64 * 3)()
    for t, x in enumerate(frames):
        toy.lib.tsm_model_frame_from_nchw(toy.model, at(np.ascontiguousarray(x)), at(frame))
        before = frame.copy(), caches[0].copy()
        if t % 2:
            status = toy.lib.tsm_model_profile(toy.model, at(frame), at(caches[0]), at(caches[1]), at(logits), at(workspace),
                                               times)
            assert min(times) >= 0 and sum(times) > 0
        else:
            status = toy.lib.tsm_model_step(toy.model, at(frame), at(caches[0]), at(caches[1]), at(logits), at(workspace))
        assert status == OK
        assert np.array_equal(before[0], frame) and np.array_equal(before[1], caches[0])
        out = np.zeros(5, np.float32)
        toy.lib.tsm_model_logits_to_float(toy.model, at(logits), at(out))
        assert np.array_equal(out, stream.logits(x))
        values = np.zeros((3, 20, 28), np.float32)
        assert toy.lib.tsm_model_cache_to_nchw(toy.model, 1, at(caches[1]), at(values)) == OK
        assert np.array_equal(values, stream.cache(1))
        caches.reverse()
    refused = [(frame[4:], *caches), (frame, caches[0], caches[0]), (frame, caches[0][1:], caches[1])]
    for a, b, c in refused:
        assert toy.lib.tsm_model_step(toy.model, at(a), at(b), at(c), at(logits), at(workspace)) == ARGUMENT
    stream.close()


def test_a_failing_kernel_is_told_in_its_words_and_harms_nothing(toy, kit):
    frames = kit.toy_frames(3)
    bright = frames[1].copy()
    bright[0, 0, 0] = 2000
    stream, calm = toy.stream(threads=2), toy.stream(threads=1)
    stream.logits(frames[0]), calm.logits(frames[0])
    status, _ = stream.step_tensor(bright)
    assert status == KERNEL and stream.error() == "ValueError: the frame is too bright for a toy"
    assert np.array_equal(stream.logits(frames[2]), calm.logits(frames[2]))
    assert stream.error() == ""
    stream.close(), calm.close()


def test_too_little_scratch_is_an_error_not_a_crash(toy, kit):
    frame = kit.toy_frames(1)[0]
    frame[:, 0, 0] = 1e6 * kit.toy_weights()[0][:, 0]  # the splice kernel takes more than when the model was created
    stream = toy.stream(threads=1)
    assert stream.step_tensor(frame)[0] == KERNEL
    assert f"asked for 1048576 bytes of scratch; {toy.info().scratch_bytes} of" in stream.error()
    stream.close()


@pytest.mark.parametrize("wrong, status, words", [
    ({"VERSION": 99}, PLAN, "plan version 99"),
    ({"BAD_OFFSET": 64000000}, PLAN, "operand 3"),
    ({"HWCAP": "(1ull<<63)"}, CPU, "8000000000000000"),
])
def test_a_library_that_cannot_run_here_is_refused(kit, tmp_path, wrong, status, words):
    toy = kit.Toy(kit.build_toy(tmp_path, flags=("-O0",), **wrong))
    found, message = toy.create()
    assert found == status and words in message


def test_bad_arguments_give_statuses(toy, kit):
    lib, frame = toy.lib, np.zeros((3, 20, 28), np.float32)
    stream, out, result = toy.stream(), ct.c_void_p(), kit.Result()
    data = frame.ctypes.data_as(ct.c_void_p)
    assert lib.tsm_model_create(None, None) == ARGUMENT
    assert lib.tsm_model_create(ct.byref(kit.ModelOptions.type()), ct.byref(out)) == SIZE
    assert lib.tsm_stream_create(None, None, ct.byref(out)) == ARGUMENT
    assert lib.tsm_stream_create(toy.model, None, None) == ARGUMENT
    assert lib.tsm_stream_create(toy.model, ct.byref(kit.StreamOptions.type()), ct.byref(out)) == SIZE
    for options in ({"threads": -1}, {"threads": 65}, {"affinity": 3}, {"fps": float("nan")}):
        assert toy.stream(**options).status == ARGUMENT
    assert lib.tsm_stream_step_tensor(None, data, None) == ARGUMENT
    assert lib.tsm_stream_step_tensor(stream.handle, None, None) == ARGUMENT
    assert lib.tsm_stream_step_tensor(stream.handle, data, ct.byref(kit.Result.type())) == SIZE
    assert lib.tsm_stream_step_tensor(stream.handle, data, None) == OK
    assert lib.tsm_stream_step(stream.handle, None, ct.byref(result)) == ARGUMENT
    assert lib.tsm_stream_step(stream.handle, ct.byref(kit.Image.type()), None) == SIZE
    assert lib.tsm_stream_step(None, None, None) == ARGUMENT
    assert lib.tsm_stream_reset(None) == ARGUMENT
    assert lib.tsm_model_get_info(toy.model, ct.byref(kit.ModelInfo.type())) == SIZE
    assert lib.tsm_stream_get_cache(stream.handle, 0, frame.ctypes.data, 5) == SIZE
    assert lib.tsm_stream_get_cache(stream.handle, 7, frame.ctypes.data, 5) == ARGUMENT
    assert lib.tsm_stream_set_cache(stream.handle, 0, None, 5) == ARGUMENT
    assert lib.tsm_stream_get_profile(stream.handle, 0, ct.byref(kit.Profile())) == ARGUMENT, "not profiled"
    assert lib.tsm_stream_error(None) == b"" and lib.tsm_stream_threads(None) == 0
    lib.tsm_stream_destroy(None), lib.tsm_model_destroy(None)
    assert len({lib.tsm_status_message(code) for code in range(11)}) == 11
    stream.close()


def test_a_newer_or_older_callers_struct_is_read_by_its_size(toy, kit):
    class Longer(ct.Structure):
        _fields_ = [("base", kit.StreamOptions.type), ("new", ct.c_int64)]

    longer, out = Longer(), ct.c_void_p()
    longer.base.size, longer.base.threads, longer.new = ct.sizeof(Longer), 2, -1
    assert toy.lib.tsm_stream_create(toy.model, ct.byref(longer), ct.byref(out)) == OK
    assert toy.lib.tsm_stream_threads(out) == 2
    toy.lib.tsm_stream_destroy(out)


def test_a_library_can_be_opened_and_closed_more_often_than_a_process_has_keys(toy, kit):
    from _ctypes import dlclose

    path = toy.lib._name
    copy = shutil.copy(path, path.replace("libtoy", "libcopy"))
    for _ in range(1100):  # PTHREAD_KEYS_MAX is 1024
        again = kit.Toy(copy)
        assert again.create() == (OK, "")
        again.lib.tsm_model_destroy(again.model)
        dlclose(again.lib._handle)


def test_two_models_in_one_process_stay_apart(toy, kit, tmp_path):
    other = kit.Toy(kit.build_toy(tmp_path, BITS=16))
    assert other.create() == (OK, "")
    one, two, frames = toy.stream(), other.stream(), kit.toy_frames(3)
    for frame, full, half in zip(frames, kit.toy_reference(frames), kit.toy_reference(frames, half=True)):
        close(one.logits(frame), full[0])
        close(two.logits(frame), half[0], 2e-3)
    one.close(), two.close()


def test_profile_names_every_call_and_adds_up(toy, kit):
    stream = toy.stream(profile=1, threads=1)
    for frame in kit.toy_frames(5):
        stream.logits(frame)
    seen = []
    for index in range(3):
        profile = kit.Profile()
        assert toy.lib.tsm_stream_get_profile(stream.handle, index, ct.byref(profile)) == OK
        assert profile.steps == 5 and profile.total_ns >= profile.last_ns >= 0
        seen.append((profile.name, profile.kind))
    assert seen == [(b"stem", b"pointwise"), (b"block", b"splice"), (b"head", b"dense")]
    stream.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_two_streams_on_two_threads_do_not_mix(toy, kit, threads):
    videos = [kit.toy_frames(60, seed) for seed in (1, 2)]
    want = [[step[0] for step in kit.toy_reference(video)] for video in videos]
    got, streams = [None, None], [toy.stream(threads=threads) for _ in videos]

    def work(k):
        got[k] = [streams[k].logits(frame) for frame in videos[k]]

    workers = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    [worker.start() for worker in workers], [worker.join() for worker in workers]
    for k in (0, 1):
        close(np.array(got[k]), np.array(want[k]))
        streams[k].close()


def test_the_words_of_an_error_are_those_of_the_last_one(toy, kit):
    lib, stream, frame = toy.lib, toy.stream(), np.zeros((3, 20, 28), np.float32)
    image, bad, unset = kit.Image(width=28, height=20), kit.Image(width=-1, height=20), kit.Result.type()
    image.planes[0] = bad.planes[0] = frame.ctypes.data
    calls = {
        "step": lambda: lib.tsm_stream_step(stream.handle, ct.byref(image), ct.byref(unset)),
        "step_tensor": lambda: lib.tsm_stream_step_tensor(stream.handle, frame.ctypes.data_as(ct.c_void_p), ct.byref(unset)),
        "no tensor": lambda: lib.tsm_stream_step_tensor(stream.handle, None, None),
        "no room": lambda: lib.tsm_stream_preprocess(stream.handle, ct.byref(image), None),
        "get_cache": lambda: lib.tsm_stream_get_cache(stream.handle, 0, frame.ctypes.data, 5),
        "set_cache": lambda: lib.tsm_stream_set_cache(stream.handle, 9, frame.ctypes.data, 5)}
    for name, call in calls.items():
        assert lib.tsm_stream_step(stream.handle, ct.byref(bad), None) == IMAGE
        status = call()
        assert status in (SIZE, ARGUMENT) and stream.error() == lib.tsm_status_message(status).decode(), name
    assert np.isfinite(stream.logits(frame)).all() and stream.error() == ""
    stream.close()


def test_a_forked_child_can_destroy_its_parents_stream(toy, kit):
    """And step one of its own. In processes of their own, for a child that hangs shall end with them."""
    code = f"""if True:
        import os, sys, time
        sys.path.insert(0, {str(kit.HERE)!r})
        import c_toy as kit
        toy = kit.Toy({toy.lib._name!r})
        toy.create()
        stream, frame = toy.stream(threads=2), kit.toy_frames(1)[0]
        stream.logits(frame)
        child = os.fork()
        if child == 0:
            stream.close()
            own = toy.stream(threads=2)
            good = abs(own.logits(frame) - kit.toy_reference([frame])[0][0]).max() < 1e-4
            own.close()
            os._exit(7 if good else 1)
        for _ in range(1000):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.02)
        else:
            os.kill(child, 9)
            sys.exit("the child hangs")
        stream.logits(frame)
        stream.close()
        print(os.WEXITSTATUS(status))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_one_stream_in_two_threads_turns_the_second_away(toy, kit):
    stream, frame, statuses = toy.stream(threads=1), kit.toy_frames(1)[0], []

    def work():
        statuses.extend(stream.step_tensor(frame)[0] for _ in range(300))

    workers = [threading.Thread(target=work) for _ in range(4)]
    [worker.start() for worker in workers], [worker.join() for worker in workers]
    assert OK in statuses and set(statuses) <= {OK, BUSY}
    stream.close()


def clock(stream, kit, times_ms):
    """Step a grey image at each time; return the times taken and the times at which the stream was reset."""
    pixels = np.full((20, 28, 3), 100, np.uint8)
    taken, resets = [], []
    for time in times_ms:
        image = kit.Image(width=28, height=20, has_timestamp=1, timestamp_ns=int(time * 1e6))
        image.planes[0] = pixels.ctypes.data
        status, result = stream.step(image)
        assert status == OK
        if not result.skipped:
            taken.append(time)
        if result.reset:
            resets.append(time)
    return taken, resets


def test_a_jittering_30_fps_camera_gives_a_15_fps_model_every_second_frame(toy, kit):
    jitter = np.random.default_rng(3).uniform(-6, 6, 300)
    times = np.arange(300) * 1000 / 30 + jitter + 6
    stream = toy.stream()
    taken, resets = clock(stream, kit, times)
    assert not resets and abs(len(taken) - 150) <= 2 and np.diff(taken).max() < 90
    stream.close()


def test_slow_cameras_lose_no_frame_and_negative_fps_skips_none(toy, kit):
    stream = toy.stream()
    assert len(clock(stream, kit, np.arange(40) * 100)[0]) == 40
    stream.close()
    stream = toy.stream(fps=-1.0)
    assert len(clock(stream, kit, np.arange(40) * 5)[0]) == 40
    stream.close()


def test_a_gap_or_time_running_backwards_resets_and_says_so(toy, kit):
    stream = toy.stream()
    taken, resets = clock(stream, kit, [0, 100, 200, 1250, 1350, 50, 150])
    assert resets == [1250, 50] and len(taken) == 7
    fresh = toy.stream()
    clock(fresh, kit, [0, 100])
    assert np.array_equal(fresh.cache(0), stream.cache(0))
    stream.close(), fresh.close()
    stream = toy.stream(max_gap_seconds=-1.0)
    assert clock(stream, kit, [0, 1e6])[1] == []
    stream.close()
    stream = toy.stream()
    assert clock(stream, kit, [-9e12, 9e12, -9e12])[1] == [9e12, -9e12], "the whole range of timestamps"
    stream.close()
