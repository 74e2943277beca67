import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import arff
from sklearn import datasets

import lossmith
from lossmith.data import BUILTIN, load
from lossmith.errors import InputError

CSV = "size,colour,class\n1.5,red,a\n2.5,?,b\n,blue,a\n"
ARFF = """% a comment
@RELATION 'toy set'

@attribute size NUMERIC
@Attribute 'full name' string
@attribute when date "yyyy-MM-dd"
@attribute colour {red, 'dark blue', "it's", 1}
@attribute Class {yes,no}
@DATA
% another
1.5, 'Ann, B', 2020-01-31, 'dark blue', yes
?,"she said \\"hi\\"",?,"it's",no

-2e3,plain,2020-02-01,1,yes
"""
KEEL = """@relation toy
@attribute Width real [0.1, 7.9]
@attribute Count integer[0,9]
@attribute Kind{p, q}
@attribute Extra real [0, 1]
@attribute Label {positive, negative}
@inputs Width, Count, Kind
@output Label
@data
0.1, 3, p, 0.5, positive
7.9, <null>, q, 0.5, negative
?, 1, ?, 0.5, positive
"""


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def fails(source, *words, target=None):
    """Check that loading fails with one line that starts with the file and holds these words."""
    with pytest.raises(InputError) as caught:
        load(source, target)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(source)
    for word in words:
        assert word in message, message
    return message


# Values


def labels(data):
    return [data.classes[code] for code in data.target]


@pytest.mark.parametrize("name", [name for name in BUILTIN if hasattr(datasets, f"load_{name.replace('-', '_')}")])
def test_builtin_sets_are_scikit_learns(name):
    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")(as_frame=True)
    data = load(name)
    pd.testing.assert_frame_equal(data.features, bunch.data)
    assert labels(data) == [str(bunch.target_names[code]) for code in bunch.target]
    assert data.target.dtype == np.int64
    assert (data.name, data.target_name) == (name, "target")


def test_the_third_problem_of_the_monks():
    data = load("monks-3")
    assert data.features.shape == (432, 6)
    assert len(data.features.drop_duplicates()) == 432
    assert np.bincount(data.target).tolist() == [204, 228]
    holds, jacket, body = (data.features[name] for name in ("holding", "jacket_color", "body_shape"))
    green_sword = (jacket == 3) & (holds == 1)
    assert data.target[green_sword].all()
    assert not data.target[(jacket == 4)].any()
    assert not data.target[(body == 3) & ~green_sword].any()


def test_the_first_and_second_problem_of_the_monks():
    first, second = load("monks-1"), load("monks-2")
    assert np.bincount(first.target).tolist() == [216, 216]
    assert np.bincount(second.target).tolist() == [290, 142]
    assert first.target[first.features["jacket_color"] == 1].all()
    assert first.target[first.features["head_shape"] == first.features["body_shape"]].all()
    assert ((second.features == 1).sum(axis=1)[second.target == 1] == 2).all()


def test_balance_scale_has_the_counts_of_its_source():
    data = load("balance-scale")
    assert data.features.shape == (625, 4)
    assert (data.classes, np.bincount(data.target).tolist()) == (("B", "L", "R"), [49, 288, 288])
    assert labels(data)[0] == "B"  # 1 × 1 on both sides
    assert labels(data)[1] == "R"  # a larger distance on the right


def test_builtin_digits_are_sorted_as_numbers():
    assert load("digits").classes == tuple("0123456789")
    assert load("breast-cancer").classes == ("benign", "malignant")


def test_builtin_other_target():
    fails("iris", "'petal width (cm)'", "continuous", "150 rows", "bin it", target="petal width (cm)")
    fails("iris", "no target column 'targte'", "did you mean 'target'?", target="targte")


