"""Files and folders appear whole or not at all, and what cannot be written says why."""

from __future__ import annotations

import builtins
import ctypes
import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecifar.runtime import files
from edgecifar.runtime.errors import OutputError
from edgecifar.runtime.files import make_folder, new_folder, refuse_existing, remove_leftovers, sha256, write_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def living():
    """The number of a process that runs until the test is over."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


@pytest.fixture(params=["swapped", "renamed"])
def way(request, tmp_path, monkeypatch) -> str:
    """How an existing folder is replaced: in one step, or in two where the system has no such step."""
    if request.param == "renamed":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    elif not swaps(tmp_path):
        pytest.skip("the system or its file system cannot swap two folders")
    return request.param


def swaps(folder: Path) -> bool:
    """Return whether two folders here can be swapped, as the system itself says; other failures are failures."""
    if sys.platform != "linux":
        return False
    one, other = folder / "swap-one", folder / "swap-other"
    one.mkdir()
    other.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    refused = not hasattr(libc, "renameat2") or (
        libc.renameat2(-100, bytes(one), -100, bytes(other), 2) and ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS)
    )
    one.rmdir()
    other.rmdir()
    return not refused


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
@pytest.mark.parametrize("old_python", [False, True])
def test_sha256(tmp_path, monkeypatch, size, old_python):
    if old_python:
        monkeypatch.delattr(hashlib, "file_digest", raising=False)
    content = bytes(range(256)) * (size // 256) if size > 1 else b"x" * size
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


class TestWriteFile:
    def test_bytes_and_functions(self, tmp_path):
        write_file(tmp_path / "a", b"one")
        write_file(tmp_path / "b", lambda path: path.write_bytes(b"two"))
        assert contents(tmp_path) == {"a": "one", "b": "two"}

    def test_replaces(self, tmp_path):
        (tmp_path / "a").write_text("old and long")
        write_file(tmp_path / "a", b"new")
        assert contents(tmp_path) == {"a": "new"}

    def test_a_link_stays_one(self, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "real").write_text("old")
        (tmp_path / "link").symlink_to(Path("there") / "real")
        write_file(tmp_path / "link", b"new")
        assert (tmp_path / "link").is_symlink()
        assert contents(tmp_path / "there") == {"real": "new"}

    def test_the_old_file_stays_until_the_new_one_is_complete(self, tmp_path):
        (tmp_path / "a").write_text("old")
        seen = []

        def write(path: Path) -> None:
            path.write_text("half")
            seen.append((tmp_path / "a").read_text())

        write_file(tmp_path / "a", write)
        assert seen == ["old"]
        assert contents(tmp_path) == {"a": "half"}

    @pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
    def test_a_failure_leaves_what_was_there(self, tmp_path, error):
        (tmp_path / "a").write_text("old")

        def write(path: Path) -> None:
            path.write_text("half")
            raise error

        with pytest.raises(type(error)) as caught:
            write_file(tmp_path / "a", write)
        assert caught.value is error
        assert contents(tmp_path) == {"a": "old"}

    def test_a_failed_flush_leaves_what_was_there(self, tmp_path, monkeypatch):
        (tmp_path / "a").write_text("old")

        def fail(descriptor: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(
            OutputError,
            match=r"Could not write a: .* cannot be written to \(Input/output error\): choose another place\.",
        ):
            write_file(tmp_path / "a", b"new")
        assert contents(tmp_path) == {"a": "old"}

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            (errno.ENOSPC, "the disk that holds {folder} is full: free some space or choose another place"),
            (errno.EDQUOT, "the disk quota for {folder} is used up: free some space or choose another place"),
            (errno.EROFS, "{folder} is on a read-only file system: choose another place"),
            (errno.EACCES, "{folder} may not be written to: change its permissions or choose another place"),
            (errno.EPERM, "{folder} may not be written to: change its permissions or choose another place"),
            (errno.EIO, "{folder} cannot be written to (Input/output error): choose another place"),
        ],
    )
    def test_says_why(self, tmp_path, code, says):
        (tmp_path / "a").write_text("old")

        def write(path: Path) -> None:
            path.write_text("half")
            raise OSError(code, os.strerror(code))

        with pytest.raises(OutputError) as caught:
            write_file(tmp_path / "a", write)
        assert str(caught.value) == f"Could not write a: {says.format(folder=tmp_path)}."
        assert contents(tmp_path) == {"a": "old"}

    def test_an_error_without_a_number(self, tmp_path):
        def write(path: Path) -> None:
            raise OSError("the writer gave up")

        with pytest.raises(OutputError) as caught:
            write_file(tmp_path / "a", write)
        assert (
            str(caught.value)
            == f"Could not write a: {tmp_path} cannot be written to (the writer gave up): choose another place."
        )

    def test_a_folder_in_the_way(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(OutputError) as caught:
            write_file(tmp_path / "a", b"new")
        assert str(caught.value) == f"Could not write a: {tmp_path / 'a'} is a folder: choose another place."
        assert names(tmp_path) == ["a"]

    def test_no_folder(self, tmp_path):
        with pytest.raises(OutputError) as caught:
            write_file(tmp_path / "b" / "a", b"new")
        assert (
            str(caught.value) == f"Could not write a: {tmp_path / 'b'} is not there: make it or choose another place."
        )
        assert names(tmp_path) == []

    def test_below_a_file(self, tmp_path):
        (tmp_path / "b").write_text("a file")
        with pytest.raises(OutputError, match=r"Could not write a: .*/b is not a folder: choose another place\."):
            write_file(tmp_path / "b" / "a", b"new")

    def test_a_folder_without_write_permission(self, tmp_path, monkeypatch):
        def deny(path, *_args, **_options):  # root, whom tests may run as, is denied nothing
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        for owner, name in ((os, "mkdir"), (os, "open"), (builtins, "open")):
            monkeypatch.setattr(owner, name, deny)
        with pytest.raises(OutputError, match=r"may not be written to: change its permissions"):
            write_file(tmp_path / "a", b"new")
        with (
            pytest.raises(OutputError, match=r"may not be written to: change its permissions"),
            new_folder(tmp_path / "b"),
        ):
            pass
        assert names(tmp_path) == []
        assert names(tmp_path) == []


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch):
    """To say why it could not be written looked into it, and ended in a PermissionError."""
    look = os.stat
    (tmp_path / "closed").mkdir()

    def forbid(path, *arguments, **options):
        if str(path).startswith(str(tmp_path / "closed")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", forbid)
    refuse_existing(tmp_path / "closed" / "a", replace=False)  # whether it exists is not known yet
    with pytest.raises(OutputError, match="closed may not be written to: change its permissions"):
        write_file(tmp_path / "closed" / "a", lambda path: forbid(path))


def test_make_folder(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a") == ["b"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        make_folder(tmp_path / "file")
    assert (
        str(caught.value)
        == f"Could not write file: {tmp_path / 'file'} is in the way: move it or choose another place."
    )


class TestNewFolder:
    def break_off(self, path: Path, error: BaseException, replace: bool = False) -> None:
        with new_folder(path, replace) as folder:
            (folder / "a").write_text("half")
            raise error

    def test_appears_at_the_end(self, tmp_path):
        target = tmp_path / "deep" / "made"
        with new_folder(target) as folder:
            (folder / "a").write_text("one")
            (folder / "sub").mkdir()
            (folder / "sub" / "b").write_text("two")
            assert not target.exists()
            assert folder.parent == target.parent
        assert names(target.parent) == ["made"]
        assert (target / "a").read_text() == "one"
        assert (target / "sub" / "b").read_text() == "two"

    @pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
    def test_vanishes_when_the_block_fails(self, tmp_path, error):
        with pytest.raises(type(error)) as caught:
            self.break_off(tmp_path / "made", error)
        assert caught.value is error
        assert names(tmp_path) == []

    def test_a_full_disk(self, tmp_path):
        with pytest.raises(OutputError) as caught:
            self.break_off(tmp_path / "made", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        assert str(caught.value) == (
            f"Could not write made: the disk that holds {tmp_path} is full: free some space or choose another place."
        )
        assert names(tmp_path) == []

    def test_an_existing_one_is_kept(self, tmp_path):
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").write_text("old")
        entered = False
        with pytest.raises(OutputError) as caught, new_folder(tmp_path / "made"):
            entered = True
        assert not entered
        assert str(caught.value).startswith(f"{tmp_path / 'made'} exists already")
        assert names(tmp_path) == ["made"]
        assert contents(tmp_path / "made") == {"a": "old"}

    def test_replace(self, tmp_path, way):
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").write_text("old")
        with new_folder(tmp_path / "made", replace=True) as folder:
            (folder / "b").write_text("new")
            assert contents(tmp_path / "made") == {"a": "old"}
        assert names(tmp_path) == ["made"]
        assert contents(tmp_path / "made") == {"b": "new"}

    def test_replace_keeps_the_old_one_when_the_block_fails(self, tmp_path, way):
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").write_text("old")
        with pytest.raises(RuntimeError, match="broken"):
            self.break_off(tmp_path / "made", RuntimeError("broken"), replace=True)
        assert names(tmp_path) == ["made"]
        assert contents(tmp_path / "made") == {"a": "old"}

    def test_the_way_is_the_one_that_is_meant(self, tmp_path, monkeypatch, way):
        renamed, rename = [], os.rename
        monkeypatch.setattr(os, "rename", lambda *paths: (renamed.append(paths), rename(*paths)))
        (tmp_path / "made").mkdir()
        with new_folder(tmp_path / "made", replace=True):
            pass
        assert len(renamed) == (0 if way == "swapped" else 2)

    def test_a_swap_that_is_refused_changes_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "made").mkdir()
        assert not files._exchange(tmp_path / "made", tmp_path / "absent")
        assert names(tmp_path) == ["made"]
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # a C library that does not know the call
        assert not files._exchange(tmp_path / "made", tmp_path / "made")

    def test_replace_keeps_the_old_one_when_the_last_step_fails(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").write_text("old")
        rename = os.rename

        def fail(source, target) -> None:
            if Path(source).name.startswith(files.STAGING):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail)
        with pytest.raises(OutputError, match="may not be written to"), new_folder(tmp_path / "made", True) as folder:
            (folder / "b").write_text("new")
        assert names(tmp_path) == ["made"]
        assert contents(tmp_path / "made") == {"a": "old"}

    def test_replace_takes_no_file(self, tmp_path):
        (tmp_path / "made").write_text("a file")
        with pytest.raises(OutputError) as caught, new_folder(tmp_path / "made", replace=True):
            pass
        assert str(caught.value) == f"{tmp_path / 'made'} is a file: choose another place for the folder."
        assert contents(tmp_path) == {"made": "a file"}

    @pytest.mark.parametrize("empty", [True, False])
    def test_one_that_appears_meanwhile_is_kept(self, tmp_path, empty):
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        if not empty:
            (theirs / "a").write_text("theirs")
        with pytest.raises(OutputError, match="exists already"), new_folder(tmp_path / "made"):
            theirs.rename(tmp_path / "made")
        assert names(tmp_path) == ["made"]
        assert contents(tmp_path / "made") == ({} if empty else {"a": "theirs"})

    @pytest.mark.parametrize("late", [True, False])
    def test_what_a_check_refuses_is_kept(self, tmp_path, late):
        def only_old(folder: Path) -> None:
            if not (folder / "old").exists():
                raise OutputError("is other people's")

        made = tmp_path / "made"
        made.mkdir()
        (made / "old").touch()
        with new_folder(made, True, only_old) as folder:
            (folder / "a").write_text("new")
        assert names(made) == ["a"]
        if late:
            (made / "old").touch()
        with pytest.raises(OutputError, match="other people"), new_folder(made, True, only_old):
            (made / "old").unlink()  # without it the block is not entered
        assert contents(made) == {"a": "new"}
        assert names(tmp_path) == ["made"]

    def test_a_file_elsewhere_that_cannot_be_read_is_not_blamed_on_the_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError), new_folder(tmp_path / "made"):
            (tmp_path / "students" / "a").read_bytes()
        with pytest.raises(OutputError, match="Could not write made"), new_folder(tmp_path / "made") as folder:
            (folder / "students" / "a").write_bytes(b"")
        assert names(tmp_path) == []

    def test_a_link_stays_one(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a").write_text("old")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with new_folder(tmp_path / "link", replace=True) as folder:
            (folder / "b").write_text("new")
        assert names(tmp_path) == ["link", "real"]
        assert (tmp_path / "link").is_symlink()
        assert contents(tmp_path / "real") == {"b": "new"}

    def test_a_link_that_leads_in_a_circle(self, tmp_path):
        (tmp_path / "link").symlink_to("link")
        with pytest.raises(OutputError, match="circle"), new_folder(tmp_path / "link"):
            pytest.fail("the block may take hours")
        assert names(tmp_path) == ["link"]

    def test_the_working_directory(self, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(OutputError, match=r"^\. exists already"), new_folder(Path()):
            pass
        with new_folder(Path("made")) as folder:
            (folder / "a").write_text("one")
        assert contents(tmp_path / "here" / "made") == {"a": "one"}

    def test_below_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"is in the way|is not a folder"), new_folder(tmp_path / "file" / "made"):
            pass
        assert names(tmp_path) == ["file"]


class TestTemporaryFolder:
    def test_it_is_gone_afterwards(self):
        with files.temporary_folder() as folder:
            (folder / "model").write_bytes(b"...")
        assert not folder.exists()

    def test_its_own_disk_is_blamed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
        (tmp_path / "elsewhere").mkdir()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        blamed = pytest.raises(OutputError, match="elsewhere is full")
        with blamed, files.new_folder(tmp_path / "bundle"), files.temporary_folder():
            raise full
        assert not (tmp_path / "bundle").exists()


class TestLeftovers:
    def test_of_dead_processes_are_removed_and_of_living_ones_kept(self, tmp_path, dead, living):
        for pid in (dead, living):
            (tmp_path / f".edgecifar-partial-{pid}-file").write_text("half")
            (tmp_path / f".edgecifar-partial-{pid}-folder").mkdir()
            (tmp_path / f".edgecifar-partial-{pid}-folder" / "a").write_text("half")
        (tmp_path / "mine").write_text("whole")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted(
            [f".edgecifar-partial-{living}-file", f".edgecifar-partial-{living}-folder", "mine"]
        )

    def test_with_our_own_number_are_from_an_earlier_life(self, tmp_path):
        (tmp_path / f".edgecifar-partial-{os.getpid()}-file").write_text("half")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == []

    def test_other_peoples_files_are_kept(self, tmp_path, dead):
        kept = [
            ".edgecifar-partial-",
            ".edgecifar-partial-film.mp4",
            f".edgecifar-partial-{dead}",
            f".edgecifar-partial-{dead}x-film",
            f"x.edgecifar-partial-{dead}-a",
        ]
        for name in kept:
            (tmp_path / name).touch()
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted(kept)

    def test_a_number_that_no_process_can_have(self, tmp_path):
        (tmp_path / f".edgecifar-partial-{10**30}-a").touch()
        remove_leftovers(tmp_path)
        assert names(tmp_path) == []

    def test_another_users_process_is_a_living_one(self, tmp_path, monkeypatch, dead):
        def refuse(pid: int, signal: int) -> None:
            raise PermissionError

        (tmp_path / f".edgecifar-partial-{dead}-a").touch()
        monkeypatch.setattr(os, "kill", refuse)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [f".edgecifar-partial-{dead}-a"]

    def test_links_are_not_followed(self, tmp_path, dead):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a").write_text("one")
        (tmp_path / f".edgecifar-partial-{dead}-link").symlink_to(tmp_path / "real")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["real"]
        assert contents(tmp_path / "real") == {"a": "one"}

    def test_new_folder_removes_them(self, tmp_path, dead):
        (tmp_path / f".edgecifar-partial-{dead}-made").mkdir()
        with new_folder(tmp_path / "made"):
            pass
        assert names(tmp_path) == ["made"]

    def test_a_folder_that_was_being_replaced_is_put_back(self, tmp_path, dead):
        (tmp_path / f".replaced-{dead}-made").mkdir()
        (tmp_path / f".replaced-{dead}-made" / "a").write_text("old")
        (tmp_path / f".edgecifar-partial-{dead}-made").mkdir()
        with pytest.raises(OutputError, match="exists already"), new_folder(tmp_path / "made"):
            pass
        assert names(tmp_path) == ["made"]
        assert contents(tmp_path / "made") == {"a": "old"}

    def test_a_folder_that_has_been_replaced_is_removed(self, tmp_path, dead):
        for name in (f".replaced-{dead}-made", "made"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a").write_text(name)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["made"]
        assert contents(tmp_path / "made") == {"a": "made"}

    def test_of_another_user_keep_nobody_from_writing(self, tmp_path, dead, monkeypatch):
        """In a folder such as /tmp everybody may write, and each may remove only what is theirs."""

        def refuse(path: object, *, ignore_errors: bool = False) -> None:
            if not ignore_errors:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

        theirs = [f".edgecifar-partial-{dead}-{name}" for name in ("file", "folder")]
        (tmp_path / theirs[0]).touch()
        (tmp_path / theirs[1]).mkdir()
        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr(files.shutil, "rmtree", refuse)
        with new_folder(tmp_path / "made") as folder:
            (folder / "a").touch()
        assert names(tmp_path) == [*theirs, "made"]

    KILLED = """
