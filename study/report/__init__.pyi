from study.report.comparison import compare as compare
from study.report.report import write_report as write_report
