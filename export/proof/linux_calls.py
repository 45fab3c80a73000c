"""The Linux system calls of a static musl program that reads files, computes and writes files, on one thread, in memory alone."""
from __future__ import annotations

import struct
import time

from unicorn import UC_PROT_ALL, UC_PROT_NONE, UcError

PAGE = 4096
HEAP, HEAP_END = 0x4000_0000, 0xB000_0000  # where mmap gives memory; below any 32-bit program's stack
_ENOENT, _EBADF, _ENOMEM, _EINVAL, _ENOTTY, _ESPIPE = 2, 9, 12, 22, 25, 29  # Linux's numbers, whatever this system's are
_CREATE, _TRUNCATE = 0o100, 0o1000  # open's flags
_ARCH_SET_FS = 0x1002
_FIXED, _ANONYMOUS = 0x10, 0x20  # mmap's flags

# Names of calls by their numbers. Those without a method of that name below are here to be named when they are refused.
AARCH64 = {
    25: "fcntl", 29: "ioctl", 56: "openat", 57: "close", 62: "lseek", 63: "read", 64: "write", 65: "readv", 66: "writev",
    78: "readlinkat", 79: "newfstatat", 80: "fstat", 93: "exit", 94: "exit_group", 96: "set_tid_address", 98: "futex",
    113: "clock_gettime", 115: "clock_nanosleep", 122: "sched_setaffinity", 123: "sched_getaffinity", 124: "sched_yield", 129: "kill",
    130: "tkill", 131: "tgkill", 134: "rt_sigaction", 135: "rt_sigprocmask", 167: "prctl", 172: "getpid", 178: "gettid", 198: "socket",
    214: "brk", 215: "munmap", 216: "mremap", 220: "clone", 221: "execve", 222: "mmap", 226: "mprotect", 233: "madvise",
    261: "prlimit64", 278: "getrandom", 283: "membarrier"}
ARM = {
    1: "exit", 3: "read", 4: "write", 5: "open", 6: "close", 11: "execve", 19: "lseek", 20: "getpid", 37: "kill", 45: "brk",
    54: "ioctl", 91: "munmap", 120: "clone", 125: "mprotect", 140: "llseek", 145: "readv", 146: "writev", 158: "sched_yield",
    163: "mremap", 172: "prctl", 174: "rt_sigaction", 175: "rt_sigprocmask", 192: "mmap", 197: "fstat64", 220: "madvise",
    221: "fcntl64", 224: "gettid", 238: "tkill", 240: "futex", 241: "sched_setaffinity", 242: "sched_getaffinity", 248: "exit_group",
    256: "set_tid_address", 263: "clock_gettime32", 268: "tgkill", 322: "openat", 332: "readlinkat", 369: "prlimit64",
    384: "getrandom", 389: "membarrier", 403: "clock_gettime", 422: "futex_time64", 0xF0005: "set_tls"}

X86_64 = {
    0: "read", 1: "write", 2: "open", 3: "close", 5: "fstat", 8: "lseek", 9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk",
    13: "rt_sigaction", 14: "rt_sigprocmask", 16: "ioctl", 19: "readv", 20: "writev", 24: "sched_yield", 25: "mremap", 28: "madvise",
    39: "getpid", 56: "clone", 59: "execve", 60: "exit", 62: "kill", 72: "fcntl", 157: "prctl", 158: "arch_prctl", 186: "gettid",
    200: "tkill", 202: "futex", 203: "sched_setaffinity", 204: "sched_getaffinity", 218: "set_tid_address", 228: "clock_gettime",
    231: "exit_group", 234: "tgkill", 257: "openat", 267: "readlinkat", 302: "prlimit64", 318: "getrandom", 324: "membarrier"}