def test_csv(write):
    data = load(write("my.set.CSV", CSV), "class")
    expected = pd.DataFrame({"size": [1.5, 2.5, np.nan], "colour": ["red", np.nan, "blue"]})
    pd.testing.assert_frame_equal(data.features, expected)
    assert (data.name, data.target_name, data.classes) == ("my.set", "class", ("a", "b"))
    assert data.target.tolist() == [0, 1, 0]


def test_csv_with_mark_quotes_blank_lines_and_blanks(write):
    text = '\ufeff\n"a; b", "c,d" ,y\n1, "x, y\nz",p\n   \n?, NA, q \n'
    data = load(write("t.csv", text), "y")
    assert list(data.features.columns) == ["a; b", "c,d"]
    assert data.features.iloc[0].tolist() == [1.0, "x, y\nz"]
    assert data.features.iloc[1].isna().all()
    assert data.classes == ("p", "q")


def test_csv_separated_by_semicolons(write):
    data = load(write("t.csv", '"a;b,c";x;name;y\n1,5;1.5;u,v;1,0\n2;2.5;w;2,0\n'), "y")
    assert data.features["a;b,c"].tolist() == [1.5, 2.0]
    assert data.features["x"].tolist() == [1.5, 2.5]
    assert data.features["name"].tolist() == ["u,v", "w"]
    assert data.classes == ("1", "2")


@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_numbers_are_exact(write, separator):
    numbers = np.random.default_rng(0).standard_normal(2000).tolist()
    rows = [f"{number!r},{i % 2}\n" for i, number in enumerate(numbers)]
    text = "".join(["x,y\n", *rows])
    if separator == ";":
        text = text.replace(",", ";").replace(".", ",")
    assert load(write("t.csv", text), "y").features["x"].tolist() == numbers


def test_csv_index_column_keeps_the_name_pandas_gives_it(write, tmp_path):
    frame = pd.DataFrame({"x": [1, 2], "y": ["a", "b"]})
    data = load(write("t.csv", frame.to_csv()), "y")
    assert list(data.features.columns) == ["Unnamed: 0", "x"]


def test_tsv(write):
    data = load(write("t.TSV", "a b\tc,d\ty\n1\tu, v\t1\n\tw\t0\n"), "y")
    pd.testing.assert_frame_equal(data.features, pd.DataFrame({"a b": [1.0, np.nan], "c,d": ["u, v", "w"]}))
    assert data.target.tolist() == [1, 0]


@pytest.mark.parametrize("ending", ["parquet", "pq"])
def test_parquet(tmp_path, ending):
    frame = pd.DataFrame(
        {
            "n": pd.array([1, None, 3], dtype="Int64"),
            "c": pd.Categorical(["u", None, "v"]),
            "s": ["x", None, "z"],
            "d": pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
            "y": [True, False, True],
        },
        index=[7, 8, 9],
    )
    path = tmp_path / f"t.{ending}"
    frame.to_parquet(path)
    data = load(str(path), "y")
    assert list(data.features.columns) == ["n", "c", "s", "d"]
    assert data.features.index.tolist() == [0, 1, 2]
    assert data.features.isna().to_numpy().tolist() == [[False] * 4, [True] * 4, [False] * 4]
    assert data.features["c"].dtype == "category"
    assert (data.classes, data.target.tolist()) == (("False", "True"), [1, 0, 1])


def test_parquet_decimals_become_numbers(tmp_path):
    column = pa.array([1, 2], pa.int64()).cast(pa.decimal128(22, 1))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": column, "y": ["a", "b"]}), path)
    assert load(str(path), "y").features["x"].to_numpy().dtype == np.float64


def test_arff(write):
    data = load(write("t.arff", ARFF))
    features = data.features
    assert list(features.columns) == ["size", "full name", "when", "colour"]
    assert features["size"].dtype == np.float64
    np.testing.assert_array_equal(features["size"], [1.5, np.nan, -2000.0])
    assert features["full name"].tolist() == ["Ann, B", 'she said "hi"', "plain"]
    assert features["when"].where(features["when"].notna(), None).tolist() == ["2020-01-31", None, "2020-02-01"]
    assert features["colour"].tolist() == ["dark blue", "it's", "1"]
    assert features["colour"].cat.categories.tolist() == ["red", "dark blue", "it's", "1"]
    assert (data.target_name, data.classes, data.target.tolist()) == ("Class", ("no", "yes"), [1, 0, 1])


