"""Bytes on their way in and out: digests, links, parts, ranges, and what a commit demands."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest

from tests.server import api
from tests.server_process import ServerProcess


def test_what_was_put_comes_back(server: ServerProcess) -> None:
    api.save(server, "plain", {"a": b"one", "sub/b": b"two"})

    assert api.contents(server, api.versions(server, "plain")[0]) == {"a": b"one", "sub/b": b"two"}


def test_an_empty_file_is_a_file(server: ServerProcess) -> None:
    api.save(server, "empty", {"a": b""})

    assert api.contents(server, api.versions(server, "empty")[0]) == {"a": b""}


def test_a_body_that_does_not_match_its_content_md5_is_refused_and_leaves_nothing(server: ServerProcess) -> None:
    artifact_id = api.create(server, "torn")
    url = api.announce(server, artifact_id, "a", b"announced")["uploadUrl"]

    statuses = [api.put(server, url, b"other", api.b64md5(b"announced")), api.put(server, url, b"other")]

    assert statuses == [400, 400]
    assert api.announce(server, artifact_id, "a", b"announced")["uploadUrl"] is not None
    assert list((server.data_dir / "incoming").iterdir()) == []


def test_a_valid_content_md5_does_not_store_other_content_under_the_links_digest(server: ServerProcess) -> None:
    url = api.announce(server, api.create(server, "swap"), "a", b"announced one")["uploadUrl"]

    assert api.put(server, url, b"other", api.b64md5(b"other")) == 400


def test_a_file_that_is_there_needs_no_upload(server: ServerProcess) -> None:
    api.save(server, "first", {"a": b"the same bytes"})

    assert api.announce(server, api.create(server, "second"), "b", b"the same bytes")["uploadUrl"] is None


def test_a_commit_without_a_manifest_is_refused(server: ServerProcess) -> None:
    artifact_id = api.create(server, "bare")

    answer = server.graphql(api.COMMIT, id=artifact_id)

    assert "manifest has not been uploaded" in answer["errors"][0]["message"]
    assert api.versions(server, "bare") == []


def test_a_commit_with_a_file_missing_is_refused_and_succeeds_once_it_came(server: ServerProcess) -> None:
    artifact_id = api.create(server, "late")
    url = api.announce(server, artifact_id, "a", b"late file")["uploadUrl"]
    api.put_manifest(server, artifact_id, {"a": {"digest": api.b64md5(b"late file"), "size": 9}})

    refused = server.graphql(api.COMMIT, id=artifact_id)
    none_yet = api.versions(server, "late")
    api.put(server, url, b"late file")
    committed = api.data(server.graphql(api.COMMIT, id=artifact_id))

    assert "has not been uploaded" in refused["errors"][0]["message"]
    assert none_yet == []
    assert committed["artifact"] == {"state": "COMMITTED", "versionIndex": 0}


def test_a_commit_with_a_wrong_size_in_the_manifest_is_refused(server: ServerProcess) -> None:
    artifact_id = api.create(server, "size")
    api.put(server, api.announce(server, artifact_id, "a", b"abc")["uploadUrl"], b"abc")
    api.put_manifest(server, artifact_id, {"a": {"digest": api.b64md5(b"abc"), "size": 4}})

    assert "size" in server.graphql(api.COMMIT, id=artifact_id)["errors"][0]["message"]


def test_committing_twice_makes_one_version(server: ServerProcess) -> None:
    artifact_id = api.create(server, "twice")
    api.put_manifest(server, artifact_id, {})

    answers = [api.data(server.graphql(api.COMMIT, id=artifact_id)) for _ in range(2)]

    assert answers[0] == answers[1]
    assert len(api.versions(server, "twice")) == 1


def test_an_unfinished_upload_is_taken_up_again(server: ServerProcess) -> None:
    first = api.create(server, "again", "e" * 32, metadata='{"try": 1}')
    api.put(server, api.announce(server, first, "a", b"sent before the crash")["uploadUrl"], b"sent before the crash")

    second = api.create(server, "again", "e" * 32, metadata='{"try": 2}')

    assert second == first
    assert api.announce(server, second, "a", b"sent before the crash")["uploadUrl"] is None


def test_two_clients_with_the_same_content_make_one_version(server: ServerProcess) -> None:
    threads = [threading.Thread(target=api.save, args=(server, "race", {"a": b"raced for"})) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [version["version"] for version in api.versions(server, "race")] == ["v0"]


def test_a_file_in_parts_is_whole_and_deduplicated(server: ServerProcess) -> None:
    parts = [b"a" * 1000, b"b" * 1000, b"c" * 10]
    whole = b"".join(parts)
    artifact_id = api.create(server, "parts")
    node = api.announce(server, artifact_id, "big", whole, parts)
    multipart = node["uploadMultipartUrls"]
    links = [part["uploadUrl"] for part in multipart["uploadUrlParts"]]
    reported = [{"partNumber": number, "hexMD5": f'"{api.hexmd5(part)}"'} for number, part in enumerate(parts, 1)]
    completion = {"id": artifact_id, "parts": reported, "upload": multipart["uploadID"], "path": node["storagePath"]}

    api.put(server, links[2], parts[2], api.b64md5(parts[2]))
    too_early = server.graphql(api.COMPLETE, **completion)
    api.put(server, links[0], parts[0], api.b64md5(parts[0]))
    api.put(server, links[1], parts[1], api.b64md5(parts[1]))
    completed = api.data(server.graphql(api.COMPLETE, **completion))
    api.put_manifest(server, artifact_id, {"big": {"digest": api.b64md5(whole), "size": len(whole)}})
    api.data(server.graphql(api.COMMIT, id=artifact_id))
    (version,) = api.versions(server, "parts")
    url = version["node"]["files"]["edges"][0]["node"]["directUrl"]
    ranged = server.request("GET", url, headers={"Range": "bytes=990-2004"})

    assert "parts are missing" in too_early["errors"][0]["message"]
    assert completed == {"digest": api.b64md5(whole)}
    assert api.contents(server, version) == {"big": whole}
    assert ranged == (206, whole[990:2005])
    assert api.announce(server, api.create(server, "parts2"), "big", whole, parts)["uploadUrl"] is None


@pytest.mark.parametrize(
    ("header", "status", "body"),
    [
        ("bytes=0-0", 206, b"0"),
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=5-99", 206, b"56789"),
        ("bytes=10-", 416, b""),
        ("nonsense", 200, b"0123456789"),
    ],
)
def test_a_range_is_answered_with_its_bytes(server: ServerProcess, header: str, status: int, body: bytes) -> None:
    api.save(server, "ranges", {"a": b"0123456789"})
    url = api.versions(server, "ranges")[0]["node"]["files"]["edges"][0]["node"]["directUrl"]

    assert server.request("GET", url, headers={"Range": header}) == (status, body)


@pytest.mark.parametrize("change", ["signature", "expires", "path", "method", "unsigned"])
def test_a_link_allows_exactly_what_it_was_made_for(server: ServerProcess, change: str) -> None:
    url = api.announce(server, api.create(server, "links"), change, change.encode())["uploadUrl"]
    other = api.hexmd5(b"something else")
    changed = {
        "signature": re.sub("signature=(.)", lambda found: f"signature={'1' if found[1] == '0' else '0'}", url),
        "expires": re.sub(r"expires=(\d+)", "expires=9999999999", url),
        "path": re.sub(r"md5-[0-9a-f]{32}", f"md5-{other}", url),
        "method": url,
        "unsigned": url.partition("?")[0],
    }[change]

    status, _ = server.request("GET" if change == "method" else "PUT", changed, data=None if change == "method" else b"x")

    assert status == 403


def test_a_link_expires(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", args=["--link-lifetime", "1"]) as server:
        url = api.announce(server, api.create(server, "expired"), "a", b"abc")["uploadUrl"]
        in_time = api.put(server, url, b"abc")
        time.sleep(2)
        too_late = api.put(server, url, b"abc")

    assert [in_time, too_late] == [200, 403]


def test_deleted_bytes_are_freed_unless_another_version_has_them(server: ServerProcess) -> None:
    def kept(content: bytes) -> bool:
        digest = api.hexmd5(content)
        return (server.data_dir / "content" / "md5" / digest[:2] / digest).exists()

    api.save(server, "freed", {"shared": b"in both versions", "own": b"only in the first"})
    api.save(server, "freed", {"shared": b"in both versions"})
    query = 'query Find { project(name: "p", entityName: "local") { artifact(name: "freed:v0") { id } } }'
    artifact_id = api.data(server.graphql(query))["artifact"]["id"]
    before = [kept(b"in both versions"), kept(b"only in the first")]
    delete = "mutation DeleteArtifact($id: ID!) { deleteArtifact(input: {artifactID: $id}) { artifact { id } } }"
    api.data(server.graphql(delete, id=artifact_id))

    assert before == [True, True]
    assert [kept(b"in both versions"), kept(b"only in the first")] == [True, False]


def test_memory_stays_flat_while_large_bodies_stream_in_and_out(server: ServerProcess) -> None:
    content = os.urandom(1024 * 1024) * 192
    artifact_id = api.create(server, "large")
    url = api.announce(server, artifact_id, "a", content)["uploadUrl"]
    before = _peak_memory(server.pid)

    assert api.put(server, url, content, api.b64md5(content)) == 200
    api.put_manifest(server, artifact_id, {"a": {"digest": api.b64md5(content), "size": len(content)}})
    api.data(server.graphql(api.COMMIT, id=artifact_id))
    assert len(api.contents(server, api.versions(server, "large")[0])["a"]) == len(content)
    assert _peak_memory(server.pid) - before < 48 * 1024 * 1024


def _peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024
