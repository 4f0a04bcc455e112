"""Blank secrets are none, wherever one is given; a short one guards nothing that others can reach."""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from pydantic import SecretStr

from runtime.agent.agent import Agent
from runtime.agent.secrets import MIN_EXPOSED_CHARACTERS, secrets_in
from runtime.agent.source import Source
from runtime.asgi import WebhookApp
from runtime.connection.environment import environment, non_blank
from runtime.dashboard.security import Guard, Refusal
from runtime.dashboard.server import door_token
from runtime.errors import DeclarationError, SettingsError
from runtime.message import Message
from runtime.settings import Settings
from runtime.wakeups.database_webhook import WebhookWakeups
from runtime.webhooks.receiver import verifier_of
from runtime.webhooks.signatures import verify_github, verify_stripe

BLANKS = ["", " ", "\t", " \n ", "\u00a0", "\u200b", "\ufeff", "\x00", '""', "''", '" "']
LONG = "a-token-that-nobody-guesses"


def _agent() -> Agent:
    agent = Agent("door")

    @agent.on("door.opened")
    async def open_(message: Message[Any]) -> None:
        """Nothing."""

    return agent


@pytest.mark.parametrize("blank", [None, *BLANKS])
def test_s4_a_blank_secret_is_none(blank: str | None) -> None:
    assert non_blank(blank) is None
    assert non_blank(None if blank is None else SecretStr(blank)) is None


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize(
    "field", ["supabase_url", "supabase_key", "database_url", "webhook_secret", "webhook"]
)
def test_s4_a_blank_setting_is_none(field: str, blank: str) -> None:
    assert getattr(Settings.load(**{field: blank}), field) is None


@pytest.mark.parametrize("blank", [text for text in BLANKS if "\x00" not in text])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("SUPABASE_URL", "supabase_url"),
        ("SUPABASE_SECRET_KEY", "supabase_key"),
        ("DATABASE_URL", "database_url"),
        ("RUNTIME_WEBHOOK_SECRET", "webhook_secret"),
        ("RUNTIME_METRICS_PORT", "metrics_port"),
        ("RUNTIME_RETENTION_DAYS", "retention_days"),
    ],
)
def test_s4_a_blank_variable_is_none(
    name: str, field: str, blank: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, blank)
    assert getattr(Settings.load(), field) is None


@pytest.mark.anyio
@pytest.mark.parametrize("secret", [None, "", "  ", "\u200b"])
@pytest.mark.parametrize("path", ["/drain", "/wake"])
async def test_s4_no_door_opens_to_a_blank_secret(path: str, secret: str | None) -> None:
    settings = Settings.load(
        supabase_url="http://127.0.0.1:9", supabase_key="a.b.c", database_url=None
    ).model_copy(update={"webhook_secret": None if secret is None else SecretStr(secret)})
    app = WebhookApp([_agent()], settings=settings, serverless=False, variables={})
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
        for sent in ({}, {"x-webhook-secret": ""}, {"x-webhook-secret": " "}, {"authorization": "Bearer "}):
            with anyio.fail_after(60):
                answer = await client.post(path, headers=sent, json={})
            assert answer.status_code in (401, 403), sent


@pytest.mark.parametrize("secret", ["", "  ", "\u200b"])
def test_s4_a_serverless_application_needs_more_than_a_blank(secret: str) -> None:
    settings = Settings.load(
        supabase_url="http://127.0.0.1:9", supabase_key="a.b.c", database_url=None
    ).model_copy(update={"webhook_secret": SecretStr(secret)})
    with pytest.raises(SettingsError, match="Set RUNTIME_WEBHOOK_SECRET"):
        WebhookApp([_agent()], settings=settings, serverless=True, variables={})


@pytest.mark.parametrize("secret", ["  ", "\u200b", "hunter2", '""'])
def test_s1_a_port_that_others_can_reach_needs_a_whole_secret(secret: str) -> None:
    with pytest.raises(SettingsError, match="RUNTIME_WEBHOOK_SECRET") as caught:
        WebhookWakeups("0.0.0.0:8787", secret, patterns=[])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("blank", ["", " ", "\u200b", "  \u200b "])
