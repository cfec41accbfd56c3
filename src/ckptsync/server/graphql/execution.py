"""Executes one GraphQL request: limits, parsing and validation (cached by the query's text), then one transaction."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    execute_sync,
    get_operation_ast,
    parse,
    validate,
)

from ckptsync.server.graphql.schema import executable_schema, resolve_field
from ckptsync.server.resolvers.context import Call
from ckptsync.server.storage.database import Database

log = logging.getLogger(__name__)

MAX_QUERY_LENGTH = 32 * 1024
MAX_DEPTH = 20

OPERATION_NAME = re.compile(r"\b(?:query|mutation)\s+(\w+)")


class RejectedQueryError(Exception):
    """The request is not a valid query. The message is meant for the client."""


@lru_cache(maxsize=256)
def checked_document(query: str) -> DocumentNode:
    """The parsed query. Raises RejectedQueryError if it is too long, nested too deeply or invalid under the schema."""
    if len(query) > MAX_QUERY_LENGTH:
        raise RejectedQueryError("the query is too long")
    try:
        document = parse(query)
    except GraphQLError as error:
        raise RejectedQueryError(error.message) from None
    errors = validate(executable_schema(), document, max_errors=5)
    if errors:
        raise RejectedQueryError("; ".join(error.message for error in errors))
    if _depth(document) > MAX_DEPTH:
        raise RejectedQueryError("the query is nested too deeply")
    return document


def _depth(document: DocumentNode) -> int:
    """The depth of the deepest field. The document has to be valid: validation rejects recursive fragments."""
    fragments = {
        definition.name.value: definition for definition in document.definitions if isinstance(definition, FragmentDefinitionNode)
    }
    known: dict[str, int] = {}

    def of_fragment(name: str) -> int:
        if name not in known:
            known[name] = of_selections(fragments[name].selection_set)
        return known[name]

    def of_selections(selections: SelectionSetNode | None) -> int:
        deepest = 0
        for selection in selections.selections if selections else ():
            if isinstance(selection, FieldNode):
                deepest = max(deepest, 1 + of_selections(selection.selection_set))
            elif isinstance(selection, FragmentSpreadNode):
                deepest = max(deepest, of_fragment(selection.name.value))
            elif isinstance(selection, InlineFragmentNode):
                deepest = max(deepest, of_selections(selection.selection_set))
        return deepest

    operations = [part for part in document.definitions if isinstance(part, OperationDefinitionNode)]
    return max((of_selections(operation.selection_set) for operation in operations), default=0)


def operation_name(request: Any) -> str | None:
    """The operation's name, for logs and fault rules, without parsing the query."""
    if not isinstance(request, dict):
        return None
    name = request.get("operationName")
    if isinstance(name, str) and name:
        return name
    query = request.get("query")
    match = OPERATION_NAME.search(query[:MAX_QUERY_LENGTH]) if isinstance(query, str) else None
    return match[1] if match else None


class _Refused(Exception):  # noqa: N818 - rolls a transaction back, never leaves this module
    def __init__(self, result: ExecutionResult) -> None:
        self.result = result


def answer(request: Any, database: Database, make_call: Callable[[Any], Call]) -> dict[str, Any]:
    """Execute a request's operation. A mutation that fails changes nothing; a query reads one consistent snapshot."""
    query, variables, name = _request_parts(request)
    document = checked_document(query)
    operation = get_operation_ast(document, name)
    if operation is None:
        raise RejectedQueryError("the request does not name its operation")
    if operation.operation is not OperationType.MUTATION:
        with database.read() as connection:
            return _as_json(_execute(document, make_call(connection), variables, name))
    actions: list[Callable[[], None]] = []
    try:
        with database.write(actions) as connection:
            call = make_call(connection)
            call.after_commit = actions
            result = _execute(document, call, variables, name)
            if result.errors:
                raise _Refused(result)
    except _Refused as refused:
        result = refused.result
    return _as_json(result)


def _request_parts(request: Any) -> tuple[str, dict[str, Any], str | None]:
    if not isinstance(request, dict) or not isinstance(request.get("query"), str):
        raise RejectedQueryError("the request has no query")
    variables = request.get("variables") or {}
    name = request.get("operationName") or None
    if not isinstance(variables, dict) or not (name is None or isinstance(name, str)):
        raise RejectedQueryError("the request's variables or operation name have the wrong type")
    return request["query"], variables, name


def _execute(document: DocumentNode, call: Call, variables: dict[str, Any], name: str | None) -> ExecutionResult:
    return execute_sync(
        executable_schema(),
        document,
        context_value=call,
        variable_values=variables,
        operation_name=name,
        field_resolver=resolve_field,
    )


def _as_json(result: ExecutionResult) -> dict[str, Any]:
    answer: dict[str, Any] = {"data": result.data}
    if result.errors:
        answer["errors"] = [_public(error) for error in result.errors]
    return answer


def _public(error: GraphQLError) -> dict[str, Any]:
    """An error as the client sees it: the message of our own errors, "internal error" for a bug."""
    public: dict[str, Any] = {"message": error.message}
    if error.path:
        public["path"] = error.path
    if error.original_error is not None and not isinstance(error.original_error, GraphQLError):
        log.error("a resolver failed", extra={"path": error.path}, exc_info=error.original_error)
        public["message"] = "internal error"
    return public


def dumps(value: Any) -> bytes:
    """Standard JSON: NaN and the infinities become strings, as W&B sends them."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(_without_nan(value), separators=(",", ":")).encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value
