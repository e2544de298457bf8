"""Labels from the free text of echo reports: ejection fraction and hypertrophic cardiomyopathy (HCM).

The paper takes low LVEF from the reported value (at most 40 %) and HCM from any mention, negated or not. Here
both are rules with names: how a value, a range, a bound or words become a percentage, and beside the paper's
rule for HCM one that heeds negation, family and doubt (after NegEx, Chapman 2001, doi 10.1006/jbin.2001.1029,
and ConText, Harkema 2009, doi 10.1016/j.jbi.2009.05.002). English reports only. Every pattern is bounded, so
time grows no faster than the text.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import pandas as pd

from ecglib.errors import EcglibError

LVEF_THRESHOLD = 40  # %; low is at most this (paper, Methods)
MAX_CHARS = 20_000  # a report is read no further; real ones have some thousands
_WINDOW = 120  # characters that a value, a cue or a word may stand from what it belongs to

# Words of grade as ranges in %. Lang 2015 (ASE/EACVI chamber quantification, doi
# 10.1016/j.echo.2014.10.003), table 4: men 52-72, 41-51, 30-40, below 30; women 54-74, 41-53, 30-40, below
# 30. A report seldom says the sex: each range spans both. "Mild to moderate" spans both of its grades.
GRADES = {"normal": (52, 74), "mild": (41, 53), "moderate": (30, 40), "severe": (0, 30)}
# Not in Lang 2015. Low normal: borderline low of Harkness 2020 (BSE, doi 10.1530/ERP-19-0050). Preserved: at
# least 50 %, ESC heart failure guideline 2021. Hyperdynamic: whatever lies above normal.
OTHER_WORDS = {"low normal": (50, 54), "preserved": (50, 74), "hyperdynamic": (74, 100)}


@dataclass(frozen=True)
class Lvef:
    """A left ventricular ejection fraction as reported: from `low` to `high`, in %."""

    low: float
    high: float
    how: Literal["value", "range", "bound", "words"]

    def __post_init__(self) -> None:
        """Refuse what is no range of percentages."""
        if not 0 <= self.low <= self.high <= 100:
            raise EcglibError(f"LVEF {self.low} to {self.high} %: must lie between 0 and 100, low first")


def low_lvef(value_or_text: float | str | Lvef | None) -> int | None:
    """1 where the LVEF is at most 40 %, else 0; None where it is missing or undecided.

    Takes a report, a value in % (NaN is missing) or what `read_lvef` returns. A range or a grade in words
    counts by its midpoint. A bound counts only where all of it lies on one side ("below 50 %" decides
    nothing; "at least 40 %" is not low, although 40 itself would be). EcglibError for a number outside
    0..100.
    """
    lvef = value_or_text
    if isinstance(lvef, str):
        lvef = read_lvef(lvef)
    elif isinstance(lvef, int | float):
        lvef = None if math.isnan(lvef) else Lvef(lvef, lvef, "value")
    if lvef is None:
        return None
    if lvef.how == "bound" and lvef.low < LVEF_THRESHOLD < lvef.high:
        return None
    return int((lvef.low + lvef.high) / 2 <= LVEF_THRESHOLD)


def read_lvef(text: str) -> Lvef | None:
    """Read the current LVEF of one report; None where it states none.

    A number beats words; a value marked as current ("now 35 %") beats an unmarked one; one of the past
    ("previously 55 %", "from 55 %", a history, an indication) is never taken; among equals the first counts.
    Ejection fractions of other chambers, fractional shortening and the EF slope are passed over. "Reduced"
    without a grade states no range.
    """
    report = _normalised(text)
    return _best(_numbers(report)) or _best(_words(report))


# --- one form of text ---

_SIGNS = str.maketrans(
    {**dict.fromkeys("‐‑‒–—−", "-"), "≤": "<=", "≥": ">=", "⩽": "<=", "⩾": ">=", "≈": "~", "→": "->"}
)


# A sentence ends at a full stop, a semicolon, an empty line, or before an item of a list or a heading.
_BREAK = re.compile(
    r"[.!;](?=\s|$)|\r?\n(?=[ \t]{0,20}(?:\r?\n|[-*•]|\d{1,2}[.)] |[a-z][a-z /]{0,30}:))", re.MULTILINE
)
_ABBREVIATIONS = re.compile(r"\b(approx|est|calc|avg|ca|vs|hx|nl|mod)\.")
_PARTED = re.compile(r"(?<=[a-z])-[ \t]{0,8}\r?\n[ \t]{0,8}(?=[a-z])")  # a word across two lines


def _normalised(text: str) -> str:
    """Bring into lower case, plain signs, one space between words; line feeds part the sentences."""
    plain = unicodedata.normalize("NFKC", text[:MAX_CHARS]).translate(_SIGNS).lower()[:MAX_CHARS]
    sentences = _BREAK.split(_ABBREVIATIONS.sub(r"\1", _PARTED.sub("", plain)))
    return "\n".join(" ".join(sentence.split()) for sentence in sentences)


def _before(report: str, at: int) -> str:
    """The sentence's text before position `at`, within the window."""
    return report[max(0, at - _WINDOW) : at].rpartition("\n")[2]


