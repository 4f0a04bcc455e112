"""Signatures of webhooks, held against published vectors and the packages that Standard Webhooks and Stripe publish."""

import base64
import hashlib
import hmac
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError
from stripe import SignatureVerificationError, WebhookSignature

from runtime.errors import BadSignature, SettingsError
from runtime.webhooks.signatures import (
    new_secret,
    read_secret,
    sign,
    verify_github,
    verify_standard,
    verify_stripe,
)

# The worked example of the specification, as its libraries test it.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SIGNED_AT = 1_614_265_330
BODY = b'{"test": 2432232314}'
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(SIGNED_AT),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
KEY = read_secret(SECRET)
# GitHub's own example, from its page on validating deliveries.
GITHUB_SECRET = "It's a Secret to Everybody"
GITHUB_SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def test_the_published_example_is_signed_and_verified() -> None:
    assert sign([KEY], HEADERS["webhook-id"], SIGNED_AT, BODY) == HEADERS
    assert verify_standard([KEY], HEADERS, BODY, now=SIGNED_AT) == HEADERS["webhook-id"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"webhook-signature": HEADERS["webhook-signature"][:-5]}, BODY),
        ({"webhook-signature": "v1,"}, BODY),
        ({"webhook-signature": "v1a" + HEADERS["webhook-signature"][2:]}, BODY),
        ({"webhook-signature": HEADERS["webhook-signature"].removeprefix("v1,")}, BODY),
        ({"webhook-signature": "v1,\xff\xfe"}, BODY),
        ({"webhook-id": "msg_another"}, BODY),
        ({"webhook-timestamp": str(SIGNED_AT + 1)}, BODY),
        ({}, BODY[:-1]),
        ({}, BODY + b" "),
        ({}, b""),
    ],
)
def test_what_was_altered_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(BadSignature, match="does not fit") as caught:
        verify_standard([KEY], {**HEADERS, **headers}, body, now=SIGNED_AT)
    assert not caught.value.is_stale


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_missing_header_is_named(name: str) -> None:
    for headers in ({**HEADERS, name: ""}, {other: text for other, text in HEADERS.items() if other != name}):
        with pytest.raises(BadSignature, match=f"{name} is missing"):
            verify_standard([KEY], headers, BODY, now=SIGNED_AT)


@pytest.mark.parametrize("away", [-301, 301])
def test_outside_the_window_a_good_signature_is_stale_on_either_side(away: int) -> None:
    verify_standard([KEY], HEADERS, BODY, now=SIGNED_AT + away * 300 // 301)
    with pytest.raises(BadSignature, match="301 seconds") as caught:
        verify_standard([KEY], HEADERS, BODY, now=SIGNED_AT + away)
    assert caught.value.is_stale


def test_only_who_knows_the_secret_hears_of_the_window() -> None:
    with pytest.raises(BadSignature, match="does not fit") as caught:
        verify_standard([read_secret(new_secret())], HEADERS, BODY, now=0)
    assert not caught.value.is_stale


@pytest.mark.parametrize("timestamp", ["now", "1e9", "-5", " 5", "1614265330.0", "nan", "٣", "9" * 13])
def test_a_signed_time_that_is_none_is_refused(timestamp: str) -> None:
    content = f"msg_1.{timestamp}.".encode() + BODY
    signature = "v1," + base64.b64encode(hmac.digest(KEY, content, hashlib.sha256)).decode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": timestamp, "webhook-signature": signature}
    with pytest.raises(BadSignature, match="whole seconds"):
        verify_standard([KEY], headers, BODY, now=5)


def test_a_secret_can_be_rotated_by_either_side() -> None:
    old, new = read_secret(new_secret()), read_secret(new_secret())
    by_both = sign([old, new], "msg_1", SIGNED_AT, BODY)
    for keys in ([old], [new], [new, old]):
        assert verify_standard(keys, by_both, BODY, now=SIGNED_AT) == "msg_1"
    by_old = sign([old], "msg_1", SIGNED_AT, BODY)
    assert verify_standard([new, old], by_old, BODY, now=SIGNED_AT) == "msg_1"
    with pytest.raises(BadSignature):
        verify_standard([new], by_old, BODY, now=SIGNED_AT)


def test_without_any_secret_nothing_is_accepted() -> None:
    with pytest.raises(BadSignature):
        verify_standard([], HEADERS, BODY, now=SIGNED_AT)
    with pytest.raises(BadSignature):
        verify_github([], {"x-hub-signature-256": GITHUB_SIGNATURE}, b"Hello, World!")


@given(body=st.text(), message_id=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True))
def test_the_published_package_agrees(body: str, message_id: str) -> None:
    secret, now = new_secret(), int(time.time())
    headers = sign([read_secret(secret)], message_id, now, body.encode())
    Webhook(secret).verify(body.encode(), headers, json_parse=False)
    theirs = Webhook(secret).sign(message_id, datetime.fromtimestamp(now, UTC), body)
    assert theirs == headers["webhook-signature"]
    assert verify_standard([read_secret(secret)], headers, body.encode(), now=now) == message_id
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body.encode(), headers, json_parse=False)


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_????", "whsec_c2hvcnQ=", "hunter2hunter2!", "whsec_" + "A" * 400]
)
def test_what_is_no_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_secret(text)
    assert text.removeprefix("whsec_") in ("", "whsec_") or text not in str(caught.value)


