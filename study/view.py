"""What the MLflow UI shows of a study as it opens."""

from typing import Any

VIEW = "slots"  # the UI's list of runs as it opens: one row a slot, the best first
DRAWN = ["variant", "lr", "weight_decay", "dropout"]


def runs_view(objective: str) -> dict[str, Any]:
    """The state of the UI's list and charts. objective: of the study, whose best comes first."""
    best = f"best_{objective}"
    curves = dict.fromkeys((objective, "val_loss", "train_loss", "val_accuracy"))
    return {
        "searchFilter": "tags.slot != ''",
        "orderByKey": f"metrics.`{best}`",
        "orderByAsc": True,
        "selectedColumns": [
            f"metrics.`{best}`",
            "metrics.`best_val_auc`",
            "metrics.`test_accuracy`",
            *(f"params.`{name}`" for name in DRAWN),
            "tags.`slot`",
            "tags.`state`",
        ],
        "isAccordionReordered": True,  # or the sections go by name
        "compareRunSections": [
            {"uuid": "drawn", "name": "Hyperparameters", "columns": 1, **_SHOWN},
            {"uuid": "curves", "name": "Curves", "columns": 2, **_SHOWN},
        ],
        "compareRunCharts": [
            _chart("PARALLEL", "drawn", best, selectedParams=DRAWN, selectedMetrics=[best]),
            *(_curve(name) for name in curves),
        ],
    }


_SHOWN = {"display": True, "isReordered": False, "cardHeight": 420}


def _chart(kind: str, section: str, name: str, **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{section}-{name}",
        "metricSectionId": section,
        "runsCountToCompare": 1000,
        "showAllRuns": True,
        "deleted": False,
        "isGenerated": False,
        **more,
    }


def _curve(name: str) -> dict[str, Any]:
    return _chart(
        "LINE",
        "curves",
        name,
        metricKey=name,
        selectedMetricKeys=[name],
        xAxisKey="step",
        xAxisScaleType="linear",
        scaleType="log" if name.endswith("loss") else "linear",  # a first epoch's may be 40
        lineSmoothness=0,
        useGlobalLineSmoothing=False,
        useGlobalXaxisKey=False,
        displayPoints=True,
        range={},
    )
