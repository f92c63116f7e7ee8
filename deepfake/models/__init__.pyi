from .build import (
    build_head as build_head,
    build_model as build_model,
    frozen_backbone as frozen_backbone,
    network_of as network_of,
)
from .features import (
    BATCH_ROWS as BATCH_ROWS,
    Features as Features,
    ensure_features as ensure_features,
    robust_features as robust_features,
    rows_to_embed as rows_to_embed,
)
from .layers import (
    Backbone as Backbone,
    FrozenBackbone as FrozenBackbone,
    count_parameters as count_parameters,
    whole_state as whole_state,
)
from .pretrained import (
    DRAWN as DRAWN,
    Pretrained as Pretrained,
    load_pretrained as load_pretrained,
    load_weights as load_weights,
    state_dict_sha256 as state_dict_sha256,
)
