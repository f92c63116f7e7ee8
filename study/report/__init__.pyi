from .comparison import compare as compare
from .report import write_report as write_report
