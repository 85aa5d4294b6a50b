"""What a memory needs above its layer: edits, background, calibration, scoring. It knows no `Memoir`."""
