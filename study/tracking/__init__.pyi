from .client import preload as preload
from .delivery import (
    Delivery as Delivery,
    Replay as Replay,
    SyncResult as SyncResult,
    sync as sync,
)
from .description import describe as describe
from .plots import confusion_figure as confusion_figure
from .provenance import (
    Dataset as Dataset,
    dataset as dataset,
    git_commit as git_commit,
    sources as sources,
)
from .registry import (
    CHAMPION as CHAMPION,
    REPORT_BASELINE as REPORT_BASELINE,
    register as register,
    stands_for as stands_for,
)
from .spool import (
    SlotRun as SlotRun,
    Spool as Spool,
    SpoolError as SpoolError,
    run_name as run_name,
)
from .store import (
    WEIGHTS as WEIGHTS,
    LoggedRun as LoggedRun,
    StudyRuns as StudyRuns,
    TrackingError as TrackingError,
    by_hand as by_hand,
    check_tracking as check_tracking,
    differs as differs,
    sqlite_path as sqlite_path,
)
from .system_metrics import Machine as Machine
from .tracker import Tracker as Tracker
from .ui import serve_ui as serve_ui
