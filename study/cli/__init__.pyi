from study.cli.app import main as main
