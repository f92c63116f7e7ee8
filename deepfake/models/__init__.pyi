from .features import (
    BATCH_ROWS as BATCH_ROWS,
    Features as Features,
    ensure_features as ensure_features,
    robust_features as robust_features,
    rows_to_embed as rows_to_embed,
)
from .variants import (
    MOBILENET_FEATURES as MOBILENET_FEATURES,
    build_head as build_head,
    build_model as build_model,
    count_parameters as count_parameters,
    frozen_backbone as frozen_backbone,
    load_weights as load_weights,
    state_dict_sha256 as state_dict_sha256,
    whole_state as whole_state,
)
