"""What a model costs: parameters, floating-point operations, memory and time, in plain integers, without torch.

One multiply-add counts as two operations. Units are bytes, operations, tokens and seconds.
"""

from lm.accounting.devices import Links as Links
from lm.accounting.devices import Precision as Precision
from lm.accounting.devices import devices as devices
from lm.accounting.devices import host_links as host_links
from lm.accounting.devices import peak_flops as peak_flops
from lm.accounting.fast import covers as covers
from lm.accounting.fast import fast_moments as fast_moments
from lm.accounting.fast import largest_fast_batch as largest_fast_batch
from lm.accounting.flops import Flops as Flops
from lm.accounting.flops import forward_flops as forward_flops
from lm.accounting.flops import model_flop_utilisation as model_flop_utilisation
from lm.accounting.flops import norm_flops as norm_flops
from lm.accounting.flops import optimizer_step as optimizer_step
from lm.accounting.flops import recomputed_flops as recomputed_flops
from lm.accounting.flops import training_flops_per_token as training_flops_per_token
from lm.accounting.memory import Algorithm as Algorithm
from lm.accounting.memory import Backend as Backend
from lm.accounting.memory import Line as Line
from lm.accounting.memory import TrainingPrecision as TrainingPrecision
from lm.accounting.memory import largest_batch as largest_batch
from lm.accounting.memory import moments as moments
from lm.accounting.memory import optimizer_state as optimizer_state
from lm.accounting.memory import saved_activations as saved_activations
from lm.accounting.parameters import Parameters as Parameters
from lm.accounting.parameters import count_parameters as count_parameters
from lm.accounting.presets import PRESETS as PRESETS
from lm.accounting.presets import Workload as Workload
from lm.accounting.presets import read_workload as read_workload
from lm.accounting.report import as_table as as_table
from lm.accounting.report import devices_table as devices_table
from lm.accounting.report import full_account as full_account
from lm.accounting.scaling import Cluster as Cluster
from lm.accounting.scaling import Sent as Sent
from lm.accounting.scaling import Sharded as Sharded
from lm.accounting.scaling_report import sharded_account as sharded_account
from lm.accounting.scaling_report import sharded_table as sharded_table
