"""What may not change while a study lives."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deepfake.transforms.corruptions import SUITE, Corruption
from study.config.fingerprint import StudyMismatch, fingerprint_of, refuse_other
from study.config.schema import StudyConfig

PREPARED = cast(Any, SimpleNamespace(faces_sha256="a", splits_sha256="b", crops_sha256="c"))


def test_corruptions_are_part_of_a_study_whose_objective_they_are_and_of_no_other(
    make_config: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, robust = make_config(), make_config("study.objective=robust_val_loss")
    of_plain, of_robust = (fingerprint_of(config, PREPARED, "") for config in (plain, robust))
    assert of_robust.keys() - of_plain.keys() == {"study.objective", "corruptions (sha256)"}
    assert of_plain.items() <= of_robust.items()

    monkeypatch.setitem(SUITE, "blur_9", Corruption("blur", 9))
    assert fingerprint_of(plain, PREPARED, "") == of_plain
    line = r"other data or settings \(corruptions \(sha256\) was \w{12}, is \w{12}\); undo"
    with pytest.raises(StudyMismatch, match=line):
        refuse_other("name", of_robust, fingerprint_of(robust, PREPARED, ""))
