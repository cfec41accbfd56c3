"""Every GraphQL document of the installed wandb is known to the schema, or is listed here as unsupported."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import wandb
from graphql import GraphQLError, parse, validate

from ckptsync.server.graphql.schema import executable_schema

GENERATED = (
    "wandb.sdk.artifacts._generated.operations",
    "wandb.apis._generated.operations",
    "wandb.sdk.internal._generated.operations",
)

UNSUPPORTED = {
    # users, teams and members: this server has one user
    "CreateInvite", "CreateRegistryMembers", "CreateServiceAccount", "CreateTeam", "CreateUserFromAdmin", "DeleteApiKey",
    "DeleteInvite", "DeleteRegistryMembers", "GenerateApiKey", "RegistryTeamMembers", "RegistryUserMembers",
    "UpdateTeamRegistryRole", "UpdateUserRegistryRole",
    # sweeps, launch, custom charts, rewinding
    "CreateCustomChart", "CreateDefaultResourceConfig", "CreateRunQueue", "EnqueueSweepRun", "GetAgentRuns", "GetSweep",
    "GetSweepAgent", "GetSweepAgents", "GetSweepLegacy", "GetSweeps", "RewindRun", "SweepConfig", "SweepRunsWithHistory",
    "SweepWatchedRuns", "UpsertRunQueue", "UpsertSweepState",
    # downloads inside wandb-core, which no public call of 0.31 uses
    "ArtifactFileURLsByManifestEntries",
}  # fmt: skip


def _python_documents() -> dict[str, str]:
    documents = {}
    for name in GENERATED:
        module = importlib.import_module(name)
        for constant in module.__all__:
            text = getattr(module, constant)
            documents[_name(text)] = text
    return documents


def _core_documents() -> dict[str, str]:
    """The documents inside the wandb-core binary, where they are plain text."""
    binary = (Path(wandb.__file__).parent / "bin" / "wandb-core").read_bytes()
    documents = {}
    for match in re.finditer(rb"\n(?:query|mutation) \w+[ ({][^\x00]{0,4000}?\n}\n(?:fragment [^\x00]{0,2000}?\n}\n)*", binary):
        text = match[0].decode(errors="replace")
        try:
            parse(text)
        except GraphQLError:
            continue
        documents[_name(text)] = text
    return documents


def _name(text: str) -> str:
    match = re.search(r"(?:query|mutation) (\w+)", text)
    assert match is not None
    return match[1]


DOCUMENTS = _core_documents() | _python_documents()


def test_the_documents_of_the_client_are_found() -> None:
    assert {"CommitArtifact", "HistoryPage", "UpsertBucket", "ArtifactByID", "LinkArtifact"} <= {*DOCUMENTS}
    assert len(DOCUMENTS) > 90


@pytest.mark.parametrize("name", sorted({*DOCUMENTS} - UNSUPPORTED))
def test_the_schema_knows_what_the_client_asks_for(name: str) -> None:
    errors = validate(executable_schema(), parse(DOCUMENTS[name]))

    assert [error.message for error in errors] == []


@pytest.mark.parametrize("name", sorted(UNSUPPORTED & {*DOCUMENTS}))
def test_what_is_listed_as_unsupported_really_is(name: str) -> None:
    assert validate(executable_schema(), parse(DOCUMENTS[name]))
