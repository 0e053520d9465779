"""Learning, offline: what was decided and what came back, made into a ranker that decides.

dataset (ReplayEvents → point-in-time examples) → train (LightGBM) → evaluate → export (ONNX, parity checked) →
register (and activate); pipeline ties them together, ranklens holds the platform against real people's choices.

It reaches the log through ReplayEvents and never a database, and holds no authority: what may be learned from is
decided by consent when the log is replayed.
"""

import os

# ONNX Runtime tells its maker of its use, unless it is told not to before it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
