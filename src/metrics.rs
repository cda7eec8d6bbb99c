//! Every metric series, declared once.
