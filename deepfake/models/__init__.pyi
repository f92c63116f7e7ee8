from .build import build_model as build_model
from .features import (
    BATCH_ROWS as BATCH_ROWS,
    Features as Features,
    ensure_features as ensure_features,
    robust_features as robust_features,
    rows_to_embed as rows_to_embed,
)
from .layers import (
    count_parameters as count_parameters,
    whole_state as whole_state,
)
from .mobilenet_v2 import (
    MOBILENET_FEATURES as MOBILENET_FEATURES,
    build_head as build_head,
    frozen_backbone as frozen_backbone,
)
from .pretrained import (
    load_weights as load_weights,
    state_dict_sha256 as state_dict_sha256,
)
