"""What the MLflow UI shows of a study as it opens."""

VIEW = "slots"  # the UI's list of runs as it opens: one row a slot, the best first
RUNS_VIEW = {
    "searchFilter": "tags.slot != ''",
    "orderByKey": "metrics.`best_val_loss`",
    "orderByAsc": True,
    "selectedColumns": [
        "metrics.`best_val_loss`",
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
