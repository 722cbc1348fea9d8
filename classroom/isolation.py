"""A process for a stranger's code: it sees Python, its own folder and nothing else, and can reach nobody.

Linux gives this through *namespaces*, to root and, on most machines, to everybody (as containers do it). Inside there are:

* a file tree of its own: Python and its packages, read only and without those that would be an answer key; an empty home.
  The project, the other submissions, the gradebook and all else of the machine do not exist there;
* no network: not even a connection to the machine itself;
* only its own processes. When the first one ends, all end;
* no right to change any of this (no capabilities, and none to be had through setuid programs).

Everywhere there are limits on time, memory, processes and the size of files. They are all that is left where namespaces are not
given ("process"): code can then do all that the account that grades can, to its files and to the grader, and use the network.
Root at least gives up its rights there ("user").
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

LEVELS = {
    "namespaces": "each submission has a file tree, a process list and a network of its own, and sees nothing else",
    "user": "each submission runs as another user; it could read what everybody on this machine can, and use the network",
    "process": "submissions run with your rights: they could read, change and delete your files, and use the network",
}
"""From the strongest to the weakest, and what each means."""

MEMORY = 3 << 30
"""Bytes of memory a process may ask for, PyTorch's own gigabyte included."""

PROCESSES, FILES, FILE_SIZE, DISK = 48, 256, 16 << 20, 64 << 20
CPU_SECONDS = 120
GRADER_MEMORY = 4 << 30
"""Bytes that the grader itself may ask for: what a student's code returns can become large in a check."""

_SYSTEM = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl"]
_DEVICES = ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
_CLONE = {"mount": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "pid": 0x20000000, "net": 0x40000000}
_CLONE_USER = 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if s is None else s.encode() for s in (source, target, kind, options)]
    _call("mount", *encoded[:3], ctypes.c_ulong(flags), encoded[3])


def isolate(visible: list[str], hidden: list[str], folder: str, uid: int, strongest: str = "namespaces") -> str:
    """Shut the calling process, which has one thread and no open files to hide, away; return in a child of it.

    Args:
        visible: folders that are shown, read only, where they are.
        hidden: folders inside of these that are shown empty.
        folder: an empty folder of this machine, on which the new file tree is put; without namespaces, the home.
        uid: the user that root becomes.
        strongest: the level to try first; see :data:`LEVELS`.

    Returns:
        The level that was reached. Its weaker parts are always in force.
    """
    level, size = strongest, _size_of_me()
    if level == "namespaces":
        try:
            _enter_namespaces(visible, hidden, folder, uid)
        except (OSError, AttributeError):  # AttributeError: not Linux
            level = "user"
    if level != "namespaces":
        os.chdir(folder)
    root = os.geteuid() == 0
    if level == "user" and not root:
        level = "process"
    for name, limit in [
        # DATA leaves out memory that is shared, AS counts the libraries that are shown already
        *(("CPU", CPU_SECONDS), ("DATA", MEMORY), ("AS", size + MEMORY)),
        *(("FSIZE", FILE_SIZE), ("NOFILE", FILES), ("CORE", 0), ("MEMLOCK", 0)),
        *((("NPROC", PROCESSES if root else PROCESSES + _processes_of_mine()),)),
    ]:
        if hasattr(resource, f"RLIMIT_{name}"):
            hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text("1000") if os.access("/proc/self/oom_score_adj", os.W_OK) else None
    if root and level != "process":
        if level == "user":
            os.chown(folder, uid, uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        _call("capset", header, nothing)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return level


def _enter_namespaces(visible: list[str], hidden: list[str], folder: str, uid: int) -> None:
    user, group, root = os.geteuid(), os.getegid(), os.geteuid() == 0
    # as root no namespace of users is needed, and its inside would still own root's files
    _call("unshare", sum(_CLONE.values()) | (0 if root else _CLONE_USER))
    if not root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if child := os.fork():  # the first process of the new process namespace; this one only waits for it
        for descriptor in range(3, FILES):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0x7F)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)  # what is mounted from here on, the machine does not see
    _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for home in ("/home/student", "/tmp"):  # before the rest: what is shown may lie in /tmp
        os.makedirs(folder + home)
        _mount("tmpfs", folder + home, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={DISK // 2},mode=755")
        os.chown(folder + home, uid if root else user, uid if root else group)
    for path in [*_SYSTEM, *_DEVICES, *visible]:
        if os.path.exists(path):
            _show(path, folder + path, writable=path in _DEVICES)
    for path in hidden:
        if os.path.isdir(folder + path):
            _mount("tmpfs", folder + path, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "size=4k,mode=755")
    os.makedirs(folder + "/proc", exist_ok=True)
    with contextlib.suppress(OSError):  # not possible inside of some containers, and not needed
        _mount("proc", folder + "/proc", "proc", _MS_NOSUID | _MS_NODEV)
    _mount("none", folder, None, _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chroot(folder)
    os.chdir("/home/student")


def _show(path: str, place: str, writable: bool) -> None:
    """Bind a file or folder of the machine into the new tree."""
    if os.path.islink(path) and not os.path.exists(place):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.symlink(os.readlink(path), place)
        return
    if os.path.exists(place):  # inside of a folder that is shown already
        return
    os.makedirs(place if os.path.isdir(path) else os.path.dirname(place), exist_ok=True)
    if not os.path.isdir(path):
        Path(place).touch()
    _mount(path, place, None, _MS_BIND | _MS_REC)
    if not writable:
        # flags that the machine has set must be kept; the values of statvfs are those of mount
        kept = os.statvfs(path).f_flag & (_MS_NOSUID | _MS_NODEV | 8 | 1024 | 2048)
        _mount("none", place, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | kept)


def end(number: int) -> None:
    """End an isolated process, given the number of the one that :func:`isolate` was called in, and all that it has started.

    In namespaces that one only waits for the first process inside. To end it as well is not left to the signal that it gets
    when its parent ends: its code may have refused that signal, and have left the group.
    """
    try:
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    except OSError:
        children = []
    for child in map(int, children):
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(number, signal.SIGKILL)


@contextlib.contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """A limit on the memory that this process asks for in addition: an error there is better than to be ended for it."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    most = [data + size, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _size_of_me() -> int:
    """Bytes of address space of this process; most of it is libraries, and takes no memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return 1 << 40


def _processes_of_mine() -> int:
    """How many processes and threads this user has already: the limit counts them, too."""
    count, me = 0, os.getuid()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid == me:
                count += sum(1 for _ in (entry / "task").iterdir())
        except OSError:
            continue
    return count
