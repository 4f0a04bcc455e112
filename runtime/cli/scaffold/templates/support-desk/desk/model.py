"""The language model: Anthropic's where ANTHROPIC_API_KEY is set, else a script that needs no key.

For another provider write one more subclass of `Model` and return it from `choose_model`; no agent changes.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from runtime import Context, Reject, RetryLater


class Model(ABC):
    """A model that answers in text."""

    @abstractmethod
    async def complete(self, context: Context, instruction: str, text: str, tokens: str = "") -> str:
        """Return the answer.

        Args:
            context: of the attempt; it is told what the call took.
            instruction: what to do with the text.
            text: a mail of a stranger.
            tokens: the key under which the pieces of the answer are broadcast as they come, if it is given.
        """


class AnthropicModel(Model):
    """Anthropic's API; `pip install "agent-runtime[llm]"`. DESK_MODEL names another model of theirs."""

    async def complete(self, context: Context, instruction: str, text: str, tokens: str = "") -> str:
        try:
            import anthropic
        except ImportError:
            raise Reject('ANTHROPIC_API_KEY is set, but: pip install "agent-runtime[llm]"') from None

        name = os.environ.get("DESK_MODEL") or "claude-haiku-4-5"
        busy = (anthropic.APIConnectionError, anthropic.RateLimitError, anthropic.InternalServerError)
        try:
            # The runtime retries, and shows that it does: the client should not.
            async with (
                anthropic.AsyncAnthropic(max_retries=0, timeout=60) as client,
                client.messages.stream(
                    model=name,
                    max_tokens=500,
                    system=instruction,
                    messages=[{"role": "user", "content": f"<mail>\n{text[:50_000]}\n</mail>"}],
                ) as stream,
            ):
                async for token in stream.text_stream:
                    if tokens:
                        context.broadcast(tokens, token)
                message = await stream.get_final_message()
        except busy as error:
            raise RetryLater(20, f"the model is not available: {type(error).__name__}") from error
        except anthropic.APIStatusError as error:
            raise Reject(f"the model's service refuses: {error.message}") from error
        used = message.usage
        context.usage(tokens_in=used.input_tokens, tokens_out=used.output_tokens, model=name)
        return "".join(block.text for block in message.content if block.type == "text")


class ScriptedModel(Model):
    """Answers by rules: for tests, and until there is a key."""

    async def complete(self, context: Context, instruction: str, text: str, tokens: str = "") -> str:
        answer = "Thank you for writing to us. We have read your mail and answer within a day."
        if "JSON" in instruction:
            words = text.lower()
            topic = "billing" if "invoice" in words else "bug" if "error" in words else "question"
            urgent = "true" if "urgent" in words else "false"
            answer = f'{{"topic": "{topic}", "urgent": {urgent}}}'
        for word in answer.split():
            if tokens:
                context.broadcast(tokens, f"{word} ")
        context.usage(tokens_in=len(text.split()), tokens_out=len(answer.split()), model="script")
        return answer


def choose_model() -> Model:
    """Return the model that the environment asks for."""
    return AnthropicModel() if os.environ.get("ANTHROPIC_API_KEY") else ScriptedModel()


async def open_model() -> AsyncIterator[Model]:
    """The lifespan of agents with a model: a handler's parameter of type `Model` is what it yields."""
    yield choose_model()
