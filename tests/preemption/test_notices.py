"""Notices from emulated metadata services: real HTTP on loopback, each as its provider documents it."""

from __future__ import annotations

import logging
import queue
import socket
import time
from collections.abc import Iterator

import pytest

from ckptsync.job.preemption import sources
from ckptsync.job.preemption.aws import AWS
from ckptsync.job.preemption.azure import Azure
from ckptsync.job.preemption.gce import GCE
from ckptsync.job.preemption.listener import NoticeListener
from ckptsync.job.preemption.notice import Notice, Source
from tests.preemption.metadata import AmazonService, AzureService, GoogleService


class Inbox:
    """Listens to sources and collects their notices."""

    def __init__(self) -> None:
        self.received: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self.listeners: list[NoticeListener] = []

    def listen(self, *followed: Source, probes: tuple[float, ...] = (0.0,)) -> NoticeListener:
        for source in followed:
            source.interval = min(source.interval, 0.05)
        listener = NoticeListener(followed, self.received.put, probes=probes)
        self.listeners.append(listener)
        listener.start()
        return listener

    def next(self, seconds: float = 10) -> Notice:
        return self.received.get(timeout=seconds)

    def silent(self, seconds: float = 0.5) -> bool:
        try:
            self.received.get(timeout=seconds)
        except queue.Empty:
            return True
        return False


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """Stops listening with the test."""
    one = Inbox()
    yield one
    for listener in one.listeners:
        listener.stop()


def test_gce_gets_a_plain_request_first_and_then_one_that_waits_for_the_change(inbox: Inbox) -> None:
    with GoogleService() as service:
        inbox.listen(GCE(service.address))
        while len(service.requests) < 3:
            time.sleep(0.01)

        service.announce(30)
        started = time.monotonic()
        notice = inbox.next()

    assert (notice.source, notice.seconds, notice.final) == ("gce", 30.0, True)
    assert time.monotonic() - started < 1
    queries = [path.partition("?")[2] for _, path in service.requests]
    assert queries[:2] == ["", ""]
    assert queries[2].startswith("wait_for_change=true&last_etag=0b7c")
    assert {path.partition("?")[0] for _, path in service.requests} == {"/computeMetadata/v1/instance/preempted"}


def test_gce_reports_a_change_that_came_before_the_start(inbox: Inbox) -> None:
    with GoogleService() as service:
        service.announce(30)
        inbox.listen(GCE(service.address))

        assert inbox.next().source == "gce"


def test_after_a_failure_the_next_request_to_gce_is_a_plain_one_so_that_no_change_is_missed(inbox: Inbox) -> None:
    with GoogleService() as service:
        inbox.listen(GCE(service.address))
        while len(service.requests) < 3:
            time.sleep(0.01)
        service.hidden = True
        service.announce(30)
        assert inbox.next().source == "gce"  # the request that was in flight

    with GoogleService() as service:
        source = GCE(service.address)
        assert source.present()
        assert source.poll() is None
        service.hidden = True
        with pytest.raises(ValueError, match="404"):
            source.poll()
        service.hidden = False
        service.announce(30)

        assert source.poll() is not None
        assert service.requests[-1][1].endswith("/preempted")


def test_aws_gets_a_token_first_and_says_how_long_is_left(inbox: Inbox) -> None:
    with AmazonService() as service:
        inbox.listen(AWS(service.variables["AWS_EC2_METADATA_SERVICE_ENDPOINT"]))
        assert inbox.silent()

        service.announce(120)
        notice = inbox.next()

    assert service.requests[0] == ("PUT", "/latest/api/token")
    assert notice.source == "aws"
    assert notice.seconds is not None
    assert 115 < notice.seconds <= 120


def test_aws_is_asked_without_a_token_where_none_reaches_a_container(inbox: Inbox) -> None:
    with AmazonService() as service:
        service.reached_by_token = False
        inbox.listen(AWS(service.address))
        service.announce(120)

        assert inbox.next().source == "aws"


def test_aws_renews_a_token_that_ran_out(inbox: Inbox) -> None:
    with AmazonService() as service:
        inbox.listen(AWS(service.address))
        while len(service.requests) < 2:
            time.sleep(0.01)

        service.token = "token-2"
        service.announce(120)

        assert inbox.next().source == "aws"


def test_a_rebalance_recommendation_of_aws_is_reported_once_and_ends_nothing(inbox: Inbox) -> None:
    with AmazonService() as service:
        service.rebalance = True
        inbox.listen(AWS(service.address))

        hint = inbox.next()
        assert (hint.source, hint.seconds, hint.final) == ("aws", None, False)
        assert inbox.silent()
        service.announce(120)
        assert inbox.next().final


def test_aws_is_not_asked_where_the_user_disabled_its_metadata(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with AmazonService() as service:
        inbox.listen(AWS(service.address))

        assert inbox.silent()
        assert service.requests == []


def test_azure_reports_a_preemption_of_this_machine_and_of_no_other_and_never_posts(inbox: Inbox) -> None:
    with AzureService() as service:
        service.hit = "train_0"
        service.announce(30)
        inbox.listen(Azure(service.address))
        assert inbox.silent()

        service.hit = "train_1"
        notice = inbox.next()

    assert notice.source == "azure"
    assert notice.seconds is not None
    assert 25 < notice.seconds <= 30
    assert {method for method, _ in service.requests} == {"GET"}


def test_azure_leaves_no_time_once_the_event_has_started(inbox: Inbox) -> None:
    with AzureService() as service:
        service.started = True
        service.announce(30)
        inbox.listen(Azure(service.address))

        assert inbox.next().seconds == 0.0


def test_a_machine_without_a_metadata_service_is_silent(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        mute = f"127.0.0.1:{busy.getsockname()[1]}"
        closed = "127.0.0.1:1"
        with caplog.at_level(logging.INFO):
            listener = inbox.listen(GCE(closed), AWS(closed), Azure(closed), GCE("no-such-host.invalid"), Azure(mute))

            assert inbox.silent(2.5)

    assert listener.found == []
    assert caplog.records == []


def test_a_service_that_comes_up_after_us_is_found(inbox: Inbox) -> None:
    with AzureService() as service:
        service.hidden = True
        inbox.listen(Azure(service.address), probes=(0.0, 0.2, 0.5))
        time.sleep(0.1)

        service.hidden = False
        service.announce(30)

        assert inbox.next().source == "azure"


def test_a_server_that_is_no_metadata_service_is_no_source_of_notices(inbox: Inbox) -> None:
    with AmazonService() as aws, AzureService() as azure:
        listener = inbox.listen(GCE(aws.address), AWS(azure.address), Azure(aws.address))
        aws.announce(1)
        azure.announce(1)

        assert inbox.silent()

    assert listener.found == []


def test_proxies_are_not_used(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with GoogleService() as service:
        service.announce(30)
        inbox.listen(GCE(service.address))

        assert inbox.next().source == "gce"


def test_the_address_comes_from_the_environment_of_each_providers_own_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    with GoogleService() as google, AmazonService() as amazon, AzureService() as azure:
        for service in (google, amazon, azure):
            for name, value in service.variables.items():
                monkeypatch.setenv(name, value)

        assert [source.present() for source in sources("auto")] == [True, True, True]
        assert [source.name for source in sources("aws")] == ["aws"]
        assert sources("none") == []
