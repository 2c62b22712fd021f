"""The commands `kiln aws ...`: an AWS account's stack and image, and array jobs."""
