from study.maintenance.doctor import Diagnosis as Diagnosis
from study.maintenance.doctor import examine as examine
from study.maintenance.gc import Collected as Collected
from study.maintenance.gc import collect as collect
