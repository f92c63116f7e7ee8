from .fingerprint import (
    StudyMismatch as StudyMismatch,
    fingerprint_of as fingerprint_of,
    flattened as flattened,
    refuse_other as refuse_other,
)
from .load import (
    key_value as key_value,
    load_config as load_config,
    load_published as load_published,
    yaml_value as yaml_value,
)
from .schema import (
    FINAL as FINAL,
    OBJECTIVES as OBJECTIVES,
    Objective as Objective,
    Range as Range,
    SearchConfig as SearchConfig,
    Space as Space,
    StudyConfig as StudyConfig,
    TrackingError as TrackingError,
    final_of as final_of,
    has_reruns_alone as has_reruns_alone,
    is_final as is_final,
    is_leak as is_leak,
    leak_name as leak_name,
    of_reruns as of_reruns,
    public_yaml as public_yaml,
    redact as redact,
)
