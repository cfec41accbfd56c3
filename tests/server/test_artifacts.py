"""Artifacts through the real client: versions, aliases, edits, deletion, downloads, lineage, links, references."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Client, run_client
from tests.server_process import ServerProcess

STORY = """
from datetime import timedelta

run = wandb.init(project="models", id="sync", settings=quiet)
other = wandb.Api().create_run(run_id="trainer", project="models", entity="local")
path = folder(a__bin=b"x" * 100_000, b__txt="zero")


def save(name="ck", aliases=None, **arguments):
    made = artifact(name, path, **arguments)
    run.log_artifact(made, aliases=aliases).wait()
    return made


def find(name):
    return wandb.Api().artifact("local/models/" + name)


def versions(name="ck", **arguments):
    return [found.name for found in wandb.Api().artifacts("model", "local/models/" + name, **arguments)]


def put_count():
    return len([1 for line in open(os.environ["REQUESTS"]) if json.loads(line)["method"] == "PUT"])


saved = [save(metadata={"step": 0}, aliases=["step-0", "best"])]
(path / "b.txt").write_text("one")
puts = put_count()
saved.append(save(metadata={"step": 1}, aliases=["step-1", "best"]))
report(names=[one.version for one in saved], puts_for_one_new_file=put_count() - puts)
report(aliases_of_0=find("ck:v0").aliases, aliases_of_1=sorted(find("ck:v1").aliases), best=find("ck:best").version)
latest = find("ck:latest")
report(latest=[latest.version, latest.metadata, latest.size, latest.file_count, latest.state, latest.type])

out = latest.download(str(folder()), skip_cache=True)
report(downloaded={name: len((pathlib.Path(out) / name).read_bytes()) for name in os.listdir(out)})
latest.verify(out)
ranged = find("ck:v1").download(str(folder()), skip_cache=True, multipart=True)
report(in_ranges=(pathlib.Path(ranged) / "b.txt").read_text())
paged = folder(**{f"f{n}": str(n) for n in range(25)})
os.environ["WANDB_ARTIFACT_FETCH_FILE_URL_BATCH_SIZE"] = "10"
many = artifact("many", paged)
run.log_artifact(many).wait()
report(in_url_pages=len(os.listdir(find("many:v0").download(str(folder()), skip_cache=True))))
report(file_pages=len({file.name for file in find("many:v0").files(per_page=10)}))

same = save(metadata={"step": 99}, aliases=["again"])
report(same=[same.version, same.metadata, sorted(find("ck:v1").aliases)], versions_after_same=versions())
for number in range(2, 7):
    (path / "b.txt").write_text(str(number))
    save(metadata={"step": number})
report(in_pages=versions(per_page=2), in_order=versions(order="versionIndex"))
report(moved=[find("ck:latest").version, find("ck:v1").aliases])

edited = find("ck:v0")
edited.aliases.append("kept")
edited.aliases.remove("step-0")
edited.metadata["note"] = [1, 2]
edited.description = "a description"
edited.ttl = timedelta(days=3)
edited.tags = ["t"]
edited.save()
edited = find("ck:v0")
report(edited=[edited.aliases, edited.metadata, edited.description, edited.ttl.days, edited.tags])
edited.ttl = None
edited.save()
report(ttl_off=find("ck:v0").ttl is None, old_alias=error_of(find, "ck:step-0"))

report(delete_aliased=error_of(find("ck:v0").delete), still_there=find("ck:v0").version)
find("ck:v0").delete(delete_aliases=True)
find("ck:v2").delete()
report(after_delete=versions(), deleted=error_of(find, "ck:v0"), alias_of_deleted=error_of(find, "ck:kept"))
find("ck:v6").delete(delete_aliases=True)
(path / "b.txt").write_text("new")
report(number_after_delete=save().version)

