"""A Core for whoever has none: takes callbacks as Core would, and misbehaves on order."""
