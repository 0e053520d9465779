"""Decision: what to show.

Owns the catalog, placements, policies, models, and the decision log. Answers DecisionService (Decide, RecordDecisions,
GetDecision, Explain, Replay), CatalogService, ReleaseService and HoldingsService. Emits DecisionMade, SiteApplied,
CatalogChanged, ModelRegistered and ModelActivated. Consumes nothing: identity, consent and features are asked in each
Decide.
"""

import os

# ONNX Runtime tells its maker of its use, unless it is told not to before it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
