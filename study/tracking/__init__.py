"""MLflow as a witness that slows nothing and loses nothing: the only importer of mlflow.

store           MLflow's store looked at: a SQLite file without MLflow's seconds of imports
client          how MLflow is opened, asked, and blamed in one line
tracker         the calls to MLflow: a study's runs, metrics and artifacts, written and read
spool           what training says of a slot, on disk, attempt by attempt
delivery        hands the spool to the tracker beside training, and `sync`; each thing once
provenance      the data sets and the code that a run came from
plots           the two pictures that a worker draws: curves and confusion matrix
description     what the study's run says of it, and how its list of runs opens
registry        models registered under champion and report-baseline, once
system_metrics  CPU, memory, disk, network and GPU while a slot trains
ui              the MLflow UI as a process of its own
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