def test_arff_agrees_with_scipy(write):
    text = "@relation r\n@attribute a real\n@attribute b {x,y}\n@attribute class {0,1,10}\n@data\n" + "".join(
        f"{i / 7},{'xy'[i % 2]},{(0, 1, 10)[i % 3]}\n" for i in range(20)
    )
    path = write("t.arff", text.replace("\n", "\r\n"))
    records, _ = arff.loadarff(path)
    data = load(path)
    np.testing.assert_array_equal(data.features["a"], records["a"])
    assert data.features["b"].tolist() == [value.decode() for value in records["b"]]
    assert labels(data) == [value.decode() for value in records["class"]]
    assert data.classes == ("0", "1", "10")


def test_arff_quoted_question_mark_is_text(write):
    text = "@attribute a {'?','}'}\n@attribute b string\n@attribute class {0,1}\n@data\n'?',,0\n?,'',1\n'}',,1\n"
    features = load(write("t.arff", text)).features
    assert features["a"].isna().tolist() == [False, True, False]
    assert features["b"].tolist() == ["", "", ""]


def test_keel(write):
    data = load(write("t.dat", KEEL))
    assert list(data.features.columns) == ["Width", "Count", "Kind"]
    np.testing.assert_array_equal(data.features["Width"], [0.1, 7.9, np.nan])
    np.testing.assert_array_equal(data.features["Count"], [3, np.nan, 1])
    assert data.features["Kind"].isna().tolist() == [False, False, True]
    assert (data.target_name, data.classes, data.target.tolist()) == ("Label", ("negative", "positive"), [1, 0, 1])


def test_keel_other_target_and_no_inputs(write):
    data = load(write("t.dat", KEEL.replace("0.5, negative", "0.7, negative")), "Extra")
    assert list(data.features.columns) == ["Width", "Count", "Kind", "Label"]
    assert data.classes == ("0.5", "0.7")
    data = load(write("u.dat", KEEL.replace("@inputs Width, Count, Kind\n", "")))
    assert list(data.features.columns) == ["Width", "Count", "Kind", "Extra"]


# Target


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["10", "9", "1.0", "1"], ("1", "9", "10")),
        (["NA", "None", "null", " NA "], ("NA", "None", "null")),
        (["True", "False", "False", "True"], ("False", "True")),
        (["0.5", "1", "0.5", "1.0"], ("0.5", "1")),
        (["-1", "1", "1", "+1"], ("-1", "1")),
        ([str(2**60), str(2**60 + 1)], (str(2**60), str(2**60 + 1))),
        (["b", "10", "9", "b"], ("10", "9", "b")),
    ],
)
def test_csv_labels(write, cells, classes):
    text = "x,y\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    data = load(write("t.csv", text), "y")
    assert data.classes == classes
    assert len(data.target) == len(cells)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([2.0, 1.0, 10.0], ("1", "2", "10")),
        ([True, False, True], ("False", "True")),
        (pd.Categorical([3, 20, 3]), ("3", "20")),
        (pd.Categorical([" b", "a", "b"]), ("a", "b")),
        (pd.array([1, 0, 1], dtype="Int64"), ("0", "1")),
        ([2**60, 2**60 + 1, 2**60], (str(2**60), str(2**60 + 1))),
        (["01", "1", "01"], ("01", "1")),
    ],
)
def test_parquet_labels(tmp_path, values, classes):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"x": [1, 2, 3], "y": values}).to_parquet(path)
    assert load(str(path), "y").classes == classes


