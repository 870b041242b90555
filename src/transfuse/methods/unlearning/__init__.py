"""Methods of the family unlearning: what takes knowledge out of a language model, and what shows it is still there."""
