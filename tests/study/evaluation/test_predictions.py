import gzip
import re

import numpy as np
import pandas as pd
import pytest

from study.evaluation.predictions import (
    COLUMNS,
    LOGITS,
    PredictionsError,
    finalists_of,
    of_split,
    prediction_rows,
    read_predictions,
    write_predictions,
)
from tests.support.nulls import finalist

CNN = finalist("cnn", "baseline", 0, 0, 1)
SLOT = finalist("slot 7", "candidate", 7, 0, 1)


def faces(labels):
    """Two faces a photo; photo 1 of one source is not photo 1 of another."""
    n = len(labels)
    return pd.DataFrame(
        {
            "source": ["Train_poly"] * (n // 2) + ["Val_poly"] * (n - n // 2),
            "image_id": [number // 2 % 2 for number in range(n)],
            "cutted_name": [f"{number}.png" for number in range(n)],
            "category_id": labels,
            "bbox": [f"[0, 0, {40 + number}, 30]" for number in range(n)],
        }
    )


def table(splits=("val", "test"), finalists=(CNN, SLOT)):
    rng = np.random.default_rng(0)
    parts = []
    for split in splits:
        cut = faces([0, 1, 1, 0, 1, 0])
        for training in (t for one in finalists for t in one.trainings):
            logits = rng.normal(0, 3, (len(cut), 2)).astype(np.float32)
            parts.append(prediction_rows(cut, logits, training, split))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz"])
def test_what_is_written_reads_back_bit_for_bit(name, tmp_path):
    written = table()
    edges = np.array(
        [0.1, -0.0, 1 / 3, 1e-45, 3.4028235e38, -1.17549435e-38, 16777217], np.float32
    )
    written.loc[: len(edges) - 1, "logit_fake"] = edges
    numbers = np.random.default_rng(1).integers(0, 2**31, len(written), np.int32)
    drawn = numbers.view(np.float32)  # any float32 at all
    written["logit_real"] = np.where(np.isfinite(drawn), drawn, np.float32(0))
    write_predictions(written, tmp_path / name)
    read = read_predictions(tmp_path / name)
    for column in LOGITS:
        bits = written[column].to_numpy(np.float32).view(np.int32)
        assert (read[column].to_numpy().view(np.int32) == bits).all()
    rest = [column for column in COLUMNS if column not in LOGITS]
    assert read[rest].astype(str).equals(written[rest].astype(str).replace("30", "30.0"))


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for name in ("a.csv.gz", "b.csv.gz"):
        write_predictions(table(), tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).startswith(b"split,source,")


def test_face_px_is_the_shorter_side_of_the_box():
    assert set(table()["face_px"]) == {30}


def test_a_source_or_a_model_named_na_is_kept(tmp_path):
    written = table().replace({"source": {"Val_poly": "NA"}, "model": {"cnn": "null"}})
    write_predictions(written, tmp_path / "p.csv")
    read = read_predictions(tmp_path / "p.csv")
    assert set(read["source"]) == {"NA", "Train_poly"}
    assert [finalist.model for finalist in finalists_of(read)] == ["null", "slot 7"]


def test_finalists_are_baselines_then_candidates_then_diagnostics():
    incumbent = finalist("slot 3", "diagnostic", 3, 0)
    second = finalist("slot 12", "candidate", 12, 0, 1)
    found = finalists_of(table(finalists=(incumbent, second, SLOT, CNN)))
    assert found == [CNN, SLOT, second, incumbent]


def test_a_split_has_its_faces_photos_and_logits_by_model_and_seed():
    whole = table()
    test = of_split(whole, "test")
    by_photo = [0, 1, 2, 4, 5, 3]  # Train_poly 0, 0 and 1; Val_poly 0, 0 and 1
    assert list(test.faces["cutted_name"]) == [f"{number}.png" for number in by_photo]
    assert test.labels.tolist() == [0, 1, 1, 1, 0, 0]
    assert test.photos.tolist() == [0, 0, 1, 2, 2, 3]
    assert {model: logits.shape for model, logits in test.logits.items()} == {
        "cnn": (2, 6, 2),
        "slot 7": (2, 6, 2),
    }
    rows = whole.query("split == 'test' and model == 'slot 7' and seed == 1")
    assert (test.logits["slot 7"][1] == rows[list(LOGITS)].to_numpy()[by_photo]).all()


def test_the_order_of_rows_changes_nothing(tmp_path):
    write_predictions(table(), tmp_path / "p.csv")
    write_predictions(table().sample(frac=1, random_state=0), tmp_path / "q.csv")
    one, other = (
        of_split(read_predictions(tmp_path / name), "val") for name in ("p.csv", "q.csv")
    )
    assert one.faces.astype(str).equals(other.faces.astype(str))
    assert (one.photos == other.photos).all()
    for model, logits in one.logits.items():
        assert (logits == other.logits[model]).all()


def test_a_split_that_is_not_there_is_said():
    with pytest.raises(PredictionsError, match="no split 'test_dev'; they have: test, val"):
        of_split(table(), "test_dev")


def test_a_split_of_one_label_or_one_photo_has_no_figures():
    with pytest.raises(PredictionsError, match="'val' has fake faces alone"):
        of_split(table().query("label == 1"), "val")
    with pytest.raises(PredictionsError, match="'val' has one photo alone"):
        of_split(table().query("source == 'Train_poly' and image_id == 0"), "val")


def changed(column, value, row=3):
    lines = table().astype(object)
    lines.loc[row, column] = value
    return lines


WRONG = {
    "a label": (changed("label", 2), "line 5: label '2' is not 0 (real) or 1 (fake)"),
    "a label in words": (changed("label", "fake"), "line 5: label 'fake' is not 0"),
    "no logit": (changed("logit_real", ""), "line 5: logit_real '' is not a finite number"),
    "a logit that is nan": (
        changed("logit_fake", "nan"),
        "line 5: logit_fake 'nan' is not a finite number",
    ),
    "an infinite logit": (changed("logit_fake", "inf"), "line 5: logit_fake 'inf' is not"),
    "a logit beyond float32": (changed("logit_fake", "1e39"), "line 5: logit_fake 'inf' is not"),
    "half a seed": (changed("seed", "0.5"), "line 5: seed '0.5' is not an integer from 0"),
    "a negative slot": (changed("slot", -1), "line 5: slot '-1' is not an integer from 0"),
    "no width": (changed("face_px", 0), "line 5: face_px '0.0' is not a number above 0"),
    "another role": (changed("role", "winner"), "role 'winner' is none of baseline, candidate"),
    "a role in one row": (
        changed("role", "candidate"),
        "line 5: model 'cnn' has role baseline and candidate",
    ),
    "two labels of a face": (
        changed("label", 1, row=9),
        "line 11: cutted_name '3.png' has label 0 and 1",
    ),
    "a face twice": (
        pd.concat([table(), table().iloc[[3]]]),
        "model 'cnn' seed 0 has face '3.png' of split 'val' on lines 5 and 50",
    ),
    "a face too few": (
        table().drop(3),
        "model 'cnn' seed 0 lacks 1 faces that others have, such as '3.png' of split 'val'",
    ),
    "a seed without test": (
        table().query("not (split == 'test' and model == 'slot 7' and seed == 1)"),
        "model 'slot 7' seed 1 lacks 6 faces that others have, such as '0.png' of split 'test'",
    ),
    "a column": (table().drop(columns="face_px"), "column 'face_px' is missing"),
    "no rows": (table().iloc[:0], "has no row"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_one_line_that_names_the_place_and_the_way_out(case, tmp_path):
    wrong, message = WRONG[case]
    path = tmp_path / "p.csv"
    wrong.to_csv(path, index=False)
    with pytest.raises(PredictionsError, match=re.escape(message)) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "deepfake-study evaluate CONFIG" in str(error.value)
    assert "\n" not in str(error.value)


FILES = {
    "absent": (None, "No such file"),
    "empty": (b"", "not a CSV"),
    "not text": (b"split\xff,source\n", "not a CSV"),
    "ragged": (b"a,b\n1,2\n1,2,3,4\n", "column 'split' is missing"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_table_is_named(case, tmp_path):
    content, message = FILES[case]
    path = tmp_path / "p.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PredictionsError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def test_a_file_cut_off_is_named(tmp_path):
    path = tmp_path / "p.csv.gz"
    write_predictions(table(), path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PredictionsError, match="can't be read"):
        read_predictions(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(PredictionsError, match="can't be read"):
        read_predictions(path)


def test_a_table_that_could_not_be_read_is_not_written(tmp_path):
    wrong = table()
    wrong.loc[3, "logit_real"] = np.nan
    with pytest.raises(PredictionsError, match="logit_real 'nan'"):
        write_predictions(wrong, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()
