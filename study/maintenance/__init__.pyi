from .checks import Finding as Finding
from .disk import Usage as Usage
from .doctor import Diagnosis as Diagnosis, examine as examine
from .gc import Collected as Collected, collect as collect