def _after(report: str, at: int) -> str:
    """The sentence's text from position `at` on, within the window."""
    return report[at : at + _WINDOW].partition("\n")[0]


# --- ejection fraction in numbers ---

_Found = tuple[Literal["now", "plain", "past"], Lvef]

_EF = re.compile(
    r"(?<![\w/-])(?P<other>(?:rv|ra|la|right|atrial|right ventric\w{2,4}|right heart)(?: |-)?)?"
    r"(?:(?:lv|left ventric\w{2,4}) ?-?)?(?:ef\b|ejection fractions?\b)(?P<slope> ?-?slope)?"
)
_NUMBER = r"(?:\d{1,3}(?:[.,]\d{1,2})?|\.\d{1,2})"
_PERCENT = r"(?: ?(?:%|percent\b|per cent\b|pct\b))"
_UNITS = (
    r"(?:mm|cm|m/s|ml|cc|kg|bpm|ms|msec|years?|yrs?|months?|weeks?|days?|y\.?o|chamber|views?"
    r"|g|l|m|d|st|nd|rd|th)"
)
_QUANTITY = re.compile(
    r"(?<![\w.])(?P<sign><=?|>=?|=<|=>)? ?"
    rf"(?P<first>{_NUMBER})(?P<percent>{_PERCENT})?"
    rf"(?: ?(?P<joint>->|-|to|and) ?(?P<second>{_NUMBER})(?P<percent2>{_PERCENT})?)?"
    rf"(?P<plus> ?\+(?! ?/))?(?!\d|[.,/-]\d| ?-?{_UNITS}\b)"
)
_BELOW = re.compile(
    r"(?:less than|lower than|below|under|at most|up to|no more than|not more than)(?: or equal to)?$"
)
_ABOVE = re.compile(
    r"(?:greater than|more than|higher than|above|over|at least|exceeds|in excess of)(?: or equal to)?$"
)

# Words that may stand between "ejection fraction" and a number; where % is written, the second set too.
_LINKS = frozenset(
    """
    is was are were be been being has had have to at of by the a an and or as it about around approximately
    approx roughly circa ca nearly almost estimated est estimate estimation calculated calc measured
    visually visual eyeballed assessed computed derived reported modified biplane bp single plane simpson
    simpsons s method methods teichholz teich mod disks discs disk disc range ranging ranges between from
    value overall global mean average resting now today currently current presently previously prior
    previous formerly decreased increased reduced improved declined dropped went fell fallen risen rose
    recovered down up depressed low normal mildly moderately severely preserved remains remained unchanged
    stable still only just less than lower greater more higher below above under over at most least no not
    equal exceeds excess in lv lvef ef left ventricular ventricle's compared with d mode
    """.split()  # noqa: SIM905
)
_LOOSE = _LINKS | frozenset(
    """
    on this that study studies echo echocardiogram exam examination tte tee which appears appeared using
    contrast systolic function last since then year earlier who for rest hyperdynamic borderline
    markedly significantly slightly further very quantitative quantitatively volumetric apical view
    views chamber triplane images imaging patient new newly mild moderate severe technique formula area
    length but vs versus had same his her
    """.split()  # noqa: SIM905
)
_REFERENCE = re.compile(
    r"(?:\((?:normal|nl)|normal range|normal value|reference|\bref\b|\bnormal ?[:=>])[^)]{0,15}$"
)

