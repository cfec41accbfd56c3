"""The executable GraphQL schema: schema.graphql with scalars and resolvers attached."""

from __future__ import annotations

from functools import cache
from importlib import import_module, resources
from typing import Any, cast

from graphql import (
    GraphQLError,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLUnionType,
    build_schema,
)

from ckptsync.server.resolvers.context import RESOLVERS, global_id, iso_date, snake_case

RESOLVER_MODULES = (
    "server_info",
    "accounts",
    "projects",
    "runs",
    "run_listing",
    "run_changes",
    "history",
    "run_files",
    "deletion",
    "collections",
    "artifact_types",
    "aliases",
    "artifacts",
    "memberships",
    "artifact_files",
    "artifact_upload",
    "multipart",
    "wandb_registry",
    "lineage",
)
GLOBAL_IDS = ("Project", "Run", "Artifact", "ArtifactSequence", "ArtifactPortfolio", "ArtifactCollectionMembership")
LOCAL_IDS = ("ArtifactAlias", "Tag")


def resolve_field(source: Any, info: Any, **_arguments: Any) -> Any:
    """The default resolver: the key of the field's name, else the column of that name in snake_case. Calls a function."""
    name = info.field_name
    found = source[name] if name in source else source.get(snake_case(name))
    return found() if callable(found) else found


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise GraphQLError("an Int64 has to be an integer")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise GraphQLError("a JSONString has to be a string")
    return value


def _attach_scalars(schema: GraphQLSchema) -> None:
    # graphql-core 3.3 renamed these attributes and keeps the old names beside the new ones.
    for name, attributes, function in (
        ("Int64", ("parse_value", "coerce_input_value"), _integer),
        ("JSONString", ("parse_value", "coerce_input_value"), _text),
        ("DateTime", ("serialize", "coerce_output_value"), iso_date),
    ):
        for attribute in attributes:
            setattr(schema.type_map[name], attribute, function)


def _attach_ids(schema: GraphQLSchema) -> None:
    def resolve_id(source: Any, info: Any) -> str:
        return global_id(info.parent_type.name, source["id"])

    for name in (*GLOBAL_IDS, *LOCAL_IDS):
        _object(schema, name).fields["id"].resolve = resolve_id


def _attach_types(schema: GraphQLSchema) -> None:
    def collection_kind(source: Any, *_: Any) -> str:
        return "ArtifactSequence" if source["kind"] == "SEQUENCE" else "ArtifactPortfolio"

    def creator_kind(source: Any, *_: Any) -> str:
        return "Run" if "heartbeat_at" in source else "User"

    cast(GraphQLInterfaceType, schema.type_map["ArtifactCollection"]).resolve_type = collection_kind
    cast(GraphQLUnionType, schema.type_map["ArtifactCreator"]).resolve_type = creator_kind


def _attach_resolvers(schema: GraphQLSchema) -> None:
    for name in RESOLVER_MODULES:
        import_module(f"ckptsync.server.resolvers.{name}")
    collections = ("ArtifactSequence", "ArtifactPortfolio")
    for path, resolver in RESOLVERS.items():
        type_name, _, field_name = path.partition(".")
        for owner in collections if type_name == "ArtifactCollection" else (type_name,):
            _object(schema, owner).fields[field_name].resolve = resolver


def _object(schema: GraphQLSchema, name: str) -> GraphQLObjectType:
    return cast(GraphQLObjectType, schema.type_map[name])


@cache
def executable_schema() -> GraphQLSchema:
    """The schema with its resolvers, built once."""
    text = resources.files(__package__).joinpath("schema.graphql").read_text(encoding="utf-8")
    schema = build_schema(text)
    _attach_scalars(schema)
    _attach_ids(schema)
    _attach_types(schema)
    _attach_resolvers(schema)
    return schema
