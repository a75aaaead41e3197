"""What a checkpoint is worth on a split: answers, figures, pictures and a report; see `training.evaluation.run`."""