_STUDY = r"(?:stud\w{1,3}|echo\w{0,12}|exam\w{0,8}|report|tte|tee|value|measurement)"
_PAST_WORDS = r"(?:prior|previous|last|former|earlier|old|outside|baseline)"
# "Unchanged from the prior study" is about the present.
_COMPARISON = re.compile(
    r"\b(?:unchanged|(?:de|in)creased|improved|reduced|lower|higher|wors\w{1,4}|similar|stable|compar\w{1,5}|same"
    rf"|change|since|than)\b[^,.;()\d]{{0,20}}\b{_PAST_WORDS}\b(?: {_STUDY})?"
)
_PAST_BEFORE = re.compile(
    rf"\b{_PAST_WORDS}(?: {_STUDY})? ?(?:\(|:|of|with|showed|showing|had|an?|'s)? ?(?:an? )?$"
    r"|\b(?:previously|formerly|history|hx|h/o|indications?|reason for|known|(?:in|from) (?:19|20)\d\d"
    r"|(?:year|month|week|day)s? ago)\b"
)
_PAST_BETWEEN = re.compile(
    rf"\b(?:previously|formerly|{_PAST_WORDS}|had been|used to be"
    r"|(?<!ranges )(?<!ranging )from|compared (?:to|with)|vs|versus)\b"
)
_PAST_AFTER = re.compile(
    r" ?\(?(?:previously|formerly|before"
    rf"|(?:in|on|at|by|from) (?:the |his |her |an? )?{_PAST_WORDS}(?: {_STUDY})?"
    rf"|(?:in|on|from) (?:19|20)\d\d|{_PAST_WORDS}(?: {_STUDY})?\)|(?:\w{{1,6}} )?(?:year|month|week)s? ago)"
    r"(?! ?[\w:])"
)
_CHANGED = re.compile(r"(?<!ranges )(?<!ranging )\bfrom ?$")
_NOW = re.compile(r"\b(?:now|currently|current|today|presently|at present|this study)\b")


def _best(found: Iterable[_Found]) -> Lvef | None:
    """The first marked as current, else the first unmarked; those of the past are not taken."""
    plain = None
    for when, lvef in found:
        if when == "now":
            return lvef
        if when == "plain" and plain is None:
            plain = lvef
    return plain


def _numbers(report: str) -> Iterator[_Found]:
    """Every ejection fraction of the left ventricle that is stated in numbers, and when it was so."""
    anchors = list(_EF.finditer(report))
    for anchor, following in zip_longest(anchors, anchors[1:]):
        if anchor["other"] or anchor["slope"]:
            continue
        end = following.start() if following else len(report)
        lead = _before(report, anchor.start())
        text = _after(report, anchor.end())[: end - anchor.end()]
        stated = list(_stated_after(text, lead))
        yield from stated or _stated_before(lead)


def _stated_after(text: str, lead: str) -> Iterator[_Found]:
    """Values in the text after "ejection fraction"; `lead` is its sentence so far."""
    start, is_past = 0, _says_past(lead, _PAST_BEFORE)
    for match in _QUANTITY.finditer(text):
        gap = text[start : match.start()]
        has_percent = match["percent"] or match["percent2"]
        words = re.findall(r"[a-z]+", gap)
        if not (_LOOSE if has_percent else _LINKS).issuperset(words):
            continue
        start = match.end()
        is_reference = _REFERENCE.search(gap) or (match["sign"] and re.match(r"\) ?:? ?\d", text[start:]))
        lvef = None if is_reference else _lvef(match, gap)
        if lvef is None:
            continue
        is_course = match["joint"] in ("to", "->") and lvef.how == "value"
        if (
            is_course
            or _NOW.search(gap)
            or re.match(r" ?\(?(?:now|currently|current|today)\b(?! ?\w)", text[start:])
        ):
            yield "now", lvef
        elif is_past or _says_past(gap, _PAST_BETWEEN) or _PAST_AFTER.match(text[start:]):
            yield "past", lvef
        else:
            yield ("now" if _NOW.search(lead) else "plain"), lvef
        is_past = False


def _stated_before(lead: str) -> Iterator[_Found]:
    """The value that stands right before "ejection fraction", as in "estimated 55-60 % EF"."""
    for match in _QUANTITY.finditer(lead):
        percent = match["percent2"] if match["second"] else match["percent"]
        own = re.split(r"[,:(]", lead[: match.start()])[-1]
        is_own = (_LOOSE | {"there", "with"} - {"ef", "lvef"}).issuperset(re.findall(r"[a-z]+", own))
        if percent and is_own and not lead[match.end() :].strip() and (lvef := _lvef(match, own)):
            yield ("past" if _says_past(own, _PAST_BETWEEN) else "plain"), lvef


def _says_past(text: str, cue: re.Pattern[str]) -> bool:
    return bool(cue.search(_COMPARISON.sub(" ", text)))


