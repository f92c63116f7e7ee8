from .bootstrap import (
    BOOTSTRAP_RESAMPLES as BOOTSTRAP_RESAMPLES,
    draw_photos as draw_photos,
    group_means as group_means,
    intervals as intervals,
    mean_losses as mean_losses,
    percentiles as percentiles,
)
from .calibration import (
    Chosen as Chosen,
    choose as choose,
    choose_threshold as choose_threshold,
    fit_temperature as fit_temperature,
    reliability as reliability,
)
from .classification import (
    ConfusionMatrix as ConfusionMatrix,
    accuracy as accuracy,
    confusion_matrix as confusion_matrix,
    cross_entropy as cross_entropy,
    fake_probability as fake_probability,
    fake_score as fake_score,
    predict as predict,
)
from .figures import (
    METRICS as METRICS,
    MIN_REALS as MIN_REALS,
    logged_figures as logged_figures,
    measure as measure,
    resample as resample,
)
from .weighting import Floats as Floats
