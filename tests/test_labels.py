"""Labels on PTB-XL: the counts of the real table, and the rules on small tables made by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupShuffleSplit

from ecglib.errors import EcglibError
from ecglib.labels import STEMI_DEFINITIONS, mi_any, parse_scp_codes, stemi_label

# Definition: records, % of all, % of train and % of test of the split with seed 42, on the 21,799 of 1.0.3.
COUNTS = {
    "paper_prevalence": (1210, 5.55, 5.59, 5.40),
    "paper_prevalence_stage": (1202, 5.51, 5.53, 5.45),
    "acute_clinical": (602, 2.76, 2.76, 2.78),
    "acute_strict": (171, 0.78, 0.81, 0.69),
    "report_st_elevation": (464, 2.13, 2.20, 1.84),
    "mi_any": (5472, 25.10, 25.12, 25.02),
}
STATEMENTS = pd.DataFrame(
    {"diagnostic_class": ["NORM", "MI", "MI", "MI", "STTC", np.nan]},
    index=pd.Index(["NORM", "AMI", "INJAS", "IMI", "ISCAL", "STE_"]),
)


@pytest.fixture(scope="module")
def table_103(ptbxl_table: pd.DataFrame, shared_data: Path) -> pd.DataFrame:
    removed = (shared_data / "ptb-xl" / "ids_removed_in_1.0.3.txt").read_text().split()
    return ptbxl_table.drop(index=[int(ecg_id) for ecg_id in removed])


@pytest.fixture(scope="module")
def statements(shared_data: Path) -> pd.DataFrame:
    return pd.read_csv(shared_data / "ptb-xl" / "scp_statements.csv", index_col=0)


def row(
    codes: str = "{}", stage1: object = np.nan, stage2: object = np.nan, report: object = ""
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "scp_codes": [codes],
            "infarction_stadium1": [stage1],
            "infarction_stadium2": [stage2],
            "report": [report],
        }
    )


def positive_definitions(table: pd.DataFrame) -> set[str]:
    return {name for name in STEMI_DEFINITIONS if stemi_label(table, STATEMENTS, name).item() == 1}


def test_there_are_exactly_the_six_definitions() -> None:
    assert set(STEMI_DEFINITIONS) == set(COUNTS)


@pytest.mark.parametrize("definition", COUNTS)
def test_definition_has_its_known_counts_on_ptbxl(
    definition: str, table_103: pd.DataFrame, statements: pd.DataFrame
) -> None:
    label = stemi_label(table_103, statements, definition)
    splitter = GroupShuffleSplit(n_splits=1, test_size=0.2, random_state=42)
    train, test = next(splitter.split(label, groups=table_103.patient_id))
    shares = [100 * label.mean(), 100 * label.iloc[train].mean(), 100 * label.iloc[test].mean()]
    n, *known = COUNTS[definition]
    assert (len(table_103), len(train), len(test)) == (21799, 17447, 4352)
    assert label.sum() == n
    np.testing.assert_allclose(shares, known, atol=0.005001)  # known to two decimals
    assert label.dtype == np.int8
    assert set(label.unique()) == {0, 1}
    assert label.index.equals(table_103.index)


def test_mi_any_equals_the_definition_of_that_name(table_103: pd.DataFrame, statements: pd.DataFrame) -> None:
    assert mi_any(table_103, statements).eq(stemi_label(table_103, statements, "mi_any")).all()


def test_stages_grow_from_strict_to_paper_prevalence(
    table_103: pd.DataFrame, statements: pd.DataFrame
) -> None:
    strict, acute, stage = (
        stemi_label(table_103, statements, name)
        for name in ("acute_strict", "acute_clinical", "paper_prevalence_stage")
    )
    assert (strict <= acute).all()
    assert (strict <= stage).all()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (row("{'NORM': 100.0, 'SR': 0.0}"), set()),
        (row("{'ISCAL': 100.0}"), {"paper_prevalence"}),
        (row("{'ISCAL': 50.0}"), set()),
        (row("{'INJAS': 100.0}"), {"paper_prevalence", "acute_clinical", "mi_any"}),
        (row("{'INJAS': 0.0}"), {"acute_clinical", "mi_any"}),
        (row("{'ISC_': 100.0, 'NST_': 100.0}"), set()),
        (row("{'STE_': 0.0}"), {"acute_clinical", "report_st_elevation"}),
        (row("{'AMI': 15.0}"), {"mi_any"}),
        (row(stage1="Stadium I"), {"acute_strict", "acute_clinical", "paper_prevalence_stage"}),
        (row(stage2="Stadium I-II"), {"acute_strict", "acute_clinical", "paper_prevalence_stage"}),
        (row(stage1="Stadium II"), {"acute_clinical", "paper_prevalence_stage"}),
        (row(stage1="Stadium II-III"), {"paper_prevalence_stage"}),
        (row(stage1="Stadium III", stage2="unknown"), set()),
        (row(report="ST-HEBUNG in V2"), {"report_st_elevation"}),
        (row(report="st elevation, probably normal"), {"report_st_elevation"}),
        (row(report=np.nan), set()),
    ],
)
def test_rules_on_single_rows(table: pd.DataFrame, expected: set[str]) -> None:
    assert positive_definitions(table) == expected


@given(
    st.dictionaries(st.text("ABCISTE_", min_size=1, max_size=6), st.sampled_from([0.0, 15.0, 35.0, 100.0]))
)
def test_scp_codes_survive_being_written_and_read(codes: dict[str, float]) -> None:
    assert parse_scp_codes(str(codes)) == codes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "{'NORM': 100.0",
        "['NORM']",
        "{'NORM': 'much'}",
        "{'NORM': None}",
        "{'NORM': 1e999}",
        "__import__('os')",
        "(" * 9999,
    ],
)
def test_text_that_is_no_dictionary_of_likelihoods_is_refused(text: str) -> None:
    with pytest.raises(EcglibError, match="scp_codes") as caught:
        parse_scp_codes(text)
    assert len(str(caught.value)) < 200


def test_unknown_definition_names_the_known_ones() -> None:
    with pytest.raises(EcglibError, match=r"'stemi'.*acute_strict"):
        stemi_label(row(), STATEMENTS, "stemi")


def test_statements_without_infarction_codes_are_refused() -> None:
    with pytest.raises(EcglibError, match="diagnostic_class MI"):
        mi_any(row(), STATEMENTS.loc[["NORM", "ISCAL"]])
