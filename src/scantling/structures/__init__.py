"""The types that flow through scantling, one module each; `detections` needs no torch."""