user = wandb.init(project="models", id="user", reinit="create_new", settings=quiet)
report(used=user.use_artifact("ck:v1").version)
user.finish()
wandb.Api().run("local/models/user").use_artifact(find("ck:v3"))
reader = wandb.Api().run("local/models/user")
report(used_by=[one.id for one in find("ck:v1").used_by()], used_artifacts=[one.name for one in reader.used_artifacts()])
trainer = wandb.Api().run("local/models/trainer")
trainer.log_artifact(find("ck:v3"), aliases=["public"])
report(
    logged_by=find("ck:v3").logged_by().id,
    logged=[one.name for one in wandb.Api().run("local/models/sync").logged_artifacts(per_page=2)],
    logged_through_api=[one.name for one in wandb.Api().run("local/models/trainer").logged_artifacts()],
    public=[find("ck:public").version, find("ck:latest").version],
    trainer_state=wandb.Api().run("local/models/trainer").state,
)

linked = find("ck:v3").link("wandb-registry-model/good ones".replace(" ", "-"), aliases=["production"])
report(linked=[linked.qualified_name, linked.version, linked.source_version, sorted(linked.aliases)])
again = find("ck:v3").link("wandb-registry-model/good-ones")
second = run.link_artifact(saved[1], "wandb-registry-model/good-ones")
plain = find("ck:v3").link("models/portfolio")
from_registry = wandb.Api().artifact("wandb-registry-model/good-ones:production")
report(
    linked_again=again.version,
    second=second.version,
    plain=plain.qualified_name,
    linked_artifacts=sorted(one.qualified_name for one in find("ck:v3").linked_artifacts),
    from_registry=[from_registry.source_name, sorted(os.listdir(from_registry.download(str(folder()), skip_cache=True)))],
    registry_collections=[one.name for registry in wandb.Api().registries("local-org") for one in registry.collections()],
    registry_versions=[one.name for one in wandb.Api().registry("model", "local-org").versions()],
)
plain.unlink()
report(unlinked=[one.qualified_name for one in find("ck:v3").linked_artifacts], after_unlink=find("ck:v3").version)

references = wandb.Artifact("references", "dataset")
references.add_reference("file://" + str(path / "a.bin"), name="a.bin")
references.add_file(str(path / "b.txt"))
references.add_reference("https://example.invalid/x", name="far", checksum=False)
run.log_artifact(references).wait()
found = find("references:v0")
report(references={name: [entry.ref, entry.size] for name, entry in found.manifest.entries.items()})
report(reference_count=found.file_count)
place = folder()
found.get_entry("a.bin").download(str(place))
report(reference_downloaded=len((place / "a.bin").read_bytes()))

fast = artifact("fast", path, digest_algorithm="XXH128")
run.log_artifact(fast).wait()
found = find("fast:v0")
target = found.download(str(folder()), skip_cache=True)
found.verify(target)
report(xxh=[found.digest_algorithm.value, (pathlib.Path(target) / "b.txt").read_text(), [file.size for file in found.files()]])
puts = put_count()
more = folder(a__bin=(path / "a.bin").read_bytes(), c__txt="c")
run.log_artifact(artifact("fast", more, digest_algorithm="XXH128")).wait()
report(xxh_puts=put_count() - puts, xxh_versions=versions("fast"))

draft = find("ck:v3").new_draft()
with draft.new_file("extra.txt") as file:
    file.write("extra")
run.log_artifact(draft).wait()
report(draft=[draft.version, sorted(os.listdir(find("ck:latest").download(str(folder()), skip_cache=True)))])

