from .comparison import Compared as Compared, compare as compare
from .report import write_report as write_report
