"""Labels on PTB-XL: from SCP codes, infarction stages and reports to 0 and 1, each by a rule with a name.

PTB-XL (Wagner et al., doi 10.13026/x4td-x982) has no code for STEMI, and the paper does not say what it took
for one. Six candidates follow. The two named after the paper come near its prevalence (5.59 and 5.53 % where
it prints 5.7 for fine-tuning, 5.40 and 5.45 % where it prints 5.4 for test) but are not acute STEMI; the two
acute ones are nearer to STEMI but rarer.
"""

import ast
import inspect
import math
from collections.abc import Callable, Set
from dataclasses import dataclass

import pandas as pd

from ecglib.errors import EcglibError

# Ischaemia with a site: anterolateral, inferior, inferolateral, anteroseptal, lateral, anterior.
SITED_ISCHAEMIA = frozenset({"ISCAL", "ISCIN", "ISCIL", "ISCAS", "ISCLA", "ISCAN"})
# Subendocardial injury (ST depression), although PTB-XL puts it into the class of infarctions.
INJURY = frozenset({"INJAS", "INJAL", "INJIN", "INJLA", "INJIL"})
ST_ELEVATION = frozenset({"STE_"})
CERTAIN = 100.0  # likelihood, %
ELEVATION_WORDS = "hebung|elevat"  # German and English


def parse_scp_codes(text: str) -> dict[str, float]:
    """Codes and their likelihoods in %, from PTB-XL's text "{'NORM': 100.0, 'SR': 0.0}"; 0 means not stated.

    EcglibError for any other text.
    """
    try:
        codes = ast.literal_eval(text)
        return {str(code): _likelihood(value) for code, value in codes.items()}
    except (ValueError, TypeError, SyntaxError, AttributeError, MemoryError, RecursionError) as error:
        raise EcglibError(
            f"scp_codes {text!r:.80}: must read like {{'NORM': 100.0}}; get the table from PhysioNet again"
        ) from error


def _likelihood(value: float) -> float:
    likelihood = float(value)
    if not math.isfinite(likelihood):
        raise ValueError(value)
    return likelihood


def paper_prevalence(table: pd.DataFrame, scp_statements: pd.DataFrame) -> pd.Series:
    """Certain ischaemia with a site, or certain injury: 5.55 %, near the paper's, but seldom ST elevation."""
    return _has_code(table, SITED_ISCHAEMIA | INJURY, at_least=CERTAIN)


def paper_prevalence_stage(table: pd.DataFrame, scp_statements: pd.DataFrame) -> pd.Series:
    """Infarction stage I, I-II, II or II-III: 5.51 %, mostly reported as old or probably old."""
    return _has_stage(table, "I", "I-II", "II", "II-III")


def acute_clinical(table: pd.DataFrame, scp_statements: pd.DataFrame) -> pd.Series:
    """Injury, ST elevation or infarction stage I, I-II or II: 2.76 %."""
    return _has_code(table, INJURY | ST_ELEVATION) | _has_stage(table, "I", "I-II", "II")


def acute_strict(table: pd.DataFrame, scp_statements: pd.DataFrame) -> pd.Series:
    """Infarction stage I or I-II: 0.78 %."""
    return _has_stage(table, "I", "I-II")


def report_st_elevation(table: pd.DataFrame, scp_statements: pd.DataFrame) -> pd.Series:
    """The report's words or a code say ST elevation, of whatever cause: 2.13 %."""
    said = table["report"].fillna("").str.contains(ELEVATION_WORDS, case=False, regex=True)
    return said | _has_code(table, ST_ELEVATION)


def any_infarction(table: pd.DataFrame, scp_statements: pd.DataFrame) -> pd.Series:
    """Any code of the diagnostic class MI, acute or old, certain or not: 25.1 %."""
    codes = frozenset(scp_statements.index[scp_statements["diagnostic_class"] == "MI"])
    if not codes:
        raise EcglibError(
            "scp_statements.csv: no code of diagnostic_class MI; get the table from PhysioNet again"
        )
    return _has_code(table, codes)


STEMI_DEFINITIONS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], pd.Series]] = {
    "paper_prevalence": paper_prevalence,
    "paper_prevalence_stage": paper_prevalence_stage,
    "acute_clinical": acute_clinical,
    "acute_strict": acute_strict,
    "report_st_elevation": report_st_elevation,
    "mi_any": any_infarction,
}


@dataclass(frozen=True, kw_only=True)
class LabSettings:
    """What the label lab looks at closely."""

    definition: str = ""  # a definition of the page's first table; empty: the one the study is run with


def rule_words(definition: str) -> str:
    """What a definition of STEMI asks of an ECG, without a full stop."""
    return str(inspect.getdoc(STEMI_DEFINITIONS[definition])).split(":")[0]


def stemi_label(table: pd.DataFrame, scp_statements: pd.DataFrame, definition: str) -> pd.Series:
    """0 or 1 (int8) for each row of PTB-XL's table, by the definition of that name.

    `table` has scp_codes (text), infarction_stadium1, infarction_stadium2 and report; `scp_statements` has
    the codes as its index and diagnostic_class. EcglibError for an unknown definition.
    """
    if definition not in STEMI_DEFINITIONS:
        raise EcglibError(f"stemi_definition={definition!r}: must be one of {', '.join(STEMI_DEFINITIONS)}")
    return STEMI_DEFINITIONS[definition](table, scp_statements).astype("int8").rename("stemi")


def stemi_labels(table: pd.DataFrame, scp_statements: pd.DataFrame) -> dict[str, pd.Series]:
    """`stemi_label` by every definition."""
    return {name: stemi_label(table, scp_statements, name) for name in STEMI_DEFINITIONS}


def mi_any(table: pd.DataFrame, scp_statements: pd.DataFrame) -> pd.Series:
    """0 or 1 (int8) for each row: any myocardial infarction, acute or old."""
    return any_infarction(table, scp_statements).astype("int8").rename("mi_any")


def normal(table: pd.DataFrame) -> pd.Series:
    """0 or 1 (int8) for each row: the code for a normal ECG, NORM, at any likelihood."""
    return _has_code(table, frozenset({"NORM"})).astype("int8").rename("normal")


def _has_code(table: pd.DataFrame, codes: Set[str], at_least: float = 0.0) -> pd.Series:
    """Rows with any of `codes` at a likelihood (%) of at least `at_least`."""
    # Many rows have the same text: each text is parsed once.
    verdicts = {
        text: any(code in codes and value >= at_least for code, value in parse_scp_codes(text).items())
        for text in table["scp_codes"].unique()
    }
    return pd.Series([verdicts[text] for text in table["scp_codes"]], index=table.index, dtype=bool)


def _has_stage(table: pd.DataFrame, *stages: str) -> pd.Series:
    """Rows whose first or second infarction has one of the stages."""
    names = [f"Stadium {stage}" for stage in stages]
    return table["infarction_stadium1"].isin(names) | table["infarction_stadium2"].isin(names)
