"""Consent: who may use what for which purpose, as the person said.

Owns: the ledger of answers (granted, denied, objected, revoked, expired), the policy of the site (purposes, notices,
jurisdictions) and its versions, and what consent signals (Sec-GPC, TCF, GPP, US Privacy) mean for it; the ledger of
erasures; the journal of both outside of the database.
Answers: Record, Revoke, Evaluate (the authority read), History, PublishPurposes, DescribeConsent; a person's rights
over all services (PrivacyService): Export, Rectify, Erase, GetErasure, ListErasures, GetReceipt, GetReceiptKey,
Inventory.
Emits: ConsentGranted, ConsentDenied, ConsentObjected, ConsentRevoked, ConsentExpired, PurposesPublished,
ErasureRequested, ErasureStepTaken, ErasureCompleted, PersonalDataAccessed.
Consumes: nothing. It asks identity who somebody is where a caller gives identities, and every service what it holds
about a person; a merge moves no answer.

It does not decide what is shown, and enforces nothing itself: whoever uses data asks it first.
"""
