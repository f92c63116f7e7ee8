from .analysis import analyse as analyse
from .artifacts import logged_curves_and_galleries as logged_curves_and_galleries
from .error_analysis import jpeg_base64 as jpeg_base64, picture_of as picture_of
from .evaluator import Evaluator as Evaluator
from .export import export_slot as export_slot, register_best as register_best
from .finalists import (
    begin_final as begin_final,
    contenders_of_final as contenders_of_final,
    contenders_of_search as contenders_of_search,
)
from .leak import (
    Price as Price,
    baseline_of as baseline_of,
    begin_leak as begin_leak,
    price as price,
)
from .predictions import SplitPredictions as SplitPredictions, read_predictions as read_predictions
from .results import (
    Analysis as Analysis,
    Cell as Cell,
    Comparison as Comparison,
    Evaluated as Evaluated,
    Evaluation as Evaluation,
    Figure as Figure,
    ModelFigures as ModelFigures,
    SliceRates as SliceRates,
    Welch as Welch,
    evaluation_of as evaluation_of,
)
from .robustness import kinds as kinds, level_name as level_name, steps as steps
from .verdict import MIN_SEEDS as MIN_SEEDS, headline as headline
