//! Fine-tuning: the step, the schedule, checkpoints, the report.
