"""AWS: the CloudFormation stack, the image, AWS Batch and its array jobs."""
