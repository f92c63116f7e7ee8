from .fingerprint import (
    StudyMismatch as StudyMismatch,
    fingerprint_of as fingerprint_of,
    flattened as flattened,
    refuse_other as refuse_other,
    settings_of as settings_of,
)
from .load import (
    key_value as key_value,
    load_config as load_config,
    load_published as load_published,
    yaml_value as yaml_value,
)
from .schema import (
    OBJECTIVES as OBJECTIVES,
    Choice as Choice,
    Drawn as Drawn,
    Range as Range,
    SearchConfig as SearchConfig,
    Space as Space,
    StudyConfig as StudyConfig,
    public_yaml as public_yaml,
    redact as redact,
    value_type as value_type,
)
from .siblings import (
    ARMS as ARMS,
    Arm as Arm,
    all_beside as all_beside,
    final_of as final_of,
    leak_dir as leak_dir,
    leak_of as leak_of,
)
