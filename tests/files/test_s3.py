"""Laws of s3:// against a server of moto's on loopback: objects, their versions, and a run's mirror there.

Skipped where `moto[server]` and s3fs are not installed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

from nextscale.errors import InputError  # noqa: E402
from nextscale.files import remote  # noqa: E402
from nextscale.files.cache import Cache  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what the driver warns of is its own


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty one, which the environment leads to."""
    import s3fs

    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody-we-know")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22hunter22")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem().mkdir("pets")
        yield "s3://pets"
    moto.stop()


def test_objects_are_written_read_and_removed(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In many pieces, through a cache."""
    monkeypatch.setattr(remote, "PIECE", 999)
    (tmp_path / "file").write_bytes(content := bytes(range(256)) * 40)
    remote.put(tmp_path / "file", f"{bucket}/below/a.tar")
    with Cache(tmp_path / "cache", 20_000).held(remote.find(f"{bucket}/below/a.tar")) as path:
        assert path.read_bytes() == content
    remote.remove(f"{bucket}/below/a.tar")
    remote.remove(f"{bucket}/below/a.tar")
    with pytest.raises(remote.AbsentError, match="found nothing at s3://pets/below/a.tar"):
        remote.find(f"{bucket}/below/a.tar")


def test_another_version_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same length, by its ETag."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    remote.write(b"one", f"{bucket}/b.tar")
    first = remote.find(f"{bucket}/b.tar")
    assert remote.find(f"{bucket}/b.tar") == first
    remote.write(b"two", f"{bucket}/b.tar")
    with pytest.raises(InputError, match="it has changed since"):
        remote.fetch(first, io.BytesIO())


def test_a_bucket_that_is_not_there_is_one_line(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the key."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with pytest.raises(InputError) as error:
        remote.find("s3://nobodys/b.tar")
    assert "hunter22" not in str(error.value)
