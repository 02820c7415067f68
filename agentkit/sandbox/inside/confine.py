"""Take this process's rights away: seccomp, Landlock, capabilities, uid."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_libc = ctypes.CDLL(None, use_errno=True)
_machine = os.uname().machine

# (x86_64, aarch64) numbers; None where the architecture lacks the call. From 424 on all architectures agree.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None),
    "ioctl": (16, 29),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "clone": (56, 220),
    "kill": (62, 129),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "fcntl": (72, 25),
    "creat": (85, None),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "rt_sigqueueinfo": (129, 138),
    "utime": (132, None),
    "mknod": (133, None),
    "uselib": (134, None),
    "personality": (135, 92),
    "ustat": (136, None),
    "sysfs": (139, None),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "vhangup": (153, 58),
    "modify_ldt": (154, None),
    "pivot_root": (155, 41),
    "_sysctl": (156, None),
    "adjtimex": (159, 171),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "nfsservctl": (180, 42),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "tkill": (200, 130),
    "sched_setaffinity": (203, 122),
    "lookup_dcookie": (212, 18),
    "semtimedop": (220, 192),
    "clock_settime": (227, 112),
    "tgkill": (234, 131),
    "utimes": (235, None),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "openat": (257, 56),
    "mknodat": (259, 33),
    "fchownat": (260, 54),
    "futimesat": (261, None),
    "fchmodat": (268, 53),
    "unshare": (272, 97),
    "vmsplice": (278, 75),
    "move_pages": (279, 239),
    "utimensat": (280, 88),
    "rt_tgsigqueueinfo": (297, 240),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "inotify_add_watch": (254, 27),
    "prlimit64": (302, 261),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "clock_adjtime": (305, 266),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "sched_setattr": (314, 274),
    "memfd_create": (319, 279),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "clone3": (435, 435),
    "openat2": (437, 437),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    "memfd_secret": (447, 447),
    "process_mrelease": (448, 448),
    "fchmodat2": (452, 452),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "open_tree_attr": (467, 467),
    "file_setattr": (469, 469),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
_column, _audit_arch = _ARCHITECTURES.get(_machine, (0, 0))
_NUMBER = {name: numbers[_column] for name, numbers in _CALLS.items() if numbers[_column] is not None}

supported = _machine in _ARCHITECTURES


def _words(text: str) -> list[str]:
    return text.split()


_NEVER = _words("""
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd mount
    umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick
    mount_setattr statmount listmount unshare setns bpf perf_event_open userfaultfd io_uring_setup
    io_uring_enter io_uring_register init_module finit_module delete_module kexec_load kexec_file_load
    add_key request_key keyctl open_by_handle_at name_to_handle_at personality quotactl quotactl_fd reboot
    swapon swapoff syslog acct settimeofday clock_settime clock_adjtime adjtimex iopl ioperm modify_ldt
    sethostname setdomainname vhangup nfsservctl uselib _sysctl lookup_dcookie ustat sysfs vmsplice
    migrate_pages move_pages fanotify_init mknod mknodat shmget semget msgget
""")
# memory that no limit counts: the watchdog would not see it
_ABSENT = _words("""
    memfd_create memfd_secret clone3 openat2 file_setattr
""")
# objects that only an IPC namespace hides
_SHARED_IPC = _words("""
    shmat shmctl semop semtimedop semctl msgsnd msgrcv msgctl mq_open mq_unlink
""")
# the same uid may change these of a host process, and Landlock does not look: only on oneself (0)
_ON_A_PROCESS = {
    "prlimit64": 0,
    "setpriority": 1,
    "sched_setparam": 0,
    "sched_setscheduler": 0,
    "sched_setattr": 0,
    "sched_setaffinity": 0,
    "ioprio_set": 1,
}
# the owner of a host file may change these, and Landlock does not look
_FILE_MODES = _words("""
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
""")
# as may whoever can write to it
_FILE_TIMES = _words("""
    utime utimes futimesat utimensat
""")
_FILE_XATTRS = _words("""
    setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat
