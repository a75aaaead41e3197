"""Checkpoints that the original VARS code wrote (`14_model.pth.tar`), turned into ours."""
