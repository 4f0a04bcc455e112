"""`runtime webhooks`: added, listed, tried out, rotated and removed from the command line."""

import json
from typing import Any

from standardwebhooks import Webhook

from runtime.webhooks.signatures import new_secret
from tests.cli.shell import Shell
from tests.receiver import Answering, receiving


def test_a_webhook_is_added_tried_out_rotated_and_removed(shell: Shell, stack: Any) -> None:
    assert "There is no webhook" in shell.run("webhooks", "list").stderr
    with receiving() as target:
        url = f"{target.url}?key=hush"
        added = shell.run("webhooks", "add", "person.>", url, "--name", "crm.post", "--emits", "crm.noted")
        assert added.code == 0, added.stderr
        secret = added.stdout.strip()
        # The secret alone, so that it can go where it is needed unseen.
        assert secret.startswith("whsec_")
        assert f"crm.post posts person.> to {target.url}" in added.stderr
        assert "No worker posts yet: `runtime run --webhooks`" in added.stderr
        assert "hush" not in added.stderr

        again = shell.run("webhooks", "add", "person.>", url, "--name", "crm.post")
        assert (again.code, "there is a webhook 'crm.post' already" in again.stderr) == (1, True)

        refused = shell.run("webhooks", "test", "crm.post")
        assert (refused.code, "RUNTIME_WEBHOOKS_ALLOW" in refused.stderr) == (1, True)
        allowed = {"RUNTIME_WEBHOOKS_ALLOW": "127.0.0.1"}
        tried = json.loads(shell.run("webhooks", "test", "crm.post", "--json", **allowed).stdout)
        assert (tried["url"], tried["status"]) == (target.url, 200)
        [request] = target.received
        Webhook(secret).verify(request.body, dict(request.headers))
        assert json.loads(request.body)["type"] == "webhook.test"
        target.answer = lambda _: Answering(500)
        assert shell.run("webhooks", "test", "crm.post", **allowed).code == 1

    rotated = shell.run("webhooks", "rotate", "crm.post", "--keep", "1h")
    assert rotated.stdout.strip().startswith("whsec_")
    assert rotated.stdout.strip() != secret
    shell.run("webhooks", "pause", "crm.post")
    listed = shell.run("webhooks", "list").stdout
    for part in ("crm.post", "person.>", "crm.noted", "paused", "none"):
        assert part in listed
    assert "hush" not in listed
    assert secret not in listed
    shell.run("webhooks", "resume", "crm.post")
    assert json.loads(shell.run("webhooks", "list", "--json").stdout)["state"] == "well"

    assert shell.run("webhooks", "remove", "crm.post").code == 2
    assert shell.run("webhooks", "remove", "crm.post", "--yes").code == 0
    missing = shell.run("webhooks", "remove", "crm.post", "--yes")
    assert (missing.code, "there is no webhook 'crm.post'" in missing.stderr) == (1, True)


def test_a_name_is_made_of_the_host_and_a_secret_of_ones_own_is_taken(shell: Shell) -> None:
    secret = new_secret()
    given = f"{secret}\n"
    added = shell.run(
        "webhooks", "add", "a.b", "https://hooks.example.com/x", "--secret", "--json", given=given
    )
    told = json.loads(added.stdout.splitlines()[-1])
    assert (told["name"], told["secret"]) == ("webhooks.hooks_example_com", secret)
    wrong = shell.run(
        "webhooks", "add", "a.b", "https://other.example.com", "--secret", given="open-sesame\n"
    )
    assert wrong.code == 1
    assert "open-sesame" not in wrong.stderr
    assert shell.run("webhooks", "add", "a.b", "example.com").code == 1
