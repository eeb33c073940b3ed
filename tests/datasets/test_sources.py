"""Getting data: downloads from a server that misbehaves, archives that cannot be trusted, disks that are full."""

import hashlib
import io
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from conftest import fill

from semcorr.datasets import archive as archives
from semcorr.datasets import download, sources, toy
from semcorr.errors import UserError
from semcorr.params import PathSource, PFWillowSpec, SPairSpec, UrlSource

CONTENT = random.Random(0).randbytes(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def file(request):
    """What the server has."""
    if "server" in request.fixturenames:
        request.getfixturevalue("server").files["file.bin"] = CONTENT


def test_download_is_whole_and_done_once(server, tmp_path):
    path = tmp_path / "new" / "file.bin"
    for _ in range(2):
        assert download.download([server.url("file.bin")], DIGEST, path).read_bytes() == CONTENT
    assert server.requests == 1
    path.write_bytes(b"something else")
    assert download.download([server.url("file.bin")], DIGEST, path).read_bytes() == CONTENT
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("digest", [DIGEST, None])
def test_a_dropped_connection_is_tried_again(server, tmp_path, digest):
    server.faults["file.bin"] = ["half", "half"]
    path = download.download([server.url("file.bin")], digest, tmp_path / "file.bin")
    assert path.read_bytes() == CONTENT
    assert server.requests == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "HTTP 404"),
        ("403", "HTTP 403"),  # "Permission denied": the server's words, and not the disk's
        ("wrong bytes", f"serves another file .its sha256 is not {DIGEST}.; it was not used"),
        ("no length, half", "serves another file"),
        ("half", "IncompleteRead"),
    ],
)
def test_what_is_not_the_file_is_not_there(server, tmp_path, fault, message):
    server.faults["file.bin"] = [fault] * 3
    with pytest.raises(UserError, match=message):
        download.download([server.url("file.bin")], DIGEST, tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_mirrors_are_tried_in_order(server, tmp_path):
    server.faults["file.bin"] = ["wrong bytes"]
    nobody = "http://127.0.0.1:9/file.bin"
    urls = [nobody, server.url("missing.bin"), server.url("file.bin"), server.url("file.bin")]
    assert download.download(urls, DIGEST, tmp_path / "file.bin").read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"9/file\.bin: ConnectionError.*; .*missing\.bin: HTTP 404\. Or put the file"):
        download.download(urls[:2], DIGEST, tmp_path / "other.bin")


def test_killed_downloads_end_with_the_same_file(server, tmp_path):
    """SIGKILL at random moments of a slow download; run again, it ends with the file, whole."""
    path = tmp_path / "file.bin"
    code = "from semcorr.datasets.download import download; from pathlib import Path; import sys\n"
    code += f"download([{server.url('file.bin')!r}], {DIGEST!r}, Path({str(path)!r}))"
    moments = random.Random(1)
    for _ in range(3):
        server.faults["file.bin"] = ["slow"]
        before = server.requests
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        while server.requests == before:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not path.exists()
    assert download.download([server.url("file.bin")], DIGEST, path).read_bytes() == CONTENT


