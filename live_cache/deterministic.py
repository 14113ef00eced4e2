"""
The allow-list of a plan: classes whose SQL gives the same rows each time it is run on the same data.

Names, not modules: a function that a later Django adds may be volatile, as Now, Random and UUID4 are. What not every
supported Django has, or what needs a driver to be imported, is listed by its text.
"""

from __future__ import annotations

from typing import Final

from django.db.models import aggregates, expressions, functions, lookups
from django.db.models.fields import json as json_lookups
from django.db.models.fields import related_lookups
from django.db.models.functions.text import ConcatPair
from django.db.models.query_utils import FilteredRelation, Q

__all__ = [
    "ARRAY_OPTIONS",
    "EXPRESSIONS",
    "EXPRESSION_NAMES",
    "LOOKUP_MODULES",
    "OWN_FUNCTIONS",
    "RANGE_TYPE",
    "TIME_ZONE_MODULES",
]

EXPRESSIONS: Final[frozenset[type]] = frozenset(
    {
        expressions.Case,
        expressions.Col,
        expressions.CombinedExpression,
        expressions.DurationExpression,
        expressions.Exists,
        expressions.ExpressionList,
        expressions.ExpressionWrapper,
        expressions.F,
        expressions.NegatedExpression,
        expressions.OrderBy,
        expressions.OrderByList,
        expressions.OuterRef,
        expressions.Ref,
        expressions.ResolvedOuterRef,
        expressions.RowRange,
        expressions.Star,
        expressions.Subquery,
        expressions.TemporalSubtraction,
        expressions.Value,
        expressions.ValueRange,
        expressions.When,
        expressions.Window,
        expressions.WindowFrame,
        aggregates.Avg,
        aggregates.Count,
        aggregates.Max,
        aggregates.Min,
        aggregates.StdDev,
        aggregates.Sum,
        aggregates.Variance,
        functions.Abs,
        functions.ACos,
        functions.ASin,
        functions.ATan,
        functions.ATan2,
        functions.Cast,
        functions.Ceil,
        functions.Chr,
        functions.Coalesce,
        functions.Collate,
        functions.Concat,
        ConcatPair,
        functions.Cos,
        functions.Cot,
        functions.CumeDist,
        functions.Degrees,
        functions.DenseRank,
        functions.Exp,
        functions.Extract,
        functions.ExtractDay,
        functions.ExtractHour,
        functions.ExtractIsoWeekDay,
        functions.ExtractIsoYear,
        functions.ExtractMinute,
        functions.ExtractMonth,
        functions.ExtractQuarter,
        functions.ExtractSecond,
        functions.ExtractWeek,
        functions.ExtractWeekDay,
        functions.ExtractYear,
        functions.FirstValue,
        functions.Floor,
        functions.Greatest,
        functions.JSONArray,
        functions.JSONObject,
        functions.Lag,
        functions.LastValue,
        functions.Lead,
        functions.Least,
        functions.Left,
        functions.Length,
        functions.Ln,
        functions.Log,
        functions.Lower,
        functions.LPad,
        functions.LTrim,
        functions.MD5,
        functions.Mod,
        functions.NthValue,
        functions.Ntile,
        functions.NullIf,
        functions.Ord,
        functions.PercentRank,
        functions.Pi,
        functions.Power,
        functions.Radians,
        functions.Rank,
        functions.Repeat,
        functions.Replace,
        functions.Reverse,
        functions.Right,
        functions.Round,
        functions.RowNumber,
        functions.RPad,
        functions.RTrim,
        functions.SHA1,
        functions.SHA224,
        functions.SHA256,
        functions.SHA384,
        functions.SHA512,
        functions.Sign,
        functions.Sin,
        functions.Sqrt,
        functions.StrIndex,
        functions.Substr,
        functions.Tan,
        functions.Trim,
        functions.Trunc,
        functions.TruncDate,
        functions.TruncDay,
        functions.TruncHour,
        functions.TruncMinute,
        functions.TruncMonth,
        functions.TruncQuarter,
        functions.TruncSecond,
        functions.TruncTime,
        functions.TruncWeek,
        functions.TruncYear,
        functions.Upper,
        json_lookups.KeyTransform,
        json_lookups.KeyTextTransform,
        FilteredRelation,
        Q,
    }
)