def _lvef(match: re.Match[str], gap: str) -> Lvef | None:
    """What a quantity after the text `gap` says; None where it is no percentage."""
    has_percent = bool(match["percent"] or match["percent2"])
    first = _percent(match["first"], has_percent)
    if match["second"] and (match["joint"] != "and" or "between" in gap):
        second = _percent(match["second"], has_percent)
        if max(first, second) > 100:
            return None
        is_course = match["joint"] == "to" and (_CHANGED.search(gap) or second < first)  # "from 55 to 35 %"
        if is_course or match["joint"] == "->":
            return Lvef(second, second, "value")
        return Lvef(min(first, second), max(first, second), "range")
    if first > 100:
        return None
    gap = gap.rstrip(" \n(")
    sign = match["sign"] or ""
    if "<" in sign or _BELOW.search(gap):
        return Lvef(0, first, "bound")
    if ">" in sign or match["plus"] or _ABOVE.search(gap):
        return Lvef(first, 100, "bound")
    return Lvef(first, first, "value")


def _percent(digits: str, has_percent: bool) -> float:
    """The number in %; 0.35 without a percent sign is a fraction."""
    value = float(digits.replace(",", "."))
    is_fraction = not has_percent and 0 < value < 1
    return round(100 * value, 2) if is_fraction else value


# --- ejection fraction in words ---

_GRADE = (
    r"(?:low[ -]normal|borderline(?: (?:low|normal|reduced))?|normal|within normal limits|wnl|preserved"
    r"|intact|good|hyperdynamic|supra-?normal|vigorous|mild|moderate|severe|slight|marked|profound)(?:ly)?"
)
_REDUCED = (
    r"(?:reduced|depressed|decreased|impaired|diminished|lowered|compromised|dysfunction|impairment"
    r"|reduction)"
)
_PHRASE = (
    rf"(?<!near )(?<!nearly )(?<!almost )\b(?P<grade>{_GRADE})"
    rf"(?:(?: to | or | ?- ?| ?/ ?|-to-)(?P<grade2>{_GRADE}))?"
    rf"(?: (?:globally |diffusely |global )?(?P<reduced>{_REDUCED}))?\b"
)
_LEFT = (
    r"(?:(?:left|right) and (?:left|right) ventric\w{2,4}|(?:lv|rv) (?:and|&) (?:lv|rv)|biventricular"
    r"|lv|left ventric\w{2,4})"
)
_TARGET = (
    rf"(?P<target>\b(?P<left>{_LEFT})?(?:[ ,]{{0,3}}\b(?:cavity|chamber|size|wall|thickness|dimensions?|mass"
    r"|volumes?|and|global|overall|contractile|pump|regional|resting|systolic(?: and diastolic)?)){0,8}"
    r" ?\b(?:function|contractility|performance|dysfunction|impairment)\b"
    r"|\b(?P<left_ef>lv ?|left ventric\w{2,4} )?(?:ef|ejection fraction)\b(?! ?-?slope))"
)
_GRADE_FIRST = re.compile(
    rf"{_PHRASE} (?:the |estimated |calculated |overall |global |resting ){{0,2}}{_TARGET}"
)
_TARGET_FIRST = re.compile(
    rf"{_TARGET}(?:[ :=,(-]{{1,3}}(?:is|was|are|were|appears?|appeared|remains?|to be|now|currently|visually"
    rf"|overall|globally|grossly|estimated|as|still|within)){{0,4}}[ :=,(-]{{1,3}}{_PHRASE}"
)
_SIZE_AND_FUNCTION = re.compile(
    rf"\b(?P<target>(?P<left>(?P<left_ef>lv|left ventricle)) (?:is|was) )"
    rf"(?P<grade>{_GRADE})(?P<grade2>)(?P<reduced>) in size(?:,[ \w]{0, 20})?,? and (?:systolic )?function\b"
)
_NOT_OWN = re.compile(r"\b(?:right|rv|atri\w{1,3}|la|ra)\b[^,]{0,40}$")
_NOT_SAID = re.compile(r"\b(?:no|not|without|neither|never)\b[^,]{0,30}$|\bheart failure with (?:a )?$")


def _words(report: str) -> Iterator[_Found]:
    """Every grade of left ventricular systolic function, in the order of the report."""
    matches = [m for form in (_GRADE_FIRST, _TARGET_FIRST, _SIZE_AND_FUNCTION) for m in form.finditer(report)]
    for match in sorted(matches, key=lambda match: match.start()):
        lead = _before(report, match.start())
        is_own = match["left"] or match["left_ef"] or not _NOT_OWN.search(lead)
        is_systolic = match["left"] or re.search(r"systolic|ef\b|ejection", match["target"])
        lvef = _graded(match)
        if lvef and is_own and is_systolic and not _NOT_SAID.search(lead):
            past = _says_past(lead, _PAST_BEFORE)
            yield "past" if past else "now" if _NOW.search(match[0]) else "plain", lvef


