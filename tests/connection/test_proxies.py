"""Proxies and certificates of the environment: one rule for requests and for the socket, over a real CONNECT proxy."""

import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from runtime.client.broadcaster import RealtimeTransport
from runtime.connection.proxies import proxy_for, request_options, socket_options, tls_context
from runtime.errors import SettingsError, StoreUnavailable
from runtime.settings import Settings
from runtime.store.supabase import SupabaseStore
from runtime.wakeups.realtime import RealtimeWakeups
from tests.cli.shell import Shell

pytestmark = pytest.mark.anyio

# Known to the proxy alone: whoever does not go through it gets nowhere.
HOST = "stack.test"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith("SSL_CERT"):
            monkeypatch.delenv(name)


@dataclass
class Proxy:
    """A proxy that knows one host more than the rest of the world."""

    port: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, client: SocketStream) -> None:
        """Carry one connection: a tunnel, or a request with a whole URL."""
        async with client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await client.receive()
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split()
            self.asked.append(method)
            place = target if method == "CONNECT" else urlsplit(target).netloc
            port = int(place.rpartition(":")[2])
            async with await anyio.connect_tcp("127.0.0.1", port) as server:
                if method == "CONNECT":
                    await client.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    await server.send(head)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_copy, client, server)
                    await _copy(server, client)
                    tasks.cancel_scope.cancel()


async def _copy(source: SocketStream, sink: SocketStream) -> None:
    try:
        async for chunk in source:
            await sink.send(chunk)
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        return


@asynccontextmanager
async def proxied() -> AsyncIterator[Proxy]:
    """A proxy that runs."""
    proxy = Proxy()
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        proxy.port = listener.extra(SocketAttribute.local_port)
        tasks.start_soon(listener.serve, _quietly(proxy))
        yield proxy
        tasks.cancel_scope.cancel()


