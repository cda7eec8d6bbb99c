//! The operator's console. Not built yet: its place is on this floor, beside `session`, which it does not know.
