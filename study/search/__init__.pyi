from .pruner import PeerMedianPruner as PeerMedianPruner, best_until as best_until
from .sampler import sampler as sampler
from .space import hyperparameters as hyperparameters, suggest as suggest
