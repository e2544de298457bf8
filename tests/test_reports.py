"""Labels from echo reports: a table of snippets written by hand, and laws."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecglib.errors import EcglibError
from ecglib.reports import HCM_RULES, LVEF_THRESHOLD, Lvef, disagreements, low_lvef, mentions_hcm, read_lvef

# Text, low and high in %, how, low_lvef; None where nothing is stated.
LVEF_SNIPPETS = [
    # a value
    ("LVEF 35 %", 35, 35, "value", 1),
    ("EF: 55", 55, 55, "value", 0),
    ("EF = 40%", 40, 40, "value", 1),
    ("LVEF of 40.5 %", 40.5, 40.5, "value", 0),
    ("LVEF 37,5 %", 37.5, 37.5, "value", 1),
    ("ejection fraction is estimated at 60%", 60, 60, "value", 0),
    ("The left ventricular ejection\nfraction is 45 percent.", 45, 45, "value", 0),
    ("Left ventricular ejec-\ntion fraction by visual estimate is 25%", 25, 25, "value", 1),
    ("EF (biplane Simpson's method): 31 %", 31, 31, "value", 1),
    ("LVEF by 3D volumetric is 52%", 52, 52, "value", 0),
    ("EF(MOD-bp) 38.4 %", 38.4, 38.4, "value", 1),
    ("LV EF ~ 30%", 30, 30, "value", 1),
    ("LVEF 0.35", 35, 35, "value", 1),
    ("There is a 35% ejection fraction.", 35, 35, "value", 1),
    ("LVEF\u00a0=\u00a028\u00a0%", 28, 28, "value", 1),
    ("LVEF 35 +/- 5 %", 35, 35, "value", 1),
    ("LVEF is moderately reduced at 33%", 33, 33, "value", 1),
    ("LVEF 35% (normal 52-72%)", 35, 35, "value", 1),
    ("LVEF (normal >55%): 30%", 30, 30, "value", 1),
    ("LVEF (>55%): 30%", 30, 30, "value", 1),
    ("LVEF approx. 40%", 40, 40, "value", 1),
    ("EF Biplane: 42.3 %  EF A4C: 40 %", 42.3, 42.3, "value", 0),
    # a range
    ("LV ejection fraction, by estimation, is 30 to 35%.", 30, 35, "range", 1),
    ("LVEF 35-40 %", 35, 40, "range", 1),
    ("EF 35 to 40", 35, 40, "range", 1),
    ("LVEF 35%\u201340%", 35, 40, "range", 1),
    ("LVEF is between 55 and 60 %", 55, 60, "range", 0),
    ("ejection fraction in the range of 40-45%", 40, 45, "range", 0),
    ("EF ranges from 50 to 55 %", 50, 55, "range", 0),
    ("LVEF 35-45 %", 35, 45, "range", 1),
    ("visually estimated 55-60% EF", 55, 60, "range", 0),
    # a bound
    ("LVEF <= 20 %", 0, 20, "bound", 1),
    ("LVEF \u2264 20 %", 0, 20, "bound", 1),
    ("EF less than 20%", 0, 20, "bound", 1),
    ("LVEF >70%", 70, 100, "bound", 0),
    ("EF is greater than or equal to 55 %", 55, 100, "bound", 0),
    ("EF at least 40%", 40, 100, "bound", 0),
    ("EF < 40%", 0, 40, "bound", 1),
    ("EF below 50 %", 0, 50, "bound", None),
    ("EF > 35 %", 35, 100, "bound", None),
    ("EF 55+%", 55, 100, "bound", 0),
    # words
    ("severely reduced left ventricular function", 0, 30, "words", 1),
    ("Moderately depressed LV systolic function.", 30, 40, "words", 1),
    ("LV systolic function is mildly reduced", 41, 53, "words", 0),
    ("Mild to moderately reduced LVEF", 30, 53, "words", 0),
    ("moderate-to-severe global LV systolic dysfunction", 0, 40, "words", 1),
    ("normal LV systolic function", 52, 74, "words", 0),
    ("Normal left ventricular size, wall thickness and systolic function", 52, 74, "words", 0),
    ("Normal LV size with severely reduced systolic function", 0, 30, "words", 1),
    ("The left ventricle is normal in size and function.", 52, 74, "words", 0),
    ("LV function: preserved", 50, 74, "words", 0),
    ("Low-normal ejection fraction", 50, 54, "words", 0),
    ("Hyperdynamic LV function", 74, 100, "words", 0),
    ("LV dysfunction, severe", 0, 30, "words", 1),
    ("Biventricular systolic function is normal", 52, 74, "words", 0),
    ("RV function normal. LV function severely impaired.", 0, 30, "words", 1),
    ("Systolic function was severely reduced.", 0, 30, "words", 1),
    ("Normal left and right ventricular function", 52, 74, "words", 0),
    # a number beats words
    ("Severely reduced LV function. LVEF 45%", 45, 45, "value", 0),
    # the past and the present
    ("LVEF previously 55 %, now 35 %", 35, 35, "value", 1),
    ("LVEF 35%, previously 55%", 35, 35, "value", 1),
    ("LVEF 35 % (was 55 %)", 35, 35, "value", 1),
    ("LVEF 55% previously, 35% now", 35, 35, "value", 1),
    ("LVEF was 55% on the prior study and is 35% today", 35, 35, "value", 1),
    ("LVEF has decreased from 55% to 35%", 35, 35, "value", 1),
    ("EF improved from 25-30% to 50-55%", 50, 55, "range", 0),
    ("EF improved to 45% from 30%", 45, 45, "value", 0),
    ("EF went from 55 to 35%", 35, 35, "value", 1),
    ("Compared to the prior study (EF 55%), the EF is now 35%", 35, 35, "value", 1),
    ("Compared to the prior study, the LVEF has decreased to 35%", 35, 35, "value", 1),
    ("LVEF is unchanged from the prior study, 55%", 55, 55, "value", 0),
    ("Indication: cardiomyopathy, EF 20%\nFindings: LVEF 50%", 50, 50, "value", 0),
    ("EF has improved (35% -> 50%)", 50, 50, "value", 0),
    ("EF 55 % \u2192 35 %", 35, 35, "value", 1),
    ("Ejection fraction has fallen since the previous study, now 25%", 25, 25, "value", 1),
    ("Prior EF 55%. EF 35%.", 35, 35, "value", 1),
    ("EF was 55% in 2015. LVEF 38%", 38, 38, "value", 1),
    ("Previously normal LV function. Severely reduced LV systolic function.", 0, 30, "words", 1),
    # another chamber, another measure
    ("RVEF 30%, LVEF 60%", 60, 60, "value", 0),
    ("RV ejection fraction 35 %. LV ejection fraction 58 %", 58, 58, "value", 0),
    ("FS 30 % EF 55 %", 55, 55, "value", 0),
    ("LVEF normal, fractional shortening 30%", 52, 74, "words", 0),
]
NO_LVEF = [
    "",
    "Trace mitral regurgitation",
    "RVEF 35 %",
    "right ventricular ejection fraction is 40%",
    "LA EF 40%",
    "Left atrial ejection fraction 30 %",
    "Fractional shortening 28 %",
    "EF slope 80 mm/s",
    "E-F slope 35",
    "prior EF 55%",
    "EF was 55 % in 2015",
    "EF 10/12/2020",
    "EF 350",
    "LVEF could not be assessed; IVS 12 mm",
    "LVEF not measured, septum 12 mm",
    "No LV systolic dysfunction",
    "reduced LV function",
    "LV systolic function is not severely reduced",
    "Mild LV diastolic dysfunction",
    "Normal LV size",
    "Right ventricular systolic function is severely reduced",
    "heart failure with preserved ejection fraction",
    "Nearly normal LV function",
    "Left ventricular hypertrophy, 40 % stenosis of the LAD",
]
# Text, any_mention, negation_aware.
HCM_SNIPPETS = [
    ("HCM", 1, 1),
    ("Findings consistent with HOCM.", 1, 1),
    ("hypertrophic cardiomyopathy", 1, 1),
    ("Hypertrophic obstructive cardiomyopathy with SAM", 1, 1),
    ("hypertrophic (obstructive) cardiomyopathy", 1, 1),
    ("hypertrophic, non-obstructive cardiomyopathy", 1, 1),
    ("hypertrophic nonobstructive cardiomyopathy", 1, 1),
    ("hypertrophic cardiomyopathy without obstruction", 1, 1),
    ("HCM, no LVOT gradient at rest", 1, 1),
    ("Apical HCM (Yamaguchi)", 1, 1),
    ("apical hypertrophic cardiomyopathy", 1, 1),
    ("asymmetric septal hypertrophic cardio-myopathy", 1, 1),
    ("hypertro-\nphic cardiomyo-\npathy", 1, 1),
    ("hypertrophic\ncardiomyopathy", 1, 1),
    ("hypertropic cardiomyopthy", 1, 1),
    ("hyper-trophic cardio myopathy", 1, 1),
    ("Cardiomyopathy, hypertrophic, obstructive", 1, 1),
    ("hypertrophic CMP", 1, 1),
    ("Familial hypertrophic cardiomyopathy", 1, 1),
    ("History of HCM s/p myectomy", 1, 1),
    ("probable HCM", 1, 1),
    ("No LVOT obstruction in known HCM", 1, 1),
    ("No pericardial effusion. HCM with apical aneurysm.", 1, 1),
    ("No interval change in HCM", 1, 1),
    ("No evidence of HCM in 2010, but now HCM", 1, 1),
    ("Brother with HCM. The patient has HCM as well.", 1, 1),
    ("HCM, unlikely amyloid", 1, 1),
    ("Known HCM, evaluate for obstruction", 1, 1),
    ("no evidence of HCM", 1, 0),
    ("The HCM diagnosis was excluded", 1, 0),
    ("phenocopy of HCM", 1, 0),
    ("LVH, cannot r/o HCM", 1, 0),
    ("No echocardiographic features to\nsuggest hypertrophic cardiomyopathy", 1, 0),
    ("No LVH, HCM or amyloidosis", 1, 0),
    ("HCM ruled out", 1, 0),
    ("HCM is not present", 1, 0),
    ("HCM: no", 1, 0),
    ("non-HCM", 1, 0),
    ("HCM is unlikely", 1, 0),
    ("athlete's heart rather than HCM", 1, 0),
    ("rule out HCM", 1, 0),
    ("Indication: r/o HOCM", 1, 0),
    ("screening for hypertrophic cardiomyopathy", 1, 0),
    ("?HCM", 1, 0),
    ("HCM?", 1, 0),
    ("possible HCM", 1, 0),
    ("HCM cannot be excluded", 1, 0),
    ("Cannot exclude HCM", 1, 0),
    ("HCM versus hypertensive heart disease", 1, 0),
    ("family history of HCM", 1, 0),
    ("No family history of HCM", 1, 0),
    ("FHx: HCM", 1, 0),
    ("brother with HOCM", 1, 0),
    ("HCM in his father", 1, 0),
    ("left ventricular hypertrophy", 0, 0),
    ("dilated cardiomyopathy", 0, 0),
    ("hypertrophic septum. Ischemic cardiomyopathy.", 0, 0),
    ("cardiomyoplasty, hypertrophic scar", 0, 0),
    ("hypertrophied papillary muscles", 0, 0),
    ("", 0, 0),
]
WORDS = st.sampled_from(
    [
        *(
            "LVEF",
            "EF",
            "35",
            "40%",
            "-",
            "to",
            "from",
            "now",
            "prior",
            "no",
            "HCM",
            "?",
            ".",
            "normal",
            "LV",
            "<",
        ),
        *(
            "function",
            "hypertrophic",
            "cardiomyopathy",
            "r/o",
            "severely",
            "reduced",
            "ejection",
            "fraction",
            "(",
        ),
    ]
)


@pytest.mark.parametrize(("text", "low", "high", "how", "label"), LVEF_SNIPPETS)
def test_lvef_is_read_as_a_reader_would(
    text: str, low: float, high: float, how: str, label: int | None
) -> None:
    lvef = read_lvef(text)
    assert lvef is not None
    assert (lvef.low, lvef.high, lvef.how) == (low, high, how)
    assert low_lvef(text) == low_lvef(lvef) == label


@pytest.mark.parametrize("text", NO_LVEF)
def test_what_is_no_current_lvef_is_not_read_as_one(text: str) -> None:
    assert read_lvef(text) is None
    assert low_lvef(text) is None


@pytest.mark.parametrize(("text", "mentioned", "affirmed"), HCM_SNIPPETS)
def test_the_two_rules_for_hcm(text: str, mentioned: int, affirmed: int) -> None:
    assert mentions_hcm(text, "any_mention") == mentioned
    assert mentions_hcm(text, "negation_aware") == affirmed


def test_low_lvef_of_a_value_has_its_edge_at_the_papers_threshold() -> None:
    assert LVEF_THRESHOLD == 40
    assert [low_lvef(value) for value in (0, 40.0, 40.1, 100)] == [1, 1, 0, 0]
    assert low_lvef(float("nan")) is None
    assert low_lvef(None) is None


@pytest.mark.parametrize("value", [-1, 100.5, float("inf")])
def test_a_value_that_is_no_percentage_is_refused(value: float) -> None:
    with pytest.raises(EcglibError, match="between 0 and 100"):
        low_lvef(value)


def test_an_unknown_rule_for_hcm_is_refused() -> None:
    with pytest.raises(EcglibError, match="any_mention, negation_aware"):
        mentions_hcm("HCM", "paper")


def test_disagreements_are_counted_by_reason_and_tell_no_text() -> None:
    texts = ["no HCM", "HCM", "mother has HCM", "no evidence of HOCM", "no effusion", "r/o HCM, no HCM seen"]
    table = disagreements(texts)
    assert list(table.category) == ["negated", "family", "query"]
    assert list(table.cue) == ["no", "relative", "rule out"]
    assert list(table.reports) == [2, 1, 1]
    assert list(table.percent) == [40, 20, 20]
    assert list(table["first"]) == [0, 2, 5]


def test_reports_without_a_mention_give_an_empty_table() -> None:
    table = disagreements(["", "normal study"])
    assert table.empty
    assert list(table.columns) == ["category", "cue", "reports", "percent", "first"]


@given(st.lists(WORDS, max_size=30).map(" ".join))
def test_disagreements_count_what_the_two_rules_make_of_each_report(text: str) -> None:
    differ = mentions_hcm(text, "any_mention") - mentions_hcm(text, "negation_aware")
    assert differ in (0, 1)
    assert disagreements([text]).reports.sum() == differ


@given(st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=40).map(" ".join)))
def test_any_text_can_be_read(text: str) -> None:
    lvef = read_lvef(text)
    assert lvef is None or 0 <= lvef.low <= lvef.high <= 100
    assert low_lvef(text) in (None, 0, 1)
    assert all(mentions_hcm(text, rule) in (0, 1) for rule in HCM_RULES)


@given(
    st.integers(0, 1000), st.sampled_from(["LVEF {} %", "EF is {}%.", "Ejection fraction: {} percent, MR"])
)
def test_a_written_value_is_read_back(tenths: int, form: str) -> None:
    value = tenths / 10
    assert read_lvef(form.format(value)) == Lvef(value, value, "value")


@given(st.integers(0, 99), st.integers(1, 20), st.sampled_from(["-", " - ", " to ", "\u2013", "%-"]))
def test_a_written_range_is_read_back(low: int, width: int, joint: str) -> None:
    high = min(low + width, 100)
    assert read_lvef(f"LVEF {low}{joint}{high} %") == Lvef(low, high, "range")


PIECES = (
    *("EF ", "no HCM ", "LVEF 35 to ", "9", "35% ", "severely ", "LV and size ", "a-\n", "\n", "(", "\ufdfa"),
    *(
        "previously EF from ",
        "hypertrophic, or and ",
        "hypertrophic cardio",
        "left ventricular ",
        "normal LV, ",
    ),
)


@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_of_hostile_text_takes_less_than_a_second(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    read_lvef(text)
    mentions_hcm(text, "any_mention")
    mentions_hcm(text, "negation_aware")
    assert time.process_time() - start < 1
