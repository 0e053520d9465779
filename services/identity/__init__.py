"""Identity: who someone is. Identifiers come in, an opaque pseudonym goes out.

Owns: links between identities (kept as keyed hashes, never as they are), the subjects that follow from them, the
holdout bucket, and the data keys (wrapped) that personal payloads are sealed with.
Answers: Resolve, Link, Unlink, DescribeSubject, PublishPlaceholders; KeyService.GetDataKeys; HoldingsService.
Emits: IdentityLinked, SubjectsMerged, IdentityUnlinked, SubjectsUnmerged, DataKeyMinted, DataKeyDestroyed,
SubjectErased, PersonalDataAccessed.
Consumes: nothing. It asks consent whether people may be linked.

It keeps nothing of what people agreed to or did: a merge moves no fact of any service, it only changes which members a
person has.
"""
