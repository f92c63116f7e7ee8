from deepfake.audit.leak_arms import Arm as Arm
from deepfake.audit.leak_arms import arm_of as arm_of
from deepfake.audit.leak_arms import leak_dir as leak_dir
from deepfake.audit.leak_arms import write_annotations as write_annotations
from deepfake.audit.leaks import Audit as Audit
from deepfake.audit.leaks import audit as audit
