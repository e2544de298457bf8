"""A hospital's table of labels: a CSV whose rows name patients or ECGs, read into 0, 1 or not known.

Its messages name columns and rows, never what stands in them: reports and ids stay in the table.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from ecglib.cohort import N_FOLDS
from ecglib.errors import EcglibError
from ecglib.pseudonyms import Pseudonyms
from ecglib.reports import LVEF_THRESHOLD, low_lvef, mentions_hcm, read_lvef

# Each outcome's columns; where the first says nothing, the next is asked.
SOURCES: Mapping[str, Mapping[str, str]] = {
    "low_lvef": {
        "low_lvef": "column low_lvef",
        "lvef": f"column lvef: at most {LVEF_THRESHOLD} %",
        "echo_report": f"echo report: ejection fraction at most {LVEF_THRESHOLD} %",
    },
    "hcm": {"hcm": "column hcm", "echo_report": "echo report: {hcm_rule}"},
    "stemi": {"stemi": "column stemi"},
}
SEXES = {"male": "male", "m": "male", "female": "female", "f": "female", "unknown": None}
MAX_AGE = 120
_FIRST_ROW = 2  # as a spreadsheet counts: the heading is row 1


@dataclass(frozen=True)
class LabelTable:
    """Labels of ECGs (index: record_id) and of patients (index: patient_id), all ids pseudonyms.

    Columns of both: row (in the CSV), patient_id, site, sex (str or missing), external, strat_fold, age and
    the outcomes (float, NaN where not known). origins: where each outcome comes from, in words.
    """

    by_record: pd.DataFrame
    by_patient: pd.DataFrame
    origins: dict[str, str]


def read_label_table(path: Path, hcm_rule: str, pseudonyms: Pseudonyms) -> LabelTable:
    """Read the table: column patient_id, a column for at least one outcome, all others optional.

    Raises EcglibError for a missing column, a value outside its range and contradictory rows.
    """
    table = _read_csv(path)
    origins = _origins(table, hcm_rule)
    if "patient_id" not in table or not origins:
        needed = list(dict.fromkeys(name for names in SOURCES.values() for name in names))
        lack = "no column patient_id" if "patient_id" not in table else f"none of {', '.join(needed)}"
        raise EcglibError(f"{path}: has {lack}; add a column with this heading")
    values = _ids(table, pseudonyms, path)
    readers = _readers(hcm_rule)
    values["site"] = _column(table, "site").replace("", None)
    values["sex"] = _parse(_column(table, "sex"), readers["sex"], path)
    for name in ("external", "strat_fold", "age"):
        values[name] = _parse(_column(table, name), readers[name], path).astype(float)
    for outcome in origins:
        values[outcome] = np.nan
        for name in (name for name in SOURCES[outcome] if name in table):
            reader = readers.get(f"{outcome} {name}") or readers[name]
            read = _parse(_column(table, name), reader, path)
            values[outcome] = values[outcome].fillna(read.astype(float))
    is_record, known = values.record_id.notna(), values.dropna(axis=1, how="all")
    return LabelTable(
        _one_a_unit(values.loc[is_record], "record_id", origins, path),
        _one_a_unit(values.loc[~is_record], "patient_id", origins, path),
        {outcome: origin for outcome, origin in origins.items() if outcome in known},
    )


def _origins(table: pd.DataFrame, hcm_rule: str) -> dict[str, str]:
    origins = {}
    for outcome, names in SOURCES.items():
        texts = [text.format(hcm_rule=hcm_rule) for name, text in names.items() if name in table]
        if texts:
            origins[outcome] = ", else ".join(texts)
    return origins


def _ids(table: pd.DataFrame, pseudonyms: Pseudonyms, path: Path) -> pd.DataFrame:
    """Columns row, patient_id and record_id (missing where the row names no file), as pseudonyms."""
    empty = table.index[table.patient_id == ""]
    if len(empty):
        raise EcglibError(f"{path}: row {empty[0]} has no patient_id; add it or drop the row")
    files = [str(PurePosixPath(text.replace("\\", "/"))) if text else "" for text in _column(table, "file")]
    return pd.DataFrame(
        {
            "row": table.index,
            "patient_id": [pseudonyms.of("patient", text) for text in table.patient_id],
            "record_id": [pseudonyms.of("file", file) if file else None for file in files],
        },
        index=table.index,
    )


def _read_csv(path: Path) -> pd.DataFrame:
    """All cells as text without blanks around it, "" where empty; the index counts as a spreadsheet does."""
    if not path.is_file():
        raise EcglibError(f"{path}: no such table; name a CSV file with --table")
    try:
        with open(path, encoding="utf-8-sig") as stream:
            heading = stream.readline()
        separator = max(",;\t", key=heading.count)
        table = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    except UnicodeDecodeError:
        raise EcglibError(f"{path}: its text is not UTF-8; save it as CSV in UTF-8") from None
    except (ValueError, OSError):  # pandas' own errors are ValueErrors; they may quote the table
        raise EcglibError(f"{path}: not a CSV table with one heading; save it as CSV again") from None
    if table.empty:
        raise EcglibError(f"{path}: holds no row; give one for each patient or ECG")
    table.columns = [str(name).strip().lower() for name in table]
    if not table.columns.is_unique:
        raise EcglibError(f"{path}: two columns have the same name; name each once")
    table.index = pd.RangeIndex(_FIRST_ROW, _FIRST_ROW + len(table))
    return pd.DataFrame({name: table[name].fillna("").str.strip() for name in table})


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    return table.loc[:, name] if name in table else pd.Series("", table.index, name=name)


# --- cells ---

Reader = Callable[[str], object]  # raises ValueError with the rule where a text breaks it


def _readers(hcm_rule: str) -> dict[str, Reader]:
    """How the text of a column, not empty, is read; `outcome column` where it depends on the outcome."""
    return {
        **dict.fromkeys(("low_lvef", "hcm", "stemi", "external"), _flag),
        "lvef": _lvef,
        "low_lvef echo_report": low_lvef,
        "hcm echo_report": lambda text: int(mentions_hcm(text, hcm_rule)),
        "strat_fold": lambda text: _number(
            text, 1, N_FOLDS, f"a whole number from 1 to {N_FOLDS}", whole=True
        ),
        "age": lambda text: _number(text, 0, MAX_AGE, f"a number of years from 0 to {MAX_AGE}"),
        "sex": _sex,
    }


def _parse(column: pd.Series, reader: Reader, path: Path) -> pd.Series:
    """Read each different text once; empty cells are missing."""
    read: dict[str, object] = {"": None}
    for row, text in column.items():
        if text not in read:
            try:
                read[text] = reader(text)
            except (ValueError, EcglibError) as error:
                rule = f"must be {error}" if isinstance(error, ValueError) else "cannot be read"
                raise EcglibError(
                    f"{path}: row {row}: {column.name} {rule}; mend it or leave it empty"
                ) from None
    return column.map(read)


def _flag(text: str) -> int:
    return int(_number(text, 0, 1, "0 or 1", whole=True))


def _number(text: str, low: float, high: float, rule: str, whole: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(rule) from None
    if not low <= value <= high or (whole and value % 1):
        raise ValueError(rule)
    return value


def _lvef(text: str) -> int | None:
    """Whether a value, a bound or words ("35", "30-35 %", "> 55", "severely reduced") are a low LVEF."""
    found = read_lvef(text) or read_lvef(f"LVEF {text}")
    if found is None:
        raise ValueError("an ejection fraction in %, such as 35, 30-35 or > 55")
    return low_lvef(found)


def _sex(text: str) -> str | None:
    if text.lower() not in SEXES:
        raise ValueError("male or female")
    return SEXES[text.lower()]


# --- rows ---


def _one_a_unit(values: pd.DataFrame, unit: str, outcomes: Iterable[str], path: Path) -> pd.DataFrame:
    """One row for each ECG or patient; what one row leaves open, another may say, but none may differ."""
    values = values.set_index(unit, drop=False).rename_axis(None)
    for name in ("patient_id", "site", "external", "strat_fold", *outcomes):
        differs = values.groupby(level=0)[name].nunique() > 1
        if differs.any():
            first, second = values.loc[[differs.idxmax()]].dropna(subset=[name]).drop_duplicates(name).row[:2]
            what = {"record_id": "ECG", "patient_id": "patient"}[unit]
            raise EcglibError(
                f"{path}: rows {first} and {second} are of one {what} but differ in {name}; keep one"
            )
    return values.groupby(level=0, sort=False).first()
