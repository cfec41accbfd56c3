"""Files of a run (code, config, media, tables): declared, uploaded through a signed link, listed and deleted."""

from __future__ import annotations

import mimetypes
import posixpath
from collections.abc import Sequence

from graphql import GraphQLError

from ckptsync.server.resolvers.context import Call, Row, global_id, resolves, row_id_of
from ckptsync.server.resolvers.deletion import release
from ckptsync.server.resolvers.paging import matching, page
from ckptsync.server.resolvers.patterns import is_like
from ckptsync.server.resolvers.runs import run_at

MAX_NAME = 1024
MAX_FILES = 10_000


def run_file(call: Call, row: Row, *, upload: bool = False) -> Row:
    """A run's file as clients see it. With `upload`, its URL is a link to upload it."""
    direct_url = call.links.get(f"/storage/content/{row['content']}") if row["content"] else ""
    return {
        "id": global_id("RunFile", row["id"]),
        "name": row["name"],
        "displayName": row["name"],
        "url": call.links.put(f"/storage/run-file/{row['id']}") if upload else direct_url,
        "directUrl": direct_url,
        "sizeBytes": row["size"],
        "mimetype": mimetypes.guess_type(row["name"])[0] or "application/octet-stream",
        "updatedAt": row["updated_at"],
        "md5": row["content"].partition("-")[2] if row["content"] else None,
        "run_file": row,
    }


@resolves("File.url")
def file_url(source: Row, call: Call, upload: bool | None = None) -> str | None:
    if upload and "run_file" in source:
        return str(run_file(call, source["run_file"], upload=True)["url"])
    url: str | None = source.get("url")
    return url


def _uploaded(call: Call, run: Row, names: Sequence[str | None] | None, pattern: str | None) -> list[Row]:
    rows = call.rows("SELECT * FROM run_files WHERE run_id = ? AND content IS NOT NULL ORDER BY name", run["id"])
    if pattern:
        return [row for row in rows if is_like(pattern, row["name"])]
    return list(matching(rows, names))


@resolves("Run.files")
def run_files(
    source: Row,
    call: Call,
    names: list[str | None] | None = None,
    first: int | None = None,
    after: str | None = None,
    pattern: str | None = None,
) -> Row:
    """The files, or those of the given names. A name may also be a path to the file, such as `./model.pt`."""
    names = names and [*names, *(posixpath.normpath(name) for name in names if name)]
    return page(_uploaded(call, source, names, pattern), first, after, node=lambda row: run_file(call, row))


@resolves("Run.fileCount")
def run_file_count(source: Row, call: Call) -> int:
    return len(_uploaded(call, source, None, None))


@resolves("Mutation.createRunFiles")
def create_run_files(_source: None, call: Call, given: Row) -> Row:
    run = run_at(call, given["entityName"], given["projectName"], given["runName"])
    names = given["files"]
    if len(names) > MAX_FILES or any(not name or len(name) > MAX_NAME for name in names):
        raise GraphQLError("invalid file name")
    files = []
    for name in names:
        call.execute(
            "INSERT INTO run_files (run_id, name, updated_at) VALUES (?, ?, ?) ON CONFLICT (run_id, name) DO NOTHING",
            run["id"],
            name,
            call.now,
        )
        row = call.one("SELECT * FROM run_files WHERE run_id = ? AND name = ?", run["id"], name)
        files.append({**run_file(call, row), "uploadUrl": call.links.put(f"/storage/run-file/{row['id']}")})
    return {"runID": global_id("Run", run["id"]), "uploadHeaders": [], "files": files}


@resolves("Mutation.markRunFilesUploaded")
def mark_run_files_uploaded(_source: None, call: Call, given: Row) -> Row:
    """Whether all of these files are here. Changes nothing: the upload itself recorded the file."""
    run = run_at(call, given["entityName"], given["projectName"], given["runName"])
    return {"success": len(_uploaded(call, run, given["files"], None)) == len(set(given["files"]))}


@resolves("Mutation.deleteFiles")
def delete_files(_source: None, call: Call, given: Row) -> Row:
    contents = set()
    for identifier in given["files"]:
        row = call.row("SELECT * FROM run_files WHERE id = ?", row_id_of("RunFile", identifier))
        if row is not None:
            contents.add(row["content"])
            call.execute("DELETE FROM run_files WHERE id = ?", row["id"])
    release(call, contents)
    return {"success": True}
