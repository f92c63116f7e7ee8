from .doctor import Diagnosis as Diagnosis, examine as examine
from .gc import Collected as Collected, collect as collect
