"""Work that several ranks share: samples (process_group) and classes (class_group)."""
