"""Tests of Triton kernels under the corrected interpreter.

Triton chooses its interpreter when it is imported, so these files run in processes of their own, started by
`test_interpreted.py` one folder up; pytest ignores them everywhere else. By hand:

    TRITON_INTERPRET=1 pytest tests/kernels/interpreted
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
