"""Do all workers see the same slots, also in the two nights in which the clocks change?"""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Agent, Tick
from runtime.agent.handler import Timer
from runtime.agent.schedule import Cron, Every, Schedule, cron, every, read_schedule, readable
from runtime.errors import DeclarationError
from runtime.worker.scheduler import due_ticks

PARIS = ZoneInfo("Europe/Paris")
EXPRESSIONS = (
    "* * * * *", "*/15 * * * *", "0 * * * *", "30 2 * * *", "0,30 2 * * *", "0 3 * * *", "0 7 * * mon-fri",
    "15 1-3 * * *", "0 0 1 * *", "0 12 l * *", "59 23 31 12 *",
)  # fmt: skip


def local(text: str, zone: ZoneInfo = PARIS) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def slots(schedule: Schedule, begin: str, end: str) -> list[str]:
    found = schedule.between(local(begin).astimezone(UTC), local(end).astimezone(UTC))
    return [f"{slot.astimezone(PARIS):%d %H:%M}" for slot in found]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("12h", 43_200),
        ("1d", 86_400),
        (300, 300),
        (timedelta(minutes=2), 120),
        (2.0, 2),
    ],
)
def test_an_interval_is_written_as_people_do(given: str | float | timedelta, seconds: int) -> None:
    assert every(given) == Every(seconds)


@pytest.mark.parametrize("given", ["", "soon", "0s", 0, -5, 0.5, "1.5s", True, None, float("nan"), "9999w"])
def test_an_interval_that_makes_no_sense_is_refused_with_the_cure(given: object) -> None:
    with pytest.raises(DeclarationError, match=r'such as "90s", "5m"'):
        every(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "zone", "complaint"),
    [
        ("0 7 * *", "UTC", "takes five fields"),
        ("0 0 7 * * *", "UTC", "takes five fields"),
        ("61 7 * * *", "UTC", "the minute cannot be '61'; it may be 0 to 59"),
        ("0 7 * * noday", "UTC", "the day of week cannot be 'noday'; it may be 0 to 7, sun to sat"),
        ("0 0 31 2 *", "UTC", "there is no day 31 in the month 2"),
        ("0 7 * * *", "Europe/Atlantis", "must be a name such as"),
        ("0 7 * * *", "../etc/passwd", "must be a name such as"),
        (7, "UTC", "takes five fields"),
        ("0 25 * * *", "UTC", "the hour cannot be '25'; it may be 0 to 23"),
    ],
)
def test_an_expression_that_makes_no_sense_is_refused_with_the_cure(
    expression: str, zone: str, complaint: str
) -> None:
    with pytest.raises(DeclarationError, match=complaint):
        cron(expression, zone)


def test_in_the_night_without_an_hour_what_is_left_out_is_made_up_for_at_once() -> None:
    # 2026-03-29: 02:00 becomes 03:00.
    assert slots(cron("30 2 * * *", "Europe/Paris"), "2026-03-28T12:00", "2026-03-30T12:00") == [
        "29 03:00",
        "30 02:30",
    ]
    assert slots(cron("0,30 2 * * *", "Europe/Paris"), "2026-03-28T12:00", "2026-03-29T12:00") == ["29 03:00"]
    assert slots(cron("0 * * * *", "Europe/Paris"), "2026-03-29T00:30", "2026-03-29T04:30") == [
        "29 01:00", "29 03:00", "29 04:00",
    ]  # fmt: skip


def test_in_the_night_with_an_hour_twice_a_time_of_day_counts_once() -> None:
    # 2026-10-25: 03:00 becomes 02:00.
    assert slots(cron("30 2 * * *", "Europe/Paris"), "2026-10-24T12:00", "2026-10-26T12:00") == [
        "25 02:30",
        "26 02:30",
    ]
    hourly = list(cron("0 * * * *", "Europe/Paris").between(
        local("2026-10-25T00:30").astimezone(UTC), local("2026-10-25T04:30").astimezone(UTC)
    ))  # fmt: skip
    assert [later - earlier for earlier, later in pairwise(hourly)] == [timedelta(hours=1)] * 4


MOMENTS = st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))