""")
_SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL_PROCESS = 0x7FFF0000, 0x80000000
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW*: mount, cgroup, uts, ipc, user, pid, net
_SETID_BITS = 0o6000


def _refuse(error: int) -> int:
    return 0x00050000 | error


def filter_program(*, namespaces: bool, shared_uid: bool = False, own_pid: int | None = None) -> bytes:
    """A seccomp filter as the kernel takes it.

    `namespaces` says that the process is alone in its own ones (bwrap). If not, there are no sockets at all
    but stream pairs, nothing that reaches a host process, and no file's times change; with `shared_uid` (other
    processes and files of the host belong to the same uid) neither do modes: such calls succeed and do
    nothing. With `own_pid`, signals reach that process only.
    """
    code: list[tuple[int, int, int, int]] = []

    def on(name: str, *body: tuple[int, int, int, int]) -> None:
        """Run *body* for that system call; it must not fall through its end."""
        if name in _NUMBER:
            code.append((_JUMP_EQ, 0, len(body), _NUMBER[name] or 0))
            code.extend(body)

    def refuse(names: Iterable[str], error: int) -> None:
        for name in names:
            on(name, (_RETURN, 0, 0, _refuse(error)))

    def argument(n: int) -> tuple[int, int, int, int]:
        return (_LOAD, 0, 0, 16 + 8 * n)  # the low half

    def jumps(values: Iterable[int]) -> list[tuple[int, int, int, int]]:
        """Past the instruction that follows them if one of *values* is loaded."""
        values = list(values)
        return [(_JUMP_EQ, len(values) - i, 0, value) for i, value in enumerate(values)]

    def refuse_if(name: str, n: int, bits: int, error: int = errno.EPERM) -> None:
        on(
            name,
            argument(n),
            (_JUMP_BITS, 0, 1, bits),
            (_RETURN, 0, 0, _refuse(error)),
            (_RETURN, 0, 0, _ALLOW),
        )

    def refuse_values(name: str, n: int, values: Iterable[int], error: int = errno.EPERM) -> None:
        tests = jumps(values)
        on(name, argument(n), *tests, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _refuse(error)))

    def only_values(
        name: str, n: int, values: Iterable[int], error: int = errno.EPERM, mask: int = 2**32 - 1
    ) -> None:
        tests = jumps(values)
        masked = (_AND, 0, 0, mask)
        on(name, argument(n), masked, *tests, (_RETURN, 0, 0, _refuse(error)), (_RETURN, 0, 0, _ALLOW))

    code.append((_LOAD, 0, 0, 4))  # another architecture's numbers (int 0x80) would pass unseen
    code.append((_JUMP_EQ, 1, 0, _audit_arch))
    code.append((_RETURN, 0, 0, _KILL_PROCESS))
    code.append((_LOAD, 0, 0, 0))
    if _machine == "x86_64":  # so would x32's
        code.append((_JUMP_GE, 0, 1, 0x40000000))
        code.append((_RETURN, 0, 0, _refuse(errno.ENOSYS)))

    refuse(_NEVER, errno.EPERM)
    refuse(
        _ABSENT, errno.ENOSYS
    )  # openat2 and clone3 hide their flags in memory; libc falls back to the older call
    refuse_if("clone", 0, _NAMESPACE_FLAGS)
    refuse_values("ioctl", 1, [0x5412, 0x541C])  # TIOCSTI, TIOCLINUX: typing into a terminal
    if namespaces:
        only_values(
            "socket", 0, [1, 2, 10], errno.EACCES
        )  # unix and IP, of the empty namespace; not vsock, alg, …
    else:
        refuse(["socket"], errno.EACCES)
        only_values("socketpair", 1, [1, 5], mask=0xF)  # a datagram pair can be sent to any path
        refuse(_SHARED_IPC, errno.EPERM)
        for name, n in _ON_A_PROCESS.items():
            only_values(name, n, [0])
        refuse_values("fcntl", 1, [8, 10, 15, 1024])  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE
        if own_pid is not None:
            for name in _SIGNALS:
                only_values(name, 0, [own_pid])
            refuse(["pidfd_send_signal"], errno.EPERM)
        refuse(["inotify_add_watch"], errno.ENOSPC)  # which is what having no watches left looks like
        refuse(_FILE_TIMES, 0)  # "done": shutil.copy and tar go on, which only want to be neat
        refuse(_FILE_XATTRS, errno.EOPNOTSUPP)
        if shared_uid:
            refuse(_FILE_MODES, 0)
    for name, n in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("creat", 1)):
        refuse_if(name, n, _SETID_BITS)
    for name, n in (("open", 2), ("openat", 3)):
        refuse_if(name, n, _SETID_BITS)
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def prctl(option: int, value: int = 0) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), f"prctl({option})")


def no_new_privileges() -> None:
    prctl(38, 1)


def apply_filter(program: bytes) -> None:
    """Install *program* for this thread and what it starts."""
    no_new_privileges()
    buffer = ctypes.create_string_buffer(program, len(program))
    head = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _check(_libc.prctl(22, 2, ctypes.byref(head), 0, 0), "seccomp")


_READ = 1 | 4 | 8  # execute, read a file, list a directory
_ON_FILES = 1 | 2 | 4 | 1 << 14 | 1 << 15  # the rights that make sense on something that is no directory
_DEVICES = 1 << 6 | 1 << 11 | 1 << 15  # make character and block devices, ioctl on devices
MIN_LANDLOCK = 3  # the first ABI that covers truncation


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where there is none or it may not be used."""
    if not supported:
        return 0
    return max(0, int(_libc.syscall(_NUMBER["landlock_create_ruleset"], None, 0, 1)))


