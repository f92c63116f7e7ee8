"""What the MLflow UI shows of a study as it opens."""

from typing import Any

VIEW = "slots"  # the UI's list of runs as it opens: one row a slot, the best first


def runs_view(objective: str) -> dict[str, Any]:
    """objective: of the study, whose best comes first."""
    return {
        "searchFilter": "tags.slot != ''",
        "orderByKey": f"metrics.`best_{objective}`",
        "orderByAsc": True,
        "selectedColumns": [
            f"metrics.`best_{objective}`",
            "metrics.`best_val_auc`",
            "metrics.`test_accuracy`",
            "params.`variant`",
            "params.`lr`",
            "params.`weight_decay`",
            "params.`dropout`",
            "tags.`slot`",
            "tags.`state`",
        ],
    }