@given(
    schedule=st.one_of(
        st.integers(1, 100_000).map(Every),
        st.sampled_from(EXPRESSIONS).map(lambda each: Cron(each, "Europe/Paris")),
    ),
    begin=MOMENTS,
    seconds=st.integers(0, 5_000),
)
def test_slots_do_not_depend_on_where_one_begins_to_count(
    schedule: Schedule, begin: datetime, seconds: int
) -> None:
    first = schedule.next(begin)
    assert first > begin
    assert read_schedule(schedule.spec) == schedule
    between = begin + (first - begin) * min(1.0, seconds / 5_000)
    assert schedule.next(between) == (first if between < first else schedule.next(first))
    assert schedule.last(begin, first) == first
    assert schedule.last(begin, first - timedelta(microseconds=1)) is None
    second = schedule.next(first)
    assert schedule.last(begin, second) == second
    assert list(schedule.between(begin, second)) == [first, second]


def test_the_last_slot_is_found_far_from_the_one_before() -> None:
    yearly = cron("59 23 31 12 *", "Europe/Paris")
    now = datetime(2026, 11, 24, tzinfo=UTC)
    assert yearly.last(datetime(2000, 1, 1, tzinfo=UTC), now) == datetime(2025, 12, 31, 22, 59, tzinfo=UTC)


def test_a_spec_of_another_release_is_none_of_ours() -> None:
    assert read_schedule("sunrise Paris") is None
    assert read_schedule("cron 0 7 * * * Nowhere/Land") is None


T0 = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("missed", "late_seconds", "expected"),
    [
        ("one", 0, [("12:05", 0)]),
        ("one", 1000, [("12:20", 3)]),
        ("all", 1000, [("12:05", 0), ("12:10", 0), ("12:15", 0), ("12:20", 0)]),
        ("none", 0, [("12:05", 0)]),
        ("none", 60, []),
        ("none", 1000, []),
    ],
)
def test_missed_slots_are_ticked_as_declared(
    missed: str, late_seconds: int, expected: list[tuple[str, int]]
) -> None:
    timer = Timer("timer.a.b", Every(300), missed)  # type: ignore[arg-type]
    reached, ticks = due_ticks(timer, T0, T0 + timedelta(seconds=300 + late_seconds))
    assert reached == T0 + timedelta(seconds=300 * (1 + late_seconds // 300))
    assert [(tick["slot"][11:16], tick["missed"]) for tick in ticks] == expected


def test_a_timer_declares_a_handler_for_its_own_key() -> None:
    agent = Agent("clock")

    @agent.every("5m", emits="clock.struck", timeout=10)
    async def strike(tick: Tick) -> str:
        return tick.slot.isoformat()

    @agent.cron("0 7 * * mon-fri", timezone="Europe/Paris", key="morning", missed="all", name="wake_up")
    def ring() -> None: ...

    struck, rung = agent.handlers
    assert (struck.name, struck.patterns, struck.emits) == (
        "clock.strike",
        ("timer.clock.strike",),
        "clock.struck",
    )
    assert struck.timer == Timer("timer.clock.strike", Every(300), "one")
    assert (rung.name, rung.patterns) == ("clock.wake_up", ("morning",))
    assert rung.timer == Timer("morning", Cron("0 7 * * mon-fri", "Europe/Paris"), "all")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"missed": "some"}, 'missed=… must be "one", "all" or "none"'),
        ({"key": "no key"}, "is not a key"),
        ({"ordered": True}, "takes no ordered=…"),
        ({"timeout": -1}, "timeout=…"),
    ],
)
def test_a_timer_that_makes_no_sense_is_refused_with_the_cure(
    options: dict[str, object], complaint: str
) -> None:
    agent = Agent("clock")
    with pytest.raises(DeclarationError, match=complaint):

        @agent.every("5m", **options)  # type: ignore[arg-type]
        async def strike() -> None: ...


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("every 300", "every 5m"),
        ("every 90", "every 90s"),
        ("every 86400", "every 1d"),
        ("cron 0 7 * * mon-fri Europe/Paris", "0 7 * * mon-fri Europe/Paris"),
        ("by the moon", "by the moon"),
        ("every full moon", "every full moon"),
    ],
)
def test_a_schedule_is_shown_as_people_write_it(spec: str, text: str) -> None:
    assert readable(spec) == text