def _graded(match: re.Match[str]) -> Lvef | None:
    """The range that a phrase stands for; None where a grade does not say that function is reduced."""
    grades = [_grade(words) for words in (match["grade"], match["grade2"]) if words]
    is_reduced = bool(match["reduced"]) or bool(re.search("dysfunction|impairment", match["target"]))
    if any(grade in ("mild", "moderate", "severe") for grade in grades) != is_reduced:
        return None
    ranges = [(GRADES | OTHER_WORDS)[grade] for grade in grades]
    return Lvef(min(low for low, _ in ranges), max(high for _, high in ranges), "words")


def _grade(words: str) -> str:
    """The key of GRADES or OTHER_WORDS that the words mean."""
    for grade, forms in _SYNONYMS.items():
        if words.startswith(forms):
            return grade
    return "normal"


_SYNONYMS = {
    "low normal": ("low", "borderline"),
    "preserved": ("preserved",),
    "hyperdynamic": ("hyperdynamic", "supra", "vigorous"),
    "mild": ("mild", "slight"),
    "moderate": ("moderate",),
    "severe": ("severe", "marked", "profound"),
}


# --- hypertrophic cardiomyopathy ---

_KIND = (
    r"(?:obstructive|non-? ?obstructive|apical|septal|mid-? ?(?:cavity|ventricular)|ventricular"
    r"|asymmetric(?:al)?|concentric|familial|and|or|type|variant|dilated|restrictive|end-? ?stage)"
)
_HYPERTROPHIC = r"hyp(?:er|e)-? ?(?:trophic|tropic|tophic|throphic|torphic)"
_MYOPATHY = r"(?:cardio[ -]?my\w{0,3}p(?!last)\w{2,7}|cmp?\b)"
_HCM = re.compile(
    r"\b(?P<non>non-? ?)?(?:"
    r"(?:ap|n|o|no)?-?h(?:n|o|no)?cm\b"
    rf"|{_HYPERTROPHIC}(?:[ ,()/-]{{1,3}}{_KIND}){{0,4}}[ ,()/-]{{1,4}}{_MYOPATHY}"
    rf"|{_MYOPATHY}(?:[ ,()/-]{{1,3}}{_KIND}){{0,2}}[ ,()/-]{{1,3}}{_HYPERTROPHIC}\b)"
)
_RELATIVE = (
    r"(?:mother|father|brother|sister|son|daughter|sibling|parent|uncle|aunt|cousin|grand\w{3,9}|niece|nephew"
    r"|relative|twin)s?"
)


@dataclass(frozen=True)
class _Cue:
    """What takes a mention back: a pattern in its sentence before it, or right behind it."""

    category: str
    name: str
    before: str
    after: str

    def takes_back(self, before: str, after: str) -> bool:
        """Whether it stands in the text before a mention, or opens the text behind it."""
        return bool(re.search(self.before, before) or re.match(rf"[ ,:(-]{{0,3}}(?:{self.after})", after))


