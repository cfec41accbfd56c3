"""The capabilities of this server, which clients query before they use it."""

from __future__ import annotations

from ckptsync.server.resolvers.context import Call, Row, resolves
from ckptsync.server.storage.content_store import HASHERS

FEATURES = (
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "ARTIFACT_REGISTRY_SEARCH",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILE_DOWNLOAD_HANDLER",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
    "INCLUDE_ARTIFACT_TYPES_IN_REGISTRY_CREATION",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    "ARTIFACT_COLLECTIONS_FILTERING_SORTING",
    "ARTIFACT_V2_DOWNLOAD_HANDLER_SUPPORTS_ARTIFACT_ID",
    "MARK_RUN_FILES_UPLOADED",
    "FILESTREAM_GZIP",
)


NEWEST_CLIENT = "0.31.0"
"""The newest wandb client that this server was tested with."""


@resolves("Query.serverInfo")
def server_info(_source: None, _call: Call) -> Row:
    features = [*FEATURES, *(["ARTIFACT_DIGEST_ALGORITHM"] if "xxh128" in HASHERS else [])]
    return {
        "features": [{"name": name, "isEnabled": True} for name in features],
        # Clients before 0.29 query both before they log an image or a table. The second is about W&B Server, which this is not.
        # `wandb verify` takes a missing min_cli_version for any version, and ends with a traceback where it is null.
        "cliVersionInfo": {"max_cli_version": NEWEST_CLIENT},
        "latestLocalVersionInfo": None,
    }