def test_s4_a_blank_member_of_a_list_is_no_secret(blank: str) -> None:
    assert secrets_in({"SHOP": f"{blank} first {blank} second"}, "SHOP") == ["first", "second"]
    with pytest.raises(SettingsError, match="SHOP is not set"):
        secrets_in({"SHOP": blank}, "SHOP")
    with pytest.raises(SettingsError, match="SHOP_WEBHOOK_SECRET"):
        verifier_of(Source("shop", "shop.{event}", scheme="github"), [blank])
    with pytest.raises(SettingsError, match="SHOP_WEBHOOK_SECRET"):
        verifier_of(Source("shop", "shop.{event}", scheme="stripe"), [])


@pytest.mark.parametrize("blank", ["", " ", "\u200b"])
def test_s4_a_signature_with_a_blank_secret_fits_nothing(blank: str) -> None:
    from runtime.errors import BadSignature

    def hashed(text: bytes) -> str:
        return hmac.digest(blank.encode(), text, hashlib.sha256).hex()

    body = b"{}"
    with pytest.raises(BadSignature):
        verify_github([blank], {"x-hub-signature-256": f"sha256={hashed(body)}"}, body)
    with pytest.raises(BadSignature):
        verify_stripe([blank], {"stripe-signature": f"t=1,v1={hashed(b'1.' + body)}"}, body, now=1)


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_s4_a_source_with_a_blank_name_of_its_secret_has_the_default(blank: str) -> None:
    assert Source("shop", "shop.{event}", secret=blank).secret == "SHOP_WEBHOOK_SECRET"


@pytest.mark.parametrize("name", ["a b", "1A", "whsec_x", 7])
def test_s4_what_names_no_variable_is_refused(name: Any) -> None:
    with pytest.raises(DeclarationError, match="secret="):
        Source("shop", "shop.{event}", secret=name)


def test_s4_a_blank_variable_hides_nothing_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("SHOP_WEBHOOK_SECRET=of-the-file\n")
    monkeypatch.setenv("SHOP_WEBHOOK_SECRET", "  ")
    assert environment()["SHOP_WEBHOOK_SECRET"] == "of-the-file"


@pytest.mark.parametrize("blank", [None, *BLANKS])
def test_s1_a_blank_token_is_none_and_one_is_drawn_where_it_is_needed(blank: str | None) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "dashboard.example"):
        drawn = door_token(host, blank)
        assert drawn is not None
        assert len(drawn) >= MIN_EXPOSED_CHARACTERS
    for host in ("127.0.0.1", "localhost", "::1"):
        assert door_token(host, blank) is None


@pytest.mark.parametrize("short", ["x", "hunter2", "123456789012345", f"  {'x' * 15}  "])
def test_s1_a_short_token_is_refused_where_others_can_reach_it(short: str) -> None:
    with pytest.raises(SettingsError, match="RUNTIME_DASHBOARD_TOKEN") as caught:
        door_token("0.0.0.0", short)
    assert "hunter2" not in str(caught.value)
    assert door_token("127.0.0.1", short) == short.strip()
    assert door_token("0.0.0.0", LONG) == LONG


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("query", ["", "token="])
def test_s1_a_guard_with_a_blank_token_lets_nobody_in_by_it(blank: str, query: str) -> None:
    verdict = Guard(8321, blank).judge("GET", "/", query, {"host": "dashboard.example"})
    assert isinstance(verdict, Refusal)


def test_s4_sources_of_the_environment_take_a_blank_secret_for_the_default() -> None:
    from runtime.asgi import sources_in

    text = json.dumps([{"name": "shop", "key": "shop.{event}", "secret": " "}])
    assert sources_in(Settings.load(sources=text))[0].secret == "SHOP_WEBHOOK_SECRET"