_CANNOT = r"\b(?:cannot|can't|can not|could not|unable to|not)(?: entirely| completely| definitely)?(?: be)?"
# In the order in which they count: "family history of possible HCM" is about the family.
_CUES = (
    _Cue(
        "family",
        "family history",
        r"\bfam(?:ily|ilial)?\.? (?:history|hx)\b|\b(?:fh|fhx|fmhx)\b",
        r"in (?:the |his |her )?family\b",
    ),
    _Cue(
        "family",
        "relative",
        rf"\b{_RELATIVE}\b",
        rf"(?:in|of) (?:(?:the|his|her|an?|one|two|patient's) )?(?:\w{{1,8}} )?{_RELATIVE}\b",
    ),
    _Cue(
        "uncertain",
        "cannot be excluded",
        rf"{_CANNOT} (?:exclude|rule out|r/o)",
        rf"[^,]{{0,20}}{_CANNOT} (?:exclud|rule)",
    ),
    _Cue(
        "query",
        "rule out",
        r"\br/o\b|\b(?:rule|ruling) out\b|\bto exclude\b|\bassess for\b|\beval\w{0,7} (?:for|of)\b",
        r"to be (?:ruled out|excluded)\b",
    ),
    _Cue("query", "screening", r"\bscreen(?:ing|ed)?\b", r"screen"),
    _Cue("query", "question mark", r"\? ?$|\bquery\b", r"\?"),
    _Cue(
        "uncertain",
        "possible",
        r"\b(?:possib\w{2,4}|suspect\w{0,4}|suspicio\w{1,4}|question\w{0,5}|concern\w{0,3}|may|might|could"
        r"|differential|ddx|versus|vs)\b",
        r"(?:is |was )?(?:possible|suspected|questionable|vs|versus|in the differential)\b",
    ),
    _Cue(
        "negated",
        "unlikely",
        r"\b(?:unlikely|less likely|doubt\w{0,3}|rather than|against|phenocop(?:y|ies))\b",
        r"[^,]{0,15}\b(?:unlikely|less likely|not likely|not favou?red|doubtful|phenocopy)\b(?! \w)",
    ),
    _Cue(
        "negated",
        "ruled out",
        r"\b(?:ruled out|excluded|excludes)\b",
        r"(?:\w{1,12} ){0,3}(?:ruled out|excluded)\b",
    ),
    _Cue(
        "negated",
        "no",
        r"\b(?:no|not|without|den(?:ies|ied)|negative|absence|absent|free|never|neither|nor|lacks?)\b"
        r"(?! (?:\w{1,12} )?(?:change|increase|only|longer))",
        r"(?:(?:is|was|are) )?(?:not\b|absent|negative|none\b|no\b(?! \w))",
    ),
)
# What a cue before a mention does not reach beyond.
_SCOPE = re.compile(
    r"\b(?:but|however|although|though|except|despite|in the setting of|due to|secondary to"
    r"|patient (?:has|with)|(?:in|with|of) (?:this |an? )?(?:known|patient))\b"
    r"|, (?:consistent|compatible) with\b"
)


def mentions_hcm(text: str, rule: str) -> int:
    """1 where the report has hypertrophic cardiomyopathy by the rule of that name in HCM_RULES, else 0.

    EcglibError for an unknown rule.
    """
    if rule not in HCM_RULES:
        raise EcglibError(f"hcm_rule={rule!r}: must be one of {', '.join(HCM_RULES)}")
    return int(HCM_RULES[rule](text))


def any_mention(text: str) -> bool:
    """Any mention of HCM, with or without a qualifier, also where it is denied (the paper's rule)."""
    return _HCM.search(_normalised(text)) is not None


def negation_aware(text: str) -> bool:
    """At least one mention that is not denied, asked for, doubted or a relative's.

    "Probable", "likely" and "consistent with" count as said; "possible" and "cannot be excluded" do not.
    """
    return any(cue is None for cue in _cues(text))


HCM_RULES: dict[str, Callable[[str], bool]] = {"any_mention": any_mention, "negation_aware": negation_aware}


def disagreements(texts: Iterable[str]) -> pd.DataFrame:
    """Why the two rules disagree: a row for each kind of cue, the commonest first; no text of a report.

    Columns: category (family, query, uncertain, negated), cue (its name here), reports (how many; each counts
    once, at its first mention), percent (of the reports with any mention) and first (the position in `texts`
    of the first such report).
    """
    positions: dict[tuple[str, str], list[int]] = {}
    n_mentioned = 0
    for position, text in enumerate(texts):
        cues = list(_cues(text))
        n_mentioned += bool(cues)
        denied = [cue for cue in cues if cue is not None]
        if denied and len(denied) == len(cues):
            positions.setdefault((denied[0].category, denied[0].name), []).append(position)
    columns = {
        "category": [category for category, _ in positions],
        "cue": [name for _, name in positions],
        "reports": [len(found) for found in positions.values()],
        "percent": [100 * len(found) / n_mentioned for found in positions.values()],
        "first": [found[0] for found in positions.values()],
    }
    order = ["reports", "category", "cue"]
    return pd.DataFrame(columns).sort_values(order, ascending=[False, True, True], ignore_index=True)


def _cues(text: str) -> Iterator[_Cue | None]:
    """What takes each mention of HCM back, None where nothing does; in the order of the report."""
    report = _normalised(text)
    for match in _HCM.finditer(report):
        if match["non"]:
            yield _CUES[-1]
            continue
        before = _SCOPE.split(_before(report, match.start()))[-1]
        after = re.split(r"\b(?:but|with)\b", _after(report, match.end()))[0]
        yield next((cue for cue in _CUES if cue.takes_back(before, after)), None)