@pytest.mark.parametrize("empty", ["", "?", "NaN", "nan", "  "])
def test_missing_targets(write, empty):
    path = write("t.csv", f"x,y\n1,a\n2,{empty}\n3,b\n4,{empty}\n")
    fails(path, "'y'", "2 of 4 rows", "data row 2", "drop these rows", target="y")


def test_missing_targets_of_other_files(write, tmp_path):
    fails(write("t.arff", ARFF.replace(",no\n", ",?\n")), "'Class'", "1 of 3 rows", "data row 2")
    path = tmp_path / "t.parquet"
    pd.DataFrame({"x": [1, 2], "y": pd.array([None, 1], dtype="Int64")}).to_parquet(path)
    fails(str(path), "1 of 2 rows", "data row 1", target="y")
    pd.DataFrame({"x": [1, 2, 3], "y": ["a", "b", " "]}).to_parquet(path)
    fails(str(path), "1 of 3 rows", "data row 3", target="y")
    pd.DataFrame({"x": [1, 2], "y": [None, None]}).to_parquet(path)
    fails(str(path), "2 of 2 rows", "data row 1", target="y")


def test_one_class(write):
    fails(write("t.csv", "x,y\n1,a\n2,a\n"), "'y'", "only one class", "'a'", "two or more", target="y")


def test_continuous_target(write):
    rows = "".join(f"{i},{i / 8}\n" for i in range(100))
    fails(write("t.csv", "x,y\n" + rows), "'y'", "continuous", "100 different values", "bin it", target="y")
    fails(write("u.csv", "x,y\n1,0.5\n2,0.6\n3,0.7\n4,0.8\n"), "continuous", target="y")
    integers = "".join(f"{i},{i}.0\n" for i in range(100))
    assert len(load(write("v.csv", "x,y\n" + integers), "y").classes) == 100
    few = "".join(f"{i},{i % 4 / 2}\n" for i in range(100))
    assert load(write("w.csv", "x,y\n" + few), "y").classes == ("0", "0.5", "1", "1.5")


def test_target_must_be_named(write):
    names = [f"c{i}" for i in range(30)]
    path = write("t.csv", ",".join(names) + "\n" + ",".join("1" * 30) + "\n")
    message = fails(path, "expected a target", "'c0'", "'c11', ... (30 in all)")
    assert "c12" not in message
    fails(write("t.arff", ARFF.replace("Class", "kind")), "expected a target", "'kind'")
    fails(write("t.dat", KEEL.replace("@output Label", "@outputs Label, Extra")), "expected a target", "'Label'")
    message = fails(path, "no target column 'species'", "choose from 'c0'", "(30 in all)", target="species")
    assert "c12" not in message


def test_unknown_target(write):
    path = write("t.csv", CSV)
    fails(path, "no target column 'clas'", "did you mean 'class'?", target="clas")
    fails(path, "no target column 'CLASS'", "'class'", target="CLASS")
    fails(path, "no target column 'zzz'", "choose from 'size', 'colour', 'class'", target="zzz")


def test_no_feature(write, tmp_path):
    fails(write("t.csv", "y\na\nb\n"), "feature", "only column", "'y'", target="y")
    fails(write("t.dat", KEEL), "no target column 'Extr'", target="Extr")
    path = tmp_path / "t.parquet"
    pd.DataFrame({"y": ["a", "b"]}).to_parquet(path)
    fails(str(path), "feature", "only column", target="y")


# Features


def test_infinite_feature(write):
    fails(write("t.csv", "x,z,y\n1,1,a\n2,-inf,b\n"), "'z'", "infinite", "data row 2", target="y")
    text = ARFF.replace("-2e3", "1e999")
    fails(write("t.arff", text), "'size'", "infinite", "data row 3")


def test_columns_without_any_value_stay(write):
    data = load(write("t.csv", "x,z,y\n1,,a\n2,?,b\n"), "y")
    assert data.features["z"].isna().all()


# Fingerprint


