"""How files are written: whole or not at all, over nothing that was not to be replaced, with the modes they have."""

import errno
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fusion_onnx
from fusion_exporters import Tuning
from fusion_onnx import files
from fusion_onnx.cli import app
from fusion_onnx.verification.report import write_html

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes, links and signals of POSIX")


@pytest.fixture(params=["nameless", "named", "without links"])
def way(request, monkeypatch):
    """Each way in which a file comes to its name: as Linux gives it, as others do, and as on FAT."""
    if request.param != "nameless":
        monkeypatch.setattr(files, "_NAMELESS", 0)
    if request.param == "without links":

        def link(*args, **options):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
    return request.param


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def interrupted(path, overwrite, call):
    with files.written(path, overwrite=overwrite) as file:
        file.write(b"mine" * 100_000)
        call()


def race(count, call):
    """Call in threads at once; return what each returned or raised."""
    start, told = threading.Barrier(count), []

    def turn(i):
        start.wait()
        try:
            told.append(call(i))
        except OSError as error:
            told.append(error)

    threads = [threading.Thread(target=turn, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_a_file_is_written_and_replaced_and_nothing_else_is_there(tmp_path, way):
    path = tmp_path / "x"
    files.write_file(path, b"one", b"two", overwrite=False)
    assert path.read_bytes() == b"onetwo"
    with pytest.raises(FileExistsError, match=r"x exists; pass overwrite=True \(--overwrite on the command line\)"):
        files.write_file(path, b"three", overwrite=False)
    assert path.read_bytes() == b"onetwo"
    files.write_file(path, b"four")
    assert path.read_bytes() == b"four"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_block_that_raises_changes_nothing(tmp_path, way, overwrite):
    path = tmp_path / "x"
    if overwrite:
        path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        interrupted(path, overwrite, lambda: 1 / 0)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"] * overwrite


def test_of_threads_that_race_one_succeeds(tmp_path, way):
    for turn in range(20):
        path = tmp_path / f"{turn}"
        told = race(4, lambda i, path=path: files.write_file(path, b"%d" % i * 1000, overwrite=False) or i)
        (won,) = [i for i in told if isinstance(i, int)]
        assert path.read_bytes() == b"%d" % won * 1000
        lost = [error for error in told if error is not won]
        assert [type(error) for error in lost] == [FileExistsError] * 3
        assert all("pass overwrite=True" in str(error) for error in lost)
    assert len(os.listdir(tmp_path)) == 20


def test_one_that_comes_between_is_not_replaced(tmp_path, way):
    for place, other in ("file", lambda p: p.write_bytes(b"other")), ("link", lambda p: p.symlink_to("nothing")):
        path = tmp_path / place
        with pytest.raises(FileExistsError, match="exists"):
            interrupted(path, False, lambda path=path, other=other: other(path))
        assert path.is_symlink() or path.read_bytes() == b"other"
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


WRITER = """
import os, sys
from fusion_onnx import files
if sys.argv[3] == "named":
    files._NAMELESS = 0
print("ready", flush=True)
sys.stdin.readline()
"""
RACE = (
    WRITER
    + """
won = 0
for turn in range(100):
    try:
        files.write_file(f"{sys.argv[1]}/{turn}", sys.argv[2].encode() * 1000, overwrite=False)
        won += 1
    except FileExistsError:
        pass
print(won)
"""
)
ENDLESS = (
    WRITER
    + """
for turn in range(10**9):
    files.write_file(f"{sys.argv[1]}/x", bytes([turn % 256]) * 3_000_000, overwrite=sys.argv[2] == "over")
    if sys.argv[2] != "over":
        os.unlink(f"{sys.argv[1]}/x")
"""
)


def process(code, *args):
    command = [sys.executable, "-c", code, *map(str, args)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "ready\n"
    return started


def test_of_processes_that_race_one_succeeds(tmp_path):
    racing = [process(RACE, tmp_path, name, "nameless" if name != "c" else "named") for name in "abc"]
    for one in racing:
        one.stdin.write("\n")
        one.stdin.flush()
    won = {name: int(one.communicate()[0]) for name, one in zip("abc", racing, strict=True)}
    found = [path.read_text() for path in tmp_path.iterdir()]
    assert {text[:1]: len(text) for text in found}.keys() <= won.keys()
    assert won == {name: found.count(name * 1000) for name in "abc"}
    assert sum(won.values()) == len(found) == 100


@pytest.mark.parametrize("over", ["over", "new"])
def test_a_killed_process_leaves_no_half(tmp_path, over):
    try:
        os.close(os.open(tmp_path, getattr(os, "O_TMPFILE", 0) | os.O_WRONLY, 0o600))
    except OSError:
        pytest.skip("this file system has no files without a name")
    draw = random.Random(over)
    for _ in range(10):
        one = process(ENDLESS, tmp_path, over, "nameless")
        one.stdin.write("\n")
        one.stdin.flush()
        time.sleep(draw.uniform(0.005, 0.03))
        one.send_signal(signal.SIGKILL)
        one.communicate()
        assert one.returncode == -signal.SIGKILL
        for path in tmp_path.iterdir():  # a part has its name for a moment, when it is whole
            data = path.read_bytes()
            assert len(data) == 3_000_000 == data.count(data[:1])
            assert path.name == "x" or over == "over"
            path.unlink()


def test_the_umask_is_not_touched(tmp_path, way, monkeypatch):
    before = os.umask(0o007)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the process's, not the thread's"))
        race(4, lambda i: [files.write_file(tmp_path / f"{i}.{n}", b"") for n in range(20)])
    finally:
        monkeypatch.undo()
        after = os.umask(before)
    assert after == 0o007
    assert {mode(path) for path in tmp_path.iterdir()} == {0o660}


def test_modes_are_kept(tmp_path, way):
    for kept in (0o600, 0o640, 0o666, 0o755):
        path = tmp_path / "x"
        path.write_bytes(b"old")
        path.chmod(kept)
        seen = []
        with files.written(path) as file:
            seen = [mode(part) for part in tmp_path.iterdir() if part != path]
            file.write(b"new")
        assert all(m & 0o077 == 0 for m in seen)  # no reader of the part who is none of the file
        assert (path.read_bytes(), mode(path)) == (b"new", kept)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone gives files away")
def test_the_owner_is_kept(tmp_path, way):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    files.write_file(path, b"new")
    found = path.stat()
    assert (path.read_bytes(), found.st_uid, found.st_gid, mode(path)) == (b"new", 1234, 2345, 0o640)


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path, way):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_bytes(b"old")
    (tmp_path / "one").symlink_to(Path("far", "file"))
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "dangling").symlink_to(Path("far", "new"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to(Path("absent", "new"))
    (tmp_path / "folder").symlink_to("far")
    links = sorted(path for path in tmp_path.iterdir() if path.is_symlink())
    for path in links:
        with pytest.raises((FileExistsError, IsADirectoryError)):
            files.write_file(path, b"no", overwrite=False)
    for name in ("one", "two"):
        files.write_file(tmp_path / name, name.encode())
        assert (tmp_path / "far" / "file").read_bytes() == name.encode()
    files.write_file(tmp_path / "dangling", b"new")
    assert (tmp_path / "far" / "new").read_bytes() == b"new"
    for name, said in {"loop": "symbolic links", "nowhere": "absent does not exist", "folder": "is a folder"}.items():
        with pytest.raises(OSError, match=said):
            files.write_file(tmp_path / name, b"no")
    assert sorted(path for path in tmp_path.iterdir() if path.is_symlink()) == links
    assert sorted(os.listdir(tmp_path / "far")) == ["file", "new"]


def test_pipes_sockets_devices_and_folders_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("to_pipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path in ("pipe", "to_pipe", "socket", os.devnull):
            before = os.stat(path)
            with pytest.raises(FileExistsError, match="is a pipe, a socket or a device"):
                files.write_file(path, b"no")
            with pytest.raises(FileExistsError, match="exists"):
                files.write_file(path, b"no", overwrite=False)
            assert os.path.samestat(os.stat(path), before)
        for overwrite in (False, True):
            with pytest.raises(IsADirectoryError, match="is a folder"):
                files.write_file("folder", b"no", overwrite=overwrite)
    assert sorted(os.listdir()) == ["folder", "pipe", "socket", "to_pipe"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_names_as_long_as_they_may_be(tmp_path, way, overwrite):
    files.write_file(tmp_path / ("x" * 255), b"new", overwrite=overwrite)
    with pytest.raises(OSError, match="too long"):
        files.vacant(tmp_path / ("x" * 256), overwrite=overwrite)
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist; make it first"):
        files.vacant(tmp_path / "absent" / "x", overwrite=overwrite)
    assert [len(name) for name in os.listdir(tmp_path)] == [255]


def exported(path):
    xs = [torch.ones(2, 3), torch.ones(2, 3)]
    fusion_onnx.export(fusion_onnx.create("sum"), (xs,), path, verify=False, overwrite=True)


def arrays(path):
    model = path.with_suffix(".model")
    exported(model)
    np.savez(model.with_suffix(".npz"), x1=np.ones((2, 3), np.float32), x2=np.ones((2, 3), np.float32))
    command = ["run", str(model), "-i", str(model.with_suffix(".npz")), "-o", str(path), "-p", "cpu", "--overwrite"]
    done = CliRunner().invoke(app, command)
    if done.exit_code:
        raise FileExistsError(done.stderr)
    assert np.load(path)["y"].tolist() == [[2.0] * 3] * 2


def plotted(path):
    pytest.importorskip("matplotlib")
    from fusion_onnx.bench import plot

    plot.growth({"n": {"sum": [(1, 1.0), (1000, 2.0)]}}, path)


WRITERS = {
    "a model": exported,
    "arrays": arrays,
    "a tuning": lambda path: Tuning().write(path),
    "a page": lambda path: write_html(path, checks=[]),
    "a plot": plotted,
}


@pytest.mark.parametrize("what", WRITERS)
def test_all_that_write_keep_links_and_modes_and_refuse_pipes(tmp_path, what):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    WRITERS[what](tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() != b"old"
    assert mode(tmp_path / "file") == 0o600
    with pytest.raises(FileExistsError, match="is a pipe"):
        WRITERS[what](tmp_path / "pipe")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


READ_ONLY = """
import os, sys
from fusion_onnx import files
if os.geteuid() == 0:
    os.setgid(12345)
    os.setuid(12345)
for name, overwrite in ("new", False), ("new", True), ("old", True), ("locked", True):
    try:
        files.write_file(name, b"no", overwrite=overwrite)
    except PermissionError as error:
        print(error.filename.rsplit("/")[-1], end=" ")
"""


def test_folders_and_files_that_may_not_be_written():
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to other users above
        folder = Path(name)
        for file, mode_of_it in {"old": 0o666, "locked": 0o444}.items():
            (folder / file).write_bytes(b"old")
            (folder / file).chmod(mode_of_it)
        folder.chmod(0o555)
        call = [sys.executable, "-c", READ_ONLY]
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
        folder.chmod(0o755)
        assert (done.stdout.split(), done.stderr) == (["new", "new", "old", "locked"], "")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"old": b"old", "locked": b"old"}
