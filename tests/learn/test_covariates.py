"""What a table says beside labels: texts, values, and the laws of the columns that networks get."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.core.errors import SpecError, TableError, UsageError
from histotl.learn.config import TrainConfig
from histotl.learn.covariate_specs import Covariate, parse_covariate, parse_covariates
from histotl.learn.covariate_values import CovariateValues, read_values, refuse_answers, unknown_values
from histotl.learn.covariates import NO_COVARIATES, CovariateEncoder, encoder_from_list, fit_covariates
from histotl.learn.task import parse_task

AGE = Covariate(name="age")
SITE = Covariate(name="site", kind="category")
SEX = Covariate(name="sex", kind="category", fusion="film")
ALL = (AGE, SEX, SITE)


def table(n: int = 12, seed: int = 0) -> pd.DataFrame:
    """Ages with gaps, three sites with gaps, both sexes."""
    rng = np.random.default_rng(seed)
    ages = [None if i % 5 == 4 else str(round(float(rng.normal(60, 12)), 1)) for i in range(n)]
    sites = [None if i % 7 == 3 else "ABC"[i % 3] for i in range(n)]
    return pd.DataFrame({"age": ages, "site": sites, "sex": ["f" if i % 2 else "m" for i in range(n)]}, dtype=object)


def values(frame: pd.DataFrame, covariates: tuple[Covariate, ...] = ALL) -> CovariateValues:
    return read_values(frame, covariates, [[i] for i in range(len(frame))])


def encoded(encoder: CovariateEncoder, frame: pd.DataFrame) -> np.ndarray:
    found = encoder.encode(values(frame, encoder.covariates))
    assert found is not None
    assert found.dtype == np.float32
    assert found.shape == (len(frame), sum(n for _, _, n in encoder.blocks))
    return found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("age", AGE),
        (" age : number", AGE),
        ("site: category", SITE),
        ("sex: category(fusion='film')", SEX),
        (
            "s: category(column='Site of care', least=5)",
            Covariate(name="s", kind="category", column="Site of care", least=5),
        ),
        ("age: number(map={'unknown': None})", Covariate(name="age", map={"unknown": None})),
    ],
)
def test_texts_are_read_and_written(text: str, wanted: Covariate) -> None:
    found = parse_covariate(text)
    assert found == wanted
    assert parse_covariate(str(found)) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("site:", "has no kind"),
        ("site: categry", "kind='categry'"),
        ("site: category(fuson='film')", "has no argument 'fuson'"),
        ("site: category(fusion='add')", "fusion='add'"),
        ("site: category(map={'a': ['b']})", "is no value"),
        ("age: number(column=3)", "column=3"),
    ],
)
def test_wrong_texts_are_refused(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        parse_covariate(text)
    assert caught.value.hint


def test_wrong_covariates_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'age \(years\)' is not usable") as caught:
        parse_covariate("age (years)")
    assert "column='age (years)'" in caught.value.hint
    with pytest.raises(UsageError, match="least is 0"):
        Covariate(name="site", kind="category", least=0)
    with pytest.raises(UsageError, match="least= is for categories"):
        Covariate(name="age", least=2)
    with pytest.raises(UsageError, match="two covariates are called 'age'"):
        parse_covariates(["age", "age: category"])
    # Settings say it before anything is read, from the command line, from recipes and in Python alike.
    with pytest.raises(UsageError, match="categry"):
        TrainConfig(covariate=("site: categry",))
    with pytest.raises(UsageError, match="covariate_dropout is 1"):
        TrainConfig(covariate_dropout=1.0)
    assert TrainConfig(covariate="age").covariate == ("age",)  # type: ignore[arg-type]
    assert parse_covariates(TrainConfig(covariate=ALL).covariate) == ALL  # type: ignore[arg-type]


def test_columns_that_give_the_answer_away_are_refused() -> None:
    tasks = [parse_task("grade: ordinal(column='dysplasia', classes=('0', '1', '2'))"),
             parse_task("death: survival(column='months', event='dead')")]  # fmt: skip
    others = {"patient": "patient", "split": "split"}
    refuse_answers(ALL, tasks, others)
    for name in ("dysplasia", "months", "dead"):
        with pytest.raises(UsageError, match=f"is the column '{name}', which task") as caught:
            refuse_answers([Covariate(name="x", column=name)], tasks, others)
        assert caught.value.hint
    with pytest.raises(UsageError, match="holds the patient"):
        refuse_answers([Covariate(name="patient", kind="category")], tasks, others)


def test_wrong_tables_are_refused_with_the_column_and_the_cure() -> None:
    frame = table()
    with pytest.raises(TableError, match="no column 'agee'") as caught:
        values(frame, (Covariate(name="agee"),))
    assert "did you mean age" in caught.value.hint
    with pytest.raises(TableError, match="covariate 'sex': column 'sex' holds 'f', 'm', no finite numbers") as caught:
        values(frame, (Covariate(name="sex"),))
    assert "sex: category" in caught.value.hint
    frame["site"] = ["N/A", *frame["site"][1:]]
    with pytest.raises(TableError, match="'N/A', which looks like a missing value") as caught:
        values(frame, (SITE,))
    assert "map={'N/A': None}" in caught.value.hint
    mapped = values(frame, (replace(SITE, map={"N/A": None, "C": "B"}),))
    assert mapped.words == (("A", "B"),)
    assert np.isnan(mapped.table[0, 0])
    with pytest.raises(TableError, match="no training row has a value in column 'age'"):
        fit_covariates(values(frame.assign(age=None), (AGE,)))
    with pytest.raises(TableError, match="has 9 training rows"):
        fit_covariates(values(frame, (replace(SITE, map={"N/A": None}, least=9),)))


def test_rows_of_one_case_are_joined() -> None:
    frame = pd.DataFrame({"age": ["60", "62", None, "50"], "site": ["A", None, "A", "B"]}, dtype=object)
    found = read_values(frame, (AGE, SITE), [[0, 1, 2], [3]])
    assert found.table[:, 0].tolist() == [61.0, 50.0]
    assert [found.words[1][int(i)] for i in found.table[:, 1]] == ["A", "B"]
    with pytest.raises(TableError, match="the rows of one case hold 'A', 'B'"):
        read_values(frame, (AGE, SITE), [[0, 3]])
    whole = read_values(frame, (AGE, Covariate(name="stage")), [[0]], absent=True)
    assert whole.table[0, 0] == 60
    assert np.isnan(whole.table[0, 1])


def test_columns_by_hand() -> None:
    frame = pd.DataFrame({"age": ["50", "70", None, "60"], "site": ["A", "B", "B", None]}, dtype=object)
    encoder = fit_covariates(values(frame, (AGE, SITE)))
    assert encoder.blocks == (("age", "concat", 2), ("site", "concat", 4))
    z = 1 / np.std([50, 70, 60]) * 10
    wanted = [
        # z of age, age missing; A, B, other, site missing
        [-z, 0, 1 - 1 / 3, -2 / 3, 0, 0],
        [z, 0, -1 / 3, 1 / 3, 0, 0],
        [0, 1, -1 / 3, 1 / 3, 0, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_allclose(encoded(encoder, frame), wanted, atol=1e-6)


def test_a_missing_value_says_nothing_but_that_it_is_missing() -> None:
    frame = table()
    encoder = fit_covariates(values(frame))
    nothing = encoded(encoder, frame.assign(age=None, site=None, sex=None))
    ends = np.cumsum([n for _, _, n in encoder.blocks]) - 1
    assert (np.delete(nothing, ends, axis=1) == 0).all()
    # Nobody's sex was missing in training, so that its indicator has no trained weights: it stays 0.
    assert [name for name, _, _ in encoder.blocks] == ["age", "site", "sex"]
    assert nothing[0, ends].tolist() == [1, 1, 0]
    np.testing.assert_array_equal(encoder.encode(unknown_values(encoder.covariates, len(frame))), nothing)
    hidden = fit_covariates(values(frame), hides=True)
    assert encoded(hidden, frame.assign(age=None, site=None, sex=None))[0, ends].tolist() == [1, 1, 1]


def test_a_category_of_no_training_row_is_other() -> None:
    frame = table()
    rare = frame.assign(site=["D", "E", *frame["site"][2:]])
    encoder = fit_covariates(values(rare, (replace(SITE, least=2),)))
    assert encoder.parts[0].classes == ("A", "B", "C")
    unseen = encoded(encoder, frame.assign(site="Z"))
    np.testing.assert_array_equal(unseen[0], encoded(encoder, rare)[0], err_msg="D was other in training")
    assert unseen[0, -2] > 0.5
    said = encoder.sayings(values(frame.assign(site="Z"), encoder.covariates))
    assert said == ["covariate site: 'Z' in 12 of 12 cases is none of 'A', 'B', 'C' of training, and counts as 'other'"]
    # Where training had no other, nothing was learnt of it.
    strict = fit_covariates(values(frame, (SITE,)))
    assert (encoded(strict, frame.assign(site="Z")) == 0).all()
    assert strict.account(values(frame.assign(site="Z"), (SITE,))) == {"site": {"missing": 0, "other": {"Z": 12}}}
    assert strict.sayings(values(frame.assign(site="Z"), (SITE,)))[0].endswith("counts as the mean")
    assert strict.sayings(values(frame.dropna(), (SITE,))) == []


def test_what_is_missing_is_said() -> None:
    frame = table()
    encoder = fit_covariates(values(frame))
    gone = values(frame.assign(sex=None, age="50"))
    (said,) = [text for text in encoder.sayings(gone) if "sex" in text]
    assert said.startswith("covariate sex: missing in 12 of 12 cases; no training case was without it")
    assert encoder.account(gone)["age"] == {"missing": 0, "other": {}}


def test_a_column_that_was_always_the_same_stays_silent() -> None:
    frame = table().assign(age="60", sex="f")
    encoder = fit_covariates(values(frame, (AGE, SEX)))
    assert (encoded(encoder, frame) == 0).all()
    assert (encoded(encoder, frame.assign(age="90", sex="m")) == 0).all(), "its weights are those of the beginning"


@settings(deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_rows_changes_no_bit(order: list[int]) -> None:
    frame = table()
    encoder = fit_covariates(values(frame))
    shuffled = frame.iloc[order].reset_index(drop=True)
    again = fit_covariates(values(shuffled))
    assert again == encoder
    np.testing.assert_array_equal(encoded(again, shuffled), encoded(encoder, frame)[order])


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-(10**6), 10**6)), min_size=1, max_size=30).filter(any))
def test_numbers_are_finite_and_at_most_as_far_from_the_mean_as_n_allows(ages: list[int | None]) -> None:
    frame = pd.DataFrame({"age": [None if a is None else str(a) for a in ages]}, dtype=object)
    z = encoded(fit_covariates(values(frame, (AGE,))), frame)[:, 0]
    assert np.isfinite(z).all()
    # A z-score among n values is at most the root of n - 1 (Samuelson's inequality); rounding may add a little.
    assert np.abs(z).max() <= np.sqrt(len(ages)) + 1e-3
    known = z[[a is not None for a in ages]]
    assert abs(known.mean()) < 1e-3


def test_json_gives_the_same_columns() -> None:
    frame = table()
    for hides in (False, True):
        encoder = fit_covariates(values(frame), hides=hides)
        again = encoder_from_list(json.loads(json.dumps(encoder.to_list())))
        assert again == encoder
        np.testing.assert_array_equal(encoded(again, frame), encoded(encoder, frame))


def test_nothing_is_known_or_something_else() -> None:
    assert fit_covariates(None) is NO_COVARIATES
    assert NO_COVARIATES.encode(None) is None
    assert NO_COVARIATES.blocks == ()
    encoder = fit_covariates(values(table()))
    with pytest.raises(UsageError, match="is told age, site, sex, and these cases come without") as caught:
        encoder.encode(None)
    assert "--covariates-missing" in caught.value.hint
    with pytest.raises(UsageError, match="of these cases is known: age"):
        encoder.encode(values(table(), (AGE,)))
