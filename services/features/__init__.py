"""Features: what is known about people and items, as float32 vectors and columns.

Owns: declared features and their versions, the online state of every member, item statistics, item columns.
Answers: GetFeatures, GetItemColumns, DescribeFeatureSet, PublishFeatureSet, AwaitPosition; HoldingsService.
Emits: FeatureSetPublished.
Consumes: behavior from feedback, the catalog from decision.
"""
