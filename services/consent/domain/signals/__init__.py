"""Consent strings, pure: IAB TCF v2, GPP and US Privacy strings and Sec-GPC, decoded strictly and mapped to purposes.

`decoding` reads what came with a request, `mapping` says what follows for the site's purposes. A string is valid only
as a whole: whatever is not exactly what its specification says is a Problem, and grants nothing.
"""
