"""What a privacy officer does: export files, the record of processing, receipts, and looking for what must be gone."""
