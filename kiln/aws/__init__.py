"""AWS: the CloudFormation stack, AWS Batch and array jobs."""
