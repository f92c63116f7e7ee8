"""The studies beside a search: their kind is said, and is no setting of theirs."""

import pickle
from collections.abc import Callable

import pytest

from deepfake.errors import ConfigError
from study.config.fingerprint import fingerprint_of
from study.config.schema import StudyConfig, public_yaml
from study.config.siblings import all_beside, final_of, leak_of
from tests.study.config.test_schema import PREPARED

MakeConfig = Callable[..., StudyConfig]


def test_each_study_beside_a_search_has_its_kind_and_name(make_config: MakeConfig) -> None:
    search = make_config("name=faces")
    assert (search.kind, search.search_name) == ("search", "faces")
    assert [(study.kind, study.name) for study in all_beside(search)] == [
        ("final", "faces-final"),
        ("leak-photo", "faces-leak-photo"),
        ("leak-face", "faces-leak-face"),
    ]
    assert {study.search_name for study in all_beside(search)} == {"faces"}


def test_a_name_says_nothing_of_the_kind(make_config: MakeConfig) -> None:
    config = make_config("name=faces")
    named_so = config.model_copy(update={"name": "faces-final"})
    assert (named_so.kind, named_so.search_name) == ("search", "faces-final")
    renamed = final_of(config).model_copy(update={"name": "other"})
    assert renamed.kind == "final"
    assert pickle.loads(pickle.dumps(renamed)).kind == "final"


def test_a_kind_is_no_setting(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="unknown key 'kind'"):
        make_config("kind=final")
    config = make_config()
    final = final_of(config)
    assert fingerprint_of(final, PREPARED, "w") == fingerprint_of(config, PREPARED, "w")
    assert public_yaml(final) == public_yaml(config).replace("sample", "sample-final", 1)


def test_a_name_that_a_study_beside_would_have_is_refused(make_config: MakeConfig) -> None:
    for end in ("final", "leak-photo", "leak-face"):
        with pytest.raises(ConfigError, match=f"'faces-{end}' is what"):
            make_config(f"name=faces-{end}")


def test_the_pair_that_prices_a_leak_differs_in_how_its_faces_are_split(
    make_config: MakeConfig,
) -> None:
    pair = leak_of(make_config())
    assert {arm: study.data.group_by for arm, study in pair.items()} == {
        "photo": "photo",
        "face": "face",
    }
    photo, face = (study.data for study in pair.values())
    assert photo.work_dir != face.work_dir
    apart = {"group_by": face.group_by, "work_dir": face.work_dir}
    assert photo.model_copy(update=apart) == face


def test_the_pair_of_a_leak_reads_the_boxes_that_prepare_wrote(make_config: MakeConfig) -> None:
    search = make_config("data.box=xyxy_shares")
    assert {of_arm.data.box for of_arm in leak_of(search).values()} == {"xywh"}
    assert final_of(search).data.box == "xyxy_shares"
