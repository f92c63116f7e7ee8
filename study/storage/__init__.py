"""The study database, safe for many processes: the only opener of Optuna's storage.

rdb         Optuna's RDB storage with atomic claims, and calls that outlive an outage
queries     the SQL that Optuna has not
connection  SQLite and PostgreSQL made safe for many processes
private     the private names of Optuna that are used
retry       back-off while the database is away
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
