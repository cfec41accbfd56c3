"""Settings and credentials, from the environment and from files.

Imports nothing heavy: every command and the idle watcher load it.

The first found wins: flag, `CKPTSYNC_*`, the settings file, `WANDB_*`, run.json, the default. click handles the first three,
this module the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ckptsync.checkpoint import Run
from ckptsync.errors import ConfigurationError, UsageError

DEFAULT_PROJECT = "huggingface"
"""The project that the Trainer's WandbCallback uses when WANDB_PROJECT is not set."""

DEFAULT_BASE_URL = "https://api.wandb.ai"

_CLOUD_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")
"""Hosts of the same service (wandb 0.31, `FORGE_HOSTS`): `wandb login` may have stored the key under any of them."""

_FORBIDDEN_IN_RUN_ID = re.compile(r"[:;,#?/'\\%\x00-\x1f\x7f\ud800-\udfff]")
"""What W&B refuses in a run id (wandb 0.31, `validate_run_id`), plus slashes, control characters and lone surrogates."""

_TRUE = ("1", "true", "yes", "on")
"""What transformers accepts as true in WANDB_DISABLED."""

_NO_NAMES = ("", ".", "..")

_FORBIDDEN_IN_PROJECT = re.compile(r"[/\\#?%:\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Connection:
    """The address of the store and the key for it, which is never shown."""

    base_url: str
    api_key: str = field(repr=False)

    @property
    def store(self) -> str:
        """Identifies the store in a receipt: its address, or the key's digest where it is on loopback, at any port."""
        import hashlib

        host = _host(self.base_url) or ""
        if host == "localhost" or host.startswith("127.") or host == "::1":
            return f"local-{hashlib.sha256(self.api_key.encode()).hexdigest()[:12]}"
        return self.base_url.rstrip("/").lower()

    def environment(self) -> dict[str, str]:
        """The environment variables that lead a child process's wandb client to the same store."""
        return {"WANDB_BASE_URL": self.base_url, "WANDB_API_KEY": self.api_key}


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The default settings file: `~/.config/ckptsync/config.toml`, or the same below XDG_CONFIG_HOME."""
    base = environ.get("XDG_CONFIG_HOME") or _home() / ".config"
    return Path(base) / "ckptsync" / "config.toml"


def load_file(path: Path, *, required: bool) -> dict[str, Any]:
    """The settings in a TOML file, whose keys are the flags' names. Raises ConfigurationError if it cannot be read."""
    import tomllib

    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        if required:
            raise ConfigurationError(f"no such settings file: {path}", hint="Check the path given to --config.") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(
            f"cannot read settings file {path}: {error}", hint="Correct that file, or name another with --config."
        ) from error
    return {key.replace("-", "_"): value for key, value in values.items()}


def parse_run(text: str, *, project: str | None = None, entity: str | None = None) -> tuple[Run, str | None]:
    """Parse `RUN_ID` or `ENTITY/PROJECT/RUN_ID`, with an optional `:ALIAS`, into a run and the alias. Raises UsageError.

    A missing project comes from WANDB_PROJECT, else it is `huggingface`; a missing entity comes from WANDB_ENTITY.
    """
    path, colon, alias = text.partition(":")
    parts = path.split("/")
    if len(parts) not in (1, 3) or not all(parts) or (colon and not re.fullmatch(r"[^/:]+", alias)):
        raise UsageError(f"{text!r} is not a run", hint="Give RUN_ID or ENTITY/PROJECT/RUN_ID, optionally with :ALIAS.")
    if len(parts) == 3:
        entity, project = parts[0], parts[1]
    return make_run(parts[-1], project=project, entity=entity), alias or None


LONGEST_RUN_ID = 128


def make_run(run_id: str, *, project: str | None = None, entity: str | None = None) -> Run:
    """A run, with missing names filled from the environment. Raises UsageError for names that W&B would refuse."""
    if run_id.strip() in _NO_NAMES or run_id != run_id.strip() or _FORBIDDEN_IN_RUN_ID.search(run_id):
        raise UsageError(
            f"{run_id!r} cannot be a run id",
            hint="A run id must not begin or end with a space, nor contain any of / \\ # ? % : ; , '",
        )
    if len(run_id) > LONGEST_RUN_ID:
        raise UsageError(f"a run id of {len(run_id)} characters is too long", hint=f"W&B takes {LONGEST_RUN_ID} at most.")
    project = project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
    entity = entity or os.environ.get("WANDB_ENTITY") or None
    for name in filter(None, (project, entity)):
        if name.strip() in _NO_NAMES or _FORBIDDEN_IN_PROJECT.search(name):
            raise UsageError(f"{name!r} cannot be a project or entity", hint="Check --project and --entity.")
    return Run(run_id, project, entity)


def connection(environ: Mapping[str, str] = os.environ) -> Connection:
    """The store that the environment names, with its key. Raises ConfigurationError if there is no key."""
    base_url = (environ.get("WANDB_BASE_URL") or _settings_base_url(environ) or DEFAULT_BASE_URL).rstrip("/")
    host = _host(base_url)
    if not host or not base_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{base_url!r} is not an http(s) URL", hint="Correct WANDB_BASE_URL.")
    key = environ.get("WANDB_API_KEY") or _credential(environ) or _netrc_password(host, environ)
    if not key:
        raise ConfigurationError(
            f"no W&B credentials for {host}",
            hint="Set WANDB_API_KEY or run `wandb login`; without an account, add --local for the embedded server.",
        )
    return Connection(base_url, key.strip())


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _home() -> Path:
    """The home folder; `~` itself for a user without one (in containers), where nothing will be found."""
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises there


def _credential(environ: Mapping[str, str]) -> str | None:
    """The key from systemd's `LoadCredential=wandb:…`."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    try:
        return (Path(folder) / "wandb").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _netrc_password(host: str, environ: Mapping[str, str]) -> str | None:
    """The key that `wandb login` stored in the netrc file."""
    import netrc

    named = environ.get("NETRC")
    hosts = _CLOUD_HOSTS if host in _CLOUD_HOSTS else (host,)
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            entries = netrc.netrc(os.path.expanduser(path)).hosts  # noqa: PTH111 - see _home
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
            continue
        for name in filter(entries.__contains__, hosts):
            return entries[name][2]
    return None


def _settings_base_url(environ: Mapping[str, str]) -> str | None:
    """The address that `wandb login --host` stored in W&B's settings file."""
    folder = environ.get("WANDB_CONFIG_DIR") or _home() / ".config" / "wandb"
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(Path(folder) / "settings")
        return parser.get("default", "base_url", fallback=None)
    except (OSError, UnicodeDecodeError, configparser.Error):
        return None


def upload_mode(environ: Mapping[str, str] = os.environ) -> str:
    """When to upload, by W&B's own variables: `online` (now), `offline` (later) or `disabled` (never)."""
    mode = environ.get("WANDB_MODE", "").strip().lower()
    if mode == "disabled" or environ.get("WANDB_DISABLED", "").strip().lower() in _TRUE:
        return "disabled"
    return "offline" if mode in ("offline", "dryrun") else "online"


def log_model(environ: Mapping[str, str] = os.environ) -> str | None:
    """The value of WANDB_LOG_MODEL: `checkpoint`, `end` (only the final model) or `false`; None if unset."""
    value = environ.get("WANDB_LOG_MODEL", "").strip().lower()
    # Any other value counts as false, as in WandbCallback (transformers 4.57 and 5.24).
    return (value if value in ("checkpoint", "end") else "false") if value else None


def newest_wandb_run(output_dir: Path) -> str | None:
    """The id of the newest run logged beside the output folder: `wandb/run-<date>_<time>-<id>` (wandb 0.31)."""
    folders = [Path(os.environ.get("WANDB_DIR") or "."), output_dir, output_dir.parent]
    found = [path.name for folder in folders for path in folder.glob("wandb/run-*_*-*") if path.is_dir()]
    ids = [name.split("-", 2) for name in sorted(found, key=lambda name: name.split("-", 2)[1])]
    return next((parts[2] for parts in reversed(ids) if not parts[2].startswith("ckptsync-")), None)