def test_fingerprint_is_stable_between_processes():
    code = "from lossmith.data import load; print(load('iris').fingerprint)"
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(lossmith.__file__).parents[1])}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    # The value was computed with pandas 2.2 on Python 3.10, and again with pandas 3.1 on Python 3.11.
    assert other.stdout.strip() == load("iris").fingerprint == "29008d02201bf954"


def test_fingerprint_is_of_the_content(write, tmp_path):
    first = load(write("a.csv", CSV), "class")
    assert load(write("b.tsv", CSV.replace(",", "\t")), "class").fingerprint == first.fingerprint
    path = tmp_path / "c.parquet"
    first.features.astype({"colour": "category"}).assign(**{"class": ["a", "b", "a"]}).to_parquet(path)
    assert load(str(path), "class").fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("old", "new"),
    [("size", "sizes"), ("1.5", "1.25"), ("red", "rot"), ("?", "green"), (",blue", "0,blue"), ("b\n", "a\n"),
     (",a\n", ",c\n"), ("class", "klass"), ("1.5,red,a\n2.5,?,b\n", "2.5,?,b\n1.5,red,a\n")],
)  # fmt: skip
def test_fingerprint_changes_with_the_content(write, old, new):
    text = CSV + "3,pink,b\n"
    changed = text.replace(old, new, 1)
    target = changed.split("\n")[0].split(",")[-1]
    assert changed != text
    assert load(write("b.csv", changed), target).fingerprint != load(write("a.csv", text), "class").fingerprint


def test_fingerprint_keeps_texts_apart(write):
    header = "@attribute x string\n@attribute class {0,1}\n@data\n"
    bodies = ["ab,0\nc,1\n", "a,0\nbc,1\n", "None,0\nc,1\n", "?,0\nc,1\n", "nan,0\nc,1\n"]
    found = {load(write("t.arff", header + body)).fingerprint for body in bodies}
    assert len(found) == len(bodies)


# Finding the file


def test_no_such_file(write, tmp_path):
    fails("irsi", "no such file", "built-in sets 'breast-cancer', 'wine'", "did you mean 'iris'?")
    fails("Digits", "did you mean 'digits'?")
    write("table.csv", CSV)
    fails(str(tmp_path / "tabel.csv"), "no such file", "did you mean", "table.csv", "'iris'")
    fails(str(tmp_path / "none" / "zzz.csv"), "no such file", "'iris'", "ends in one of .csv, .tsv")
    with pytest.raises(InputError, match="no such file") as caught:
        load("two\nlines\0.csv")
    assert "\n" not in str(caught.value)


def test_folder(tmp_path):
    fails(str(tmp_path), "is a folder", ".parquet")


@pytest.mark.parametrize("method", ["read_bytes", "exists"])
def test_unreadable(write, monkeypatch, method):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = write("t.csv", CSV)
    monkeypatch.setattr(Path, method, refuse)
    fails(path, "cannot be read", "Permission denied", "check its path and permissions", target="class")


def test_unknown_ending(write):
    every = ".csv, .tsv, .parquet, .pq, .arff, .dat"
    fails(write("t.xlsx", "x"), "'.xlsx' is unknown", every, "convert")
    fails(write("t", "x"), "no ending", every)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "arff", "dat"])
@pytest.mark.parametrize("content", [b"", b" \r\n\t\n", b"\xef\xbb\xbf\n"])
def test_empty_file(write, ending, content):
    fails(write(f"t.{ending}", content), "is empty", "expected a header and rows", target="y")


def test_header_without_rows(write, tmp_path):
    fails(write("t.csv", "x,y\n\n"), "only a header", "add rows", target="y")
    fails(write("u.csv", "x;y\n"), "only a header", target="y")
    fails(write("t.arff", ARFF[: ARFF.index("1.5, ")]), "only a header")
    fails(write("t.dat", KEEL[: KEEL.index("0.1, 3")]), "only a header")
    path = tmp_path / "t.parquet"
    pd.DataFrame({"x": [], "y": []}).to_parquet(path)
    fails(str(path), "only a header", target="y")


