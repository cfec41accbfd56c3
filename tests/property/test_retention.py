"""What may go, whatever versions there are and whatever is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ckptsync.checkpoint import Version
from ckptsync.store import artifact
from ckptsync.upload.retention import STANDING, Choice, Retention, choose, newest_first, proven, verified

NOW = 1_000_000.0
POLICIES = st.builds(
    Retention,
    last=st.none() | st.integers(0, 5),
    best=st.booleans(),
    every=st.none() | st.integers(1, 40),
)


OURS = st.tuples(
    st.integers(0, 12),
    st.integers(0, 50),
    st.sampled_from([64, 64, 64, 63]),
    st.booleans(),
    st.none() | st.integers(0, 12),
    st.sampled_from([{}, {}, {}, {"kind": "model"}]),
)
ALIASES = st.sampled_from(
    [[], [], ["best"], ["latest"], ["preempted"], ["final", "best"], ["production"], ["keep-this", "best"], ["epoch"], ["step-x"]]
)
EXPIRY = st.sampled_from([None, None, NOW - 50, NOW + 50])


def a_version(number: int, values: tuple[Any, ...], aliases: list[str], expires_at: float | None, by_us: bool) -> Version:
    step, saved_at, size, resumable, best, kind = values
    ours = {
        "step": step * 10,
        "saved_at": float(saved_at),
        "files": 7,
        "bytes": size,
        "resumable": resumable,
        "best": None if best is None else best * 10,
        **kind,
    }
    return Version(
        qualified=f"me/p/checkpoint-a:v{number}",
        name="checkpoint-a",
        version=f"v{number}",
        aliases=(*aliases, f"step-{step * 10}"),
        bytes=64,
        files=7,
        digest=str(number),
        created_at=float(saved_at),
        metadata={"ckptsync": ours} if by_us else {},
        expires_at=expires_at,
    )


def histories() -> st.SearchStrategy[list[Version]]:
    """The versions of a run: ours and others', whole and not, with all kinds of aliases, saved in any order."""
    rows = st.lists(st.tuples(OURS, ALIASES, EXPIRY, st.sampled_from([True, True, True, False])), max_size=10)
    return rows.map(lambda found: [a_version(number, *row) for number, row in enumerate(found)])


def kept(choices: Sequence[Choice]) -> list[Version]:
    return [each.version for each in choices if each.kept]


def gone(choices: Sequence[Choice]) -> list[Version]:
    return [each.version for each in choices if not each.kept]


@given(histories(), POLICIES)
def test_every_version_is_chosen_about_once(versions: list[Version], policy: Retention) -> None:
    choices = choose(versions, policy, NOW)

    assert [each.version for each in choices] == newest_first(versions)


@given(histories(), POLICIES)
def test_two_verified_versions_always_stay(versions: list[Version], policy: Retention) -> None:
    stay = kept(choose(versions, policy, NOW))

    before = sum(verified(each, NOW) for each in versions)
    assert sum(verified(each, NOW) for each in stay) >= min(STANDING, before)


@given(histories(), POLICIES)
def test_nothing_goes_unless_a_newer_verified_version_stays(versions: list[Version], policy: Retention) -> None:
    choices = choose(versions, policy, NOW)

    ordered, stay = newest_first(versions), kept(choices)
    for each in gone(choices):
        newer = ordered[: ordered.index(each)]
        assert any(verified(other, NOW) and other in stay for other in newer)


@given(histories(), POLICIES)
def test_nothing_with_an_alias_of_the_users_goes(versions: list[Version], policy: Retention) -> None:
    for each in gone(choose(versions, policy, NOW)):
        assert not set(each.aliases) & {"production", "keep-this", "epoch", "step-x"}


@given(histories(), POLICIES, st.data())
def test_nothing_that_is_linked_goes(versions: list[Version], policy: Retention, data: st.DataObject) -> None:
    linked = {each.qualified for each in versions if data.draw(st.booleans())}

    choices = choose(versions, policy, NOW, linked=linked)

    assert not {each.qualified for each in gone(choices)} & linked


