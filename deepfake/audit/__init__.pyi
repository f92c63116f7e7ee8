from .leak_arms import write_annotations as write_annotations
from .leaks import Audit as Audit, audit as audit
