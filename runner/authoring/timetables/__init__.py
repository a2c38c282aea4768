"""When a DAG runs. Each timetable is plain data with two questions: `after(instant)` and `interval(logical_date)`."""

from runner.authoring.timetables.base import Timetable, TimetableError
from runner.authoring.timetables.combine import Except, Intersection, Union
from runner.authoring.timetables.cron import PRESETS, Cron
from runner.authoring.timetables.dates import Dates
from runner.authoring.timetables.every import Every
from runner.authoring.timetables.manual import Manual
from runner.authoring.timetables.market import Market
from runner.authoring.timetables.once import Once
from runner.authoring.timetables.plain import coerce, from_plain, to_plain
from runner.authoring.timetables.sessions import Sessions

__all__ = [
    "PRESETS",
    "Cron",
    "Dates",
    "Every",
    "Except",
    "Intersection",
    "Manual",
    "Market",
    "Once",
    "Sessions",
    "Timetable",
    "TimetableError",
    "Union",
    "coerce",
    "from_plain",
    "to_plain",
]