def test_a_secret_may_lack_its_prefix_and_its_padding() -> None:
    assert read_secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw") == KEY
    secret = new_secret()
    assert read_secret(secret.rstrip("=") + "\n") == read_secret(secret)


def test_github_is_verified_by_its_own_example() -> None:
    headers = {"x-hub-signature-256": GITHUB_SIGNATURE}
    verify_github(["another", GITHUB_SECRET], headers, b"Hello, World!")
    for wrong in (
        [GITHUB_SECRET + "!"], [""],
    ):  # fmt: skip
        with pytest.raises(BadSignature, match="does not fit"):
            verify_github(wrong, headers, b"Hello, World!")
    with pytest.raises(BadSignature, match="does not fit"):
        verify_github([GITHUB_SECRET], headers, b"Hello, World?")
    for given_signature in (
        GITHUB_SIGNATURE[:-1],
        GITHUB_SIGNATURE.removeprefix("sha256="),
        "sha1=" + "0" * 40,
    ):
        with pytest.raises(BadSignature, match="does not fit"):
            verify_github([GITHUB_SECRET], {"x-hub-signature-256": given_signature}, b"Hello, World!")
    with pytest.raises(BadSignature, match="give the webhook a secret"):
        verify_github([GITHUB_SECRET], {"x-hub-signature": "sha1=" + "0" * 40}, b"Hello, World!")


def test_stripe_s_package_and_this_agree() -> None:
    secret, now = "whsec_test_secret", int(time.time())
    body = '{"id": "evt_1", "type": "invoice.paid"}'
    header = WebhookSignature.generate_signature_header(body, secret, now)
    verify_stripe(["whsec_old", secret], {"stripe-signature": header}, body.encode(), now=now)
    for altered_header, altered_body in (
        (header[:-1], body),
        (header, body + " "),
        (header.replace(f"t={now}", f"t={now - 1}"), body),
        (header.replace("v1=", "v0="), body),
        (header.partition(",")[0], body),
        (header.partition(",")[2], body),
        ("", body),
    ):
        with pytest.raises(SignatureVerificationError):
            WebhookSignature.verify_header(altered_body, altered_header, secret, 300)
        with pytest.raises(BadSignature) as caught:
            verify_stripe([secret], {"stripe-signature": altered_header}, altered_body.encode(), now=now)
        assert not caught.value.is_stale


def test_stripe_s_header_may_hold_several_signatures_and_only_one_time() -> None:
    body, now = "{}", int(time.time())
    one, other = (
        WebhookSignature.generate_signature_header(body, secret, now) for secret in ("one", "other")
    )
    both = f"{one},{other.partition(',')[2]},v0=ignored"
    for secret in ("one", "other"):
        WebhookSignature.verify_header(body, both, secret, 300)
        verify_stripe([secret], {"stripe-signature": both}, body.encode(), now=now)
    with pytest.raises(BadSignature, match="once"):
        verify_stripe(["one"], {"stripe-signature": f"t={now - 9},{one}"}, body.encode(), now=now)


def test_a_time_of_stripe_s_outside_the_window_is_stale() -> None:
    body, now = "{}", int(time.time())
    headers = {"stripe-signature": WebhookSignature.generate_signature_header(body, "one", now)}
    for later in (now + 301, now - 301):
        with pytest.raises(BadSignature) as caught:
            verify_stripe(["one"], headers, body.encode(), now=later)
        assert caught.value.is_stale
