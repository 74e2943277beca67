"""The threshold integral: runtime (how compiled code runs), argmax (one class wins) and ranking (AUC, average precision)."""
