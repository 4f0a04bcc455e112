"""Who may ask the dashboard, and who may not: the rules alone, and over real requests."""

from typing import Any

import httpx
import pytest

from runtime.dashboard.security import CSRF_HEADER, Guard, Login, Refusal
from tests.dashboard.conftest import Stage, started

HOST = {"host": "127.0.0.1:8321"}
local = Guard(8321, None)
remote = Guard(8321, "the-token")


def changed(guard: Guard, **headers: str) -> dict[str, str]:
    """The headers of a change from the dashboard's own page, with these instead."""
    own = {"host": "127.0.0.1:8321", "origin": "http://127.0.0.1:8321", CSRF_HEADER: guard.csrf}
    return {**own, **{name.replace("_", "-"): text for name, text in headers.items()}}


def test_the_loopback_is_open_to_this_machine_under_its_own_names() -> None:
    for host in ("127.0.0.1:8321", "localhost:8321", "[::1]:8321", "localhost"):
        assert local.judge("GET", "/", "", {"host": host}) is None


@pytest.mark.parametrize("host", ["evil.example:8321", "127.0.0.1.evil.example:8321", "", "10.0.0.7:8321"])
def test_a_foreign_name_that_points_here_is_refused(host: str) -> None:
    verdict = local.judge("GET", "/", "", {"host": host})
    assert isinstance(verdict, Refusal)
    assert verdict.status == 421
    assert isinstance(local.judge("GET", "/static/dashboard.css", "", {"host": host}), Refusal)