# Content that the ending does not promise


@pytest.mark.parametrize("ending", ["csv", "tsv", "arff", "dat"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1\x15\x04\x15", ("a Parquet file", "ending .parquet")),
        (b"PK\x03\x04\x14\x00", ("ZIP archive or an Excel workbook", "save its sheet as .csv")),
        (b"\x1f\x8b\x08\x00", ("gzip", "gunzip")),
        (b"x,y\n1,a\0\n", ("NUL byte at offset 7", "export it as UTF-8")),
        (b"\xef\xbb\xbfx,y\n1,a\0\n", ("NUL byte at offset 10",)),
        ("x,y\n1,é\n".encode("latin-1"), ("UTF-8", "0xe9 at offset 6", "iconv")),
        (b"\xef\xbb\xbfx\n\xe9\n", ("0xe9 at offset 5",)),
        ("x,y\n1,a\n".encode("utf-16"), ("UTF-8", "offset 0")),
        (b"\n <!DOCTYPE html><p>", ("HTML page", "download")),
        (b"<html>\n", ("HTML page", "download")),
    ],
)
def test_not_text(write, ending, content, words):
    fails(write(f"t.{ending}", content), *words, target="y")


def test_a_header_may_begin_like_a_format(write):
    assert load(write("t.csv", "PAR1,y\n1,a\n2,b\n"), "y").features.columns.tolist() == ["PAR1"]
    assert load(write("t.csv", "PK,y\n1,a\n2,b\n"), "y").features.columns.tolist() == ["PK"]


def test_not_parquet(write, tmp_path):
    fails(write("t.parquet", CSV), "expected a Parquet file", "damaged or something else", target="class")
    path = tmp_path / "u.parquet"
    pd.DataFrame({"x": range(1000), "y": range(1000)}).to_parquet(path)
    data = path.read_bytes()
    for damaged in (data[:200] + data[400:], data.replace(b'"pandas_type"', b'"pandas_tipe"')):
        path.write_bytes(damaged)
        fails(str(path), "expected a Parquet file", target="y")


def test_other_separator(write):
    fails(write("t.csv", CSV.replace(",", "\t")), "separated by tabs", "ending .tsv", target="class")
    fails(write("t.tsv", CSV), "separated by commas", "ending .csv", target="class")
    fails(write("t.tsv", CSV.replace(",", ";")), "separated by semicolons", "ending .csv", target="class")


def test_arff_in_csv(write):
    fails(write("t.csv", ARFF), "expected CSV", "ARFF", "ending .arff", target="Class")
    fails(write("t.tsv", ARFF), "expected TSV", "ARFF", "ending .arff", target="Class")


def test_csv_in_arff(write):
    fails(write("t.arff", CSV), "line 1", "an ARFF header", "'size,colour,class'")
    fails(write("t.dat", CSV), "line 1", "a KEEL header")
    fails(write("t.arff", ARFF.replace("@DATA", "")), "line 11", "@data")
    fails(write("t.arff", "@relation r\n@attribute x real\n"), "no @data line")
    fails(write("t.dat", "@relation r\n@data\n1,2\n"), "no @attribute line")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_width_of_rows(write, ending):
    def text(*rows):
        return "".join(row + "\n" for row in rows).replace(",", "\t" if ending == "tsv" else ",")

    path = write(f"t.{ending}", text("x,z,y", "1,2,a", "", '1,"two\nlines",a', "1,2,3,b", "1,2,a"))
    fails(path, "line 6", "too many fields: 4", "names 3 columns", target="y")
    path = write(f"t.{ending}", text("x,z,y", "1,2,3,a", "1,2,3,b"))
    fails(path, "line 2", "too many fields: 4", target="y")
    path = write(f"t.{ending}", text("x,z,y", "1,2,a", "1,b"))
    fails(path, "line 3", "too few fields: 2", target="y")


