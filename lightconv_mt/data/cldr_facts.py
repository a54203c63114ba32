"""What the cldr corpus tells: random facts that any locale can write down."""

import random
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Literal

from lightconv_mt.errors import DataError

if TYPE_CHECKING:
    from babel import Locale

Fact = Callable[["Locale"], str]
Maker = Callable[[random.Random], Fact]


def fact_makers(locales: tuple["Locale", "Locale"]) -> list[tuple[Maker, float]]:
    """What facts are made of, with their shares of the corpus."""
    territories = _names(locales, "territories", pattern="[A-Z]{2}")
    languages = _names(locales, "languages", pattern="[a-z]{2}")
    places = _display_names(locales)
    units = _units(locales)
    amounts = [_amount_of(units, "long"), _money(locales)]
    short = _amount_of(units, "short")
    calendar: list[Maker] = [_weekday, _month]
    return [
        (territories, 1),
        (languages, 1),
        (places, 3),
        (_date, 14),
        (_interval, 5),
        (_time, 4),
        (_distance_in_time, 5),
        (amounts[0], 10),
        (short, 9),
        (_speed(locales, units), 4),
        (amounts[1], 10),
        (_list_of([territories]), 12),
        (_list_of([languages]), 10),
        (_list_of(calendar), 4),
        (_list_of(amounts), 8),
        (_list_of([short]), 17),
        (_list_of([_date, _money(locales), territories, _distance_in_time]), 5),
    ]


def _names(locales: tuple["Locale", "Locale"], kind: str, *, pattern: str) -> Maker:
    """Display names of one kind that both locales have, by code."""
    tables = [getattr(locale, kind) for locale in locales]
    codes = sorted(
        code
        for code in tables[0]
        if re.fullmatch(pattern, code) and all(table.get(code, code) != code for table in tables)
    )

    def make(rng: random.Random) -> Fact:
        code = rng.choice(codes)
        return lambda locale: str(getattr(locale, kind)[code])

    _require(codes, kind, locales)
    return make


def _require(found: Sequence[object], kind: str, locales: tuple["Locale", "Locale"]) -> None:
    if not found:
        raise DataError(
            f"{locales[0]} and {locales[1]} share no names of {kind} in Babel's data; "
            f"choose locales with more data, such as en, de, fr, es, ru or ja"
        )


def _display_names(locales: tuple["Locale", "Locale"]) -> Maker:
    """Languages of territories: German (Switzerland)."""
    from babel import Locale, localedata

    known = [
        Locale.parse(code)
        for code in sorted(localedata.locale_identifiers())
        if re.fullmatch("[a-z]{2}_[A-Z]{2}", code)
    ]
    named = [
        each
        for each in known
        if all(
            each.language in own.languages and each.territory in own.territories for own in locales
        )
    ]

    _require(named, "languages with their territories", locales)

    def make(rng: random.Random) -> Fact:
        chosen = rng.choice(named)
        return lambda locale: str(chosen.get_display_name(locale))

    return make


def _units(locales: tuple["Locale", "Locale"]) -> list[str]:
    """Units that both locales can write, in full and abbreviated."""
    from babel.units import format_unit

    lengths: list[Literal["long", "short"]] = ["long", "short"]

    def works(unit: str) -> bool:
        try:
            # Babel writes the code of a unit where a locale has no pattern of that length.
            return all(
                unit not in format_unit(2, unit, length, locale=own)
                for own in locales
                for length in lengths
            )
        except ValueError:
            return False

    shared = set(locales[0].unit_display_names) & set(locales[1].unit_display_names)
    units = [unit for unit in sorted(shared) if "-per-" not in unit and works(unit)]
    _require(units, "units", locales)
    return units


def _amount_of(units: list[str], length: Literal["long", "short"]) -> Maker:
    from babel.units import format_unit

    def make(rng: random.Random) -> Fact:
        number, unit = _number(rng), rng.choice(units)
        return lambda locale: str(format_unit(number, unit, length, locale=locale))

    return make


def _speed(locales: tuple["Locale", "Locale"], units: list[str]) -> Maker:
    """Compound units: 12 kilometers per hour."""
    from babel.units import format_compound_unit

    def writes(number: float, above: str, below: str) -> Fact:
        return lambda locale: str(
            format_compound_unit(number, above, denominator_unit=below, locale=locale)
        )

    above = [unit for unit in units if re.match("length|mass|digital|volume", unit)]
    below = [
        unit
        for unit in ("duration-hour", "duration-second", "duration-minute", "duration-day")
        # Where a language has no name for a denominator, Babel writes the code.
        if unit in units
        and all(unit not in writes(2, each, unit)(own) for each in above[:1] for own in locales)
    ]
    above = [
        unit
        for unit in above
        # The code again where only the name of the whole is missing: speed-kilometer-per-hour.
        if all("-per-" not in writes(2, unit, each)(own) for each in below for own in locales)
    ]
    if not above or not below:
        return _amount_of(units, "long")
    return lambda rng: writes(_number(rng), rng.choice(above), rng.choice(below))


