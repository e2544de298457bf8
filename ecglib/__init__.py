"""ecglib: HeartBEiT on ECG images, one file a stage, from record to page."""
