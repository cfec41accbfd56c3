"""Notices from emulated metadata services: real HTTP on loopback, each as its provider documents it."""

from __future__ import annotations

import logging
import queue
import socket
import time
from collections.abc import Iterator

import pytest

from ckptsync.job.preemption import Amazon, Azure, Google, Notice, Notices, Source, sources
from tests.preemption.metadata import AmazonService, AzureService, GoogleService


class Ears:
    """Follows sources and collects what they tell."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self.notices: list[Notices] = []

    def follow(self, *followed: Source, probes: tuple[float, ...] = (0.0,)) -> Notices:
        for source in followed:
            source.interval = min(source.interval, 0.05)
        notices = Notices(followed, self.told.put, probes=probes)
        self.notices.append(notices)
        notices.start()
        return notices

    def next(self, seconds: float = 10) -> Notice:
        return self.told.get(timeout=seconds)

    def silent(self, seconds: float = 0.5) -> bool:
        try:
            self.told.get(timeout=seconds)
        except queue.Empty:
            return True
        return False


@pytest.fixture
def ears() -> Iterator[Ears]:
    """Stops to follow with the test."""
    one = Ears()
    yield one
    for notices in one.notices:
        notices.stop()


def test_gce_is_asked_plainly_first_and_then_waits_for_the_change(ears: Ears) -> None:
    with GoogleService() as service:
        ears.follow(Google(service.address))
        while len(service.requests) < 3:
            time.sleep(0.01)

        service.announce(30)
        started = time.monotonic()
        notice = ears.next()

    assert (notice.source, notice.seconds, notice.final) == ("gce", 30.0, True)
    assert time.monotonic() - started < 1
    queries = [path.partition("?")[2] for _, path in service.requests]
    assert queries[:2] == ["", ""]
    assert queries[2].startswith("wait_for_change=true&last_etag=0b7c")
    assert {path.partition("?")[0] for _, path in service.requests} == {"/computeMetadata/v1/instance/preempted"}


def test_gce_tells_a_flip_that_came_before_us(ears: Ears) -> None:
    with GoogleService() as service:
        service.announce(30)
        ears.follow(Google(service.address))

        assert ears.next().source == "gce"


def test_gce_is_asked_plainly_again_after_a_failure_so_that_no_flip_is_missed(ears: Ears) -> None:
    with GoogleService() as service:
        ears.follow(Google(service.address))
        while len(service.requests) < 3:
            time.sleep(0.01)
        service.hidden = True
        service.announce(30)
        assert ears.next().source == "gce"  # the request that was under way

    with GoogleService() as service:
        source = Google(service.address)
        assert source.present()
        assert source.look() is None
        service.hidden = True
        with pytest.raises(ValueError, match="404"):
            source.look()
        service.hidden = False
        service.announce(30)

        assert source.look() is not None
        assert service.requests[-1][1].endswith("/preempted")


def test_aws_gets_a_token_first_and_says_how_long_is_left(ears: Ears) -> None:
    with AmazonService() as service:
        ears.follow(Amazon(service.variables["AWS_EC2_METADATA_SERVICE_ENDPOINT"]))
        assert ears.silent()

        service.announce(120)
        notice = ears.next()

    assert service.requests[0] == ("PUT", "/latest/api/token")
    assert notice.source == "aws"
    assert notice.seconds is not None
    assert 115 < notice.seconds <= 120


def test_aws_renews_a_token_that_ran_out(ears: Ears) -> None:
    with AmazonService() as service:
        ears.follow(Amazon(service.address))
        while len(service.requests) < 2:
            time.sleep(0.01)

        service.token = "token-2"
        service.announce(120)

        assert ears.next().source == "aws"


def test_aws_recommends_to_rebalance_once_and_that_ends_nothing(ears: Ears) -> None:
    with AmazonService() as service:
        service.rebalance = True
        ears.follow(Amazon(service.address))

        hint = ears.next()
        assert (hint.source, hint.seconds, hint.final) == ("aws", None, False)
        assert ears.silent()
        service.announce(120)
        assert ears.next().final


def test_aws_is_not_asked_where_the_user_disabled_its_metadata(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with AmazonService() as service:
        ears.follow(Amazon(service.address))

        assert ears.silent()
        assert service.requests == []


def test_azure_tells_a_preemption_of_this_machine_and_of_no_other_and_never_posts(ears: Ears) -> None:
    with AzureService() as service:
        service.hit = "train_0"
        service.announce(30)
        ears.follow(Azure(service.address))
        assert ears.silent()

        service.hit = "train_1"
        notice = ears.next()

    assert notice.source == "azure"
    assert notice.seconds is not None
    assert 25 < notice.seconds <= 30
    assert {method for method, _ in service.requests} == {"GET"}


def test_azure_leaves_no_time_once_the_event_has_started(ears: Ears) -> None:
    with AzureService() as service:
        service.started = True
        service.announce(30)
        ears.follow(Azure(service.address))

        assert ears.next().seconds == 0.0


def test_a_machine_without_a_metadata_service_is_silent(ears: Ears, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        mute = f"127.0.0.1:{busy.getsockname()[1]}"
        closed = "127.0.0.1:1"
        with caplog.at_level(logging.INFO):
            notices = ears.follow(Google(closed), Amazon(closed), Azure(closed), Google("no-such-host.invalid"), Azure(mute))

            assert ears.silent(2.5)

    assert notices.found == []
    assert caplog.records == []


def test_a_service_that_comes_up_after_us_is_found(ears: Ears) -> None:
    with AzureService() as service:
        service.hidden = True
        ears.follow(Azure(service.address), probes=(0.0, 0.2, 0.5))
        time.sleep(0.1)

        service.hidden = False
        service.announce(30)

        assert ears.next().source == "azure"


def test_what_is_no_metadata_service_is_no_source_of_notices(ears: Ears) -> None:
    with AmazonService() as aws, AzureService() as azure:
        notices = ears.follow(Google(aws.address), Amazon(azure.address), Azure(aws.address))
        aws.announce(1)
        azure.announce(1)

        assert ears.silent()

    assert notices.found == []


def test_proxies_are_not_asked(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with GoogleService() as service:
        service.announce(30)
        ears.follow(Google(service.address))

        assert ears.next().source == "gce"


def test_the_address_comes_from_the_environment_of_each_providers_own_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    with GoogleService() as google, AmazonService() as amazon, AzureService() as azure:
        for service in (google, amazon, azure):
            for name, value in service.variables.items():
                monkeypatch.setenv(name, value)

        assert [source.present() for source in sources("auto")] == [True, True, True]
        assert [source.name for source in sources("aws")] == ["aws"]
        assert sources("none") == []
