from .bootstrap import (
    Floats as Floats,
    auc_of_resamples as auc_of_resamples,
    draw_photos as draw_photos,
    group_means as group_means,
    mean_losses as mean_losses,
    percentiles as percentiles,
    resample as resample,
)
from .calibration import (
    Chosen as Chosen,
    choose as choose,
    choose_threshold as choose_threshold,
    fit_temperature as fit_temperature,
    reliability as reliability,
)
from .classification import (
    BOOTSTRAP_RESAMPLES as BOOTSTRAP_RESAMPLES,
    MIN_REALS as MIN_REALS,
    ConfusionMatrix as ConfusionMatrix,
    accuracy as accuracy,
    confusion_matrix as confusion_matrix,
    cross_entropy as cross_entropy,
    fake_probability as fake_probability,
    fake_score as fake_score,
    intervals as intervals,
    measure as measure,
    predict as predict,
)
from .scorecard import compute_scorecard as compute_scorecard
