"""Feedback: what came back, joined to what was decided.

Owns: behavior events and the schemas they are declared by; outcomes (behavior joined to the decision it
answers); a copy of the decision log, sealed as it came, for joining and for learning.
Answers: Track, ReplayEvents, PublishEventSchemas, AwaitPosition, RectifyBehavior; HoldingsService.
Emits: BehaviorRecorded, OutcomeAttributed, EventSchemasPublished.
Consumes: DecisionMade.

It decides nothing, knows no identity (identity resolves them) and keeps no consent (consent is asked
before anything is stored).
"""
