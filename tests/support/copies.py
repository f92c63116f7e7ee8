"""A study's folder at another place, for who changes one that others read."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path


def copy_study(source: Path, target: Path) -> None:
    """With its databases, which name its files by their whole path."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for path in target.rglob("*.db"):
        with closing(sqlite3.connect(path)) as database, database:
            for table, column in _texts(database):
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) '
                    f'WHERE instr("{column}", ?)',
                    (str(source), str(target), str(source)),
                )


def _texts(database: sqlite3.Connection) -> list[tuple[str, str]]:
    return database.execute(
        "SELECT tables.name, columns.name FROM sqlite_master AS tables, "
        "pragma_table_info(tables.name) AS columns WHERE tables.type = 'table' "
        "AND (columns.type LIKE '%CHAR%' OR columns.type LIKE '%TEXT%' "
        "OR columns.type LIKE '%JSON%')"
    ).fetchall()
