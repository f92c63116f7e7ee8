from study.search.pruner import PeerMedianPruner as PeerMedianPruner
from study.search.pruner import best_until as best_until
from study.search.sampler import sampler as sampler
from study.search.space import hyperparameters as hyperparameters
from study.search.space import suggest as suggest
