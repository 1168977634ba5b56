"""The compress stage: a trained scene becomes small files, a page to look at it, and a report."""
