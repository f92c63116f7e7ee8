from .bootstrap import (
    BOOTSTRAP_RESAMPLES as BOOTSTRAP_RESAMPLES,
    Floats as Floats,
    auc_of_resamples as auc_of_resamples,
    draw_photos as draw_photos,
    group_means as group_means,
    intervals as intervals,
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
    MIN_REALS as MIN_REALS,
    ConfusionMatrix as ConfusionMatrix,
    accuracy as accuracy,
    confusion_matrix as confusion_matrix,
    cross_entropy as cross_entropy,
    fake_probability as fake_probability,
    fake_score as fake_score,
    measure as measure,
    predict as predict,
)
from .scorecard import compute_scorecard as compute_scorecard