def _money(locales: tuple["Locale", "Locale"]) -> Maker:
    """Amounts with the name of the currency: 3 US dollars."""
    from babel.numbers import format_currency

    tables = [locale.currencies for locale in locales]
    codes = [
        code
        for code in sorted(tables[0])
        # Names with years or brackets are those of currencies no longer in use.
        if all(re.fullmatch(r"[^\d()]+", table.get(code, "()")) for table in tables)
        and all(table[code] != code for table in tables)
    ]

    _require(codes, "currencies", locales)

    def make(rng: random.Random) -> Fact:
        number, code = _number(rng), rng.choice(codes)

        def write(locale: "Locale") -> str:
            text = format_currency(
                number, code, locale=locale, format_type="name", currency_digits=False
            )
            return str(text)

        return write

    return make


def _number(rng: random.Random) -> int | float:
    """Small whole numbers mostly, so that every plural form occurs."""
    kind = rng.random()
    if kind < 0.15:
        return 1
    if kind < 0.75:
        return rng.randint(2, 99)
    return rng.randint(100, 9999) if kind < 0.9 else rng.randint(11, 999) / 10


def _day(rng: random.Random) -> date:
    return date.fromordinal(
        rng.randint(date(1950, 1, 1).toordinal(), date(2035, 12, 31).toordinal())
    )


def _date(rng: random.Random) -> Fact:
    from babel.dates import format_date, format_skeleton

    day, style = _day(rng), rng.choice(["full", "full", "full", "long", "medium", "yMMMM", "MMMEd"])
    if style in ("yMMMM", "MMMEd"):
        return lambda locale: str(format_skeleton(style, day, locale=locale))
    return lambda locale: str(format_date(day, style, locale=locale))


def _interval(rng: random.Random) -> Fact:
    from babel.dates import format_interval

    start, skeleton = _day(rng), rng.choice(["yMMMd", "yMMMM", "yMMMEd"])
    end = start + timedelta(
        days=rng.randint(1, 25) if skeleton == "yMMMd" else rng.randint(32, 200)
    )
    return lambda locale: str(format_interval(start, end, skeleton, locale=locale))


def _time(rng: random.Random) -> Fact:
    from babel.dates import format_datetime, format_time

    moment = datetime.combine(_day(rng), time(rng.randint(0, 23), rng.randint(0, 59)))
    if rng.random() < 0.5:
        return lambda locale: str(format_time(moment, "short", locale=locale))
    return lambda locale: str(format_datetime(moment, "medium", locale=locale))


# Name and length in days.
_UNITS_OF_TIME: list[tuple[Literal["year", "month", "week", "day", "hour", "minute"], float]] = [
    ("year", 365),
    ("month", 30.5),
    ("week", 7),
    ("day", 1),
    ("hour", 1 / 24),
    ("minute", 1 / 1440),
]


def _distance_in_time(rng: random.Random) -> Fact:
    from babel.dates import format_timedelta

    unit, days = rng.choice(_UNITS_OF_TIME)
    delta = timedelta(days=rng.choice([-1, 1]) * rng.randint(1, 60) * days)
    return lambda locale: str(
        format_timedelta(delta, granularity=unit, threshold=99, add_direction=True, locale=locale)
    )


def _weekday(rng: random.Random) -> Fact:
    day = rng.randrange(7)
    return lambda locale: str(locale.days["stand-alone"]["wide"][day])


def _month(rng: random.Random) -> Fact:
    month = rng.randint(1, 12)
    return lambda locale: str(locale.months["stand-alone"]["wide"][month])


def _list_of(makers: Sequence[Maker]) -> Maker:
    """Two to four facts of one kind, joined by and, or by or."""
    from babel.lists import format_list

    styles: list[Literal["standard", "or"]] = ["standard", "standard", "or"]

    def make(rng: random.Random) -> Fact:
        maker, style = rng.choice(makers), rng.choice(styles)
        facts = [maker(rng) for _ in range(rng.choice([2, 2, 3, 4]))]
        return lambda locale: str(format_list([fact(locale) for fact in facts], style, locale))

    return make
