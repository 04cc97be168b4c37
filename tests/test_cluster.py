"Folds on every backend there is: the same bits, also when a worker is killed on the way"
import os
import signal

import numpy as np
import pandas as pd
import pytest

from tests.test_trials import WALK, noise
from tradenb.models.base import out_of_fold
from tradenb.models.cluster import together
from tradenb.models.trees import XGBoost

BACKENDS = ["loky", "dask", "ray"]


def square(i, flag):
    if i == 3 and not os.path.exists(flag):
        with open(flag, "w"): pass
        os.kill(os.getpid(), signal.SIGKILL)
    return i*i


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_the_same_bits_and_a_killed_worker_is_survived(backend, tmp_path):
    flag = str(tmp_path/"killed")
    assert together([(square, i, flag) for i in range(6)], 2, backend) == [0, 1, 4, 9, 16, 25] and os.path.exists(flag)
    model, ds = XGBoost(n_estimators=8, max_depth=2, n_jobs=1), noise(sessions=200)
    one = out_of_fold(model, ds, WALK, trials=None)
    pd.testing.assert_series_equal(out_of_fold(model, ds, WALK, n_jobs=2, backend=backend, trials=None), one, check_exact=True)


def always_dies(_): os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_always_kills_its_worker_ends_with_a_cure():
    with pytest.raises(RuntimeError, match="a worker died 4 times.*lower n_jobs"): together([(always_dies, 0), (always_dies, 1)], 2)


def test_answers_come_in_the_order_of_the_tasks():
    assert together([(np.sqrt, i*i) for i in range(50)], 2, "threading") == list(range(50))