import os, signal, sys
from pathlib import Path
from edgecifar.runtime import files
left = int(sys.argv[2])
def deadly(step):
    def call(*args, **options):
        global left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return step(*args, **options)
    return call
files._exchange = deadly(files._exchange if sys.argv[3] == "swapped" else lambda one, other: False)
os.rename = deadly(os.rename)
files.shutil.rmtree = deadly(files.shutil.rmtree)
with files.new_folder(Path(sys.argv[1]), replace=True) as folder:
    (folder / "a").write_text("new")
"""

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
    @pytest.mark.parametrize("steps", range(6))
    def test_killed_while_replacing(self, tmp_path, way, steps):
        """Before the swap or its refusal, then the two renames, the two removals, and the end."""
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").write_text("old")
        process = subprocess.run([sys.executable, "-c", self.KILLED, tmp_path / "made", str(steps), way], check=False)
        assert process.returncode == (-9 if steps < (3 if way == "swapped" else 5) else 0)
        assert (tmp_path / "made").exists() == (way == "swapped" or steps != 2)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["made"]
        replaced = 1 if way == "swapped" else 3
        assert contents(tmp_path / "made") == {"a": "old" if steps < replaced else "new"}


class TestInUse:
    def test_what_this_process_is_writing_is_no_leftover(self, tmp_path):
        def content(staged: Path) -> None:
            staged.write_text("half")
            remove_leftovers(tmp_path)
            staged.write_text("whole")

        with new_folder(tmp_path / "one") as one, new_folder(tmp_path / "other") as other:
            for folder in (one, other):
                (folder / "a").write_text("a")
        write_file(tmp_path / "file", content)
        assert names(tmp_path) == ["file", "one", "other"]
        assert contents(tmp_path / "one") == contents(tmp_path / "other") == {"a": "a"}

    def test_what_another_container_is_making_is_no_leftover(self, tmp_path, dead):
        """Its processes have numbers that mean nothing here."""
        pytest.importorskip("fcntl")
        folder, file = (tmp_path / f"{files.STAGING}{dead}-{name}" for name in ("bundle", "file"))
        folder.mkdir()
        file.write_text("half")
        locks = files.lock(folder), files.lock(file)
        remove_leftovers(tmp_path)
        assert folder.is_dir()
        assert file.is_file()
        for let_go in locks:
            let_go()
        remove_leftovers(tmp_path)
        assert names(tmp_path) == []

    def test_a_file_is_locked_while_it_is_written(self, tmp_path):
        pytest.importorskip("fcntl")

        def content(staged: Path) -> None:
            with pytest.raises(BlockingIOError):
                files.lock(staged)
            staged.write_text("whole")

        write_file(tmp_path / "a", content)
        files.lock(tmp_path / "a")()
        assert contents(tmp_path) == {"a": "whole"}

    def test_a_lock_can_be_waited_for(self, tmp_path):
        pytest.importorskip("fcntl")
        (tmp_path / "a").touch()
        let_go, steps = files.lock(tmp_path / "a"), ["locked"]
        threading.Timer(0.1, lambda: (steps.append("let go"), let_go())).start()
        files.lock(tmp_path / "a", wait=True)()
        assert steps == ["locked", "let go"]

    def test_two_containers_whose_processes_have_one_number(self, tmp_path):
        def content(staged: Path) -> None:
            staged.write_text("ours")
            write_file(tmp_path / "a", b"theirs")

        write_file(tmp_path / "a", content)
        assert contents(tmp_path) == {"a": "ours"}


class TestWindows:
    """As Windows does it: no descriptors of folders, and no flushing through one that may only read."""

    @pytest.fixture(autouse=True)
    def windows(self, monkeypatch):
        opened, flushed = {}, []

        def refusing_open(path, flags, *args, **kwargs):
            if Path(path).is_dir():
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            descriptor = os.open(path, flags, *args, **kwargs)
            opened[descriptor] = flags
            return descriptor

        def refusing_fsync(descriptor):
            if not opened[descriptor] & (os.O_RDWR | os.O_WRONLY):
                raise OSError(errno.EBADF, "Bad file descriptor")
            flushed.append(descriptor)
            os.fsync(descriptor)

        monkeypatch.setattr(files, "WINDOWS", True)
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
        # In this module alone: shutil asks the system at hand how it removes folders.
        monkeypatch.setattr(
            files, "os", SimpleNamespace(**{**vars(os), "open": refusing_open, "fsync": refusing_fsync})
        )
        return flushed

    def test_a_file(self, tmp_path, windows):
        write_file(tmp_path / "a", b"old")
        write_file(tmp_path / "a", b"new")
        assert contents(tmp_path) == {"a": "new"}
        assert len(windows) == 2

    def test_a_folder(self, tmp_path, windows):
        for text in ("old", "new"):
            with new_folder(tmp_path / "made", replace=True) as folder:
                (folder / "inner").mkdir()
                (folder / "inner" / "a").write_text(text)
        assert names(tmp_path) == ["made"]
        assert contents(tmp_path / "made" / "inner") == {"a": "new"}
        assert len(windows) == 2

    def test_leftovers_may_be_of_a_living_process(self, tmp_path, dead):
        (tmp_path / f"{files.STAGING}{dead}-a").write_text("")
        remove_leftovers(tmp_path)
        assert len(names(tmp_path)) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        sys.platform == "linux"
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("only root on Linux may mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


class TestRealDisk:
    def test_full(self, small_disk):
        write_file(small_disk / "a", b"old")
        says = (
            rf"Could not write a: the disk that holds {small_disk} is full: free some space or choose another place\."
        )
        with pytest.raises(OutputError, match=says):
            write_file(small_disk / "a", bytes(1 << 20))
        with pytest.raises(OutputError, match="is full"), new_folder(small_disk / "b") as folder:
            (folder / "a").write_bytes(bytes(1 << 20))
        assert contents(small_disk) == {"a": "old"}

    def test_read_only(self, small_disk):
        write_file(small_disk / "a", b"old")
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        says = rf"Could not write a: {small_disk} is on a read-only file system: choose another place\."
        with pytest.raises(OutputError, match=says):
            write_file(small_disk / "a", b"new")
        with pytest.raises(OutputError, match="is on a read-only file system"), new_folder(small_disk / "b"):
            pass
        assert contents(small_disk) == {"a": "old"}
