"""The second phase of a delivery that dies: the undos of its finished steps run, the last one first."""

import logging
from collections.abc import Mapping
from typing import Any

from runtime.agent.handler import Handler
from runtime.agent.retry import later_seconds
from runtime.agent.step import StepPlace, Steps
from runtime.agent.step_names import UNDO_PREFIX
from runtime.agent.undo import UndoContext
from runtime.encoding.json import encode
from runtime.errors import RuntimeFault
from runtime.store import Delivery
from runtime.tracebacks import exc_info_of, members_of, text_of
from runtime.worker.execution.failure import storable
from runtime.worker.execution.services import DeliveryWork, HandlerServices

_log = logging.getLogger("runtime.handlers")
_ERROR_CHARACTERS = 500


async def undo_steps(
    handler: Handler, delivery: Delivery, services: HandlerServices
) -> Mapping[str, Any] | None:
    """Undo what no earlier attempt has undone; how each undo ended is kept, as a step.

    Returns what the undos told of the models they used.

    Raises:
        RetryLater: by an undo; the delivery is put off, and goes on there.
        LeaseLost: the delivery belongs to another worker by now.
        StoreError: an outcome could not be stored.
        RuntimeFault: this version of the agent does not declare an undo, and another attempt may meet one that does.
    """
    context = services.undo_context(handler, delivery)
    steps = DeliveryWork(services, handler, (delivery,)).open_steps(context.handler, context.idempotency_key)
    done, failed = list[str](), list[str]()
    for place in reversed(delivery.undos):
        name, key, occurrence = place
        undone = (f"{UNDO_PREFIX}{name}", key, occurrence)
        if undone not in steps.kept:
            error = await _undo(handler, delivery, context, steps, place)
            steps.kept[undone] = True if error is None else {"error": error}
            if steps.keeper is not None:
                await steps.keeper.keep(undone, encode(steps.kept[undone]))
        (done if steps.kept[undone] is True else failed).append(name)
    _log.warning(
        "%s on message %s is a dead letter now; undone: %s%s",
        handler.name, delivery.place[0], ", ".join(done) or "nothing",
        f"; could not be undone: {', '.join(failed)}" if failed else "",
    )  # fmt: skip
    return context.used


async def _undo(
    handler: Handler, delivery: Delivery, context: UndoContext, steps: Steps, place: StepPlace
) -> str | None:
    """Run the undo of one step; returns the error that it ends in, None for none."""
    record = delivery.undos[place]
    undo = None if handler.undos is None else handler.undos.get(record["step"])
    if undo is None:
        missing = f"{handler.agent} declares no undo of {record['step']!r} any more"
        if delivery.message.attempt - delivery.crashes < handler.retry.attempts:
            raise RuntimeFault(f"{missing}: deploy a version that does, by @agent.step(undo=…).")
        return missing
    undone = (f"{UNDO_PREFIX}{place[0]}", *place[1:])
    try:
        call = undo.call(place[0], steps.kept[place], record["arguments"], context, handler.timeout)
        with steps.span(undone[0]):
            await steps.work_out(call, undone)
    except Exception as error:
        if any(later_seconds(each) is not None for each in members_of(error)):
            raise
        _log.exception(
            "step %r of %s on message %s could not be undone: %s",
            place[0], handler.name, delivery.place[0], text_of(error), exc_info=exc_info_of(error),
        )  # fmt: skip
        return storable(text_of(error), _ERROR_CHARACTERS)
    return None
