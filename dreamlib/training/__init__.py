"""Training of networks: augmentation, CutMix, schedules, the trainer, features."""
