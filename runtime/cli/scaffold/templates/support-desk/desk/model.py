"""The language model: Anthropic's where ANTHROPIC_API_KEY is set, else a script that needs no key.

For another provider write one more subclass of `Model` and return it from `choose_model`; no agent changes.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable

from runtime import Reject, RetryLater


def ignore(token: str) -> None:
    """Do nothing with a token."""


class Model(ABC):
    """A model that answers in text."""

    @abstractmethod
    async def complete(self, instruction: str, text: str, on_token: Callable[[str], None] = ignore) -> str:
        """Return the answer; call `on_token` with each piece of it as it comes."""


class AnthropicModel(Model):
    """Anthropic's API; `pip install "agent-runtime[llm]"`. DESK_MODEL names another model of theirs."""

    async def complete(self, instruction: str, text: str, on_token: Callable[[str], None] = ignore) -> str:
        try:
            import anthropic
        except ImportError:
            raise Reject('ANTHROPIC_API_KEY is set, but: pip install "agent-runtime[llm]"') from None

        answer = ""
        try:
            # The runtime retries, and shows that it does: the client should not.
            async with (
                anthropic.AsyncAnthropic(max_retries=0, timeout=60) as client,
                client.messages.stream(
                    model=os.environ.get("DESK_MODEL") or "claude-haiku-4-5",
                    max_tokens=500,
                    system=instruction,
                    messages=[{"role": "user", "content": f"<mail>\n{text[:50_000]}\n</mail>"}],
                ) as stream,
            ):
                async for token in stream.text_stream:
                    on_token(token)
                    answer += token
        except (
            anthropic.APIConnectionError,
            anthropic.RateLimitError,
            anthropic.InternalServerError,
        ) as error:
            raise RetryLater(20, f"the model is not available: {type(error).__name__}") from error
        except anthropic.APIStatusError as error:
            raise Reject(f"the model's service refuses: {error.message}") from error
        return answer


class ScriptedModel(Model):
    """Answers by rules: for tests, and until there is a key."""

    async def complete(self, instruction: str, text: str, on_token: Callable[[str], None] = ignore) -> str:
        if "JSON" in instruction:
            words = text.lower()
            topic = "billing" if "invoice" in words else "bug" if "error" in words else "question"
            urgent = "true" if "urgent" in words else "false"
            return f'{{"topic": "{topic}", "urgent": {urgent}}}'
        answer = "Thank you for writing to us. We have read your mail and answer within a day."
        for word in answer.split():
            on_token(f"{word} ")
        return answer


def choose_model() -> Model:
    """Return the model that the environment asks for."""
    return AnthropicModel() if os.environ.get("ANTHROPIC_API_KEY") else ScriptedModel()


async def open_model() -> AsyncIterator[Model]:
    """The lifespan of agents with a model: a handler's parameter of type `Model` is what it yields."""
    yield choose_model()
