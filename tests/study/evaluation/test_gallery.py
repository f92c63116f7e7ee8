"""The order of galleries by hand-made logits, and their pictures."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from study.evaluation.artifacts import gallery_figure
from study.evaluation.error_analysis import PICTURES, TILE_PX, as_json, galleries, picture_of
from study.evaluation.predictions import SplitPredictions


def split_of(labels, *scores):
    """scores: of each seed, one a face."""
    n = len(labels)
    faces = pd.DataFrame(
        {
            "cutted_name": [f"{at:03}.jpg" for at in range(n)],
            "label": labels,
            "face_px": [10.0 + at for at in range(n)],
        }
    )
    logits = np.zeros((len(scores), n, 2), np.float32)
    logits[:, :, 1] = scores
    return SplitPredictions(faces, {"slot 7": logits})


def names(gallery):
    return [face.cutted_name for face in gallery.faces]


def test_the_most_confident_errors_come_first():
    split = split_of([0, 0, 0, 1, 1, 1], [1, -1, 3, -0.5, 2, -4])
    real, fake = galleries(split, "slot 7")
    assert (real.title, names(real)) == ("real taken for fake", ["002.jpg", "000.jpg"])
    assert (fake.title, names(fake)) == ("fake taken for real", ["005.jpg", "003.jpg"])
    assert real.faces[0].p_fake == pytest.approx(1 / (1 + np.exp(-3)))
    assert [face.face_px for face in fake.faces] == [15.0, 13.0]
    assert (real.errors, fake.errors) == (2, 2)


def test_confidence_is_the_mean_of_p_fake_over_seeds():
    # P(FAKE) of 8 and -0.5: mean 0.69; of 2 and -2.1: just under 0.5
    split = split_of([0, 0, 1], [8, 2, 1], [-0.5, -2.1, 1])
    real, fake = galleries(split, "slot 7")
    assert names(real) == ["000.jpg"]
    assert real.faces[0].p_fake == pytest.approx((1 / (1 + np.exp([-8, 0.5]))).mean(), abs=1e-6)
    assert fake.faces == []


def test_one_half_is_fake_and_equals_keep_the_order_of_score_then_name():
    split = split_of([0, 0, 0, 1], [40, 50, 50, 0])  # P(FAKE) of the first three rounds to 1
    real, fake = galleries(split, "slot 7")
    assert {face.p_fake for face in real.faces} == {1.0}
    assert names(real) == ["001.jpg", "002.jpg", "000.jpg"]
    assert fake.errors == 0


def test_of_many_errors_the_first_are_shown_and_all_are_counted():
    split = split_of([0] * 40 + [1], [*range(1, 41), 1])
    real, _ = galleries(split, "slot 7")
    assert names(real) == [f"{at:03}.jpg" for at in range(39, 39 - PICTURES, -1)]
    assert real.errors == 40


def test_pictures_are_small_and_in_the_page_as_jpeg(tmp_path):
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "000.jpg", quality=95)
    real, _ = galleries(split_of([0, 1], [1, 1]), "slot 7")
    pictures = [picture_of(tmp_path / name) for name in names(real)]
    found = json.loads(json.dumps(as_json(real, pictures)))
    (face,) = found["faces"]
    with Image.open(io.BytesIO(base64.b64decode(face["jpeg"]))) as shown:
        assert (shown.format, shown.size) == ("JPEG", (TILE_PX, TILE_PX * 2 // 3))
        assert np.asarray(shown).mean(axis=(0, 1)) == pytest.approx((200, 30, 30), abs=3)
    assert (face["name"], face["px"]) == ("000.jpg", 10.0)


def test_a_crop_that_is_gone_or_damaged_has_no_picture_and_keeps_its_place(tmp_path):
    (tmp_path / "000.jpg").write_bytes(b"no picture")
    real, _ = galleries(split_of([0, 0, 1], [1, 2, 1]), "slot 7")
    pictures = [picture_of(tmp_path / name) for name in names(real)]
    assert pictures == [None, None]
    assert [face["jpeg"] for face in as_json(real, pictures)["faces"]] == [None, None]
    assert len(gallery_figure(real, pictures).axes) == 6


def test_a_contact_sheet_of_no_error_says_so():
    _, fake = galleries(split_of([0, 1], [-1, 1]), "slot 7")
    figure = gallery_figure(fake, [])
    assert figure.get_suptitle() == "slot 7: fake taken for real, 0 faces"
