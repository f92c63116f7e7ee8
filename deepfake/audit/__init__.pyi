from .leak_arms import (
    Arm as Arm,
    arm_of as arm_of,
    leak_dir as leak_dir,
    write_annotations as write_annotations,
)
from .leaks import Audit as Audit, audit as audit
