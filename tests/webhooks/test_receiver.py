"""What becomes of a webhook: a message under the right key, or a refusal with the right status."""

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe import WebhookSignature

from runtime.agent.secrets import secrets_in
from runtime.agent.source import Source
from runtime.errors import DeclarationError, SettingsError
from runtime.keys import check_key, matches
from runtime.message import Draft
from runtime.webhooks.receiver import WebhookRefusal, verifier_of
from runtime.webhooks.signatures import new_secret, read_secret, sign

NOW = 1_700_000_000
SECRET = new_secret()
JSON = {"content-type": "application/json"}


def standard(
    source: Source, value: Any, *, message_id: str = "msg_1", **headers: str
) -> Draft | WebhookRefusal:
    """What becomes of this value, signed by Standard Webhooks and sent now."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    signed = {**JSON, **sign([read_secret(SECRET)], message_id, NOW, body), **headers}
    return verifier_of(source, [SECRET]).judge(signed, body, now=NOW)


def taken(verdict: Draft | WebhookRefusal) -> Draft:
    assert isinstance(verdict, Draft), verdict
    return verdict


def refused(verdict: Draft | WebhookRefusal) -> tuple[int, str]:
    assert isinstance(verdict, WebhookRefusal), verdict
    return verdict.status, verdict.why


def test_a_webhook_becomes_a_message_under_its_source_s_key() -> None:
    source = Source("shop", "shop.{event}", headers=("X-Shop",))
    value = {"type": "order.paid", "order": 7}
    draft = taken(
        standard(source, value, **{"x-shop": "12", "authorization": "Bearer x", "traceparent": "00-a-b-01"})
    )
    assert (draft.key, draft.value, draft.agent) == ("shop.order.paid", value, "shop")
    assert draft.dedup_key == "webhook shop msg_1"
    assert draft.headers == {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(NOW),
        "x-shop": "12",
        "traceparent": "00-a-b-01",
    }


def test_github_s_event_and_id_come_from_its_headers() -> None:
    source = Source("github", "github.{event}.{action}", scheme="github")
    body = b'{"action": "opened"}'
    headers = {
        **JSON,
        "x-hub-signature-256": "sha256=" + hmac.new(b"hush", body, hashlib.sha256).hexdigest(),
        "x-github-event": "pull_request",
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
    }
    verifier = verifier_of(source, ["old", "hush"])
    draft = taken(verifier.judge(headers, body, now=NOW))
    assert draft.key == "github.pull_request.opened"
    assert draft.dedup_key == "webhook github 72d3162e-cc78-11e3-81ab-4c9367dc0958"
    without_id = {name: text for name, text in headers.items() if name != "x-github-delivery"}
    status, why = refused(verifier.judge(without_id, body, now=NOW))
    assert (status, "x-github-delivery" in why) == (400, True)
    assert refused(verifier.judge(headers, body + b" ", now=NOW))[0] == 401


def test_github_s_form_holds_its_json() -> None:
    body = b"payload=%7B%22ref%22%3A+%22main%22%7D"
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "x-hub-signature-256": "sha256=" + hmac.new(b"hush", body, hashlib.sha256).hexdigest(),
        "x-github-event": "push",
        "x-github-delivery": "1",
    }
    draft = taken(
        verifier_of(Source("github", "github.{event}", scheme="github"), ["hush"]).judge(
            headers, body, now=NOW
        )
    )
    assert (draft.key, draft.value) == ("github.push", {"ref": "main"})


def test_stripe_s_event_and_id_come_from_the_body() -> None:
    verifier = verifier_of(Source("stripe", "stripe.{event}", scheme="stripe"), ["whsec_of_stripe"])

    def judged(value: Any, when: int = NOW) -> Draft | WebhookRefusal:
        body = json.dumps(value)
        header = WebhookSignature.generate_signature_header(body, "whsec_of_stripe", when)
        return verifier.judge({**JSON, "stripe-signature": header}, body.encode(), now=NOW)

    draft = taken(judged({"id": "evt_1", "type": "invoice.payment_succeeded"}))
    assert (draft.key, draft.dedup_key) == ("stripe.invoice.payment_succeeded", "webhook stripe evt_1")
    assert refused(judged({"type": "invoice.paid"}))[0] == 400
    assert refused(judged([1]))[0] == 400
    assert refused(judged({"id": "evt_1"}, NOW - 301))[0] == 400


def test_each_refusal_has_its_status() -> None:
    source = Source("shop", "shop.event")
    body = b"{}"
    headers = {**JSON, **sign([read_secret(SECRET)], "msg_1", NOW, body)}
    verifier = verifier_of(source, [SECRET])
    assert refused(verifier.judge({}, body, now=NOW))[0] == 401
    assert refused(verifier.judge(headers, b"[]", now=NOW))[0] == 401
    assert refused(verifier.judge(headers, body, now=NOW + 301))[0] == 400
    assert refused(verifier_of(source, [new_secret()]).judge(headers, body, now=NOW))[0] == 401
    assert refused(standard(source, b"{"))[0] == 400
    assert refused(standard(source, b"\xff"))[0] == 400
    assert refused(standard(source, b"[" * 100_000))[0] == 400
    assert refused(standard(source, {}, **{"content-type": "text/xml"}))[0] == 415
    assert refused(standard(source, b'"\\u0000"'))[0] == 422
    assert refused(standard(source, b"NaN"))[0] == 422
    assert (
        taken(standard(source, {}, **{"content-type": "application/cloudevents+json; charset=utf-8"})).value
        == {}
    )
    assert taken(standard(source, {}, **{"content-type": ""})).value == {}
    assert taken(
        standard(source, b"a=1&b=%2B", **{"content-type": "application/x-www-form-urlencoded"})
    ).value == {
        "a": "1",
        "b": "+",
    }


@pytest.mark.parametrize(
    ("template", "value", "key"),
    [
        ("shop.{event}", {"type": "order.paid"}, "shop.order.paid"),
        ("shop.{event}", {}, "shop.none"),
        ("shop.{event}", {"type": ""}, "shop.none"),
        ("shop.{event}", {"type": "..>.*. "}, "shop.none.none.none"),
        ("shop.{event}", {"type": "a.b.c.d.e.f.g.h.i"}, "shop.a.b.c.d.e.f.g-h-i"),
        ("shop.{event}.in", {"type": "order.paid"}, "shop.order-paid.in"),
        ("shop.{region}.{event}", {"type": "paid", "region": "eu.west/1"}, "shop.eu-west-1.paid"),
        ("shop.{region}", {"region": 7}, "shop.7"),
        ("shop.{region}", {"region": {"a": 1}}, "shop.none"),
        ("shop.{region}", ["region"], "shop.none"),
        ("shop.{region}", {"region": "Größe\n\x1b[31m"}, "shop.Gr-e-31m"),
        ("shop", {"type": "order.paid"}, "shop"),
    ],
)
def test_holes_are_filled_with_what_fits_a_key(template: str, value: Any, key: str) -> None:
    assert taken(standard(Source("shop", template), value)).key == key


@given(
    event=st.text() | st.none() | st.integers(),
    other=st.text(),
    template=st.sampled_from(
        ["shop.{event}", "shop.{other}.{event}", "shop.{event}.{other}", "shop.a.b.c.d.e.f.{other}"]
    ),
)
def test_whatever_comes_is_a_key_of_the_source_s_own_or_refused(
    event: Any, other: str, template: str
) -> None:
    source = Source("shop", template)
    verdict = standard(source, {"type": event, "other": other})
    if isinstance(verdict, WebhookRefusal):
        assert verdict.status == 422
    else:
        assert check_key(verdict.key).startswith("shop.")
        assert matches(source.pattern, verdict.key)


def test_a_key_that_grows_too_long_is_refused() -> None:
    assert refused(standard(Source("shop", "shop.{event}"), {"type": "x" * 300}))[0] == 422


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("github.{event}", "github.>"),
        ("github.{event}.{action}", "github.*.*"),
        ("github.{event}.in", "github.*.in"),
        ("github.push", "github.push"),
        ("shop.{region}", "shop.*"),
    ],
)
def test_a_source_s_pattern_says_what_it_writes(key: str, pattern: str) -> None:
    assert Source("github", key).pattern == pattern


def test_an_id_too_long_for_the_column_still_tells_repeats() -> None:
    source = Source("shop", "shop.event")
    keys = {taken(standard(source, {}, message_id=each * 300)).dedup_key for each in ("a", "b", "a")}
    assert len(keys) == 2
    assert all(key is not None and len(key) <= 255 for key in keys)


@pytest.mark.parametrize(
    ("fields", "cure"),
    [
        ({"name": "a.b"}, "letters, digits"),
        ({"key": "{event}"}, "first segment"),
        ({"key": "{event}.shop"}, "first segment"),
        ({"key": "shop.x{event}"}, "whole segment"),
        ({"key": "shop.*"}, "is not a key"),
        ({"key": ""}, "is not a key"),
        ({"key": None}, "is a key such as"),
        ({"scheme": "svix"}, "standard, github, stripe"),
        ({"secret": SECRET}, "names the environment variable"),
        ({"secret": "not a name"}, "must name an environment variable"),
        ({"tolerance": 0}, "tolerance"),
        ({"max_bytes": 2**30}, "max_bytes"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_with_its_cure(
    fields: dict[str, Any], cure: str
) -> None:
    with pytest.raises(DeclarationError, match=cure) as caught:
        Source(**{"name": "shop", "key": "shop.event", **fields})
    assert SECRET not in str(caught.value)


def test_secrets_are_named_by_the_source_and_never_shown() -> None:
    source = Source("my-shop", "shop.event")
    assert source.secret == "MY_SHOP_WEBHOOK_SECRET"
    assert secrets_in({source.secret: f" {SECRET}  old\n"}, source.secret) == [SECRET, "old"]
    for nothing in ({}, {source.secret: " "}):
        with pytest.raises(SettingsError, match="MY_SHOP_WEBHOOK_SECRET is not set"):
            secrets_in(nothing, source.secret)
    assert SECRET not in repr(verifier_of(source, [SECRET]))
    with pytest.raises(SettingsError, match="MY_SHOP_WEBHOOK_SECRET: ") as caught:
        verifier_of(source, ["hunter2"])
    assert "hunter2" not in str(caught.value)


def test_s3_two_sources_never_share_a_dedup_key() -> None:
    names, ids = ("shop", "shop:eu", "shop:eu:x"), ("eu:x", "x", "eu:x:msg", "sha256:" + "0" * 64, "e" * 300)
    keys = {
        taken(standard(Source(name, "shop.{event}"), {}, message_id=each)).dedup_key
        for name in names
        for each in ids
    }
    assert len(keys) == len(names) * len(ids)
    assert all(key is not None and len(key) <= 255 for key in keys)
    long = hashlib.sha256(b"e" * 300).hexdigest()
    forged = taken(standard(Source("shop", "shop.{event}"), {}, message_id=f"sha256:{long}")).dedup_key
    assert forged not in keys


@pytest.mark.parametrize(
    "event", [".", "...", "....a", "-", ".-.", "\u202e", "a" * 90, "a." * 90, ".".join("é" * 9), " . "]
)
@pytest.mark.parametrize("template", ["shop.{event}", "shop.x.{event}", "shop.{event}.x", "shop.{name}"])
def test_s7_an_event_of_dots_or_odd_text_stays_below_its_source_s_pattern(event: str, template: str) -> None:
    source = Source("shop", template)
    draft = taken(standard(source, {"type": event, "name": event}))
    assert check_key(draft.key) == draft.key
    assert matches(source.pattern, draft.key), draft.key