collection = wandb.Api().artifact_collection("model", "local/models/ck")
collection.description = "checkpoints"
collection.tags = ["big"]
collection.save()
collection = wandb.Api().artifact_collection("model", "local/models/ck")
report(collection=[collection.description, collection.tags, "latest" in collection.aliases])
report(
    types=sorted(kind.name for kind in wandb.Api().artifact_types("local/models")),
    collections=sorted(one.name for one in wandb.Api().artifact_collections("local/models", "model")),
    exists=[wandb.Api().artifact_exists("local/models/" + name) for name in ("ck:latest", "ck:v99", "none:latest")],
)
wandb.Api().artifact_collection("model", "local/models/fast").delete()
report(after_collection_delete=sorted(one.name for one in wandb.Api().artifact_collections("local/models", "model")))
clash = wandb.Artifact("ck", "dataset")
clash.add_file(str(path / "b.txt"))
report(type_clash=error_of(run.log_artifact, clash))
run.finish()
"""


@pytest.fixture(scope="module")
def reported(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("story") / "client"
    return run_client(STORY, server, work, REQUESTS=str(server.request_log))


def test_versions_count_up_from_v0(reported: dict[str, Any]) -> None:
    assert reported["names"] == ["v0", "v1"]


def test_a_file_that_is_there_already_is_not_sent_again(reported: dict[str, Any]) -> None:
    assert reported["puts_for_one_new_file"] == 2  # the changed file and the manifest


def test_aliases_move_to_the_version_that_names_them_last(reported: dict[str, Any]) -> None:
    assert reported["aliases_of_0"] == ["step-0"]
    assert reported["aliases_of_1"] == ["best", "latest", "step-1"]
    assert reported["best"] == "v1"


def test_latest_is_found_with_what_was_saved_with_it(reported: dict[str, Any]) -> None:
    assert reported["latest"] == ["v1", {"step": 1}, 100_003, 2, "COMMITTED", "model"]


def test_a_download_gives_the_bytes_back_whole_in_ranges_and_in_pages_of_urls(reported: dict[str, Any]) -> None:
    assert reported["downloaded"] == {"a.bin": 100_000, "b.txt": 3}
    assert reported["in_ranges"] == "one"
    assert reported["in_url_pages"] == 25
    assert reported["file_pages"] == 25


def test_identical_content_is_the_old_version_with_the_new_aliases(reported: dict[str, Any]) -> None:
    assert reported["same"] == ["v1", {"step": 1}, ["again", "best", "latest", "step-1"]]
    assert reported["versions_after_same"] == ["ck:v1", "ck:v0"]


def test_versions_are_listed_newest_first_in_pages_or_in_an_order(reported: dict[str, Any]) -> None:
    newest_first = [f"ck:v{number}" for number in range(6, -1, -1)]
    assert reported["in_pages"] == newest_first
    assert reported["in_order"] == newest_first[::-1]
    assert reported["moved"][0] == "v6"
    assert "latest" not in reported["moved"][1]


def test_aliases_metadata_description_ttl_and_tags_are_edited(reported: dict[str, Any]) -> None:
    assert reported["edited"] == [["kept"], {"step": 0, "note": [1, 2]}, "a description", 3, ["t"]]
    assert reported["ttl_off"]
    assert reported["old_alias"] is not None


def test_a_version_with_aliases_is_deleted_only_together_with_them(reported: dict[str, Any]) -> None:
    assert "aliases" in reported["delete_aliased"][1]
    assert reported["still_there"] == "v0"
    assert reported["after_delete"] == ["ck:v6", "ck:v5", "ck:v4", "ck:v3", "ck:v1"]
    assert reported["deleted"] is not None
    assert reported["alias_of_deleted"] is not None


def test_the_number_of_a_deleted_version_is_not_given_again(reported: dict[str, Any]) -> None:
    assert reported["number_after_delete"] == "v7"


def test_the_runs_that_use_a_version_are_known(reported: dict[str, Any]) -> None:
    assert reported["used"] == "v1"
    assert reported["used_by"] == ["user"]
    assert reported["used_artifacts"] == ["ck:v1", "ck:v3"]


def test_a_version_belongs_to_its_run_and_to_those_that_log_it_through_the_public_api(reported: dict[str, Any]) -> None:
    assert reported["logged_by"] == "sync"
    assert {"ck:v1", "ck:v3", "ck:v4", "ck:v5", "ck:v7", "many:v0"} == {*reported["logged"]}
    assert reported["logged_through_api"] == ["ck:v3"]


def test_logging_through_the_public_api_leaves_latest_and_the_runs_state_alone(reported: dict[str, Any]) -> None:
    assert reported["public"] == ["v3", "v7"]
    assert reported["trainer_state"] == "running"


def test_a_version_is_linked_into_a_registry_and_a_portfolio(reported: dict[str, Any]) -> None:
    assert reported["linked"] == ["local-org/wandb-registry-model/good-ones:v0", "v0", "v3", ["latest", "production"]]
    assert reported["linked_again"] == "v0"
    assert reported["second"] == "v1"
    assert reported["plain"] == "local/models/portfolio:v0"
    assert reported["linked_artifacts"] == ["local-org/wandb-registry-model/good-ones:v0", "local/models/portfolio:v0"]


def test_a_linked_version_is_found_and_downloaded_through_the_registry(reported: dict[str, Any]) -> None:
    assert reported["from_registry"] == ["ck:v3", ["a.bin", "b.txt"]]
    assert reported["registry_collections"] == ["good-ones"]
    assert reported["registry_versions"] == ["good-ones:v1", "good-ones:v0"]


def test_an_unlinked_version_stays_in_its_sequence(reported: dict[str, Any]) -> None:
    assert reported["unlinked"] == ["local-org/wandb-registry-model/good-ones:v0"]
    assert reported["after_unlink"] == "v3"


def test_references_are_kept_as_references(reported: dict[str, Any]) -> None:
    assert reported["references"]["a.bin"][0].startswith("file://")
    assert reported["references"]["far"] == ["https://example.invalid/x", 0]
    assert reported["references"]["b.txt"][0] is None
    assert reported["reference_count"] == 3
    assert reported["reference_downloaded"] == 100_000


def test_an_artifact_hashed_with_xxh128_goes_both_ways_and_is_deduplicated(reported: dict[str, Any]) -> None:
    assert reported["xxh"] == ["MANIFEST_XXH128", "new", [100_000, 3]]
    assert reported["xxh_puts"] == 2
    assert reported["xxh_versions"] == ["fast:v1", "fast:v0"]


def test_a_draft_takes_the_files_of_an_older_version_over(reported: dict[str, Any]) -> None:
    assert reported["draft"] == ["v8", ["a.bin", "b.txt", "extra.txt"]]


def test_collections_and_types_are_listed_edited_and_deleted(reported: dict[str, Any]) -> None:
    assert reported["collection"] == ["checkpoints", ["big"], True]
    assert reported["types"] == ["dataset", "model"]
    assert reported["collections"] == ["ck", "fast", "many", "portfolio"]
    assert reported["after_collection_delete"] == ["ck", "many", "portfolio"]
    assert reported["exists"] == [True, False, False]


def test_a_collection_keeps_its_type(reported: dict[str, Any]) -> None:
    assert "already exists with type" in reported["type_clash"][1]


def test_a_file_that_changes_after_hashing_is_refused(client: Client) -> None:
    reported = client(
        """
run = wandb.init(project="models", id="torn", settings=quiet)
path = folder(a__bin="before")
made = artifact("torn", path)
(path / "a.bin").write_text("after!")
report(error=error_of(run.log_artifact(made).wait), exists=wandb.Api().artifact_exists("local/models/torn:latest"))
run.finish()
"""
    )

    assert reported["error"][0] == "ValueError"
    assert reported["exists"] is False


def test_a_table_logged_as_an_artifact_refers_to_its_server_side_id(client: Client) -> None:
    reported = client(
        """
run = wandb.init(project="models", id="tables", settings=quiet)
table = wandb.Table(columns=["a"], data=[[1]])
first = wandb.Artifact("holder", "dataset")
first.add(table, "t")
run.log_artifact(first).wait()
second = wandb.Artifact("pointer", "dataset")
second.add(table, "again")
run.log_artifact(second).wait()
run.finish()
report(rows=wandb.Api().artifact("local/models/pointer:v0").get("again").data)
"""
    )

    assert reported["rows"] == [[1]]
