from .leaks import Audit as Audit, audit as audit