@given(histories(), POLICIES, st.data())
def test_a_link_keeps_its_version_and_frees_no_other(versions: list[Version], policy: Retention, data: st.DataObject) -> None:
    linked = {each.qualified for each in versions if data.draw(st.booleans())}

    without, with_links = choose(versions, policy, NOW), choose(versions, policy, NOW, linked=linked)

    assert {each.qualified for each in kept(with_links)} == {each.qualified for each in kept(without)} | linked


@given(histories(), POLICIES)
def test_the_best_stays_where_that_is_asked(versions: list[Version], policy: Retention) -> None:
    wanted = Retention(policy.last, best=True, every=policy.every)

    choices = choose(versions, wanted, NOW)

    checkpoints = [each for each in newest_first(versions) if proven(each) and not each.is_model]
    named = checkpoints[0].ours["best"] if checkpoints else None
    assert not [each for each in gone(choices) if "best" in each.aliases]
    assert named is None or named not in {each.step for each in checkpoints} or named in {each.step for each in kept(choices)}


@given(histories(), POLICIES)
def test_what_ckptsync_did_not_upload_and_what_latest_names_stay(versions: list[Version], policy: Retention) -> None:
    for each in gone(choose(versions, policy, NOW)):
        assert each.ours
        assert "latest" not in each.aliases
        assert not each.is_model


@given(histories(), st.integers(0, 5))
def test_at_least_the_last_so_many_stay(versions: list[Version], last: int) -> None:
    stay = kept(choose(versions, Retention(last=last), NOW))

    assert all(each in stay for each in [each for each in newest_first(versions) if proven(each) and not each.is_model][:last])


@given(histories(), st.integers(1, 40))
def test_a_version_of_every_so_many_steps_stays(versions: list[Version], every: int) -> None:
    stay = kept(choose(versions, Retention(every=every), NOW))

    wanted = {each.step for each in versions if proven(each) and not each.is_model and (each.step or 0) % every == 0}
    assert wanted <= {each.step for each in stay}


@given(histories())
def test_without_a_policy_nothing_goes(versions: list[Version]) -> None:
    assert not gone(choose(versions, Retention(), NOW))


@given(histories(), POLICIES)
def test_what_stayed_stays_when_asked_again(versions: list[Version], policy: Retention) -> None:
    stay = kept(choose(versions, policy, NOW))

    again = choose(stay, policy, NOW)

    assert not gone(again)


@given(histories(), POLICIES)
def test_what_goes_is_only_what_the_policy_lets_go(versions: list[Version], policy: Retention) -> None:
    more = Retention((policy.last or 0) + 1, best=True, every=policy.every)

    assert {each.qualified for each in gone(choose(versions, more, NOW))} <= {
        each.qualified for each in gone(choose(versions, Retention(policy.last or 0, policy.best, policy.every), NOW))
    }


@given(st.from_regex(r"latest|best|final|preempted|step-[0-9]+|epoch_[0-9]+(\.[0-9]+)?|final_model", fullmatch=True))
def test_an_alias_that_programs_give_is_no_users_alias(alias: str) -> None:
    version = Version("me/p/a:v0", "a", "v0", (alias,), 1, 1, "d", 0.0)

    assert artifact.users_aliases(version) == []


def numbered(number: int, step: int, attempt: int, saved_at: float) -> Version:
    return a_version(number, (step, saved_at, 64, True, None, {"attempt": attempt}), [], None, by_us=True)


def test_a_machine_whose_clock_is_behind_loses_none_of_its_newer_versions() -> None:
    earlier = [numbered(0, 1, 1, 9000.0), numbered(1, 2, 1, 9100.0)]
    later = [numbered(2, 3, 2, 100.0), numbered(3, 4, 2, 200.0), numbered(4, 5, 2, 300.0)]

    choices = choose([*earlier, *later], Retention(last=1), NOW)

    assert [each.number for each in newest_first([*earlier, *later])] == [4, 3, 2, 1, 0]
    assert [each.number for each in kept(choices)] == [4, 3]
