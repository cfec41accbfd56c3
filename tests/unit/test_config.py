"""Which run, which server, which key: from flags, the environment and files that other programs left."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptsync import config
from ckptsync.checkpoint import Run
from ckptsync.errors import ConfigurationError, UsageError

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "run", "alias"),
    [
        ("abc", Run("abc", "huggingface"), None),
        ("abc:best", Run("abc", "huggingface"), "best"),
        ("me/llama/abc", Run("abc", "llama", "me"), None),
        ("me/llama/abc:v3", Run("abc", "llama", "me"), "v3"),
        ("a b", Run("a b", "huggingface"), None),
        ("ünïcode", Run("ünïcode", "huggingface"), None),
    ],
)
def test_a_run_is_read_with_its_alias(text: str, run: Run, alias: str | None) -> None:
    assert config.parse_run(text) == (run, alias)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " abc",
        "abc ",
        "a/b",
        "a/b/c/d",
        "/abc",
        "abc/",
        "a//b",
        "me//abc",
        "abc:",
        ":latest",
        "a:b/c/d",
        "abc:best:v3",
        "../../etc",
        "a\\b",
        "a?b",
        "a#b",
        "a%2fb",
        "a;b",
        "a,b",
        "it's",
        "a\nb",
        "a\x00b",
        "\x1b[31m",
        "caf\udce9",
        "me/pro?ject/abc",
        "m#e/project/abc",
        "me/a\nb/abc",
    ],
)
def test_an_invalid_run_is_refused_before_any_request(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        config.parse_run(text)

    assert raised.value.exit_code == 2


def test_missing_names_come_from_the_environment_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "of-env")
    monkeypatch.setenv("WANDB_ENTITY", "them")

    assert config.make_run("abc") == Run("abc", "of-env", "them")
    assert config.make_run("abc", project="of-flag", entity="me") == Run("abc", "of-flag", "me")
    assert config.parse_run("us/theirs/abc", project="of-flag", entity="me")[0] == Run("abc", "theirs", "us")


def test_a_run_id_that_is_too_long_for_w_and_b_is_refused() -> None:
    with pytest.raises(UsageError, match="a run id of 300 characters is too long"):
        config.make_run("x" * 300)


def test_the_key_is_never_shown() -> None:
    connection = config.Connection("https://api.wandb.ai", KEY)

    assert KEY not in repr(connection)
    assert KEY not in f"{connection}"
    assert connection.environment() == {"WANDB_BASE_URL": "https://api.wandb.ai", "WANDB_API_KEY": KEY}


def test_without_credentials_the_error_names_both_remedies(home: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        config.connection({})

    assert raised.value.exit_code == 3
    assert "WANDB_API_KEY" in raised.value.hint
    assert "--local" in raised.value.hint


def test_the_key_of_the_environment_wins_over_that_of_systemd_and_that_over_netrc(home: Path, tmp_path: Path) -> None:
    (home / ".netrc").write_text("machine api.wandb.ai login user password of-netrc\n")
    (tmp_path / "wandb").write_text("of-systemd\n")
    systemd = {"CREDENTIALS_DIRECTORY": str(tmp_path)}

    assert config.connection({}).api_key == "of-netrc"
    assert config.connection(systemd).api_key == "of-systemd"
    assert config.connection({**systemd, "WANDB_API_KEY": " of-env\n"}).api_key == "of-env"


def test_a_key_that_login_stored_under_another_name_of_the_cloud_is_found(home: Path) -> None:
    (home / "_netrc").write_text("machine api.forge.coreweave.com login user password of-forge\n")

    assert config.connection({}).api_key == "of-forge"


def test_the_key_of_another_server_is_not_sent_to_this_one(home: Path) -> None:
    (home / ".netrc").write_text("machine api.wandb.ai login user password of-cloud\n")

    with pytest.raises(ConfigurationError, match=r"wandb\.example\.org"):
        config.connection({"WANDB_BASE_URL": "https://wandb.example.org"})


def test_a_netrc_file_may_be_named(home: Path, tmp_path: Path) -> None:
    (home / "mine").write_text("machine api.wandb.ai login user password of-home\n")

    assert config.connection({"NETRC": "~/mine"}).api_key == "of-home"


@pytest.mark.parametrize("content", [b"machine", b"\xff\xfe\x00", b"machine api.wandb.ai login\n"])
def test_a_broken_netrc_is_the_same_as_none(home: Path, content: bytes) -> None:
    (home / ".netrc").write_bytes(content)

    with pytest.raises(ConfigurationError, match="no W&B credentials"):
        config.connection({})


def test_the_server_that_login_stored_is_used_and_the_environment_wins(home: Path) -> None:
    (home / ".config" / "wandb").mkdir(parents=True)
    (home / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.example.org/\nx = 100%\n")
    key = {"WANDB_API_KEY": KEY}

    assert config.connection(key).base_url == "https://wandb.example.org"
    assert config.connection({**key, "WANDB_BASE_URL": "http://localhost:8080/"}).base_url == "http://localhost:8080"


@pytest.mark.parametrize("content", [b"base_url = x", b"\xff\xfe\x00", b"[default]\n[default]\n"])
def test_a_broken_settings_file_of_wandb_is_the_same_as_none(home: Path, content: bytes) -> None:
    (home / ".config" / "wandb").mkdir(parents=True)
    (home / ".config" / "wandb" / "settings").write_bytes(content)

    assert config.connection({"WANDB_API_KEY": KEY}).base_url == config.DEFAULT_BASE_URL


@pytest.mark.parametrize("address", ["ftp://x", "api.wandb.ai", "http://", "http://[::1", "https:///x", "file:///etc/passwd"])
def test_an_address_that_is_not_http_is_refused(home: Path, address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"not an http\(s\) URL"):
        config.connection({"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY})


def test_a_settings_file_may_spell_its_keys_like_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('quiet-period = 5\nspool_limit = "20G"\n')

    assert config.load_file(path, required=True) == {"quiet_period": 5, "spool_limit": "20G"}


def test_a_settings_file_that_was_named_must_exist_and_be_valid(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("quiet = = 5")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")

    assert config.load_file(tmp_path / "missing.toml", required=False) == {}
    for name in ("missing.toml", "broken.toml", "binary.toml", "."):
        with pytest.raises(ConfigurationError):
            config.load_file(tmp_path / name, required=True)


def test_the_newest_run_beside_the_training_is_found_but_never_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run-20260101_000000-old", "run-20260103_000000-the-new-one", "run-20260109_000000-ckptsync-x", "latest-run"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "out" / "wandb" / "run-20260102_000000-beside").mkdir(parents=True)

    assert config.newest_wandb_run(tmp_path / "out") == "the-new-one"


def test_without_a_run_beside_the_training_none_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert config.newest_wandb_run(tmp_path / "out") is None
