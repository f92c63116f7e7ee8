"""python -m study: the command, where its script is not on the PATH."""

from study.cli import main

main()