# Since Django 6.0 or 6.1. Which value AnyValue takes is left to the database, as the order of rows without ORDER BY is:
# each is right as long as the rows are the same.
_NEW_AGGREGATES: Final = (
    "AggregateFilter", "AggregateOrderBy", "AnyValue", "BitAnd", "BitOr", "BitXor", "StringAgg", "StringAggDelimiter",
)  # fmt: skip
_POSTGRES: Final = "django.contrib.postgres"

EXPRESSION_NAMES: Final[frozenset[str]] = frozenset(
    {
        *(f"django.db.models.aggregates.{name}" for name in _NEW_AGGREGATES),
        "django.db.models.expressions.ColPairs",
        "django.db.models.expressions.JSONNull",
        "django.db.models.fields.tuple_lookups.Tuple",
        f"{_POSTGRES}.expressions.ArraySubquery",
        *(
            f"{_POSTGRES}.aggregates.general.{name}"
            for name in (
                "ArrayAgg", "BitAnd", "BitOr", "BitXor", "BoolAnd", "BoolOr", "JSONBAgg", "StringAgg",
            )
        ),
        *(
            f"{_POSTGRES}.aggregates.statistics.{name}"
            for name in (
                "Corr", "CovarPop", "RegrAvgX", "RegrAvgY", "RegrCount", "RegrIntercept", "RegrR2", "RegrSlope",
                "RegrSXX", "RegrSXY", "RegrSYY",
            )
        ),
        *(f"{_POSTGRES}.fields.array.{name}" for name in ("ArrayLenTransform", "IndexTransform", "SliceTransform")),
        *(f"{_POSTGRES}.fields.hstore.{name}" for name in ("KeyTransform", "KeysTransform", "ValuesTransform")),
        *(
            f"{_POSTGRES}.fields.ranges.{name}"
            for name in (
                "IsEmpty", "LowerInclusive", "LowerInfinite", "RangeEndsWith", "RangeStartsWith", "UpperInclusive",
                "UpperInfinite",
            )
        ),
        f"{_POSTGRES}.lookups.Unaccent",
        *(
            f"{_POSTGRES}.search.{name}"
            for name in (
                "CombinedLexeme", "CombinedSearchQuery", "CombinedSearchVector", "Lexeme", "SearchConfig",
                "SearchHeadline", "SearchQuery", "SearchRank", "SearchVector", "TrigramDistance", "TrigramSimilarity",
                "TrigramStrictWordDistance", "TrigramStrictWordSimilarity", "TrigramWordDistance",
                "TrigramWordSimilarity",
            )
        ),
    }
)  # fmt: skip
"""More such classes, by module and name."""

OWN_FUNCTIONS: Final = frozenset(
    {
        *("COVAR_POP", "COVAR_SAMP", "STDDEV_POP", "STDDEV_SAMP", "VAR_POP", "VAR_SAMP"),
        *("ts_rank_cd", "phraseto_tsquery", "plainto_tsquery", "to_tsquery", "websearch_to_tsquery"),
    }
)
"""What StdDev, Variance, CovarPop, SearchRank and SearchQuery put into the attribute ``function`` of an instance."""

ARRAY_OPTIONS: Final = {"function": "ARRAY", "template": "%(function)s[%(expressions)s]"}
"""What the lookups of ArrayField give to a Func. Read in Django 5.2.19 and 6.1.3."""

RANGE_TYPE: Final = "psycopg.types.range.Range"
"""What every range field of django.contrib.postgres gives and takes, under psycopg 3."""

TIME_ZONE_MODULES: Final = frozenset({"django.db.models.functions.datetime"})
"""Modules of classes whose SQL depends on the current time zone."""

# A lookup compares two sides that are walked themselves, so all lookups of a module may be listed at once.
LOOKUP_MODULES: Final = frozenset(
    {
        lookups.__name__,
        related_lookups.__name__,
        json_lookups.__name__,
        "django.db.models.fields.composite",
        "django.db.models.fields.tuple_lookups",
        f"{_POSTGRES}.fields.array",
        f"{_POSTGRES}.fields.hstore",
        f"{_POSTGRES}.fields.ranges",
        f"{_POSTGRES}.lookups",
        f"{_POSTGRES}.search",
        *TIME_ZONE_MODULES,
    }
)