def _quietly(proxy: Proxy) -> Any:
    async def serve(client: SocketStream) -> None:
        try:
            await proxy.serve(client)
        except* (OSError, anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass

    return serve


class Ear:
    """Notes when a path is live."""

    def __init__(self) -> None:
        self.is_live = anyio.Event()

    def live(self, path: str) -> None:
        self.is_live.set()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_n2_requests_and_the_socket_go_through_the_same_proxy(
    variable: str, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = urlsplit(stack.api_url).port
    url, key = f"http://{HOST}:{port}", stack.service_role_key
    # The stack answers to the name that the proxy is asked for.
    stack.gateway.serve(stack.admin_url, allowed_origins=[url])
    await anyio.to_thread.run_sync(stack.stop_gateway)
    await anyio.to_thread.run_sync(stack.start_gateway)
    async with proxied() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        store = await SupabaseStore.connect(url, key)
        assert await store.check_schema()
        await store.close()
        assert "POST" in proxy.asked
        way = RealtimeTransport(url, key)
        await way.send([("a.b", '{"key":"a.b","value":1}')])
        await way.close()
        asked = len(proxy.asked)
        ear = Ear()
        settings = Settings.load(supabase_url=url, supabase_key=key, database_url=None)
        async with anyio.create_task_group() as tasks:
            wakeups = RealtimeWakeups(url, key, uuid4(), keys=["a.b"], settings=settings)
            tasks.start_soon(wakeups.run, ear)
            with anyio.fail_after(60):
                await ear.is_live.wait()
            tasks.cancel_scope.cancel()
        assert proxy.asked[asked:] == ["CONNECT"]


async def test_n2_this_machine_is_reached_directly_whatever_the_proxy(
    stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens at the discard port.
    dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    for name, text in dead.items():
        monkeypatch.setenv(name, text)
    store = await SupabaseStore.connect(stack.api_url, stack.service_role_key)
    assert await store.check_schema()
    await store.close()
    named = {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    ended = await anyio.to_thread.run_sync(lambda: Shell(tmp_path, {**named, **dead}).run("doctor"))
    assert ended.code == 0, ended


async def test_n2_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(client: SocketStream) -> None:
        async with client:
            await client.receive()
            await client.send(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, refuse)
        port = listener.extra(SocketAttribute.local_port)
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cret@127.0.0.1:{port}")
        store = await SupabaseStore.connect("https://abc.supabase.co", "a.b.c", request_seconds=60)
        with pytest.raises(StoreUnavailable, match="HTTPS_PROXY") as caught:
            await store.call("stream_version", {})
        assert not caught.value.maybe_applied
        assert "s3cret" not in str(caught.value)
        await store.close()
        wakeups = RealtimeWakeups(
            "https://abc.supabase.co", "a.b.c", uuid4(), keys=[], settings=Settings.load(database_url=None)
        )
        close = await wakeups.listen_once(Ear())
        assert "the proxy refused" in close.why
        tasks.cancel_scope.cancel()


HOSTED = "https://abc.supabase.co"


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, HOSTED, None),
        ({"HTTPS_PROXY": "http://p:1"}, HOSTED, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "wss://abc.supabase.co/realtime", "http://p:1"),
        ({"https_proxy": "http://p:1", "HTTPS_PROXY": "http://q:1"}, HOSTED, "http://p:1"),
        ({"HTTPS_PROXY": "p:1"}, HOSTED, "http://p:1"),
        ({"HTTPS_PROXY": " "}, HOSTED, None),
        ({"HTTP_PROXY": "http://p:1"}, HOSTED, None),
        ({"HTTP_PROXY": "http://p:1"}, "ws://kong:8000/realtime", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, HOSTED, "http://p:1"),
        ({"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "https://q:1"}, HOSTED, "https://q:1"),
        *(({"ALL_PROXY": "socks5://nonsense:x"}, url, None) for url in (
            "http://127.0.0.1:54321", "http://localhost:54321", "http://[::1]:54321", "ws://127.8.9.10", "http://a.localhost",
        )),
        *(({"ALL_PROXY": "p:1", "NO_PROXY": listed}, HOSTED, None) for listed in (
            "*", "abc.supabase.co", ".supabase.co", "supabase.co", "*.supabase.co", "a.example, supabase.co",
            "a.example supabase.co", "SUPABASE.CO", "abc.supabase.co:443", "https://abc.supabase.co", "::1,supabase.co",
            "[::1],fe80::/10,supabase.co", "fe80::1%eth0,supabase.co", ",,supabase.co,",
        )),
        *(({"ALL_PROXY": "p:1", "NO_PROXY": listed}, HOSTED, "http://p:1") for listed in (
            "", "::1", "[::1]", "fe80::/10", "10.0.0.0/8", "base.co", "abc.supabase.co:8443", "a..b", "[", "]::", "%",
        )),
        ({"ALL_PROXY": "p:1", "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3:8000", None),
        ({"ALL_PROXY": "p:1", "NO_PROXY": "10.1.2.3:8000"}, "http://10.1.2.3:8000", None),
        ({"ALL_PROXY": "p:1", "NO_PROXY": "2001:db8::/32"}, "http://[2001:db8::7]:8000", None),
        ({"ALL_PROXY": "p:1", "NO_PROXY": "[2001:db8::7]:8000"}, "http://[2001:db8::7]:8000", None),
        ({"ALL_PROXY": "p:1", "NO_PROXY": "2001:db8::7"}, "http://[2001:db8::8]", "http://p:1"),
    ],
)  # fmt: skip
def test_n2_one_rule_tells_the_way(
    variables: Mapping[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HTTPS_PROXY", "ftp://s3cret:1"),
        ("HTTPS_PROXY", "http://user:s3cret@p:port"),
        ("HTTPS_PROXY", "http://"),
        ("HTTPS_PROXY", "http://[s3cret"),
        ("HTTPS_PROXY", "http://p q:1"),
        ("https_proxy", "socks4://s3cret:1"),
        ("ALL_PROXY", "socks5://user:s3cret@p:1080"),
        ("ALL_PROXY", "socks5h://p:1080"),
    ],
)
def test_n2_a_wrong_proxy_is_named_without_its_value(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    for asked in (request_options, socket_options):
        with pytest.raises(SettingsError, match=variable.upper()) as caught:
            asked(HOSTED)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_n2_certificates_that_are_not_there_are_named(
    variable: str, content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    with pytest.raises(SettingsError, match=variable):
        tls_context()
    with pytest.raises(SettingsError, match=variable):
        await SupabaseStore.connect(HOSTED, "a.b.c")
    # Nothing is encrypted on the way to this machine.
    await (await SupabaseStore.connect("http://127.0.0.1:9", "a.b.c")).close()


async def test_n2_wrong_variables_end_a_command_in_a_sentence(tmp_path: Path) -> None:
    named = {"SUPABASE_URL": HOSTED, "SUPABASE_SERVICE_ROLE_KEY": "a.b.c"}
    for name, text in (
        ("ALL_PROXY", "socks5://p:1080"), ("HTTPS_PROXY", "ftp://p"), ("SSL_CERT_FILE", "/nowhere/ca.pem"),
    ):  # fmt: skip
        shell = Shell(tmp_path, {**named, name: text})
        ended = await anyio.to_thread.run_sync(lambda shell=shell: shell.run("read", ">"))
        assert ended.code == 1
        assert "Traceback" not in ended.stderr
        assert name in ended.stderr


def _make_certificate(folder: Path) -> None:
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    made = (
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=own", "-addext", names,
        "-keyout", "key.pem", "-out", "own.pem",
    )  # fmt: skip
    subprocess.run(made, cwd=folder, check=True, capture_output=True)


async def test_n8_an_authority_of_one_s_own_is_trusted_by_ssl_cert_file(
    stack: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
    behind = urlsplit(stack.api_url).port

    async def serve(client: SocketStream) -> None:
        try:
            async with (
                await anyio.streams.tls.TLSStream.wrap(
                    client, ssl_context=context, standard_compatible=False
                ) as tls,
                await anyio.connect_tcp("127.0.0.1", behind or 0) as server,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(_copy, tls, server)
                await _copy(server, tls)
                tasks.cancel_scope.cancel()
        except* (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        url = f"https://localhost:{listener.extra(SocketAttribute.local_port)}"
        settings = Settings.load(supabase_url=url, supabase_key=stack.service_role_key, database_url=None)

        def wakeups() -> RealtimeWakeups:
            return RealtimeWakeups(url, stack.service_role_key, uuid4(), keys=["a"], settings=settings)

        store = await SupabaseStore.connect(url, stack.service_role_key)
        with pytest.raises(StoreUnavailable, match="SSL_CERT_FILE"):
            await store.call("stream_version", {})
        await store.close()
        assert "SSL_CERT_FILE" in (await wakeups().listen_once(Ear())).why
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
        store = await SupabaseStore.connect(url, stack.service_role_key)
        assert await store.check_schema()
        await store.close()
        ear = Ear()
        async with anyio.create_task_group() as inner:
            inner.start_soon(wakeups().run, ear)
            with anyio.fail_after(60):
                await ear.is_live.wait()
            inner.cancel_scope.cancel()
        tasks.cancel_scope.cancel()


async def test_n8_a_stale_address_of_the_local_stack_has_its_cure() -> None:
    store = await SupabaseStore.connect("http://127.0.0.1:9", "a.b.c")
    with pytest.raises(StoreUnavailable, match="runtime local start"):
        await store.call("stream_version", {})
    await store.close()