def apply_landlock(
    read: Iterable[str], write: Iterable[str], devices: Iterable[str] = (), abi: int | None = None
) -> None:
    """Leave this thread and what it starts the given paths only; those that do not exist are passed over."""
    abi = landlock_abi() if abi is None else abi
    if abi < MIN_LANDLOCK:
        raise OSError(errno.ENOSYS, f"Landlock ABI {abi} is older than {MIN_LANDLOCK}")
    handled = (1 << 15) - 1 | (1 << 15 if abi >= 5 else 0)
    tcp = 3 if abi >= 4 else 0  # bind and connect
    scoped = 3 if abi >= 6 else 0  # abstract sockets and signals
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attributes = struct.pack("=QQQ", handled, tcp, scoped)[:size]
    ruleset = _check(
        _libc.syscall(_NUMBER["landlock_create_ruleset"], attributes, size, 0), "landlock_create_ruleset"
    )

    def allow(path: str, rights: int) -> None:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if not os.path.isdir(path):
                rights &= _ON_FILES
            rule = struct.pack("=Qi", rights & handled, fd)
            _check(
                _libc.syscall(_NUMBER["landlock_add_rule"], ruleset, 1, rule, 0), f"landlock_add_rule {path}"
            )
        finally:
            os.close(fd)

    try:
        for path in read:
            allow(path, _READ)
        for path in write:
            allow(path, handled & ~_DEVICES)
        for path in devices:
            allow(path, 2 | 4)
        no_new_privileges()
        _check(_libc.syscall(_NUMBER["landlock_restrict_self"], ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def become(uid: int) -> None:
    """Be that user and group, with no other groups; /proc/self stays readable."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    prctl(4, 1)  # PR_SET_DUMPABLE, which the change of uid took away
    drop_capabilities()  # the inheritable ones have stayed


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    for capability in range(64):
        if _libc.prctl(24, capability, 0, 0, 0) < 0:  # from the bounding set; EPERM: there are none to drop
            break
    _libc.prctl(47, 4, 0, 0, 0)  # PR_CAP_AMBIENT_CLEAR_ALL
    header = _CapabilityHeader(0x20080522, 0)
    _check(_libc.capset(ctypes.byref(header), (ctypes.c_uint32 * 6)()), "capset")


def cover(covered: Mapping[str, Iterable[str]], required: bool) -> None:
    """In a mount namespace of our own, put an empty directory, which any uid may pass, over each of *covered* and,
    in it, only the paths listed for it. Unless *required*, do nothing where that is forbidden."""

    def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
        _check(_libc.mount(*arguments, flags, data and data.encode()), f"mount {target}")

    read_only, remount, bind, recursive, private = 1, 32, 4096, 16384, 1 << 18
    new_mounts, new_user = 0x00020000, 0x10000000
    uid, gid = os.geteuid(), os.getegid()
    try:
        if _libc.unshare(new_mounts) < 0:
            _check(_libc.unshare(new_mounts | new_user), "unshare")
            for file, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                with open(f"/proc/self/{file}", "w") as map_file:
                    map_file.write(text)
        mount(None, "/", None, recursive | private)
    except OSError:
        if required:
            raise
        return
    for ancestor, paths in covered.items():
        held = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths}
        mount("none", ancestor, "tmpfs", 2 | 4, "mode=755,size=1m")  # no set-uid, no devices
        for path, fd in held.items():
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                os.makedirs(path, 0o755, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
            mount(f"/proc/self/fd/{fd}", path, None, bind | recursive)
            os.close(fd)
        mount(None, ancestor, None, remount | bind | read_only)