@pytest.mark.parametrize(
    "headers",
    [
        changed(local, origin="http://evil.example"),
        changed(local, origin="null"),
        changed(local, origin=""),
        changed(local, origin="http://127.0.0.1:9999"),
        changed(local, x_csrf_token="guessed"),
        changed(local, x_csrf_token=""),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_change_from_elsewhere_is_refused(method: str, headers: dict[str, str]) -> None:
    verdict = local.judge(method, "/agents/a.b/pause", "", headers)
    assert isinstance(verdict, Refusal)
    assert verdict.status == 403


def test_a_change_from_its_own_pages_passes() -> None:
    assert local.judge("POST", "/agents/a.b/pause", "", changed(local)) is None


def test_with_a_token_nothing_is_shown_without_it() -> None:
    for headers in (HOST, {**HOST, "cookie": f"{remote.cookie}=wrong"}, {**HOST, "authorization": "token x"}):
        for query in ("", "token=", "token=wrong"):
            verdict = remote.judge("GET", "/", query, headers)
            assert isinstance(verdict, Refusal)
            assert verdict.status == 403
    assert isinstance(remote.judge("POST", "/write", "token=the-token", changed(remote)), Refusal)


def test_the_token_is_brought_once_and_kept_as_a_cookie() -> None:
    login = remote.judge("GET", "/agents", "a=1&token=the-token", {"host": "box.example:8321"})
    assert login == Login("/agents?a=1")
    # A path with two slashes would lead to another site.
    assert remote.judge("GET", "//evil.example/", "token=the-token", HOST) == Login("/evil.example/")
    for brought in ({"cookie": f"{remote.cookie}=the-token"}, {"authorization": "token the-token"}):
        assert remote.judge("GET", "/", "", {"host": "box.example:8321", **brought}) is None
    cookie = {"cookie": f"{remote.cookie}=the-token"}
    assert remote.judge("POST", "/write", "", changed(remote, **cookie)) is None
    assert isinstance(
        remote.judge("POST", "/write", "", changed(remote, origin="http://evil", **cookie)), Refusal
    )


def test_a_foreign_page_changes_nothing(stage: Stage) -> None:
    def is_paused() -> Any:
        stats = stage.ask(stage.stream.stats)
        return next(each["paused"] for each in stats["subscriptions"] if each["name"] == "writer.write")

    for headers in (
        {"origin": "http://evil.example"},
        {"origin": stage.url},
        {"origin": stage.url, CSRF_HEADER: "guessed"},
        {"host": "evil.example"},
    ):
        answer = httpx.post(f"{stage.url}/agents/writer.write/pause", headers=headers)
        assert answer.status_code in (403, 421), headers
    assert not is_paused()
    page = httpx.get(stage.url)
    token = page.text.partition('"X-CSRF-Token": "')[2].partition('"')[0]
    own = {"origin": stage.url, CSRF_HEADER: token}
    assert httpx.post(f"{stage.url}/agents/writer.write/pause", headers=own).status_code == 200
    assert is_paused()
    httpx.post(f"{stage.url}/agents/writer.write/resume", headers=own)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("given", [(), ("--token", ""), ("--token", "  ")])
def test_s1_elsewhere_than_the_loopback_a_token_is_drawn(stage: Stage, given: tuple[str, ...]) -> None:
    open_to_all = ("dashboard", "--no-open", "--host", "0.0.0.0", "--port", "0", *given)
    with started(stage.shell, *open_to_all, until="Dashboard:") as line:
        port, _, token = line.rpartition(":")[2].partition("/?token=")
        assert len(token) >= 32
        url = f"http://127.0.0.1:{port}"
        for path in ("/", "/events", "/agents", "/dead", "/rows"):
            assert httpx.get(url + path).status_code == 403
        with httpx.Client(follow_redirects=True) as client:
            first = client.get(f"{url}/agents?token={token}")
            assert (first.status_code, str(first.url)) == (200, f"{url}/agents")
            assert client.get(url).status_code == 200
            (cookie,) = first.history[0].headers.get_list("set-cookie")
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie


def test_s1_elsewhere_than_the_loopback_a_short_token_is_refused(stage: Stage) -> None:
    answer = stage.shell.run(
        "dashboard", "--no-open", "--host", "0.0.0.0", "--port", "0", "--token", "hunter2"
    )
    assert answer.code == 1
    assert "RUNTIME_DASHBOARD_TOKEN" in answer.stderr
    assert "hunter2" not in answer.stderr


@pytest.mark.parametrize("path", ["/message/{}", "/dead/{}", "/message/{}/story"])
@pytest.mark.parametrize(
    "number",
    [
        "0",
        "-1",
        "9" * 18,
        "9" * 19,
        "9" * 30,
        "9" * 5000,
        "1e5",
        "0x1",
        "²",
        "١",
        "1.0",
        " 1",
        "%00",
        "1%00",
        "x",
    ],
)
def test_s7_an_odd_number_is_no_fault_of_the_server(stage: Stage, path: str, number: str) -> None:
    answer = httpx.get(stage.url + path.format(number))
    assert answer.status_code in (200, 404), answer.text


@pytest.mark.parametrize("ids", ["²", "9" * 30, "1,,x", "-1", ""])
def test_s7_an_odd_list_of_numbers_neither(stage: Stage, ids: str) -> None:
    page = httpx.get(stage.url)
    token = page.text.partition('"X-CSRF-Token": "')[2].partition('"')[0]
    own = {"origin": stage.url, CSRF_HEADER: token}
    for what in ("redrive", "discard"):
        answer = httpx.post(f"{stage.url}/dead/group/{what}", data={"ids": ids}, headers=own)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/message/987654321/deliver", "/message/987654321/cancel", "/dead/987654321/redrive",
        "/dead/987654321/amend", "/agents/no%00one/pause", "/agents/%F0%9F/replay",
    ],
)  # fmt: skip
def test_s7_a_change_of_what_is_not_there_neither(stage: Stage, path: str) -> None:
    page = httpx.get(stage.url)
    token = page.text.partition('"X-CSRF-Token": "')[2].partition('"')[0]
    own = {"origin": stage.url, CSRF_HEADER: token, "hx-request": "true"}
    answer = httpx.post(
        stage.url + path, data={"subscription": "a\x00b", "value": "{", "pattern": "\x00"}, headers=own
    )
    assert answer.status_code < 500, answer.text
