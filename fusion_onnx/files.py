"""Files that appear whole or not at all, and that replace nothing unless asked."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NAMELESS = getattr(os, "O_TMPFILE", 0)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # as FAT says, and networks


def write_file(path: str | os.PathLike[str], *parts: bytes, overwrite: bool = True) -> None:
    """Write a file of these parts, one behind the other; see `written`."""
    with written(path, overwrite=overwrite) as file:
        file.writelines(parts)


@contextlib.contextmanager
def written(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Give a stream to write; the file is there when the block ends, and where it raises, nothing has changed.

    A file that is replaced keeps its mode, and its owner where that is permitted; of a link, what it leads to is
    replaced. Of threads and processes that write one path at a time without overwrite, one succeeds.

    Raises:
        OSError: as `vacant`, and what the system says.
    """
    target, old = vacant(path, overwrite=overwrite)
    part = target.with_name(f".fusion-onnx.{os.urandom(8).hex()}.part")
    try:
        # a file that may hold secrets has no mode but its owner's until it has the old one's
        handle, nameless = _open(part, 0o666 if old is None else 0o600)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if old is not None:
                _keep(old, handle)
            os.fsync(handle)
            if nameless:  # a directory, though it is not looked at, makes os.link follow the link in /proc
                source = f"/proc/self/fd/{handle}"
                os.link(source, part if overwrite else target, src_dir_fd=0, follow_symlinks=True)
        if overwrite:
            os.replace(part, target)
        elif not nameless:
            _exclusive(part, target)
        _settle(target.parent)
    except FileExistsError as error:
        if error.errno is None:
            raise
        raise _exists(path) from None
    except OSError as error:
        if error.errno and error.filename in (None, str(part)):
            error.filename = str(target)
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def vacant(path: str | os.PathLike[str], *, overwrite: bool = True) -> tuple[Path, os.stat_result | None]:
    """Return the file to write, behind every link, and what is known of the one it replaces.

    Raises:
        FileNotFoundError, IsADirectoryError: its folder is not there; it is a folder.
        FileExistsError: it exists, be it as a link to nothing, and may not be replaced; or it is a pipe or a device.
        PermissionError: it may not be written. OSError: what the system says of its name.
    """
    entry = Path(path)
    target = Path(os.path.realpath(entry)) if overwrite else entry
    for place in (entry, target):
        if not place.parent.is_dir():
            raise FileNotFoundError(f"the folder {place.parent} does not exist; make it first.")
    if entry.is_dir():
        raise IsADirectoryError(f"{entry} is a folder; name a file in it.")
    try:
        old = os.stat(entry, follow_symlinks=overwrite)
    except FileNotFoundError:
        return target, None
    if not overwrite:
        raise _exists(entry)
    if not stat.S_ISREG(old.st_mode):
        raise FileExistsError(f"{entry} is a pipe, a socket or a device; name a file.")
    if not os.access(entry, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(entry))
    return target, old


def _exists(path: str | os.PathLike[str]) -> FileExistsError:
    return FileExistsError(
        f"{os.fspath(path)} exists; pass overwrite=True (--overwrite on the command line) to replace it."
    )


def _open(part: Path, mode: int) -> tuple[int, bool]:
    """Open a file without a name, of which nothing stays behind if the process is killed; else one with a name."""
    if _NAMELESS and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # this file system has none, or what is wrong shows below
            return os.open(part.parent, _NAMELESS | os.O_WRONLY, mode), True
    return os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), mode), False


def _keep(old: os.stat_result, handle: int) -> None:
    if not hasattr(os, "fchmod"):  # Windows before Python 3.13
        return
    steps = (os.fchown, -1, old.st_gid), (os.fchown, old.st_uid, -1), (os.fchmod, stat.S_IMODE(old.st_mode))
    for step, *values in steps:
        with contextlib.suppress(OSError):  # not permitted, or this file system has none
            step(handle, *values)


def _exclusive(part: Path, target: Path) -> None:
    """Name the part as the target, where there is none."""
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))  # the claim to the name: for a moment there is an empty file
        try:
            os.replace(part, target)
        except BaseException:
            os.unlink(target)
            raise


def _settle(folder: Path) -> None:
    """Put the name on the disk, too."""
    with contextlib.suppress(OSError):  # Windows opens no folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