def test_open_quote(write):
    fails(write("t.csv", 'x,y\n1,a\n2,"b\n'), "cannot be parsed", "quote left open", target="y")
    fails(write("t.csv", 'x,y\n"1,a\n2,b\n'), "line 2", "too few fields", target="y")


def test_long_text(write):
    long = "a" * 200_000
    csv.field_size_limit(131_072)  # Python's default, which other tests may have raised
    data = load(write("t.csv", f'x,y\n"{long}",a\nb,b\n'), "y")
    assert data.features["x"].tolist() == [long, "b"]


def test_duplicate_columns(write, tmp_path):
    words = ("column names must differ", "'x', 'z' came more than once", "rename")
    fails(write("t.csv", "x,z,x , z,y\n1,2,3,4,a\n"), *words, target="y")
    fails(write("t.tsv", "x\tz\tx\tz\ty\n1\t2\t3\t4\ta\n"), *words, target="y")
    header = "".join(f"@attribute {name} real\n" for name in "xzxzy")
    fails(write("t.arff", header + "@data\n"), *words)
    fails(write("t.dat", header + "@data\n"), *words)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([pa.array([1])] * 5, names=list("xzxzy")), path)
    fails(str(path), *words, target="y")


def test_nested_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    for values, kind in (([[1], [2]], "list"), ([{"a": 1}, {"a": 2}], "struct"), ([b"1", b"2"], "binary")):
        pq.write_table(pa.table({"x": values, "y": ["a", "b"]}), path)
        fails(str(path), "column 'x'", kind, "flatten or drop", target="y")


# Errors in ARFF and KEEL


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1.5, ", "1.5x, ", ("line 11", "expected a number for 'size'", "'1.5x'", "write ?")),
        ("1.5, ", "1_5, ", ("line 11", "'1_5'")),
        ("-2e3", "", ("line 14", "expected a number for 'size'", "''")),
        (",1,yes", ",2,yes", ("line 14", "'2' is not a declared value of 'colour'", "choose from 'red'")),
        ("'dark blue', yes", "'dark blu', yes", ("line 11", "did you mean 'dark blue'?")),
        (",1,yes", ",yes", ("line 14", "too few fields: 4", "names 5 columns")),
        (",1,yes", ",1,yes,no", ("line 14", "too many fields: 6")),
        ("-2e3,plain", "{0 1, 3 2}\n-2e3,plain", ("line 14", "sparse", "not supported", "dense")),
        ("size NUMERIC", "size", ("line 4", "as the type of 'size'", "numeric, real, integer, string, date")),
        ("size NUMERIC", "size relational", ("line 4", "'relational'", "drop that attribute")),
        ("size NUMERIC", "size {a, b", ("line 4", "'{a, b'")),
        ("@attribute size NUMERIC", "@attribute", ("line 4", "'@attribute name type'")),
        ("@attribute size", "@atribute size", ("line 4", "'@atribute' is no keyword", "did you mean '@attribute'?")),
    ],
)
def test_bad_arff(write, old, new, words):
    assert ARFF.count(old) == 1
    fails(write("t.arff", ARFF.replace(old, new)), *words)


def test_bad_keel(write):
    fails(write("t.dat", KEEL.replace("Width, C", "Wdth, C")), "'Wdth' is listed", "did you mean 'Width'?")
    fails(write("t.dat", KEEL.replace("@output Label", "@output Lable")), "'Lable'", "did you mean 'Label'?")
    fails(write("t.dat", KEEL.replace("0.1, 3, p", "low, 3, p")), "line 10", "'Width'", "'low'")


def test_messages_stay_on_one_line(tmp_path):
    path = tmp_path / "two\nlines.csv"
    path.write_text('"x\nz",y\n1,a\n2,b\n')
    with pytest.raises(InputError) as caught:
        load(str(path), "w")
    assert "\n" not in str(caught.value)
    assert json.dumps("x\nz")[1:-1] in str(caught.value)
