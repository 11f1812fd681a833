"""Vectors become answers: tasks, cohort, heads, aggregation, fitting, calibration, the OOD gate, the model file."""