class LinuxCalls:
    """What a program asks of the system. Its methods take and give numbers as the program does: negative ones are errors.

    Parameters
    ----------
    memory : unicorn.Uc
    names : dict
        AARCH64, ARM or X86_64.
    bits : int
        Of an address.
    files : dict of str -> bytes or None
        All that can be opened, for reading and writing; None: it can be made.
    set_tls : callable
        Puts the address of the thread's own memory into its register.

    Attributes
    ----------
    code : int or None
        Exit status, once the program has ended.
    output : bytearray
        What it wrote to its standard output and standard error.
    """

    def __init__(self, memory, names, bits, files, set_tls):
        self.memory, self.names, self.word, self.on_tls = memory, names, "<Q" if bits == 64 else "<I", set_tls
        self.files = {name: data if data is None else bytearray(data) for name, data in files.items()}
        self.output, self.code, self.heap = bytearray(), None, HEAP
        self.opened = {}  # descriptor -> [file's content, position]

    def __call__(self, number, args):
        """The result of call `number` with the six registers `args`.

        Raises
        ------
        RuntimeError
            The call is not emulated, or its arguments are not.
        """
        name = self.names.get(number, "of unknown name")
        method = getattr(self, name, None)
        if method is None:
            raise RuntimeError(f"system call {number} ({name}) is not emulated")
        try:  # a method takes as many registers as it has use for
            return method(*args[:method.__code__.co_argcount - 1]) or 0
        except (UcError, NotImplementedError) as error:
            raise RuntimeError(f"system call {number} ({name}): {error}; arguments {', '.join(hex(a) for a in args)}") from None

    def contents(self):
        """The files as they are now: name -> bytes or None."""
        return {name: data if data is None else bytes(data) for name, data in self.files.items()}

    # --- files ---

    def open(self, path, flags):
        name = b""
        while not name.endswith(b"\0"):
            name += self.memory.mem_read(path + len(name), 1)
        name = name[:-1].decode("utf-8", "replace")
        if name in self.files and flags & _CREATE:
            self.files[name] = self.files[name] or bytearray()
        data = self.files.get(name)
        if data is None:
            return -_ENOENT
        if flags & _TRUNCATE:
            del data[:]
        descriptor = max(self.opened, default=2) + 1
        self.opened[descriptor] = [data, 0]
        return descriptor

    def openat(self, folder, path, flags):
        return self.open(path, flags)

    def close(self, descriptor):
        return 0 if self.opened.pop(descriptor, None) or descriptor < 3 else -_EBADF

    def read(self, descriptor, address, count):
        if descriptor not in self.opened:
            return -_EBADF
        data, at = self.opened[descriptor]
        part = bytes(data[at:at + count])
        self.memory.mem_write(address, part)
        self.opened[descriptor][1] += len(part)
        return len(part)

    def write(self, descriptor, address, count):
        part = self.memory.mem_read(address, count)
        if descriptor in (1, 2):
            self.output += part
        elif descriptor in self.opened:
            data, at = self.opened[descriptor]
            data += bytes(max(0, at - len(data)))
            data[at:at + count] = part
            self.opened[descriptor][1] += count
        else:
            return -_EBADF
        return count

    def _each(self, call, descriptor, vector, count):
        """One call of read or write for each of the buffers of a vector."""
        size, total = struct.calcsize(self.word), 0
        for at in range(vector, vector + 2 * size * count, 2 * size):
            address, wanted = (struct.unpack(self.word, self.memory.mem_read(at + i, size))[0] for i in (0, size))
            done = call(descriptor, address, wanted) if wanted else 0
            if done < 0:
                return done
            total += done
            if done < wanted:
                break
        return total

    def readv(self, descriptor, vector, count):
        return self._each(self.read, descriptor, vector, count)

    def writev(self, descriptor, vector, count):
        return self._each(self.write, descriptor, vector, count)

    def lseek(self, descriptor, offset, whence):
        if descriptor not in self.opened:
            return -_ESPIPE if descriptor < 3 else -_EBADF
        data, at = self.opened[descriptor]
        offset = struct.unpack(self.word.lower(), struct.pack(self.word, offset))[0]
        position = offset + (0, at, len(data))[whence] if whence < 3 else -1
        if position < 0:
            return -_EINVAL
        self.opened[descriptor][1] = position
        return position

    def llseek(self, descriptor, high, low, result, whence):
        if high not in (0, 0xFFFFFFFF):
            return -_EINVAL
        position = self.lseek(descriptor, low, whence)
        if position >= 0:
            self.memory.mem_write(result, struct.pack("<Q", position))
        return min(position, 0)

    def ioctl(self):
        return -_ENOTTY  # no descriptor is a terminal

    # --- memory ---

    def brk(self):
        return 0  # cannot be moved: musl then takes all memory from mmap

    def mmap(self, address, length, protection, flags):
        if flags & _FIXED or not flags & _ANONYMOUS:
            raise NotImplementedError("only new memory, anywhere, is emulated")
        length = -(-length // PAGE) * PAGE
        if self.heap + length + PAGE > HEAP_END:
            return -_ENOMEM
        self.memory.mem_map(self.heap, length, _protection(protection))
        start, self.heap = self.heap, self.heap + length + PAGE  # a hole behind it: who runs over the end is caught
        return start

    def munmap(self, address, length):
        self.memory.mem_unmap(address, -(-length // PAGE) * PAGE)

    def mprotect(self, address, length, protection):
        self.memory.mem_protect(address, -(-length // PAGE) * PAGE, _protection(protection))

    def madvise(self):
        return 0

    # --- the rest ---

    def exit(self, code):
        self.code = code & 0xFF
        self.memory.emu_stop()

    exit_group = exit

    def clock_gettime(self, clock, address):
        self.memory.mem_write(address, struct.pack("<qq", *divmod(time.perf_counter_ns(), 10**9)))

    def clock_gettime32(self, clock, address):
        self.memory.mem_write(address, struct.pack("<ii", *divmod(time.perf_counter_ns(), 10**9)))

    def sched_getaffinity(self, process, size, address):
        self.memory.mem_write(address, struct.pack("<Q", 1))  # one CPU
        return 8

    def set_tls(self, address):
        self.on_tls(address)

    def arch_prctl(self, code, address):
        if code != _ARCH_SET_FS:
            raise NotImplementedError("only the thread's own memory can be set")
        self.on_tls(address)

    def set_tid_address(self):
        return 1

    gettid = getpid = set_tid_address

    def rt_sigaction(self):
        return 0  # no signal ever comes

    rt_sigprocmask = rt_sigaction


def _protection(linux):
    """Linux's read 1, write 2, execute 4 are unicorn's too."""
    return linux & UC_PROT_ALL or UC_PROT_NONE