def _tar(path: Path, *members: tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:
        for member in members:
            file.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    member.size = 5 if kind == tarfile.REGTYPE else 0
    return member


UNSAFE = {
    "dots": [_member("../evil")],
    "dots inside": [_member("a/../../evil")],
    "absolute": [_member("/tmp/semcorr-evil")],
    "link out": [_member("link", tarfile.SYMTYPE, "../..")],
    "absolute link": [_member("link", tarfile.SYMTYPE, "/etc")],
    "hard link out": [_member("link", tarfile.LNKTYPE, "../../evil")],
    "through a link": [_member("link", tarfile.SYMTYPE, ".."), _member("link/evil")],
    "through two links": [
        _member("here", tarfile.SYMTYPE, "."),
        _member("up", tarfile.SYMTYPE, "here/.."),
        _member("up/evil"),
    ],
    "device": [_member("null", tarfile.CHRTYPE)],
    "pipe": [_member("pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_tar(tmp_path, case):
    archive = _tar(tmp_path / "a.tar.gz", _member("good"), *UNSAFE[case])
    with pytest.raises(UserError, match=r"a\.tar\.gz: unsafe archive: .* It was not used"):
        archives.unpack(archive, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_links_within_an_archive(tmp_path):
    members = [
        _member("a/file"),
        _member("a/soft", tarfile.SYMTYPE, "file"),
        _member("hard", tarfile.LNKTYPE, "a/file"),
    ]
    folder = archives.unpack(_tar(tmp_path / "a.tar", *members, mode="w"), tmp_path / "out")
    assert [(folder / name).read_bytes() for name in ("a/file", "a/soft", "hard")] == [b"xxxxx"] * 3
    assert (folder / "a/soft").is_symlink()


@pytest.mark.parametrize("name", ["../evil", "/tmp/semcorr-evil", "C:/evil", "a\\..\\..\\evil"])
def test_unsafe_zip(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("good", "x")
        file.writestr(name, "x")
    with pytest.raises(UserError, match=r"a\.zip: unsafe archive: member .* leads out of it"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


@pytest.mark.parametrize("kind", ["gztar", "tar", "xztar", "bztar", "zip"])
def test_archives_unpack_whole_or_not_at_all(tmp_path, kind):
    source = tmp_path / "source" / "inner"
    source.mkdir(parents=True)
    (source / "file.bin").write_bytes(CONTENT)
    archive = Path(shutil.make_archive(str(tmp_path / "made"), kind, tmp_path / "source"))
    assert archives.is_archive(archive)
    unpacked = archives.unpack(archive, tmp_path / "out")
    assert (unpacked / "inner" / "file.bin").read_bytes() == CONTENT
    archive.write_bytes(archive.read_bytes()[:200_000])
    with pytest.raises(UserError, match="damaged or truncated archive"):
        archives.unpack(archive, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def willow_zip(tmp_path_factory) -> bytes:
    root = tmp_path_factory.mktemp("zip")
    toy.write_pfwillow(root / "PF-dataset", seed=3, images={"all": 2})
    return Path(shutil.make_archive(str(root / "PF-dataset"), "zip", root, "PF-dataset")).read_bytes()


def _willow(*listed) -> PFWillowSpec:
    return PFWillowSpec(format="pfwillow", sources=list(listed), expect="any", pairs=None, subsets=None, limit=None)


def test_a_dataset_from_the_first_source_that_can_be_had(server, tmp_path, monkeypatch, willow_zip):
    monkeypatch.chdir(tmp_path)
    server.files["PF-dataset.zip"] = willow_zip
    nowhere = PathSource(kind="path", path="nowhere")
    url = UrlSource(kind="url", urls=[server.url("gone.zip"), server.url("PF-dataset.zip")], sha256=None)
    root = sources.provide(_willow(nowhere, url), "x")
    assert root.name == "PF-dataset"
    requests = server.requests
    assert sources.provide(_willow(nowhere, url), "x") == root
    assert server.requests == requests
    (tmp_path / "local.zip").write_bytes(willow_zip)
    local = PathSource(kind="path", path="local.zip")
    assert sources.provide(_willow(local, url), "x") == root  # the same bytes are unpacked once
    assert server.requests == requests
    gone = UrlSource(kind="url", urls=[server.url("gone.zip")], sha256=None)
    with pytest.raises(
        UserError, match=r"datasets\.x\.sources: none is available: path nowhere .* HTTP 404\. Or put the"
    ):
        sources.provide(_willow(nowhere, gone), "x")


def test_a_truncated_archive_without_a_checksum_is_not_kept(server, tmp_path, monkeypatch, willow_zip):
    monkeypatch.chdir(tmp_path)
    server.files["PF-dataset.zip"] = willow_zip
    server.faults["PF-dataset.zip"] = ["no length, half"]
    url = UrlSource(kind="url", urls=[server.url("PF-dataset.zip")], sha256=None)
    with pytest.raises(UserError, match="damaged or truncated archive"):
        sources.provide(_willow(url), "x")
    assert sources.provide(_willow(url), "x").name == "PF-dataset"


def test_what_a_source_holds_must_be_the_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="file: neither a folder nor a readable zip or tar archive"):
        sources.provide(_willow(PathSource(kind="path", path="file")), "x")
    with pytest.raises(UserError, match="folder: nothing in it is in the format 'pfwillow'"):
        sources.provide(_willow(PathSource(kind="path", path="folder")), "x")
    spair = SPairSpec(
        format="spair",
        sources=[PathSource(kind="path", path="folder")],
        expect="any",
        split="trn",
        layout="large",
        limit=None,
    )
    with pytest.raises(UserError, match="folder: nothing in it is in the format 'spair'"):
        sources.provide(spair, "x")


# Unpacks with a pause before each member, so that there are moments to be killed at.
SLOW_UNPACK = """
import sys, time
from pathlib import Path
import tarfile
from semcorr.datasets.archive import unpack
extract = tarfile.TarFile.extract
tarfile.TarFile.extract = lambda *arguments, **named: (time.sleep(0.02), extract(*arguments, **named))
print("ready", flush=True)
unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_unpacking_ends_with_the_same_files(tmp_path):
    archive = _tar(tmp_path / "a.tar.gz", *[_member(f"{number:02d}") for number in range(30)])
    moments = random.Random(2)
    for _ in range(3):
        command = [sys.executable, "-c", SLOW_UNPACK, str(archive), str(tmp_path / "out")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.wait()
        assert not (tmp_path / "out").exists()
    archives.unpack(archive, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 30


# A limit on file sizes makes the kernel refuse to write on, as a full disk does.
FULL_DISK = """
import resource, sys
from pathlib import Path
from semcorr.datasets.archive import unpack
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
from semcorr.errors import UserError
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
except UserError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("file.bin", CONTENT)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.zip"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "out: cannot be written: the file system or a limit" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_a_disk_that_is_really_full(tmp_path, small_disk, server):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("file.bin", CONTENT)
    server.files["a.zip"] = (tmp_path / "a.zip").read_bytes()
    filler = fill(small_disk)
    full = r"cannot be written: the disk is full, free some space\. Nothing was changed"
    with pytest.raises(UserError, match=f"out: {full}"):
        archives.unpack(tmp_path / "a.zip", small_disk / "out")
    with pytest.raises(UserError, match=rf"b\.zip: {full}"):
        download.download([server.url("a.zip")], None, small_disk / "b.zip")
    assert list(small_disk.iterdir()) == [filler]
