"""Does a connection go only where it may, whatever a name means from one moment to the next?"""

import ssl
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore
import pytest

from runtime import Agent
from runtime.connection.allow_list import Address, AllowList
from runtime.errors import PostFailed, SettingsError
from runtime.settings import Settings
from runtime.webhooks.egress import Egress
from runtime.webhooks.sender import Sender
from runtime.webhooks.signatures import new_secret
from tests.receiver import Answering, receiving

pytestmark = pytest.mark.anyio


class Names:
    """Tells what a name means: one answer after the other, and the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = answers

    async def __call__(self, host: str, port: int) -> list[Address]:
        answer = self._answers[min(len(self.asked), len(self._answers) - 1)]
        self.asked.append(host)
        return [ip_address(each) for each in answer]


async def post(url: str, allow: str, names: Names | None = None) -> Any:
    """Try the target out, under these settings."""
    agent = Agent("out")
    agent.post("task.*", to=url, secret="OUT_SECRET")
    settings = Settings.load(webhooks_allow=allow)
    async with Sender(agent.handlers, settings, **({} if names is None else {"resolve": names})) as posts:
        return await posts.try_out("out.post")


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT_SECRET", new_secret())


async def test_a_private_address_is_not_connected_to_and_one_that_is_allowed_is() -> None:
    with receiving() as target:
        names = Names(["127.0.0.1"])
        with pytest.raises(
            PostFailed, match=r"hook\.test has the address 127\.0\.0\.1.*RUNTIME_WEBHOOKS_ALLOW"
        ):
            await post(f"https://hook.test:{target.port}/", "", names)
        assert target.received == []
        await post(f"http://hook.test:{target.port}/", "hook.test", names)
        assert len(target.received) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "2130706433", "0x7f.1"]
)
async def test_every_way_to_write_this_machine_is_refused(host: str) -> None:
    with receiving() as target:
        with pytest.raises(PostFailed):
            await post(f"https://{host}:{target.port}/", "")
        assert target.received == []


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with receiving() as target, pytest.raises(PostFailed, match="not public"):
        await post(f"https://hook.test:{target.port}/", "", Names(["93.184.216.34", "127.0.0.1"]))


async def test_a_name_that_means_something_else_a_moment_later_leads_nowhere_else() -> None:
    with receiving("127.0.0.1") as secret, receiving("127.0.0.2", secret.port) as target:
        # Of the two only 127.0.0.2 may be reached; every further answer would lead to the other one.
        names = Names(["127.0.0.2"], ["127.0.0.1"])
        target.answer = lambda _: Answering(200, headers={"connection": "close"})
        url = f"http://hook.test:{target.port}/"
        egress = Egress(AllowList.parse("127.0.0.2/32"), names)
        async with httpcore.AsyncConnectionPool(network_backend=egress) as pool:
            await pool.request("POST", url, content=b"{}")
            # Asked once, and connected to the very address that was checked, under the name that was meant.
            assert (names.asked, len(target.received), len(secret.received)) == (["hook.test"], 1, 0)
            assert target.received[0].headers["host"] == f"hook.test:{target.port}"
            with pytest.raises(PostFailed, match="not public"):
                await pool.request("POST", url, content=b"{}")
        assert secret.received == []


async def test_no_redirect_is_followed() -> None:
    with receiving("127.0.0.1") as secret, receiving("127.0.0.2") as target:
        target.answer = lambda _: Answering(307, headers={"location": secret.url})
        answer = await post(target.url, "127.0.0.0/8")
        assert answer.status == 307
        assert secret.received == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The certificate of hook.test, which signs itself, with its key beside it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=hook.test", "-addext", "subjectAltName=DNS:hook.test",
         "-keyout", "key.pem", "-out", "certificate.pem"],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    return tmp_path / "certificate.pem"


async def test_certificates_are_checked_for_the_name_and_not_for_the_address(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiving(tls=context) as target:
        names = Names(["127.0.0.1"])
        await post(f"https://hook.test:{target.port}/", "127.0.0.0/8", names)
        assert len(target.received) == 1
        with pytest.raises(PostFailed, match=r"cannot be reached.*certificate"):
            await post(f"https://other.test:{target.port}/", "127.0.0.0/8", names)
        assert len(target.received) == 1


async def test_plain_http_is_for_hosts_that_the_settings_name() -> None:
    with pytest.raises(
        SettingsError, match=r"out\.post posts to http://example\.com/hook, which anyone on the network path"
    ):
        await post("http://me:word@example.com/hook?key=hush", "")


async def test_no_complaint_holds_the_credentials_or_the_query_of_a_url() -> None:
    with receiving() as target:
        port = target.port
    for url in (
        f"https://me:word@127.0.0.1:{port}/hook?key=hush", f"https://me:word@nowhere.invalid:{port}/hook?key=hush",
    ):  # fmt: skip
        with pytest.raises(PostFailed) as caught:
            await post(url, "127.0.0.1")
        assert "word" not in str(caught.value)
        assert "hush" not in str(caught.value)
